"""Unix sockets (unix(7)), from sock_diag(7), or where the kernel lacks that for them, from /proc/net/unix."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.linux import netlink
from zeek_agent.text import from_bytes

_SOCK_DIAG_BY_FAMILY: Final = 20
_SHOW_NAME: Final = 1
_AF_UNIX: Final = 1
_ALL_STATES: Final = 0xFFFF_FFFF
_REQUEST: Final = struct.pack("=BBHIIIII", _AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME, 0, 0)
"""`struct unix_diag_req` of linux/unix_diag.h."""
_MESSAGE: Final = struct.Struct("=4xI8x")
"""`udiag_ino` of `struct unix_diag_msg`."""
_NAME: Final = 0
_LINE: Final = re.compile(
    rb"[0-9a-f]{8,16}: [0-9A-F]{8} 0{8} [0-9A-F]{8} [0-9A-F]{4} [0-9A-F]{2} +([0-9]{1,20})(?: (.*))?", re.DOTALL
)


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
    """The same from the file `unix` there. Raises OSError.

    Fields: address, references, protocol, flags, type, state, inode, and the path, which may contain any character. A
    line after a line break in a path can be told from that of another socket unless it has the same format.
    """
    inode, path = None, b""
    for line in Path(directory, "unix").read_bytes().removesuffix(b"\n").split(b"\n")[1:]:
        found = _LINE.fullmatch(line)
        if found is None:
            path += b"\n" + line
            continue
        if inode is not None:
            yield UnixSocket(inode, from_bytes(path))
        inode, path = int(found[1]), found[2] or b""
    if inode is not None:
        yield UnixSocket(inode, from_bytes(path))


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
