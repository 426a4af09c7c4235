"""Unix sockets that only their owner and a group may use."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zeek_agent.control_transport import (
    Connection,
    ControlTransport,
    Listener,
    NotListeningError,
    Section,
    ServeConnection,
)
from zeek_agent.errors import UsageError, ZeekAgentError

PATH_BYTES_MAX: Final = 107
"""Linux's limit on a socket's path (unix(7))."""
NAME_BYTES_MAX: Final = 64
"""Maximum of a file name that is appended to the path of an open directory."""
PROBE_TIMEOUT_SECONDS: Final = 5.0
"""A running agent accepts at once."""

_SETTINGS: Final = {"control": "control.socket", "metrics": "metrics.listen"}
"""The setting with the path, by section."""


class UnixSockets(ControlTransport):
    """Connections over Unix sockets, whose address is a path."""

    async def listen(
        self,
        address: Path,
        group: str | None,
        section: Section,
        serve: ServeConnection,
        *,
        backlog: int,
        stream_bytes: int,
    ) -> Listener:
        listener = listening(address, group, section, backlog)
        server = await asyncio.start_unix_server(serve, sock=listener, limit=stream_bytes, backlog=backlog)
        return _UnixListener(server, address)

    def connect(self, address: Path, timeout_seconds: float) -> Connection:
        return _UnixConnection(address, timeout_seconds)

    def peer(self, writer: asyncio.StreamWriter) -> str:
        if not hasattr(socket, "SO_PEERCRED"):
            return ""
        connection = writer.get_extra_info("socket")
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        pid, uid, _ = struct.unpack("iII", raw)
        return f" uid={uid} pid={pid}"

    def check_group(self, group: str, section: str) -> None:
        group_id(group, section)


class _UnixListener:
    def __init__(self, server: asyncio.Server, path: Path) -> None:
        self._server = server
        self._path = path

    def close(self) -> None:
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class _UnixConnection:
    def __init__(self, path: Path, timeout_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout_seconds)
            with socket_address(path) as address:
                self._socket.connect(address)
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_line(self) -> bytes:
        return self._lines.readline()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """The address of a Unix socket: its path, or for a long path one that leads there while the context lasts.

    Raises UsageError if there is no short address, and OSError if there is no such directory.
    """
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield str(path)
        return
    if not hasattr(os, "O_PATH") or len(os.fsencode(path.name)) > NAME_BYTES_MAX:
        raise UsageError(
            f"the control socket's path is longer than the {PATH_BYTES_MAX} bytes that the system allows: {path}; "
            "set a shorter control.socket"
        )
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listening(path: Path, group: str | None, section: Section, backlog: int) -> socket.socket:
    """A listening socket. It appears at `path` in one step, with its owner, group and mode set.

    `section` is that of the configuration, for messages. Raises UsageError for an invalid path or group,
    NotListeningError if the system refuses, ZeekAgentError if something else is at the path.
    """
    fresh = path.with_name(f"{path.name}.new")
    gid = None if group is None else group_id(group, section)
    listener = socket.socket(socket.AF_UNIX)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        _remove_stale(path, section)
        fresh.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            with socket_address(fresh) as address:
                listener.bind(address)
        finally:
            os.umask(mask)
        if gid is not None:
            os.chown(fresh, -1, gid)
            fresh.chmod(0o660)
        listener.listen(backlog)
        listener.setblocking(False)
        fresh.replace(path)
    except OSError as error:
        listener.close()
        raise NotListeningError(f"cannot create the {section} socket {path}: {error.strerror}") from None
    except ZeekAgentError:
        listener.close()
        raise
    return listener


def group_id(group: str, section: str) -> int:
    """The id of a group that a section of the configuration names.

    Raises UsageError if it does not exist or cannot own a file.
    """
    import grp

    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"{section}.group: no such group: {group!r}") from None
    if number in {-1, 0xFFFF_FFFF}:  # chown(2) would leave the group as it is
        raise UsageError(f"{section}.group: group {group!r} has gid 4294967295, which cannot own a file")
    return number


def _remove_stale(path: Path, section: str) -> None:
    """Remove the socket left by a crashed agent. Raises ZeekAgentError if something else is at the path."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise ZeekAgentError(f"cannot create the {section} socket: {path} exists and is not a socket; remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_SECONDS)
        with socket_address(path) as address:
            refused = probe.connect_ex(address)
    if refused not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ZeekAgentError(f"another agent listens on {path}; stop it or set another {_SETTINGS[section]}")
    path.unlink(missing_ok=True)
