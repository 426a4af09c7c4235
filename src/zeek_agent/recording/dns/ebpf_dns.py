"""Name lookups by eBPF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zeek_agent.bpf.probe import why_no_cgroup2, why_not
from zeek_agent.host.linux.boot_clock import boot_time, time_since_boot
from zeek_agent.recording.bpf_monitor import BpfMonitor, RecordStream
from zeek_agent.recording.bpf_objects import attach_dns
from zeek_agent.recording.dns.dns_event import DNS_EVENTS, DnsEvent
from zeek_agent.recording.dns.dns_lookups import DnsLookups
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.dns.remote_names import RemoteNames


class EbpfDns(Source):
    """Questions to DNS servers and their answers, over UDP and TCP, with the process that asked."""

    kind = "dns"
    backend = "ebpf"
    essential = False

    def __init__(self, monitor: BpfMonitor, settings: SourceSettings, names: RemoteNames) -> None:
        super().__init__()
        self._monitor = monitor
        self._settings = settings
        self._exclusions = Exclusions(settings)
        self._lookups = DnsLookups(monitor.cache, names)
        self._stream: RecordStream | None = None
        self._sink: Sink | None = None
        self._attached = 0
        self._complete_until = 0
        monitor.on_tick.append(self._tick)
        monitor.on_drained.append(self._note_complete)
        monitor.on_failure.append(self.failed)

    def probe(self) -> str | None:
        return why_not(("processes", "dns")) or why_no_cgroup2()

    def start(self, sink: Sink) -> None:
        self._monitor.open()
        self._sink = sink
        try:
            attached = self._monitor.take_early("dns") or attach_dns(self._settings)
            self._stream = RecordStream.of(attached, self._record)
        except OSError:
            self.stop()
            raise
        self._attached = self._complete_until = self._stream.attached
        self._monitor.add(self._stream, first=True)

    def stop(self) -> None:
        if self._sink is None:
            return
        if self._stream is not None:
            self._monitor.remove(self._stream)
            with self._monitor.lock:
                self._emit(self._lookups.remaining())
                self._count()
        self._stream = self._sink = None
        self._monitor.close()

    def recording_since(self) -> float | None:
        return boot_time() + self._attached / 1e9

    def recorded_until(self) -> float | None:
        return boot_time() + self._complete_until / 1e9

    def _note_complete(self, until: int) -> None:
        if self._stream is not None:
            self._complete_until = max(self._attached, min(until, self._lookups.oldest_pending() or until))

    def update_counters(self) -> None:
        with self._monitor.lock:
            self._count()

    def drain(self) -> None:
        with self._monitor.lock:
            self._monitor.drain()
            self._count()

    def _record(self, batch: list[bytes]) -> None:
        self._emit(self._lookups.rows(batch, boot_time()))

    def _emit(self, events: list[DnsEvent]) -> None:
        events = self._exclusions.without(events)
        if events and self._sink is not None:
            self._sink(DNS_EVENTS, events)

    def _tick(self) -> None:
        self._emit(self._lookups.overdue(time_since_boot()))
        self._count()

    def _count(self) -> None:
        if self._stream is not None:
            self.counters.received = self._stream.received
            self.counters.lost["decode"] = self._lookups.undecoded + self._lookups.lost_streams
            self.counters.lost["overrun"] = sum(self._stream.lost())
