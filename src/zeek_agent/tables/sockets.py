"""Internet sockets and the processes that hold them, from sock_diag(7) and proc(5); on other systems by psutil."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from zeek_agent import platforms
from zeek_agent.bpf.iterators import loaded_iterators
from zeek_agent.community_id import PORT_PROTOCOLS, packed_community_id
from zeek_agent.host.internet_sockets import (
    ALL_STATES,
    PROTOCOLS,
    STATES,
    TCP,
    UDP,
    UDPLITE,
    InternetSocket,
    TcpState,
    address_text,
    state_mask,
)
from zeek_agent.host.linux.host_sockets import packet_sockets_by_namespace, sockets_by_namespace
from zeek_agent.host.linux.interfaces import list_interfaces
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess, network_namespace, socket_holders
from zeek_agent.recording.sockets.conntrack import list_translations
from zeek_agent.recording.sockets.socket_event import UNTRANSLATED, Ends, Translation
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.tables._process_columns import EXECUTABLE, process_columns

if TYPE_CHECKING:
    from zeek_agent.host.portable.processes import PortableProcesses
    from zeek_agent.host.portable.system import PortableSystem

sockets = Table(
    "sockets",
    "open internet sockets and the processes that hold them",
    description=(
        "TCP, UDP, UDP-Lite, ICMP and raw sockets of IPv4 and IPv6, in all network namespaces that the agent can "
        "enter. A socket held by several processes has one row for each; a socket without a visible process, such as "
        "a connection in TIME_WAIT, has one row with `pid` null. An IPv6 socket that carries IPv4 traffic is shown as "
        "`IPv4`, with IPv4 addresses. Where the host translates addresses (NAT), as for containers, the "
        "`translated_` columns contain the addresses and ports that a sensor outside the host sees. They are null "
        "for untranslated connections. [On macOS and Windows](platforms.md), only TCP and UDP sockets are listed; "
        "Windows does not report the peers of UDP sockets, so they are null."
    ),
    columns=[
        Column("pid", "count", "process that holds the socket; null if the agent sees none"),
        Column("process", "text", "short name of that process"),
        Column("family", "text", "`IPv4` or `IPv6`"),
        Column("protocol", "count", "IP protocol: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6, 136 UDP-Lite; 255 for raw sockets"),
        Column("local_addr", "address", "local address; all zero if unspecified"),
        Column("local_port", "count", "local port; for ICMP the identifier, for raw sockets the IP protocol"),
        Column("remote_addr", "address", "peer's address; all zero if there is no peer"),
        Column("remote_port", "count", "peer's port; 0 if there is no peer"),
        Column(
            "state",
            "text",
            "TCP only: `CLOSED`, `LISTEN`, `SYN_SENT`, `SYN_RECEIVED`, `ESTABLISHED`, `CLOSE_WAIT`, `FIN_WAIT_1`, "
            "`FIN_WAIT_2`, `CLOSING`, `LAST_ACK` or `TIME_WAIT`",
        ),
        Column("uid", "count", "user who created the socket; null if no process holds it any more", added=True),
        *process_columns("exe", "cmdline", added=True),
        Column("fd", "count", "the process's lowest file descriptor for the socket", added=True),
        Column("cookie", "count", "the kernel's socket cookie (SO_COOKIE), unique until reboot", added=True),
        *process_columns("netns", "container_id", "entity_id", added=True),
        Column("community_id", "text", "Community ID (version 1) of TCP and UDP flows, as Zeek logs it", added=True),
        Column("translated_local_addr", "address", "translated local address, as seen outside the host", added=True),
        Column("translated_local_port", "count", "translated local port", added=True),
        Column("translated_remote_addr", "address", "translated peer address", added=True),
        Column("translated_remote_port", "count", "translated peer port", added=True),
        *process_columns("argv", added=True, hidden=True),
        *process_columns(*EXECUTABLE, added=True),
    ],
    examples=[
        "SELECT pid, process, local_addr, local_port FROM sockets WHERE state = 'LISTEN'",
        "SELECT process, remote_addr, remote_port, community_id FROM sockets WHERE state = 'ESTABLISHED'",
        "SELECT * FROM sockets WHERE pid = 1",
    ],
    platforms=platforms.KEYS,
)

listening_ports = Table(
    "listening_ports",
    "listening ports and their processes",
    description="Listening TCP sockets, and UDP sockets bound to a port without a peer; one row per process.",
    columns=[
        Column("pid", "count", "process that holds the socket; null if the agent sees none"),
        Column("process", "text", "short name of that process"),
        Column("family", "text", "`IPv4` or `IPv6`; an IPv6 wildcard address usually accepts both"),
        Column("protocol", "count", "IP protocol: 6 TCP, 17 UDP, 136 UDP-Lite"),
        Column("address", "address", "local address; all zero for all addresses of the host"),
        Column("port", "count", "port number"),
        Column("uid", "count", "user who created the socket"),
        *process_columns("exe", "cmdline", "netns", "container_id", "entity_id"),
        *process_columns("argv", hidden=True),
        *process_columns(*EXECUTABLE, added=True),
        Column(
            "own_netns",
            "bool",
            "whether its network namespace is the agent's own, which has the addresses in `zeek_agent`",
            hidden=True,
        ),
    ],
    examples=["SELECT protocol, port, address, process, exe FROM listening_ports ORDER BY protocol, port"],
    platforms=platforms.KEYS,
)

packet_sockets = Table(
    "packet_sockets",
    "packet sockets, as used by sniffers, and the processes that hold them",
    description=(
        "Packet sockets (packet(7)) in all network namespaces that the agent can enter. They receive all packets on an "
        "interface, whatever their destination. One row per process; a socket without a visible process has `pid` "
        "null."
    ),
    columns=[
        Column("pid", "count", "process that holds the socket; null if the agent sees none"),
        Column("process", "text", "short name of that process"),
        Column("type", "text", "`raw`: with link-layer header, `datagram`: without"),
        Column("ethertype", "count", "protocol of received packets: 2048 IPv4, 34525 IPv6; 3: all; 0: none yet"),
        Column("interface", "text", "interface; null for all, or for one in another network namespace"),
        Column("uid", "count", "user who created the socket"),
        *process_columns("exe", "cmdline"),
        Column("fd", "count", "the process's lowest file descriptor for the socket"),
        *process_columns("netns", "container_id", "entity_id"),
        *process_columns("argv", hidden=True),
        *process_columns(*EXECUTABLE, added=True),
    ],
    examples=["SELECT pid, exe, interface FROM packet_sockets WHERE ethertype = 3"],
)

TRANSLATED = ("translated_local_addr", "translated_local_port", "translated_remote_addr", "translated_remote_port")
_NUMBER_OF_STATE = {name: [number for number, text in STATES.items() if text == name] for name in STATES.values()}
_BOUND_STATES = state_mask((TcpState.LISTEN, TcpState.CLOSE))
_PROTOCOL = [column.name for column in sockets.columns].index("protocol")
_REMOTE = slice(_PROTOCOL + 3, _PROTOCOL + 5)
"""The position of the peer's address and port."""
_UNOWNED_STATES = state_mask((TcpState.TIME_WAIT, TcpState.NEW_SYN_RECV))
"""TIME_WAIT and NEW_SYN_RECV: busy hosts have tens of thousands, and no process holds one."""


class Owner(NamedTuple):
    """The columns of a row that describe the process with the socket."""

    process: str | None = None
    exe: str | None = None
    cmdline: str | None = None
    container_id: str | None = None
    entity_id: str | None = None
    argv: list[str] | None = None
    executable: tuple[int | None, int | None, int | None] = (None, None, None)
    """The columns of `EXECUTABLE`."""


OwnedSocket: TypeAlias = tuple[InternetSocket, int | None, int | None, int | None, Owner]
"""A socket, its network namespace, and one of its owners: pid, descriptor, columns."""


@sockets.snapshot
def open_sockets(wanted: Constraints) -> Iterable[Row]:
    rows = _socket_rows(wanted)
    return rows if _is_linux(wanted) else _without_unknown_peers(wanted, rows)


def _socket_rows(wanted: Constraints) -> Iterator[Row]:
    with_community_id = wanted.needs("community_id")
    translated = list_translations() if wanted.needs(*TRANSLATED) and _is_linux(wanted) else {}
    for found, netns, pid, fd, owner in _held(wanted, PROTOCOLS, _states(wanted)):
        yield (
            pid,
            owner.process,
            "IPv4" if len(found.local) == 4 else "IPv6",
            found.protocol,
            address_text(found.local),
            found.local_port,
            address_text(found.remote),
            found.remote_port,
            STATES.get(found.state) if found.protocol == TCP else None,
            found.uid,
            owner.exe,
            owner.cmdline,
            fd,
            found.cookie,
            netns,
            owner.container_id,
            owner.entity_id,
            _community_id(found) if with_community_id else None,
            *(_translation(found, translated) if translated else UNTRANSLATED),
            owner.argv,
            *owner.executable,
        )


@listening_ports.snapshot
def listeners(wanted: Constraints) -> Iterator[Row]:
    own = network_namespace(Procfs(wanted.context.proc).root, "self") if _is_linux(wanted) else None
    for found, netns, pid, _, owner in _held(wanted, (TCP, UDP, UDPLITE), _BOUND_STATES):
        if found.local_port and (found.state == TcpState.LISTEN or found.protocol != TCP):
            yield (
                pid,
                owner.process,
                "IPv4" if len(found.local) == 4 else "IPv6",
                found.protocol,
                address_text(found.local),
                found.local_port,
                found.uid,
                owner.exe,
                owner.cmdline,
                netns,
                owner.container_id,
                owner.entity_id,
                owner.argv,
                *owner.executable,
                netns == own,
            )


@packet_sockets.snapshot
def sniffers(wanted: Constraints) -> Iterator[Row]:
    procfs = Procfs(wanted.context.proc)
    pids = procfs.pids()
    listed = list(packet_sockets_by_namespace(procfs.root, pids))
    holders = socket_holders(procfs.root, pids, wanted.check) if any(found for _, found in listed) else {}
    own, here = listed[0]
    names = {each.index: each.name for each in list_interfaces()} if any(socket.interface for socket in here) else {}
    for netns, found in listed:
        for socket in found:
            for pid, fd in holders.get(socket.inode, [(None, None)]):
                owner = _owner(procfs, pid, wanted)
                yield (
                    pid,
                    owner.process,
                    "raw" if socket.raw else "datagram",
                    socket.protocol,
                    names.get(socket.interface) if netns == own else None,
                    socket.uid,
                    owner.exe,
                    owner.cmdline,
                    fd,
                    netns,
                    owner.container_id,
                    owner.entity_id,
                    owner.argv,
                    *owner.executable,
                )


def _held(wanted: Constraints, protocols: Collection[int], states: int) -> Iterator[OwnedSocket]:
    """The sockets that may be wanted, once per process that has them open."""
    only_protocols = wanted.integers("protocol")
    if only_protocols is not None:
        protocols = [protocol for protocol in protocols if protocol in only_protocols]
    if not _is_linux(wanted):
        yield from _held_elsewhere(wanted, protocols, states)
        return
    procfs = Procfs(wanted.context.proc)
    only_pids = wanted.integers("pid")
    pids = procfs.pids() if only_pids is None else only_pids
    if only_pids is not None:
        states &= ~_UNOWNED_STATES
    listed = list(sockets_by_namespace(procfs.root, pids, protocols, states, wanted.check))
    if not any(found for _, found in listed):
        return
    iterators = loaded_iterators() if only_pids is None and procfs.root == "/proc" else None
    holders = iterators.socket_holders() if iterators else socket_holders(procfs.root, pids, wanted.check)
    nobody: list[tuple[int | None, int | None]] = [(None, None)] if only_pids is None else []
    owners: dict[int | None, Owner] = {None: Owner()}
    for netns, found in listed:
        wanted.check()
        for socket in found:
            for pid, fd in holders.get(socket.inode, nobody):
                owner = owners.get(pid)
                if owner is None:
                    owner = owners[pid] = _owner(procfs, pid, wanted)
                yield socket, netns, pid, fd, owner


def _held_elsewhere(wanted: Constraints, protocols: Collection[int], states: int) -> Iterator[OwnedSocket]:
    """The same on systems without Linux's kernel interfaces."""
    system = _system(wanted)
    processes = system.processes()
    owners: dict[int | None, Owner] = {None: Owner()}
    for found, pid, fd in system.sockets(
        lambda withheld: wanted.report(str(withheld)), wanted.integers("pid"), wanted.check
    ):
        if found.protocol not in protocols or (states != ALL_STATES and not states >> found.state & 1):
            continue
        if pid not in owners:
            owners[pid] = _owner_elsewhere(processes, pid, wanted)
        yield found, None, pid, fd, owners[pid]


def _owner_elsewhere(processes: PortableProcesses, pid: int | None, wanted: Constraints) -> Owner:
    if pid is None:
        return Owner()
    try:
        with processes.process(pid) as process:
            raw = process.arguments if wanted.needs("cmdline", "argv") else None
            command_line = wanted.context.access.masker.command_line(raw) if raw else None
            return Owner(
                process.name,
                process.exe if wanted.needs("exe") else None,
                command_line.cmdline if command_line else None,
                None,
                process.entity_id if wanted.needs("entity_id") else None,
                command_line.argv if command_line else None,
            )
    except ProcessLookupError:
        return Owner()


def _without_unknown_peers(wanted: Constraints, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with the peers of UDP sockets null where the system does not report them."""
    if _system(wanted).has_datagram_peers:
        yield from rows
        return
    for row in rows:
        cells = list(row)
        if cells[_PROTOCOL] == UDP:
            cells[_REMOTE] = [None, None]
        yield cells


def _system(wanted: Constraints) -> PortableSystem:
    from zeek_agent.host.portable.system import portable_system

    return portable_system(wanted.context.platform.group)


def _is_linux(wanted: Constraints) -> bool:
    return wanted.context.platform.group == "linux"


def _owner(procfs: Procfs, pid: int | None, wanted: Constraints) -> Owner:
    if pid is None:
        return Owner()
    try:
        with ProcfsProcess(procfs, pid) as process:
            raw = process.arguments if wanted.needs("cmdline", "argv") else None
            command_line = wanted.context.access.masker.command_line(raw) if raw else None
            return Owner(
                process.name,
                process.exe if wanted.needs("exe") else None,
                command_line.cmdline if command_line else None,
                process.container_id if wanted.needs("container_id") else None,
                process.entity_id if wanted.needs("entity_id") else None,
                command_line.argv if command_line else None,
                (process.exe_device, process.exe_inode, process.exe_mntns)
                if wanted.needs(*EXECUTABLE)
                else (None, None, None),
            )
    except ProcessLookupError:
        return Owner()


def _states(wanted: Constraints) -> int:
    """The requested states, as a mask. Only TCP sockets have states."""
    names = wanted.equal("state")
    if names is None:
        return ALL_STATES
    return state_mask(number for name in names for number in _NUMBER_OF_STATE.get(str(name), ()))


def _community_id(found: InternetSocket) -> str | None:
    if found.protocol not in PORT_PROTOCOLS or not found.connected:
        return None
    return packed_community_id(found.protocol, found.local, found.local_port, found.remote, found.remote_port)


def _translation(
    found: InternetSocket, translated: Mapping[Ends, Translation]
) -> Translation | tuple[None, None, None, None]:
    local, remote = address_text(found.local), address_text(found.remote)
    return translated.get((found.protocol, local, found.local_port, remote, found.remote_port), UNTRANSLATED)


TABLES = (sockets, listening_ports, packet_sockets)
