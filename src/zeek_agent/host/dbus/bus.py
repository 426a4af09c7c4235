"""A connection to a message bus over a Unix socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from zeek_agent.host.dbus.messages import (
    ERROR,
    METHOD_RETURN,
    PREFIX_BYTES,
    DbusError,
    Message,
    message_bytes,
    method_call,
    parse,
)

CALLS_UNDERWAY_MAX: Final = 64
"""Half of what the system bus permits per connection."""
_SECONDS_BETWEEN_CHECKS: Final = 0.2
_AUTHENTICATION_BYTES_MAX: Final = 16_384
_CHUNK_BYTES: Final = 1 << 16

Call: TypeAlias = tuple[str, str, str, str, tuple[str, ...]]
"""Destination, object path, interface, member and arguments of a method call."""


class ConnectionClosedError(DbusError):
    """The other side ended the connection."""


class Bus:
    """Use it as a context manager. `check` is called while it waits, and ends that by raising.

    Raises OSError if nothing listens, and DbusError for all that goes wrong later.
    """

    def __init__(self, path: str, check: Callable[[], None]) -> None:
        self._check = check
        self._serial = 0
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_SECONDS_BETWEEN_CHECKS)
            self._socket.connect(path)
            self._introduce()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, destination: str, path: str, interface: str, member: str, *arguments: str) -> tuple[Any, ...]:
        """The values that a method returns. Raises DbusError."""
        (answer,) = self.calls([(destination, path, interface, member, arguments)])
        if isinstance(answer, DbusError):
            raise answer
        return answer

    def calls(self, calls: Sequence[Call]) -> list[tuple[Any, ...] | DbusError]:
        """What each of several methods returns, or the error. Raises DbusError for an answer that is not one."""
        answers: list[tuple[Any, ...] | DbusError] = []
        for start in range(0, len(calls), CALLS_UNDERWAY_MAX):
            answers += self._some_calls(calls[start : start + CALLS_UNDERWAY_MAX])
        return answers

    def _some_calls(self, calls: Sequence[Call]) -> Iterator[tuple[Any, ...] | DbusError]:
        first = self._serial + 1
        self._serial += len(calls)
        requests = (
            method_call(serial, destination, path, interface, member, *arguments)
            for serial, (destination, path, interface, member, arguments) in enumerate(calls, first)
        )
        self._send(b"".join(requests))
        answered: dict[int, tuple[Any, ...] | DbusError] = {}
        while len(answered) < len(calls):
            message = self._next_message()
            if first <= message.serial <= self._serial and message.kind in {METHOD_RETURN, ERROR}:
                answered[message.serial] = message.body() if message.kind == METHOD_RETURN else _error(message)
        return (answered[serial] for serial in range(first, self._serial + 1))

    def _next_message(self) -> Message:
        self._fill(PREFIX_BYTES)
        length = message_bytes(self._received)
        self._fill(length)
        message = bytes(self._received[:length])
        del self._received[:length]
        return parse(message)

    def _authenticate(self) -> None:
        """By the peer's credentials, which the bus reads from the socket: AUTH EXTERNAL."""
        identity = str(os.geteuid()).encode().hex()
        self._send(f"\0AUTH EXTERNAL {identity}\r\n".encode())
        while b"\r\n" not in self._received:
            if len(self._received) > _AUTHENTICATION_BYTES_MAX:
                raise DbusError("the bus does not answer to the authentication")
            self._receive()
        answer, _, rest = bytes(self._received).partition(b"\r\n")
        if not answer.startswith(b"OK "):
            raise DbusError("the bus refuses the authentication")
        self._received = bytearray(rest)
        self._send(b"BEGIN\r\n")

    def _introduce(self) -> None:
        try:
            self._authenticate()
            self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except ConnectionClosedError as error:
            raise DbusError(
                f"the bus refuses uid {os.geteuid()}: dbus-daemon(1) does so if no account has it, or by its policy"
            ) from error

    def _send(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            self._check()
            try:
                left = left[self._socket.send(left) :]
            except TimeoutError:
                continue
            except OSError as error:
                raise ConnectionClosedError(f"the connection to the bus broke: {error.strerror}") from error

    def _fill(self, length: int) -> None:
        while len(self._received) < length:
            self._receive()

    def _receive(self) -> None:
        while True:
            self._check()
            try:
                chunk = self._socket.recv(_CHUNK_BYTES)
            except TimeoutError:
                continue
            except OSError as error:
                raise ConnectionClosedError(f"the connection to the bus broke: {error.strerror}") from error
            if not chunk:
                raise ConnectionClosedError("the bus has closed the connection")
            self._received += chunk
            return


def _error(message: Message) -> DbusError:
    (text, *_) = (*message.body(), "")
    return DbusError(f"{message.error}: {text}" if isinstance(text, str) and text else message.error, message.error)
