"""Dumps over netlink(7), and the attributes in their messages."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from itertools import count
from typing import Final

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP: Final = 0x300
_NLM_F_DUMP_INTR: Final = 0x10
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")
_BUFFER_BYTES: Final = 1 << 16
"""More than the kernel puts into one datagram of a dump."""
_ATTEMPTS: Final = 5
"""How often a dump interrupted by changes is requested before it is used as it is."""
_TYPE_MASK: Final = 0x3FFF

_sequences = count(1)


def dump(family: int, kind: int, request: bytes) -> list[bytes]:
    """Send one dump request to the kernel and return the bodies of all messages of the reply.

    A dump that the kernel marks as interrupted by changes is repeated a few times, and then used as it is. Raises
    OSError with the kernel's reason, such as ENOENT for a family that it does not have.
    """
    with channel(family) as opened:
        return dump_on(opened, kind, request)


def channel(family: int) -> socket.socket:
    """A socket for several requests. It stays in the network namespace in which it was opened."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)


def dump_on(opened: socket.socket, kind: int, request: bytes) -> list[bytes]:
    """`dump` on an open socket."""
    first = next(_sequences) * _ATTEMPTS & 0x0FFF_FFFF
    for sequence in range(first, first + _ATTEMPTS):
        header = _HEADER.pack(_HEADER.size + len(request), kind, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0)
        opened.send(header + request)
        bodies, consistent = _answer(opened, sequence)
        if consistent:
            break
    return bodies


def _answer(opened: socket.socket, sequence: int) -> tuple[list[bytes], bool]:
    bodies: list[bytes] = []
    consistent = True
    unpack, size = _HEADER.unpack_from, _HEADER.size
    while True:
        part = opened.recv(_BUFFER_BYTES)
        offset, end = 0, len(part)
        while offset + size <= end:
            length, kind, flags, answered, _ = unpack(part, offset)
            if length < size or offset + length > end:
                raise OSError(errno.EBADMSG, "netlink message is truncated")
            if answered == sequence:
                if flags & _NLM_F_DUMP_INTR:
                    consistent = False
                if kind in {_NLMSG_DONE, _NLMSG_ERROR}:
                    code = _ERROR.unpack_from(part, offset + size)[0] if length >= size + 4 else 0
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    return bodies, consistent
                bodies.append(part[offset + size : offset + length])
            offset += (length + 3) & ~3


def attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """The attributes from `offset` on, of a message or of another attribute's value, as type and value."""
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
