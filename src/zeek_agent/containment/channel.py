"""Packets with descriptors over a Unix SEQPACKET socket.

A body that is too long for one packet travels in a sealed memory file whose descriptor comes first.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final

INLINE_BYTES: Final = 160_000
"""Longest body in a packet, below the send buffer. A worker, which may make no memory file, sends nothing longer."""
SEND_BUFFER: Final = 212_992
"""The default of net.core.wmem_max: the largest send buffer that an unprivileged process gets."""
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest body that is accepted: what the agent's own tables can hold."""
DESCRIPTORS_MAX: Final = 2
_INLINE, _IN_FILE = b"i", b"f"


class ChannelError(Exception):
    """The other side sent something that is not a packet of this kind."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return ends


def send(channel: socket.socket, body: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet. Raises OSError: BlockingIOError on a non-blocking socket whose reader is behind."""
    if len(body) <= INLINE_BYTES:
        socket.send_fds(channel, [_INLINE + body], descriptors)
        return
    import fcntl

    file = os.memfd_create("zeek-agent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(file, "wb", closefd=False) as stream:
            stream.write(body)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        socket.send_fds(channel, [_IN_FILE], [file, *descriptors])
    finally:
        os.close(file)


def receive_body(channel: socket.socket) -> bytes | None:
    """The same from a peer that is not trusted: one packet's body, without descriptors or a memory file.

    Such a descriptor is never installed here: close(2) on a file of a hung FUSE file system would wait for it.
    """
    packet, _, flags, _ = channel.recvmsg(1 + INLINE_BYTES, 0, socket.MSG_CMSG_CLOEXEC)
    if flags & socket.MSG_CTRUNC:
        raise ChannelError("a packet has descriptors")
    if not packet:
        return None
    if flags & socket.MSG_TRUNC or packet[:1] != _INLINE:
        raise ChannelError("a packet is longer than allowed, or has no known kind")
    return packet[1:]


def receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """One packet's body and descriptors, which the caller closes; None at the end of the connection.

    Raises ChannelError for a malformed packet, OSError as recvmsg(2) does.
    """
    packet, descriptors, flags, _ = socket.recv_fds(channel, 1 + INLINE_BYTES, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
    if not packet and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ChannelError("a packet is longer than allowed")
        if packet[:1] == _INLINE:
            return packet[1:], descriptors
        if packet != _IN_FILE or not descriptors:
            raise ChannelError("a packet has no known kind")
        file = descriptors.pop(0)
        try:
            return _read_file(file), descriptors
        finally:
            os.close(file)
    except ChannelError:
        close_all(descriptors)
        raise


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _read_file(file: int) -> bytes:
    import fcntl

    try:
        seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
        size = os.fstat(file).st_size
    except OSError as error:
        raise ChannelError(f"a packet's body is not in a memory file: {error}") from None
    if not seals & fcntl.F_SEAL_SHRINK or size > BODY_BYTES_MAX:
        raise ChannelError(f"a packet's body of {size} bytes is not sealed or too long")
    body = os.pread(file, size, 0)
    if len(body) != size:
        raise ChannelError("a packet's body is shorter than its file")
    return body
