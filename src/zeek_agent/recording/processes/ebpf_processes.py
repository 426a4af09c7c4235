"""Process events by eBPF."""

from __future__ import annotations

from zeek_agent.bpf.probe import why_not
from zeek_agent.config import SourceSettings
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.processes.process_changes import ProcessChange
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS, process_event
from zeek_agent.recording.source import Sink, Source


class EbpfProcesses(Source):
    """Every fork, exec and exit, from the kernel's scheduler tracepoints."""

    kind = "processes"
    backend = "ebpf"

    def __init__(self, monitor: BpfMonitor, settings: SourceSettings) -> None:
        super().__init__()
        self._monitor = monitor
        self._exclusions = Exclusions(settings)
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

    def _record(self, changes: list[ProcessChange]) -> None:
        if self._sink is None:
            return
        offset = boot_time()
        events = self._exclusions.without([process_event(process, at, offset, ended) for process, at, ended in changes])
        if events:
            self._sink(PROCESSES_EVENTS, events)
