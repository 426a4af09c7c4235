"""Turns the kernel's socket records into rows with process and direction."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from zeek_agent.bpf import records
from zeek_agent.bpf.records import SOCKET, RecordKind, SocketRecord
from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.internet_sockets import on_the_wire
from zeek_agent.host.linux.stamps import boot_id, start_ticks
from zeek_agent.recording.processes.process_cache import Process, ProcessCache
from zeek_agent.recording.sockets.socket_event import (
    Direction,
    Flow,
    SocketEvent,
    SocketState,
    packet_event,
    socket_event,
)

log = logging.getLogger(__name__)

ACCEPT_TIMEOUT_NS: Final = 1_000_000_000
"""How long a connection waits for its accepting process; then the listener's owner is used (io_uring accepts without
the traced system call)."""
REMEMBERED_SOCKETS_MAX: Final = 100_000
"""Open sockets whose process is remembered for their end; bounds memory on a server with more connections."""


class _Passive(NamedTuple):
    """An inbound connection that has not been accepted yet."""

    at: int
    flow: Flow
    process: Process | None


class ConnectionTracker:
    """Turns records into rows."""

    def __init__(self, cache: ProcessCache) -> None:
        self._cache = cache
        self._passive: dict[int, _Passive] = {}
        self._open: dict[int, tuple[Process | None, Direction | None]] = {}
        self._substituted: set[int] = set()
        self.undecoded = 0

    def remember(self, cookie: int, process: Process | None, direction: Direction | None) -> None:
        """Remember the process and direction of an open socket."""
        self._open[cookie] = (process, direction)
        if len(self._open) > REMEMBERED_SOCKETS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._substituted.discard(oldest)

    def rows(self, batch: Iterable[bytes], boot_time: float) -> list[SocketEvent]:
        """Rows for these records, in the kernel's order; times are ns since the boot at `boot_time`."""
        rows: list[SocketEvent] = []
        for record in batch:
            try:
                self._apply(SocketRecord._make(SOCKET.unpack(record)), boot_time, rows)
            except (ValueError, LookupError, struct.error):
                self.undecoded += 1
                log.exception("a socket record cannot be read: %s", record.hex())
        return rows

    def overdue(self, now: int, boot_time: float) -> list[SocketEvent]:
        """Rows for inbound connections without an observed accept."""
        rows: list[SocketEvent] = []
        for cookie, passive in list(self._passive.items()):
            if passive.at > now - ACCEPT_TIMEOUT_NS:
                break
            self._accept(cookie, passive.process, boot_time, rows, stands_in=True)
        return rows

    def _apply(self, record: SocketRecord, boot_time: float, rows: list[SocketEvent]) -> None:
        kind, cookie = record.kind, record.cookie
        flow = _flow(record)
        if kind in _ENDS:
            self._end(record, flow, boot_time, rows)
            return
        process = self._process(record)
        if kind == RecordKind.PACKET:
            rows.append(packet_event(process, record.netns, time=boot_time + record.time / 1e9))
        elif kind == RecordKind.PASSIVE:
            self._passive[cookie] = _Passive(record.time, flow, process)
        elif kind == RecordKind.ACCEPTED and cookie in self._passive:
            self._accept(cookie, process, boot_time, rows)
        elif kind != RecordKind.ACCEPTED or self._open.get(cookie, (None, None))[0] is not process:
            state, direction = _MEANING[kind]
            rows.append(socket_event(flow, state, direction, process, time=boot_time + record.time / 1e9))
            if kind != RecordKind.FAILED:
                self.remember(cookie, process, direction)

    def _accept(
        self,
        cookie: int,
        process: Process | None,
        boot_time: float,
        rows: list[SocketEvent],
        *,
        stands_in: bool = False,
    ) -> None:
        at, flow, _ = self._passive.pop(cookie)
        row = socket_event(flow, "established", "inbound", process, time=boot_time + at / 1e9, stands_in=stands_in)
        rows.append(row)
        self.remember(cookie, process, "inbound")
        if stands_in:
            self._substituted.add(cookie)

    def _end(self, record: SocketRecord, flow: Flow, boot_time: float, rows: list[SocketEvent]) -> None:
        if record.cookie in self._passive:
            self._accept(record.cookie, self._passive[record.cookie].process, boot_time, rows, stands_in=True)
        process, direction = self._open.pop(record.cookie, (None, None))
        if process is None:
            process = self._process(record)
        if record.kind == RecordKind.UNLISTEN:
            direction = None
        elif direction is None and process is not None:
            direction = "outbound" if record.outbound else "inbound"
        stands_in = record.cookie in self._substituted
        self._substituted.discard(record.cookie)
        when = boot_time + record.time / 1e9
        rows.append(socket_event(flow, "closed", direction, process, time=when, stands_in=stands_in))

    def _process(self, record: SocketRecord) -> Process | None:
        """The owner at the time of the system call."""
        if record.started == 0:  # open before the programs were attached
            return self._open.get(record.cookie, (None, None))[0]
        ticks = start_ticks(record.started)
        process = self._cache.find(record.pid, record.acted, ticks)
        if process is not None and self._cache.doubts(process, records.comm(record.name)):
            process = self._cache.read(record.pid)
            if process is not None and process.start_ticks == ticks:
                process.since = record.acted
                self._cache.exec(process)
            else:
                process = None
        if process is None:
            return _unknown_process(record, ticks)
        process.uid, process.gid = record.uid, record.gid
        return process


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


def _flow(record: SocketRecord) -> Flow:
    local, remote = record.local, record.remote
    if record.family == 4:
        local, remote = local[:4], remote[:4]
    else:
        local, remote = on_the_wire(local, remote)
    return Flow(
        record.protocol,
        local,
        record.local_port,
        remote,
        record.remote_port,
        record.cookie or None,
        record.netns or None,
    )


def _unknown_process(record: SocketRecord, ticks: int) -> Process:
    """A process that is known only from the socket record."""
    return Process(
        pid=record.pid,
        start_ticks=ticks,
        since=record.started,
        started=record.started,
        entity_id=entity_id(boot_id(), record.pid, ticks),
        name=records.comm(record.name),
        uid=record.uid,
        gid=record.gid,
    )
