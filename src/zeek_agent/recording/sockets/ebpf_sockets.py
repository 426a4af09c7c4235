"""Socket events by eBPF."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zeek_agent.bpf.probe import why_no_tracepoints, why_not
from zeek_agent.host.internet_sockets import TCP, UDP, UDPLITE, TcpState
from zeek_agent.host.linux.boot_clock import boot_time, time_since_boot
from zeek_agent.host.linux.host_sockets import sockets_by_namespace
from zeek_agent.host.linux.procfs import Procfs, socket_holders
from zeek_agent.recording.bpf_monitor import BpfMonitor, RecordStream
from zeek_agent.recording.bpf_objects import attach_sockets
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.sockets.bpf_connections import ConnectionTracker
from zeek_agent.recording.sockets.long_connections import LongConnections
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS, Direction, SocketEvent
from zeek_agent.recording.sockets.socket_owners import SocketOwners, living_owners
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.dns.remote_names import RemoteNames
    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.processes.process_cache import ProcessCache

log = logging.getLogger(__name__)

_SWEEP_NS: Final = 5_000_000_000
_SWEEP: Final = struct.Struct("=QQ")
"""`struct sweep`."""


class EbpfSockets(Source):
    """TCP connections and listeners, first datagrams of flows and opened packet sockets, with the acting process."""

    kind = "sockets"
    backend = "ebpf"

    def __init__(self, monitor: BpfMonitor, settings: SourceSettings, names: RemoteNames | None = None) -> None:
        """`names` are those that processes looked up, for the column `remote_name`."""
        super().__init__()
        self._names = names
        self._monitor = monitor
        self._settings = settings
        self._is_recording = False
        self._attached = 0
        self._drained_until = 0
        self._complete_until = 0
        self._exclusions = Exclusions(settings)
        owners = SocketOwners()
        self._tracker = ConnectionTracker(
            monitor.cache, lambda inodes: living_owners(owners, monitor.cache, inodes, fed=True)
        )
        self._long_connections = LongConnections(self._tracker.open_socket, settings.traffic_interval)
        self._next_sweep = 0
        self._streams: list[RecordStream] = []
        self._sink: Sink | None = None
        monitor.on_tick.append(self._tick)
        monitor.on_drained.append(self._note_complete)
        monitor.on_failure.append(self.failed)

    def probe(self) -> str | None:
        return why_not(("processes", "tcp")) or why_no_tracepoints()

    def start(self, sink: Sink) -> None:
        """TCP must work; failures of datagram or packet sockets are only recorded in `counters.last_error`."""
        self._monitor.open()
        self._sink = sink
        try:
            self._streams.append(self._stream("tcp"))
        except OSError:
            self.stop()
            raise
        obstacles = {
            "datagrams": self._add("udp"),
            "packet sockets": self._add("packet"),
        }
        missing = [f"{what} are not recorded: {why}" for what, why in obstacles.items() if why is not None]
        if missing:
            self.counters.last_error = "; ".join(missing)
            log.warning("socket events: %s", self.counters.last_error)
        # the programs are attached and the ring is not read yet, so no socket is missed between snapshot and events
        for cookie, process, direction, is_shared in open_sockets(self._monitor.cache):
            self._tracker.remember(cookie, process, direction, is_shared=is_shared)
        for stream in self._streams:
            self._monitor.add(stream)
        self._attached = self._complete_until = self._drained_until = max(stream.attached for stream in self._streams)
        self._is_recording = True

    def _add(self, name: str) -> str | None:
        """Add an object. Returns None, or the reason if it could not be added."""
        failure = why_not((name,))
        if failure is not None:
            return failure
        try:
            self._streams.append(self._stream(name))
        except OSError as error:
            return error.strerror or str(error)
        return None

    def stop(self) -> None:
        if self._sink is None:
            return
        with self._monitor.lock:
            self._monitor.drain()
            self._is_recording = False
        for stream in self._streams:
            self._monitor.remove(stream)
        with self._monitor.lock:
            self._emit(self._tracker.remaining(boot_time()))
            self._complete_until = min(self._drained_until, self._tracker.oldest_pending() or self._drained_until)
            self._count()
            self._streams.clear()
            self._sink = None
        self._monitor.close()

    def recording_since(self) -> float | None:
        return boot_time() + self._attached / 1e9

    def recorded_until(self) -> float | None:
        return boot_time() + self._complete_until / 1e9

    def _note_complete(self, until: int) -> None:
        if self._is_recording:
            self._drained_until = max(self._attached, until)
            self._complete_until = max(self._attached, min(until, self._tracker.oldest_pending() or until))

    def update_counters(self) -> None:
        with self._monitor.lock:
            self._count()

    def drain(self) -> None:
        with self._monitor.lock:
            self._monitor.drain()
            self._count()

    def _stream(self, name: str) -> RecordStream:
        """The stream of an object, which is attached unless that was done early."""
        attached = self._monitor.take_early(name) or attach_sockets(name, self._settings)
        return RecordStream.of(attached, self._record)

    def _record(self, batch: list[bytes]) -> None:
        self._emit(self._tracker.rows(batch, boot_time()))

    def _emit(self, events: list[SocketEvent]) -> None:
        events = self._exclusions.without(events)
        if self._names is not None:
            events = [_named(event, self._names) for event in events]
        if events and self._sink is not None:
            self._sink(SOCKETS_EVENTS, events)

    def _tick(self) -> None:
        if not self._is_recording:  # its objects are not there yet, or are being closed
            return
        now, booted = time_since_boot(), boot_time()
        self._emit(self._tracker.overdue(now, booted))
        self._emit(self._long_connections.rows(now, booted))
        self._sweep(now)
        self._count()

    def _sweep(self, now: int) -> None:
        """Let the kernel report the datagram flows that are over because they were idle, and those that go on."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_NS
        for stream in self._streams:
            if stream.object.name == "udp":
                stream.object.run("sweep_flows", _SWEEP.pack(now, int(self._settings.traffic_interval * 1e9)))

    def _count(self) -> None:
        self.counters.received = sum(stream.received for stream in self._streams)
        self.counters.lost["decode"] = self._tracker.undecoded
        self.counters.lost["overrun"] = sum(sum(stream.lost()) for stream in self._streams)


def _named(event: SocketEvent, names: RemoteNames) -> SocketEvent:
    name = names.find(event.entity_id, event.remote_addr)
    return event if name is None else replace(event, remote_name=name)


def open_sockets(
    cache: ProcessCache, proc: str = "/proc"
) -> Iterator[tuple[int, Process | None, Direction | None, bool]]:
    """Open sockets: cookie, owner, direction, and whether several processes have it open, as far as can be determined.

    A connection on a listening port is inbound.
    """
    pids = Procfs(proc).pids()
    holders = socket_holders(proc, pids)
    found = [each for _, sockets in sockets_by_namespace(proc, pids, (TCP, UDP, UDPLITE)) for each in sockets]
    listening = {each.local_port for each in found if each.protocol == TCP and each.state == TcpState.LISTEN}
    for each in found:
        holding = holders.get(each.inode)
        if each.cookie and holding:
            direction: Direction | None = None
            if each.protocol == TCP and each.state != TcpState.LISTEN:
                direction = "inbound" if each.local_port in listening else "outbound"
            yield each.cookie, cache.find(holding[0][0]), direction, len(holding) > 1
