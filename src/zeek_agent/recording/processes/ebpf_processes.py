"""Process events by eBPF."""

from __future__ import annotations

import time
from collections.abc import Iterable

from zeek_agent.bpf.probe import why_not
from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_changes import ProcessChange
from zeek_agent.recording.processes.process_event import (
    PROCESSES_EVENTS,
    ProcessEvent,
    found_process_event,
    process_event,
)
from zeek_agent.recording.source import MissedTime, Sink, Source


class EbpfProcesses(Source):
    """Every fork, exec and exit, from the kernel's scheduler tracepoints."""

    kind = "processes"
    backend = "ebpf"

    def __init__(self, monitor: BpfMonitor, settings: SourceSettings) -> None:
        super().__init__()
        self._monitor = monitor
        self._exclusions = Exclusions(settings)
        self._sink: Sink | None = None
        self._attached = 0
        self._complete_until = 0
        self._found: dict[tuple[int, int], Process] = {}
        monitor.on_tick.append(self._count)
        monitor.on_drained.append(self._note_complete)
        monitor.on_failure.append(self.failed)

    def probe(self) -> str | None:
        return why_not(("processes",))

    def start(self, sink: Sink) -> None:
        with self._monitor.lock:
            self._sink = sink
            self._monitor.cache.has_all_starts = True
            self._monitor.on_change = self._record
            try:
                self._monitor.open()
            except OSError:
                self._monitor.on_change = self._sink = None
                raise
            self._attached = self._complete_until = self._monitor.attached
            if self.missed is not None:
                self._report_missed(self.missed)

    def stop(self) -> None:
        if self._sink is None:
            return
        self._monitor.cache.has_all_starts = False
        with self._monitor.lock:
            self._monitor.drain()
            self._record(self._monitor.remaining_forks())
            self._monitor.drain()
            self._count()
            self._monitor.on_change = self._sink = None
        self._monitor.close()

    def recording_since(self) -> float | None:
        return boot_time() + self._attached / 1e9

    def recorded_until(self) -> float | None:
        return boot_time() + self._complete_until / 1e9

    def update_counters(self) -> None:
        with self._monitor.lock:
            self._count()

    def find_lost(self, since: float) -> None:
        with self._monitor.lock:
            if self._sink is None:
                return
            self._monitor.cache.seed()
            begin, now = round((since - boot_time()) * 1e9), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            started = self._monitor.cache.started_between(max(begin, self._attached), now)
            self._report_found(process for process in started if not process.is_reported)

    def _report_missed(self, missed: MissedTime) -> None:
        """Report running processes that began while nobody recorded."""
        begin = round((missed.since - boot_time()) * 1e9)
        started = self._monitor.cache.started_between(begin, self._monitor.attached)
        recorded = missed.entities_since(PROCESSES_EVENTS, missed.since) if started else frozenset()
        for process in started:
            process.is_reported = process.entity_id in recorded
        self._report_found(process for process in started if not process.is_reported)

    def _report_found(self, processes: Iterable[Process]) -> None:
        """Report running processes, except those of which records up to now have the start.

        These are read after the cache was filled.
        """
        self._found = {(process.pid, process.start_ticks): process for process in processes}
        self._monitor.drain()
        self._emit_found(process for process in self._found.values() if not self._monitor.has_pending(process))
        self._found.clear()

    def _emit_found(self, processes: Iterable[Process]) -> None:
        offset = boot_time()
        found = list(processes)
        for process in found:
            process.is_reported = True
        self._emit([found_process_event(process, offset) for process in found])

    def _note_complete(self, until: int) -> None:
        if self._sink is not None:
            self._complete_until = max(self._attached, min(until, self._monitor.oldest_fork() or until))

    def drain(self) -> None:
        with self._monitor.lock:
            self._monitor.drain()
            self._count()

    def _count(self) -> None:
        if self._sink is None:
            return
        self.counters.received = self._monitor.received()
        self.counters.lost["decode"] = self._monitor.undecoded()
        self.counters.lost["overrun"] = sum(self._monitor.lost().values())

    def _record(self, changes: list[ProcessChange]) -> None:
        offset = boot_time()
        for process, _, ended in changes if self._found else ():
            found = self._found.pop((process.pid, process.start_ticks), None)
            if found is not None and ended is not None:
                self._emit_found((found,))
        for process, _, ended in changes:
            if ended is None and (cached := self._monitor.cache.lookup(process.pid, ticks=process.start_ticks)):
                cached.is_reported = True
        self._emit([process_event(process, at, offset, ended) for process, at, ended in changes])

    def _emit(self, events: list[ProcessEvent]) -> None:
        events = self._exclusions.without(events)
        if events and self._sink is not None:
            self._sink(PROCESSES_EVENTS, events)
