"""Turns the kernel's socket records into rows with process and direction."""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import Callable, Hashable, Iterable
from typing import Final, NamedTuple, TypeAlias

from zeek_agent.bpf.records import COUNTS, SOCKET, FlowCounts, RecordKind, SocketFlags, SocketRecord
from zeek_agent.host.internet_sockets import TCP
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets.pending_flows import FlowMap, PendingFlow, PendingFlows
from zeek_agent.recording.sockets.record_process import process_of_record, record_flow
from zeek_agent.recording.sockets.socket_event import (
    NO_TRAFFIC,
    Direction,
    Flow,
    SocketEvent,
    SocketState,
    Traffic,
    packet_event,
    socket_event,
)

log = logging.getLogger(__name__)

ACCEPT_TIMEOUT_NS: Final = 1_000_000_000
"""How long an inbound flow waits for the process that accepts or reads it; then a holder of the socket is used
(io_uring accepts without the traced system call)."""
REMEMBERED_SOCKETS_MAX: Final = 100_000
"""Open sockets whose process is remembered for their end; bounds memory on a server with more connections."""
PENDING_FLOWS_MAX: Final = 20_000
"""Inbound connections, and as many datagram flows, that wait for their process; more, as in a flood, wait less."""
SUBSTITUTED_FLOWS_MAX: Final = 10_000
"""Flows whose rows can be corrected when the process is known at last."""
DATAGRAM_FLOWS_MAX: Final = 32_768
"""Datagram flows whose process is remembered for their end: as many as the kernel counts."""
_HOLDER_AGE_MAX_NS: Final = 10_000_000_000
"""How long a found holder of a socket is used, so that datagrams that nobody reads cost few searches."""

FlowKey: TypeAlias = tuple[int, bytes, int, int]
"""What distinguishes the flows of a datagram socket: protocol, remote address and port, local port."""


class OpenSocket(NamedTuple):
    """An open socket: process, direction and begin (ns since boot) of its last flow, and the process that bound it."""

    process: Process | None
    direction: Direction | None
    listener: Process | None = None
    stands_in: bool = False
    began: int | None = None


_NOT_KNOWN: Final = OpenSocket(None, None)


class _Accept(NamedTuple):
    """An accept whose connection is not known, or an MPTCP connection that may still get subflows from before it."""

    record: SocketRecord
    process: Process | None
    matched: bool


class ConnectionTracker:
    """Turns records into rows. `find_holders` searches for processes that have these sockets open, by inode."""

    def __init__(
        self, cache: ProcessCache, find_holders: Callable[[set[int]], dict[int, Process]] = lambda _: {}
    ) -> None:
        self._cache = cache
        self._find_holders = find_holders
        self._unaccepted = PendingFlows()
        self._unread = PendingFlows()
        self._accepts: dict[int, _Accept] = {}
        self._open: dict[int, OpenSocket] = {}
        self._datagrams: FlowMap[OpenSocket] = FlowMap()
        self._substituted: FlowMap[list[SocketEvent]] = FlowMap()
        self._holders: dict[int, tuple[int, Process | None]] = {}
        self.undecoded = 0

    def remember(
        self, cookie: int, process: Process | None, direction: Direction | None, *, is_shared: bool = False
    ) -> None:
        """Remember the process and direction of a socket that was already open.

        Of a connection that several processes have open (`is_shared`), which of them acted is not known.
        """
        self._remember(cookie, OpenSocket(process, direction, process, is_shared and direction is not None))

    def open_socket(self, cookie: int) -> OpenSocket | None:
        """What is known of an open socket."""
        return self._open.get(cookie)

    def rows(self, batch: Iterable[bytes], boot_time: float) -> list[SocketEvent]:
        """Rows for these records, in the kernel's order; times are ns since the boot at `boot_time`."""
        rows: list[SocketEvent] = []
        for record in batch:
            try:
                if len(record) == SOCKET.size:
                    self._apply(SocketRecord._make(SOCKET.unpack(record)), None, boot_time, rows)
                else:
                    counts = COUNTS.unpack(record[SOCKET.size :])
                    self._apply(SocketRecord._make(SOCKET.unpack_from(record)), counts, boot_time, rows)
            except (ValueError, LookupError, struct.error):
                self.undecoded += 1
                log.exception("a socket record cannot be read: %s", record.hex())
        for flows in (self._unaccepted, self._unread):
            for pending in flows.pop_surplus(PENDING_FLOWS_MAX):
                self._begin(pending, pending.holder, boot_time, rows, stands_in=True)
        return rows

    def overdue(self, now: int, boot_time: float) -> list[SocketEvent]:
        """Rows for inbound flows that were not seen being accepted or read."""
        rows: list[SocketEvent] = []
        due = now - ACCEPT_TIMEOUT_NS
        for pending in self._unaccepted.pop_overdue(due):
            self._begin(pending, pending.holder, boot_time, rows, stands_in=True)
        unread = list(self._unread.pop_overdue(due))
        self._look_for_holders({each.inode for each in unread if _is_gone(each.holder, each.at)}, now)
        for pending in unread:
            holder = self._holders[pending.inode][1] if _is_gone(pending.holder, pending.at) else pending.holder
            self._begin(pending, holder, boot_time, rows, stands_in=True)
        for socket, accept in list(self._accepts.items()):
            if accept.record.time > due:
                break
            del self._accepts[socket]
            if not accept.matched:
                self._change(accept.record, record_flow(accept.record), accept.process, boot_time, rows)
        return rows

    def oldest_pending(self) -> int | None:
        """The time (ns since boot) of the oldest record without a row yet."""
        pending = [next(iter(flows)).at for flows in (self._unaccepted, self._unread) if len(flows)]
        pending += [accept.record.time for accept in itertools.islice(self._accepts.values(), 1)]
        return min(pending, default=None)

    def remaining(self, boot_time: float) -> list[SocketEvent]:
        """Rows for all inbound flows that still wait, when recording stops."""
        rows: list[SocketEvent] = []
        for flows in (self._unaccepted, self._unread):
            for pending in flows.pop_surplus(0):
                self._begin(pending, pending.holder, boot_time, rows, stands_in=True)
        return rows

    def _apply(
        self, record: SocketRecord, counts: FlowCounts | None, boot_time: float, rows: list[SocketEvent]
    ) -> None:
        kind = record.kind
        flow = record_flow(record)
        if kind in _ENDS:
            self._end(record, flow, _traffic(record, counts), boot_time, rows)
            return
        if counts is not None:
            self._pass(record, flow, _traffic(record, counts), boot_time, rows)
            return
        process = self._process(record)
        if kind == RecordKind.PACKET:
            rows.append(packet_event(process, record.netns, time=boot_time + record.time / 1e9))
        elif kind == RecordKind.PASSIVE:
            self._arrive(record, flow, process, boot_time, rows)
        elif kind == RecordKind.ACCEPTED:
            self._accept(record, process, boot_time, rows)
        elif kind == RecordKind.RECEIVED and record.flags & _UNREAD:
            key = _key(record)
            pending = PendingFlow(record.cookie, key, record.time, flow, process, record.socket)
            self._unread.add(record.cookie, key, pending)
        elif kind == RecordKind.READ:
            self._read(record, process, boot_time, rows)
        else:
            self._change(record, flow, process, boot_time, rows)

    def _change(
        self, record: SocketRecord, flow: Flow, process: Process | None, boot_time: float, rows: list[SocketEvent]
    ) -> None:
        """A change of state by a process that is known."""
        state, direction = _MEANING[record.kind]
        rows.append(socket_event(flow, state, direction, process, time=boot_time + record.time / 1e9))
        if record.kind == RecordKind.FAILED:
            return
        listener = process if state == "listen" else None if record.protocol == TCP else self._listener(record.cookie)
        opened = OpenSocket(process, direction, listener, began=record.acted)
        self._remember(record.cookie, opened)
        if record.protocol != TCP and state == "established":
            self._remember_flow(record.cookie, _key(record), opened)

    def _arrive(
        self, record: SocketRecord, flow: Flow, process: Process | None, boot_time: float, rows: list[SocketEvent]
    ) -> None:
        """A connection came in. Of two CPUs, the one that accepts it can be faster than the one that receives it."""
        pending = PendingFlow(record.socket, record.cookie, record.time, flow, process)
        accept = self._accepts.get(record.socket)
        if record.flags & _OWNED:
            self._begin(pending, process, boot_time, rows)
        elif accept is not None and _is_accept_of(accept.record, record):
            self._begin(pending, accept.process, boot_time, rows)
            if record.token:
                self._accepts[record.socket] = accept._replace(matched=True)
            else:
                del self._accepts[record.socket]
        else:
            self._unaccepted.add(record.socket, record.cookie, pending)

    def _accept(self, record: SocketRecord, process: Process | None, boot_time: float, rows: list[SocketEvent]) -> None:
        """A process accepted a connection: a TCP connection, or an MPTCP connection with all its subflows so far."""
        token = record.token or self._token(record)
        waiting = late = 0
        for cookie in self._unaccepted.keys(record.socket):
            pending = self._unaccepted.get(record.socket, cookie)
            if pending is not None and (cookie == record.cookie or token == pending.flow.mptcp_token):
                self._unaccepted.pop(record.socket, cookie)
                self._begin(pending, process, boot_time, rows)
                waiting += 1
        for cookie in self._substituted.keys(record.socket):
            substitutes = self._substituted.get(record.socket, cookie)
            if substitutes and (cookie == record.cookie or token == substitutes[0].mptcp_token):
                self._correct(record.socket, cookie, process, rows)
                late += 1
        is_known = bool(waiting or late) or record.cookie in self._open
        if token or not is_known:
            self._accepts.pop(record.socket, None)  # the newest is the last
            self._accepts[record.socket] = _Accept(record._replace(token=token), process, is_known)

    def _token(self, accepted: SocketRecord) -> int:
        """The token of an MPTCP connection that fell back to TCP before its accept: that of its first subflow."""
        pending = self._unaccepted.get(accepted.socket, accepted.cookie)
        if pending is not None:
            return pending.flow.mptcp_token or 0
        rows = self._substituted.get(accepted.socket, accepted.cookie)
        return (rows[0].mptcp_token if rows else None) or 0

    def _read(self, record: SocketRecord, process: Process | None, boot_time: float, rows: list[SocketEvent]) -> None:
        """A process read a datagram: the first of this flow or, if it did not ask for the sender, of any."""
        if record.flags & _ANY_FLOW:
            first = self._unread.pop_first(record.cookie)
            if first is not None:
                shared = bool(record.flags & _SHARED)
                self._begin(first, process, boot_time, rows, stands_in=shared)
            return
        key = _key(record)
        pending = self._unread.pop(record.cookie, key)
        if pending is not None:
            self._begin(pending, process, boot_time, rows)
        else:
            self._correct(record.cookie, key, process, rows)

    def _begin(
        self,
        pending: PendingFlow,
        process: Process | None,
        boot_time: float,
        rows: list[SocketEvent],
        *,
        stands_in: bool = False,
    ) -> None:
        """The row of an inbound flow."""
        flow = pending.flow
        when = boot_time + pending.at / 1e9
        row = socket_event(flow, "established", "inbound", process, time=when, stands_in=stands_in)
        rows.append(row)
        if flow.cookie is None:
            return
        listener = None if flow.protocol == TCP else self._listener(flow.cookie)
        opened = OpenSocket(process, "inbound", listener, stands_in, pending.at)
        self._remember(flow.cookie, opened)
        if flow.protocol != TCP:
            self._remember_flow(flow.cookie, pending.key, opened)
        if stands_in:
            self._substituted.add(pending.socket, pending.key, [row])
            if len(self._substituted) > SUBSTITUTED_FLOWS_MAX:
                self._substituted.pop_oldest()

    def _correct(self, socket: int, key: Hashable, process: Process | None, rows: list[SocketEvent]) -> None:
        """Repeat the rows of a flow in which a holder stood in, now that its process is known."""
        substitutes = self._substituted.pop(socket, key) or []
        rows += [row.corrected(process) for row in substitutes]
        for row in substitutes:
            opened = self._open.get(row.cookie) if row.cookie is not None else None
            if row.cookie is not None and opened is not None and opened.stands_in:
                self._open[row.cookie] = opened._replace(process=process, stands_in=False)
        flow = self._datagrams.get(socket, key)
        if flow is not None and flow.stands_in:
            self._datagrams.add(socket, key, flow._replace(process=process, stands_in=False))

    def _pass(
        self, record: SocketRecord, flow: Flow, traffic: Traffic, boot_time: float, rows: list[SocketEvent]
    ) -> None:
        """A datagram flow goes on, or is over because it was idle."""
        is_over = record.kind == RecordKind.EXPIRED
        find = self._datagrams.pop if is_over else self._datagrams.get
        opened = find(*_identity(record)) or self._open.get(record.cookie, _NOT_KNOWN)
        row = socket_event(
            flow,
            "expired" if is_over else "active",
            "outbound" if record.outbound else "inbound",
            opened.process,
            time=boot_time + record.time / 1e9,
            stands_in=opened.stands_in,
            traffic=traffic,
        )
        rows.append(row)
        if is_over and opened.stands_in and (substituted := self._substituted.get(*_identity(record))) is not None:
            substituted.append(row)

    def _end(
        self, record: SocketRecord, flow: Flow, traffic: Traffic, boot_time: float, rows: list[SocketEvent]
    ) -> None:
        cookie = record.cookie
        for pending in () if record.outbound and record.protocol == TCP else self._pending_of(record):
            holder = None if _is_gone(pending.holder, pending.at) else pending.holder
            self._begin(pending, holder, boot_time, rows, stands_in=True)
        if cookie not in self._open and record.kind == RecordKind.CLOSED and not record.outbound:
            self._begin_accepted(record, boot_time, rows)
        opened = self._open.pop(cookie, _NOT_KNOWN)
        if record.protocol != TCP and record.kind == RecordKind.CLOSED:
            self._datagrams.pop(*_identity(record))
        if record.flags & _FLOW_ENDED and opened.listener is not None:
            self._open[cookie] = OpenSocket(None, None, opened.listener)
        if record.kind == RecordKind.UNLISTEN:
            process, direction, stands_in = opened.listener or opened.process, None, False
        else:
            process, direction, stands_in = opened.process, opened.direction, opened.stands_in
        if process is None and not stands_in:
            process = self._process(record)  # of an inbound flow whose records were lost, only a holder is known
            stands_in = process is not None and record.kind == RecordKind.CLOSED and not record.outbound
        if direction is None and process is not None and record.kind != RecordKind.UNLISTEN:
            direction = "outbound" if record.outbound else "inbound"
        when = boot_time + record.time / 1e9
        row = socket_event(flow, "closed", direction, process, time=when, stands_in=stands_in, traffic=traffic)
        rows.append(row)
        if stands_in:
            substituted = self._substituted.get(*_identity(record))
            if substituted is not None:
                substituted.append(row)

    def _begin_accepted(self, ended: SocketRecord, boot_time: float, rows: list[SocketEvent]) -> None:
        """The row of a connection that was accepted, and is over, although it was not seen to come in."""
        accept = self._accepts.get(ended.socket)
        if accept is None or accept.matched or not _is_accept_of(accept.record, ended):
            return
        del self._accepts[ended.socket]
        record = accept.record._replace(cookie=ended.cookie)
        self._change(record, record_flow(record), accept.process, boot_time, rows)

    def _pending_of(self, record: SocketRecord) -> list[PendingFlow]:
        """Remove the pending flows that end with this record."""
        if record.protocol != TCP and not record.flags & _FLOW_ENDED:
            return self._unread.pop_all(record.cookie)
        pending = (self._unaccepted if record.protocol == TCP else self._unread).pop(*_identity(record))
        return [] if pending is None else [pending]

    def _remember(self, cookie: int, opened: OpenSocket) -> None:
        self._open[cookie] = opened
        if len(self._open) > REMEMBERED_SOCKETS_MAX:
            del self._open[next(iter(self._open))]

    def _remember_flow(self, cookie: int, key: Hashable, opened: OpenSocket) -> None:
        self._datagrams.add(cookie, key, opened)
        if len(self._datagrams) > DATAGRAM_FLOWS_MAX:
            self._datagrams.pop_oldest()

    def _listener(self, cookie: int) -> Process | None:
        """The process that bound an open socket."""
        opened = self._open.get(cookie)
        return None if opened is None else opened.listener

    def _look_for_holders(self, inodes: set[int], now: int) -> None:
        """Bring `_holders` up to date for these sockets."""
        for inode, (found_at, holder) in list(self._holders.items()):
            if found_at < now - _HOLDER_AGE_MAX_NS or (holder is not None and holder.exited):
                del self._holders[inode]
        unknown = inodes - self._holders.keys()
        found = self._find_holders(unknown) if unknown else {}
        for inode in unknown:
            self._holders[inode] = (now, found.get(inode))

    def _process(self, record: SocketRecord) -> Process | None:
        """The owner at the time of the system call."""
        if record.started == 0:  # open before the programs were attached
            opened = self._open.get(record.cookie)
            return None if opened is None else opened.process or opened.listener
        return process_of_record(self._cache, record)


# As plain numbers, whose bits are tested several times as fast.
_OWNED: Final = SocketFlags.OWNED.value
_UNREAD: Final = SocketFlags.UNREAD.value
_ANY_FLOW: Final = SocketFlags.ANY_FLOW.value
_SHARED: Final = SocketFlags.SHARED.value
_FLOW_ENDED: Final = SocketFlags.FLOW_ENDED.value
_COUNTED: Final = SocketFlags.COUNTED.value
_SENT_ONLY: Final = SocketFlags.SENT_ONLY.value

_ENDS: Final = frozenset({RecordKind.CLOSED, RecordKind.UNLISTEN})
_MEANING: Final[dict[int, tuple[SocketState, Direction | None]]] = {
    RecordKind.CONNECTED: ("established", "outbound"),
    RecordKind.FAILED: ("failed", "outbound"),
    RecordKind.ACCEPTED: ("established", "inbound"),
    RecordKind.LISTEN: ("listen", None),
    RecordKind.BOUND: ("listen", None),
    RecordKind.SENT: ("established", "outbound"),
    RecordKind.RECEIVED: ("established", "inbound"),
}


def _key(record: SocketRecord) -> FlowKey:
    return record.protocol, record.remote, record.remote_port, record.local_port


def _identity(record: SocketRecord) -> tuple[int, Hashable]:
    """The socket and, within it, the key of a flow."""
    return (record.socket, record.cookie) if record.protocol == TCP else (record.cookie, _key(record))


def _is_gone(holder: Process | None, at: int) -> bool:
    """Whether the holder ended before this time (ns since boot), or is not known."""
    return holder is None or (holder.exited and holder.until is not None and holder.until < at)


def _is_accept_of(accepted: SocketRecord, arrived: SocketRecord) -> bool:
    """Whether a process accepted this connection, and not another one whose socket had the same address in memory."""
    if accepted.cookie and accepted.cookie == arrived.cookie:
        return True
    if accepted.token or arrived.token:
        return accepted.token == arrived.token
    return _key(accepted) == _key(arrived) and accepted.local == arrived.local


def _traffic(record: SocketRecord, counts: FlowCounts | None) -> Traffic:
    if counts is None:
        return NO_TRAFFIC
    began, sent, received, packets_sent, packets_received, dropped = counts
    drops = None if record.protocol == TCP or record.kind != RecordKind.CLOSED else dropped
    if not record.flags & _COUNTED:
        return None, None, None, None, None, drops
    duration = (record.time - began) / 1e9 if began else None
    if record.flags & _SENT_ONLY:
        return duration, sent, None, packets_sent, None, drops
    return duration, sent, received, packets_sent, packets_received, drops
