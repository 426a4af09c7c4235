"""Internet sockets from the files below /proc/net, for kernels and protocols without sock_diag(7)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.internet_sockets import ICMP, ICMP6, RAW, TCP, UDP, UDPLITE, InternetSocket, on_the_wire

_SOCK_RAW: Final = 3
FILES: Final = {
    ICMP: ("icmp",),
    TCP: ("tcp", "tcp6"),
    UDP: ("udp", "udp6"),
    ICMP6: ("icmp6",),
    UDPLITE: ("udplite", "udplite6"),
    RAW: ("raw", "raw6"),
}


def list_sockets(
    protocol: int, directory: str = "/proc/thread-self/net", check: Callable[[], None] = lambda: None
) -> Iterator[InternetSocket]:
    """The sockets of one protocol in a network namespace, by default the calling thread's.

    A missing file (no IPv6, no such protocol) means no sockets. Raises OSError for any other error.
    """
    for name in FILES[protocol]:
        try:
            content = Path(directory, name).read_bytes()
        except FileNotFoundError:
            continue
        check()
        for line in content.splitlines()[1:]:
            yield _parse(protocol, line.split())


class PacketSocket(NamedTuple):
    """A socket of packet(7). `protocol` is an Ethernet type, or 3 for all; `interface` an index, or 0 for all."""

    raw: bool
    protocol: int
    interface: int
    uid: int
    inode: int


def packet_sockets(directory: str = "/proc/thread-self/net") -> Iterator[PacketSocket]:
    """The packet sockets of a network namespace, by default the calling thread's; none without the file.

    Raises OSError.
    """
    try:
        content = Path(directory, "packet").read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines()[1:]:
        _, _, kind, protocol, interface, _, _, uid, inode = line.split()
        yield PacketSocket(int(kind) == _SOCK_RAW, int(protocol, 16), int(interface), int(uid), int(inode))


def _parse(protocol: int, fields: list[bytes]) -> InternetSocket:
    """Fields: slot, local and remote `ADDRESS:PORT`, state, queues, timer, retransmissions, uid, timeout, inode."""
    local, local_port = _endpoint(fields[1])
    remote, remote_port = _endpoint(fields[2])
    packed = len(local)
    local, remote = on_the_wire(local, remote)
    is_mapped = len(local) != packed
    inode = int(fields[9])
    uid = int(fields[7]) if inode else None
    state = int(fields[3], 16)
    return InternetSocket(
        protocol, state, local, local_port, remote, remote_port, inode, uid, cookie=None, is_mapped=is_mapped
    )


def _endpoint(text: bytes) -> tuple[bytes, int]:
    """`0100007F:1F90`: the address as 32-bit words in host byte order, the port as a number."""
    address, _, port = text.partition(b":")
    raw = bytes.fromhex(address.decode())
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return raw, int(port, 16)
