"""Process events by eBPF."""

from __future__ import annotations

import os

from zeek_agent.bpf.probe import why_not
from zeek_agent.config import SourceSettings
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.bpf_monitor import Monitor
from zeek_agent.recording.processes.process_rows import PROCESSES_EVENTS, process_row
from zeek_agent.recording.processes.process_tracker import Change
from zeek_agent.recording.source import Sink, Source


class EbpfProcesses(Source):
    """Every fork, exec and exit, from the kernel's scheduler tracepoints."""

    kind = "processes"
    backend = "ebpf"

    def __init__(self, monitor: Monitor, settings: SourceSettings) -> None:
        super().__init__()
        self._monitor = monitor
        self._ignored_executables = frozenset(settings.ignore_executables)
        self._ignored_uids = frozenset(settings.ignore_uids)
        self._ignored_pid = os.getpid() if settings.ignore_self else None
        self._sink: Sink | None = None
        monitor.on_tick.append(self._count)
        monitor.on_failure.append(self.failed)

    def probe(self) -> str | None:
        return why_not(("processes",))

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._monitor.on_change = self._record
        try:
            self._monitor.open()
        except OSError:
            self._monitor.on_change = self._sink = None
            raise

    def stop(self) -> None:
        if self._sink is None:
            return
        self.drain()
        self._monitor.on_change = self._sink = None
        self._monitor.close()

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

    def _record(self, changes: list[Change]) -> None:
        if self._sink is None:
            return
        offset = boot_time()
        rows = [
            process_row(process, at, offset, ended)
            for process, at, ended in changes
            if process.exe not in self._ignored_executables
            and process.uid not in self._ignored_uids
            and process.pid != self._ignored_pid
        ]
        if rows:
            self._sink(PROCESSES_EVENTS, rows)
