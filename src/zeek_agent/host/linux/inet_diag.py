"""Internet sockets of the calling thread's network namespace, from sock_diag(7)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from zeek_agent.host.linux import netlink, proc_net
from zeek_agent.host.linux.internet_sockets import ALL_STATES, PROTOCOLS, TCP, UDP, UDPLITE, InternetSocket, on_the_wire

_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = struct.Struct("=BBBBI48x")

# struct inet_diag_msg of linux/inet_diag.h: numbers are in host byte order, ports and addresses in network byte order;
# an IPv4 address is in the first 4 bytes.
_NUMBERS: Final = struct.Struct("=BBBB4x32x4xII4x4x4xII")
_ENDPOINTS: Final = struct.Struct(">4xHH16s16s")


def list_sockets(
    protocols: Collection[int] = PROTOCOLS,
    states: int = ALL_STATES,
    check: Callable[[], None] = lambda: None,
) -> Iterator[InternetSocket]:
    """The sockets of these protocols; `states` is a mask of TCP states by the kernel's numbers.

    Protocols for which this kernel has no sock_diag are read from /proc/net. Raises OSError when neither works.
    """
    for protocol in protocols:
        if protocol in {TCP, UDP, UDPLITE}:
            try:
                answers = [_dump(family, protocol, states) for family in (socket.AF_INET, socket.AF_INET6)]
            except (FileNotFoundError, PermissionError):
                yield from _from_proc(protocol, states, check)
            else:
                for bodies in answers:
                    check()
                    yield from parse_messages(protocol, bodies)
        else:
            yield from _from_proc(protocol, states, check)


def sockets_on(
    channel: socket.socket, protocols: Collection[int], states: int, proc_net_path: str, check: Callable[[], None]
) -> list[InternetSocket]:
    """The same in the network namespace of an open netlink socket, whose /proc/PID/net is at that path."""
    found: list[InternetSocket] = []
    for protocol in protocols:
        check()
        try:
            if protocol not in {TCP, UDP, UDPLITE}:
                raise FileNotFoundError(protocol)
            found += dump_on(channel, protocol, states)
        except FileNotFoundError:
            listed = proc_net.list_sockets(protocol, proc_net_path, check)
            found += (one for one in listed if states >> one.state & 1)
    return found


def dump_on(channel: socket.socket, protocol: int, states: int) -> Iterator[InternetSocket]:
    """The sockets of one protocol in the network namespace of an open netlink socket."""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, protocol, 0, 0, states)
        yield from parse_messages(protocol, netlink.dump_on(channel, _SOCK_DIAG_BY_FAMILY, request))


def _dump(family: int, protocol: int, states: int) -> list[bytes]:
    request = _REQUEST.pack(family, protocol, 0, 0, states)
    return netlink.dump(netlink.NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request)


def _from_proc(protocol: int, states: int, check: Callable[[], None]) -> Iterator[InternetSocket]:
    return (found for found in proc_net.list_sockets(protocol, check=check) if states >> found.state & 1)


def parse_messages(protocol: int, bodies: Iterable[bytes]) -> Iterator[InternetSocket]:
    """The sockets in messages, each of which is a `struct inet_diag_msg`."""
    numbers, endpoints = _NUMBERS.unpack_from, _ENDPOINTS.unpack_from
    for body in bodies:
        family, state, _, _, cookie_low, cookie_high, uid, inode = numbers(body)
        local_port, remote_port, local, remote = endpoints(body)
        if family == socket.AF_INET:
            local, remote = local[:4], remote[:4]
        else:
            local, remote = on_the_wire(local, remote)
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
        )
