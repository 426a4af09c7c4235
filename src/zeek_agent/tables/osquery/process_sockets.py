"""Sockets of processes: of the internet, Unix and packet sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

from zeek_agent.bpf.iterators import loaded_iterators
from zeek_agent.host.internet_sockets import (
    ALL_STATES,
    ICMP,
    ICMP6,
    RAW,
    TCP,
    UDP,
    UDPLITE,
    InternetSocket,
    TcpState,
    address_text,
    state_mask,
)
from zeek_agent.host.linux.host_sockets import (
    packet_sockets_by_namespace,
    sockets_by_namespace,
    unix_sockets_by_namespace,
)
from zeek_agent.host.linux.proc_net import PacketSocket
from zeek_agent.host.linux.procfs import Procfs, socket_holders
from zeek_agent.host.linux.unix_sockets import UnixSocket
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

process_open_sockets = osquery_table(
    "process_open_sockets",
    "sockets and the processes that have them open",
    description=(
        "TCP, UDP, UDP-Lite, ICMP, raw, Unix and packet sockets, in all network namespaces that the agent can enter. A "
        "socket held by several processes has one row for each; a socket without a visible process has one row with "
        "`pid` -1. `WHERE pid = …` reads only these processes."
    ),
    columns=[
        Column("pid", "int", "process that holds the socket; -1 if the agent sees none"),
        Column("fd", "int", "its lowest file descriptor for the socket; -1 without a process"),
        Column("socket", "int", "inode number of the socket; 0 if no process can have it open"),
        Column("family", "int", "2 IPv4, 10 IPv6, 1 Unix, 17 packet sockets"),
        Column("protocol", "int", "1 ICMP, 6 TCP, 17 UDP, 136 UDP-Lite, 255 raw; Ethernet type of a packet socket"),
        Column("local_address", "text", "local address; empty for Unix and packet sockets"),
        Column("remote_address", "text", "the peer's address; all zero without a peer"),
        Column("local_port", "int", "local port"),
        Column("remote_port", "int", "the peer's port"),
        Column("path", "text", "name of a Unix socket; an abstract one begins with `@`"),
        Column("state", "text", "state of a TCP socket, such as `LISTEN` or `FIN_WAIT1`; `NONE` for a packet socket"),
        Column("net_namespace", "text", "inode number of the network namespace"),
    ],
    examples=[
        "SELECT pid, remote_address, remote_port FROM process_open_sockets WHERE state = 'ESTABLISHED'",
        "SELECT fd, path FROM process_open_sockets WHERE pid = 1 AND family = 1",
    ],
)

listening_ports = osquery_table(
    "listening_ports",
    "sockets that wait for connections or datagrams, and their processes",
    description=(
        "Sockets of `process_open_sockets` without a peer: listening TCP sockets, UDP sockets without a peer, ICMP, "
        "raw and packet sockets, and Unix sockets that have a name."
    ),
    columns=[
        Column("pid", "int", "process that holds the socket; -1 if the agent sees none"),
        Column("port", "int", "port number; 0 for Unix and packet sockets"),
        Column("protocol", "int", "1 ICMP, 6 TCP, 17 UDP, 136 UDP-Lite, 255 raw; Ethernet type of a packet socket"),
        Column("family", "int", "2 IPv4, 10 IPv6, 1 Unix, 17 packet sockets"),
        Column("address", "text", "local address; null for a Unix socket"),
        Column("fd", "int", "the process's lowest file descriptor for the socket; -1 without a process"),
        Column("socket", "int", "inode number of the socket; 0 for a Unix socket"),
        Column("path", "text", "name of a Unix socket; null for others"),
        Column("net_namespace", "text", "inode number of the network namespace"),
    ],
    examples=["SELECT pid, port, address FROM osquery_listening_ports WHERE protocol = 6 AND family = 2"],
)

_IPV4, _IPV6, _UNIX, _PACKET = int(socket.AF_INET), int(socket.AF_INET6), 1, 17
_UNIX_PROTOCOL: Final = 0
_NOBODY: Final = -1
_NUMBERS: Final = {ICMP: ICMP, TCP: TCP, UDP: UDP, ICMP6: ICMP, UDPLITE: UDPLITE, RAW: RAW}
"""osquery's numbers of protocols: one for both ICMP."""
_WITH_PORTS: Final = (TCP, UDP, UDPLITE)
_STATES: Final[dict[int, str]] = {
    TcpState.ESTABLISHED: "ESTABLISHED",
    TcpState.SYN_SENT: "SYN_SENT",
    TcpState.SYN_RECV: "SYN_RECV",
    TcpState.FIN_WAIT1: "FIN_WAIT1",
    TcpState.FIN_WAIT2: "FIN_WAIT2",
    TcpState.TIME_WAIT: "TIME_WAIT",
    TcpState.CLOSE: "CLOSED",
    TcpState.CLOSE_WAIT: "CLOSE_WAIT",
    TcpState.LAST_ACK: "LAST_ACK",
    TcpState.LISTEN: "LISTEN",
    TcpState.CLOSING: "CLOSING",
    TcpState.NEW_SYN_RECV: "SYN_RECV",
}
_WAITING: Final = state_mask((TcpState.LISTEN, TcpState.CLOSE))
_UNOWNED: Final = state_mask((TcpState.TIME_WAIT, TcpState.NEW_SYN_RECV))
"""Busy hosts have tens of thousands of connections in these states, and no process holds one."""


class _Socket(NamedTuple):
    """What both tables show of a socket."""

    inode: int
    family: int
    protocol: int
    local: str = ""
    remote: str = ""
    local_port: int = 0
    remote_port: int = 0
    path: str = ""
    state: str = ""


@dataclass(frozen=True)
class _Selection:
    """Which sockets are read: of internet sockets, these protocols with these states."""

    internet: list[tuple[list[int], int]]
    unix: bool
    packet: bool


@process_open_sockets.snapshot
def open_sockets(wanted: Constraints) -> Iterator[Row]:
    for pid, fd, found, netns in _held(wanted, _selection(wanted)):
        yield (
            pid,
            fd,
            found.inode,
            found.family,
            found.protocol,
            found.local,
            found.remote,
            found.local_port,
            found.remote_port,
            found.path,
            found.state,
            netns,
        )


@listening_ports.snapshot
def listeners(wanted: Constraints) -> Iterator[Row]:
    selected = _selection(wanted)
    internet = [
        (chosen, states)
        for protocols, _ in selected.internet
        for chosen, states in (
            ([one for one in protocols if one in _WITH_PORTS], _WAITING),
            ([one for one in protocols if one not in _WITH_PORTS], ALL_STATES),
        )
        if chosen
    ]
    for pid, fd, found, netns in _held(wanted, _Selection(internet, selected.unix, selected.packet)):
        if found.family == _UNIX:
            if found.path:
                yield pid, 0, found.protocol, found.family, None, fd, 0, found.path, netns
        elif found.remote_port == 0:
            yield pid, found.local_port, found.protocol, found.family, found.local, fd, found.inode, None, netns


def _selection(wanted: Constraints) -> _Selection:
    """What can have the values that the statement compares family, protocol and state with."""
    families, numbers, states = wanted.integers("family"), wanted.integers("protocol"), wanted.equal("state")
    protocols = [one for one, number in _NUMBERS.items() if numbers is None or number in numbers]
    mask = ALL_STATES
    if families is not None and not {_IPV4, _IPV6} & set(families):
        protocols = []
    if states is not None and "" not in states:
        protocols = [one for one in protocols if one == TCP]
        mask = state_mask(number for number, name in _STATES.items() if name in states)
    if _NOBODY not in (wanted.integers("pid") or [_NOBODY]):
        mask &= ~_UNOWNED
    return _Selection(
        [(protocols, mask)] if protocols and mask else [],
        unix=(families is None or _UNIX in families)
        and (numbers is None or _UNIX_PROTOCOL in numbers)
        and (states is None or "" in states),
        packet=(families is None or _PACKET in families) and (states is None or "NONE" in states),
    )


def _held(wanted: Constraints, selected: _Selection) -> Iterator[tuple[int, int, _Socket, str]]:
    """The selected sockets, each once per process that has it open: pid, descriptor, socket, network namespace."""
    procfs = Procfs(wanted.context.proc)
    asked = wanted.integers("pid")
    only = None if asked is None or _NOBODY in asked else [process.pid for process in procfs.processes(asked)]
    pids = procfs.pids() if only is None else only
    listed: list[tuple[int | None, list[Any]]] = [
        *chain.from_iterable(
            sockets_by_namespace(procfs.root, pids, protocols, states, wanted.check)
            for protocols, states in selected.internet
        ),
        *(unix_sockets_by_namespace(procfs.root, pids) if selected.unix else ()),
        *(packet_sockets_by_namespace(procfs.root, pids) if selected.packet else ()),
    ]
    if not any(found for _, found in listed):
        return
    iterators = loaded_iterators() if only is None and procfs.root == "/proc" else None
    holders = iterators.socket_holders() if iterators else socket_holders(procfs.root, pids, wanted.check)
    nobody = [(_NOBODY, _NOBODY)] if only is None else []
    for namespace, found in listed:
        wanted.check()
        netns = str(namespace or 0)
        for one in found:
            held = holders.get(one.inode, nobody)
            if held:
                described = _described(one)
                for pid, fd in held:
                    yield pid, fd, described, netns


def _described(found: InternetSocket | UnixSocket | PacketSocket) -> _Socket:
    match found:
        case InternetSocket():
            return _Socket(
                found.inode,
                _IPV4 if len(found.local) == 4 and not found.is_mapped else _IPV6,
                _NUMBERS[found.protocol],
                _address(found.local, is_mapped=found.is_mapped),
                _address(found.remote, is_mapped=found.is_mapped),
                found.local_port,
                found.remote_port,
                state=_STATES.get(found.state, "UNKNOWN") if found.protocol == TCP else "",
            )
        case UnixSocket():
            return _Socket(found.inode, _UNIX, _UNIX_PROTOCOL, path=found.path)
        case PacketSocket():
            return _Socket(found.inode, _PACKET, found.protocol, state="NONE")


def _address(address: bytes, *, is_mapped: bool) -> str:
    """As the socket has it: an IPv4 address of an IPv6 socket is an IPv4-mapped one."""
    text = address_text(address)
    return text if not is_mapped else f"::ffff:{text}" if any(address) else "::"


TABLES = (process_open_sockets, listening_ports)
