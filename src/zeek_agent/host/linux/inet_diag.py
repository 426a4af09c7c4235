"""Internet sockets of the calling thread's network namespace, from sock_diag(7)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from zeek_agent.host.internet_sockets import (
    ALL_STATES,
    PROTOCOLS,
    TCP,
    UDP,
    UDPLITE,
    InternetSocket,
    TcpState,
    TcpTraffic,
    on_the_wire,
)
from zeek_agent.host.linux import netlink, proc_net

_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = struct.Struct("=BBBBI48x")

# struct inet_diag_msg of linux/inet_diag.h: numbers are in host byte order, ports and addresses in network byte order;
# an IPv4 address is in the first 4 bytes.
_NUMBERS: Final = struct.Struct("=BBBB4x32x4xII4x4x4xII")
_ENDPOINTS: Final = struct.Struct(">4xHH16s16s")
_IPV4_BYTES: Final = 4
_ATTRIBUTES: Final = 72
"""Offset of the attributes, behind `struct inet_diag_msg`."""
_INFO: Final = 2
"""INET_DIAG_INFO, a `struct tcp_info`."""
_TCP_INFO: Final = struct.Struct("=128xQII56xQQ")
"""tcpi_bytes_received, tcpi_segs_out, tcpi_segs_in, tcpi_bytes_sent and tcpi_bytes_retrans (Linux 4.19)."""
_WITH_FIN: Final = frozenset({TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING, TcpState.TIME_WAIT})
"""States in which the received bytes include the peer's FIN, which the kernel counts as one."""


def list_sockets(
    protocols: Collection[int] = PROTOCOLS,
    states: int = ALL_STATES,
    check: Callable[[], None] = lambda: None,
    *,
    with_traffic: bool = False,
) -> Iterator[InternetSocket]:
    """The sockets of these protocols; `states` is a mask of TCP states by the kernel's numbers.

    With `with_traffic`, TCP sockets have their counts of bytes and segments.

    Protocols for which this kernel has no sock_diag are read from /proc/net. Raises OSError when neither works.
    """
    for protocol in protocols:
        if protocol in {TCP, UDP, UDPLITE}:
            try:
                answers = [
                    netlink.dump(netlink.NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request)
                    for request in _requests(protocol, states, with_traffic)
                ]
            except (FileNotFoundError, PermissionError):
                yield from _from_proc(protocol, states, check)
            else:
                for bodies in answers:
                    check()
                    yield from parse_messages(protocol, bodies, with_traffic=with_traffic)
        else:
            yield from _from_proc(protocol, states, check)


def sockets_on(
    channel: socket.socket,
    protocols: Collection[int],
    states: int,
    proc_net_path: str,
    check: Callable[[], None],
    *,
    with_traffic: bool = False,
) -> list[InternetSocket]:
    """The same in the network namespace of an open netlink socket, whose /proc/PID/net is at that path."""
    found: list[InternetSocket] = []
    for protocol in protocols:
        check()
        try:
            if protocol not in {TCP, UDP, UDPLITE}:
                raise FileNotFoundError(protocol)
            found += dump_on(channel, protocol, states, with_traffic=with_traffic)
        except FileNotFoundError:
            listed = proc_net.list_sockets(protocol, proc_net_path, check)
            found += (one for one in listed if states >> one.state & 1)
    return found


def dump_on(
    channel: socket.socket, protocol: int, states: int, *, with_traffic: bool = False
) -> Iterator[InternetSocket]:
    """The sockets of one protocol in the network namespace of an open netlink socket."""
    for request in _requests(protocol, states, with_traffic):
        bodies = netlink.dump_on(channel, _SOCK_DIAG_BY_FAMILY, request)
        yield from parse_messages(protocol, bodies, with_traffic=with_traffic)


def _requests(protocol: int, states: int, with_traffic: bool) -> list[bytes]:
    extension = 1 << _INFO - 1 if with_traffic and protocol == TCP else 0
    return [_REQUEST.pack(family, protocol, extension, 0, states) for family in (socket.AF_INET, socket.AF_INET6)]


def _from_proc(protocol: int, states: int, check: Callable[[], None]) -> Iterator[InternetSocket]:
    return (found for found in proc_net.list_sockets(protocol, check=check) if states >> found.state & 1)


def parse_messages(protocol: int, bodies: Iterable[bytes], *, with_traffic: bool = False) -> Iterator[InternetSocket]:
    """The sockets in messages, each of which is a `struct inet_diag_msg`."""
    numbers, endpoints = _NUMBERS.unpack_from, _ENDPOINTS.unpack_from
    for body in bodies:
        family, state, _, _, cookie_low, cookie_high, uid, inode = numbers(body)
        local_port, remote_port, local, remote = endpoints(body)
        is_mapped = False
        if family == socket.AF_INET:
            local, remote = local[:4], remote[:4]
        else:
            local, remote = on_the_wire(local, remote)
            is_mapped = len(local) == _IPV4_BYTES
        yield InternetSocket(
            protocol,
            state,
            local,
            local_port,
            remote,
            remote_port,
            inode,
            uid if inode else None,
            cookie_high << 32 | cookie_low,
            _traffic(state, body) if with_traffic else None,
            is_mapped,
        )


def _traffic(state: int, body: bytes) -> TcpTraffic | None:
    for kind, info in netlink.attributes(body, _ATTRIBUTES):
        if kind == _INFO and len(info) >= _TCP_INFO.size:
            received, segments_sent, segments_received, sent, sent_again = _TCP_INFO.unpack_from(info)
            if received and state in _WITH_FIN:
                received -= 1
            return TcpTraffic(sent - sent_again, received, segments_sent, segments_received)
    return None
