"""Unix sockets (unix(7)), from sock_diag(7), or where the kernel lacks that for them, from /proc/net/unix."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.linux import netlink
from zeek_agent.text import from_bytes

_SOCK_DIAG_BY_FAMILY: Final = 20
_SHOW_NAME: Final = 1
_ALL_STATES: Final = 0xFFFF_FFFF
_REQUEST: Final = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME, 0, 0)
"""`struct unix_diag_req` of linux/unix_diag.h."""
_MESSAGE: Final = struct.Struct("=4xI8x")
"""`udiag_ino` of `struct unix_diag_msg`."""
_NAME: Final = 0


class UnixSocket(NamedTuple):
    """A Unix socket. `path` is empty without a name; that of an abstract name begins with `@`.

    `inode` is 0 for a connection that has not been accepted yet.
    """

    inode: int
    path: str


def list_unix_sockets() -> list[UnixSocket]:
    """Those of the calling thread's network namespace. Raises OSError."""
    try:
        return _parsed(netlink.dump(netlink.NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST))
    except (FileNotFoundError, PermissionError):
        return list(unix_sockets_from_proc("/proc/thread-self/net"))


def unix_sockets_on(channel: socket.socket, directory: str) -> list[UnixSocket]:
    """The same in the network namespace of an open netlink socket."""
    try:
        return _parsed(netlink.dump_on(channel, _SOCK_DIAG_BY_FAMILY, _REQUEST))
    except FileNotFoundError:
        return list(unix_sockets_from_proc(directory))


def unix_sockets_from_proc(directory: str) -> Iterator[UnixSocket]:
    """The same from the file `unix` there, where a line break in a name looks like the end of a line. Raises OSError.

    Fields: address, references, protocol, flags, type, state, inode, and the path, which may contain blanks.
    """
    for line in Path(directory, "unix").read_bytes().split(b"\n")[1:]:
        fields = line.split(None, 7)
        if len(fields) >= 7 and fields[0].endswith(b":") and fields[6].isdigit():
            yield UnixSocket(int(fields[6]), from_bytes(fields[7]) if len(fields) > 7 else "")


def _parsed(bodies: Iterable[bytes]) -> list[UnixSocket]:
    return [
        UnixSocket(
            _MESSAGE.unpack_from(body)[0],
            next((_path(name) for kind, name in netlink.attributes(body, _MESSAGE.size) if kind == _NAME), ""),
        )
        for body in bodies
    ]


def _path(name: bytes) -> str:
    """A name as /proc/net/unix shows it."""
    if name.startswith(b"\0"):
        return from_bytes(name.replace(b"\0", b"@"))
    return from_bytes(name.removesuffix(b"\0").replace(b"\0", b"@"))
