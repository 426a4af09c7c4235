"""Docker's engine, asked over its Unix socket: GET requests of the Engine API, which answer with JSON."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

ANSWER_BYTES_MAX: Final = 32 << 20
"""A list of 10,000 containers has about 15 MB."""
_HEAD_BYTES_MAX: Final = 65_536
_CHUNK_BYTES: Final = 1 << 16
_SECONDS_BETWEEN_CHECKS: Final = 0.2
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_ID: Final = re.compile(r"[0-9a-fA-F]{1,64}")


class DockerError(Exception):
    """The engine did not answer, or not as its documentation says."""


class Docker:
    """Asks the engine at that socket. `check` is called while it waits, and ends that by raising."""

    def __init__(self, path: str, check: Callable[[], None]) -> None:
        self._path = path
        self._check = check

    def get(self, path: str, **parameters: str) -> Any:
        """The JSON document at a path; None if there is no such object, or no engine at all. Raises DockerError."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        target = f"{path}?{query}" if query else path
        try:
            answer = self._answer(target)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise DockerError(f"{self._path}: {error.strerror}") from error
        if answer is None:
            return None
        head, body = answer
        found = _STATUS.match(head)
        if found is None:
            raise DockerError("the answer is not HTTP")
        status = int(found[1])
        if status == 404:
            return None
        if status != 200:
            raise DockerError(f"GET {path} was answered with status {status}")
        length = _LENGTH.search(head)
        if (length is not None and int(length[1]) != len(body)) or _CHUNKED.search(head) is not None:
            raise DockerError(f"the answer to GET {path} is incomplete")
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DockerError(f"the answer to GET {path} is not JSON") from error

    def objects(self, path: str, **parameters: str) -> list[Mapping[str, Any]]:
        """The elements of the array at a path; those that are not objects are left out."""
        return objects(self.get(path, **parameters))

    def _answer(self, target: str) -> tuple[bytes, bytes] | None:
        """Head, with the line end of its last line, and body. With HTTP/1.0, the body ends with the connection."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(_SECONDS_BETWEEN_CHECKS)
            connection.connect(self._path)
            connection.sendall(f"GET {target} HTTP/1.0\r\nHost: docker\r\nAccept: application/json\r\n\r\n".encode())
            received = bytearray()
            while chunk := self._receive(connection):
                received += chunk
                if len(received) > ANSWER_BYTES_MAX:
                    raise DockerError(f"the answer to GET {target} has more than {ANSWER_BYTES_MAX} bytes")
        end = received.find(b"\r\n\r\n", 0, _HEAD_BYTES_MAX)
        if end < 0:
            raise DockerError("the answer is not HTTP")
        return bytes(received[: end + 2]), bytes(received[end + 4 :])

    def _receive(self, connection: socket.socket) -> bytes:
        while True:
            self._check()
            try:
                return connection.recv(_CHUNK_BYTES)
            except TimeoutError:
                continue


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a JSON array; none for anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def member(value: Any, path: str) -> Any:
    """The value at a path such as `State.Pid`; None if there is none."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def text(value: Any, path: str) -> str:
    """The text there; empty if it is not one."""
    found = member(value, path)
    return found if isinstance(found, str) else ""


def whole(value: Any, path: str) -> int:
    """The whole number there; 0 if it is not one, or has more than 64 bits."""
    found = member(value, path)
    return found if type(found) is int and -(2**63) <= found < 2**63 else 0


def flag(value: Any, path: str) -> int:
    """1 if there is `true`, else 0."""
    return int(member(value, path) is True)


def texts(value: Any, path: str) -> list[str]:
    """The texts in the array there."""
    found = member(value, path)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def plain_id(identifier: str) -> str:
    """An id without the name of its hash."""
    return identifier.removeprefix("sha256:")


def ids(values: Iterable[object]) -> list[str]:
    """Those of the values that can be ids, or the beginnings of ids."""
    return sorted(value for value in values if isinstance(value, str) and _ID.fullmatch(value))


def asked_id(full: str, asked: Iterable[str]) -> str:
    """The value by which a statement asked for an id: the beginning suffices; otherwise the id."""
    return next((one for one in asked if full.startswith(one)), full)


def labels(value: Any) -> Iterator[tuple[str, str]]:
    """The labels of an object."""
    found = member(value, "Labels")
    for key, one in found.items() if isinstance(found, dict) else ():
        if isinstance(one, str):
            yield key, one
