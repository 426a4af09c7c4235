"""Internet sockets: one record for all ways to list them (sock_diag(7), /proc/net, psutil)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

TCP: Final = 6
UDP: Final = 17
UDPLITE: Final = 136
ICMP: Final = 1
ICMP6: Final = 58
RAW: Final = 255
PROTOCOLS: Final = (ICMP, TCP, UDP, ICMP6, UDPLITE, RAW)


class TcpState(IntEnum):
    """TCP states by the kernel's number (`include/net/tcp_states.h`), except 13, a socket that is only bound.

    A datagram socket is `ESTABLISHED` with a peer and `CLOSE` without.
    """

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    """A connection request in a listener's queue."""


STATES: Final[dict[int, str]] = {
    TcpState.ESTABLISHED: "ESTABLISHED",
    TcpState.SYN_SENT: "SYN_SENT",
    TcpState.SYN_RECV: "SYN_RECEIVED",
    TcpState.FIN_WAIT1: "FIN_WAIT_1",
    TcpState.FIN_WAIT2: "FIN_WAIT_2",
    TcpState.TIME_WAIT: "TIME_WAIT",
    TcpState.CLOSE: "CLOSED",
    TcpState.CLOSE_WAIT: "CLOSE_WAIT",
    TcpState.LAST_ACK: "LAST_ACK",
    TcpState.LISTEN: "LISTEN",
    TcpState.CLOSING: "CLOSING",
    TcpState.NEW_SYN_RECV: "SYN_RECEIVED",
}
"""Their names in tables."""


def state_mask(states: Iterable[int]) -> int:
    """The mask of these states' numbers for sock_diag(7)."""
    return sum(1 << state for state in set(states))


ALL_STATES: Final = state_mask(TcpState)

_V4_MAPPED: Final = bytes(10) + b"\xff\xff"
_NONE_V6: Final = bytes(16)
_NONE_V4: Final = bytes(4)


class TcpTraffic(NamedTuple):
    """What a TCP connection has carried: bytes of payload, without retransmissions, and segments."""

    bytes_sent: int
    bytes_received: int
    segments_sent: int
    segments_received: int


class InternetSocket(NamedTuple):
    """A socket of one network namespace. Addresses are in network form, both of 4 or both of 16 bytes.

    An IPv6 socket that is used for IPv4 has IPv4 addresses, as its packets do. `inode` is 0 for sockets that no process
    can have open: connections in TIME_WAIT, and those that a listener has not accepted yet. `cookie` identifies the
    socket until the system is rebooted. `traffic` is there if it was asked for and the kernel tells it. `is_mapped`
    if it is an IPv6 socket with IPv4 addresses.
    """

    protocol: int
    state: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    inode: int
    uid: int | None
    cookie: int | None
    traffic: TcpTraffic | None = None
    is_mapped: bool = False

    @property
    def connected(self) -> bool:
        """Whether it has a peer."""
        return self.remote_port != 0 and any(self.remote)


def on_the_wire(local: bytes, remote: bytes) -> tuple[bytes, bytes]:
    """Addresses of an IPv6 socket in the family of its packets: IPv4 if one is an IPv4-mapped address."""
    if local.startswith(_V4_MAPPED) or remote.startswith(_V4_MAPPED):
        return (
            _NONE_V4 if local == _NONE_V6 else local[12:],
            _NONE_V4 if remote == _NONE_V6 else remote[12:],
        )
    return local, remote


@lru_cache(maxsize=4096)
def address_text(address: bytes) -> str:
    """An address in network form as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
