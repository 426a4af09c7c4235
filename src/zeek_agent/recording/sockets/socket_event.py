"""Socket events, whichever backend recorded them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from zeek_agent.community_id import PORT_PROTOCOLS, packed_community_id
from zeek_agent.host.internet_sockets import address_text

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process

SOCKETS_EVENTS: Final = "sockets_events"
ECHOES: Final = {1: (8, 0), 58: (128, 129)}
"""The "ports" of an echo request by protocol, as in Zeek's conn.log: its type, and the reply's."""

SocketState = Literal["established", "active", "closed", "failed", "listen", "expired"]
Direction = Literal["outbound", "inbound"]

Ends: TypeAlias = "tuple[int | None, str | None, int | None, str | None, int | None]"
"""A socket's protocol, local address and port, remote address and port."""


class SocketEvent(Struct, frozen=True, gc=False):  # its values are scalars, so it is in no reference cycle
    """A row of `sockets_events`, which describes the columns. None means unknown or not applicable."""

    time: float
    pid: int | None
    process: str | None
    uid: int | None
    gid: int | None
    family: str | None
    protocol: int | None
    local_addr: str | None
    local_port: int | None
    remote_addr: str | None
    remote_port: int | None
    state: SocketState | None
    direction: Direction | None
    exe: str | None
    cmdline: str | None
    loginuid: int | None
    cookie: int | None
    netns: int | None
    container_id: str | None
    entity_id: str | None
    parent_entity_id: str | None
    community_id: str | None
    listener_stands_in: bool
    translated_local_addr: str | None = None
    translated_local_port: int | None = None
    translated_remote_addr: str | None = None
    translated_remote_port: int | None = None
    argv: str | None = None
    """As the event store holds it (`CommandLine.stored_argv`)."""
    mptcp_token: int | None = None
    correction: bool = False
    exe_device: int | None = None
    exe_inode: int | None = None
    exe_mntns: int | None = None
    duration: float | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    packets_sent: int | None = None
    packets_received: int | None = None
    receive_drops: int | None = None
    remote_name: str | None = None
    user: str | None = None
    sid: str | None = None

    @property
    def ends(self) -> Ends:
        return self.protocol, self.local_addr, self.local_port, self.remote_addr, self.remote_port

    def translated(self, translation: Translation) -> SocketEvent:
        """The event of a connection whose addresses are translated."""
        return replace(
            self,
            translated_local_addr=translation.local_addr,
            translated_local_port=translation.local_port,
            translated_remote_addr=translation.remote_addr,
            translated_remote_port=translation.remote_port,
        )

    def corrected(self, process: Process | None) -> SocketEvent:
        """The same event with its process, which was unknown: the row that corrects one in which a holder stood in."""
        attributed = socket_event(_NO_FLOW, None, None, process, time=self.time)
        columns = {name: getattr(attributed, name) for name in _PROCESS_COLUMNS}
        return replace(self, **columns, listener_stands_in=False, correction=True)


class Flow(NamedTuple):
    """A socket's ends, with addresses in network form (4 or 16 bytes). None means unknown; no peer is all zeros."""

    protocol: int | None
    local: bytes | None
    local_port: int | None
    remote: bytes | None
    remote_port: int | None
    cookie: int | None = None
    netns: int | None = None
    mptcp_token: int | None = None


Traffic: TypeAlias = "tuple[float | None, int | None, int | None, int | None, int | None, int | None]"
"""What a flow carried since it began: the columns `duration`, `bytes_sent`, `bytes_received`, `packets_sent`,
`packets_received` and `receive_drops`. None means unknown."""

NO_TRAFFIC: Final[Traffic] = (None, None, None, None, None, None)
_NO_FLOW: Final = Flow(None, None, None, None, None)
_PROCESS_COLUMNS: Final = (
    *("pid", "process", "uid", "gid", "exe", "cmdline", "argv", "loginuid"),
    *("container_id", "entity_id", "parent_entity_id", "user", "sid"),
)
"""The columns of an event that describe its process."""


class Translation(NamedTuple):
    """A connection's ends on the other side of an address translation (NAT); all None without one."""

    local_addr: str | None
    local_port: int | None
    remote_addr: str | None
    remote_port: int | None


UNTRANSLATED: Final = Translation(None, None, None, None)


def socket_event(
    flow: Flow,
    state: SocketState | None,
    direction: Direction | None,
    process: Process | None,
    *,
    time: float,
    uid: int | None = None,
    stands_in: bool = False,
    family: str | None = None,
    traffic: Traffic = NO_TRAFFIC,
) -> SocketEvent:
    """The event of a flow at `time` (seconds since the epoch), by `process`; `uid` is used if that is unknown.

    `stands_in`: the process holds the socket, because the one that accepted or read is unknown. `family` is used if no
    address is known.
    """
    protocol, local, local_port, remote, remote_port, cookie, netns, mptcp_token = flow
    duration, bytes_sent, bytes_received, packets_sent, packets_received, receive_drops = traffic
    some = local or remote
    command_line = process.command_line if process else None
    has_peer = remote is not None and (any(remote) or remote_port)
    return SocketEvent(
        time,
        process.pid if process else None,
        process.name or None if process else None,
        process.uid if process else uid,
        process.gid if process else None,
        family if some is None else "IPv4" if len(some) == 4 else "IPv6",
        protocol,
        None if local is None else address_text(local),
        local_port,
        address_text(remote) if remote is not None and has_peer else None,
        remote_port if has_peer else None,
        state,
        direction,
        process.exe if process else None,
        command_line.cmdline if command_line else None,
        process.loginuid if process else None,
        cookie,
        netns,
        process.container_id if process else None,
        process.entity_id or None if process else None,
        process.parent_entity_id or None if process else None,
        flow_id(flow) if has_peer else None,
        stands_in,
        None,
        None,
        None,
        None,
        command_line.stored_argv if command_line else None,
        mptcp_token,
        False,
        process.exe_device if process else None,
        process.exe_inode if process else None,
        process.exe_mntns if process else None,
        duration,
        bytes_sent,
        bytes_received,
        packets_sent,
        packets_received,
        receive_drops,
        None,
        process.user if process else None,
        process.sid if process else None,
    )


def packet_event(process: Process | None, netns: int, *, time: float) -> SocketEvent:
    """A packet socket (packet(7)), which has no ends, was opened by `process` at `time` (seconds since the epoch)."""
    return socket_event(_NO_FLOW._replace(netns=netns), "listen", None, process, time=time, family="packet")


def flow_id(flow: Flow) -> str | None:
    """The Community ID, where one is defined and both ends are known."""
    protocol, local, local_port, remote, remote_port = flow[:5]
    if protocol is None or not local or not remote or local_port is None or remote_port is None:
        return None
    if ECHOES.get(protocol) == (local_port, remote_port) or (protocol in PORT_PROTOCOLS and local_port and remote_port):
        return packed_community_id(protocol, local, local_port, remote, remote_port)
    return None
