"""The reader of all BPF ring buffers, which also updates the process cache.

Process records are read before socket records that were pending at the same time, so that the program that opened a
connection is always known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zeek_agent.bpf import iterators
from zeek_agent.bpf.libbpf import BpfObject
from zeek_agent.bpf.records import RECORD_KINDS, RecordKind
from zeek_agent.bpf.ring import Ring
from zeek_agent.recording.bpf_objects import AttachedObject, EarlyObjects, attach_processes
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_changes import ProcessChange
from zeek_agent.recording.processes.process_tracker import ProcessTracker

log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.1
"""Maximum delay of a record; a ring that fills up faster wakes the reader earlier."""
_HOUSEKEEPING_SECONDS: Final = 1.0
"""Interval of expiry and reconciliation, which need not be exact."""
_INCOMPLETE_PAUSE_SECONDS: Final = 0.0001
"""A program takes microseconds to complete a record."""
_INCOMPLETE_TIMEOUT_SECONDS: Final = 0.05
"""Bounds the wait for a writer whose CPU was taken away in the middle of a record."""
_RECORDING_NS: Final = 50_000_000
"""A program takes microseconds from reading the clock to the record's place in the ring; its CPU may be taken away."""


@dataclass(slots=True)
class RecordStream:
    """A loaded object, its ring buffer, and the handler of its records."""

    object: BpfObject
    ring: Ring
    handle: Callable[[list[bytes]], None]
    attached: int
    """Since when its programs record: boot time in ns."""
    received: int = 0
    _finally_lost: list[int] | None = None

    @classmethod
    def of(cls, attached: AttachedObject, handle: Callable[[list[bytes]], None]) -> RecordStream:
        """A stream of an attached object. Raises OSError, and closes the object."""
        try:
            ring = Ring(attached.object.map_fd("records"), attached.ring_bytes)
        except OSError:
            attached.object.close()
            raise
        return cls(attached.object, ring, handle, attached.attached)

    def lost(self) -> list[int]:
        """Records dropped because the ring buffer was full, by kind."""
        if self._finally_lost is not None:
            return self._finally_lost
        return self.object.per_cpu_counters("lost", RECORD_KINDS)

    def close(self) -> None:
        self._finally_lost = self.lost()
        self.ring.close()
        self.object.close()


class BpfMonitor:
    """Loads the process object while there are users; other objects join with `add`."""

    def __init__(self, cache: ProcessCache, ring_bytes: int = 0, early: EarlyObjects | None = None) -> None:
        """`early` has objects that are attached already."""
        self.cache = cache
        self.ring_bytes = ring_bytes
        self._early = early
        self.on_drained: list[Callable[[int], None]] = []
        """Called with the boot time (ns) until which all records were passed on."""
        self.on_change: Callable[[list[ProcessChange]], None] | None = None
        self.on_tick: list[Callable[[], None]] = []
        self.on_failure: list[Callable[[str], None]] = []
        self._tracker = ProcessTracker(cache)
        self._processes: RecordStream | None = None
        self._others: list[RecordStream] = []
        self._users = 0
        self.lock = threading.RLock()
        """Locked while records are read."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._housekeeping = 0.0
        self._failed = False
        self._missed = 0
        self._unreconciled = False

    def open(self) -> None:
        """Start following processes, unless already started. Raises OSError. Each `open` needs a `close`."""
        with self.lock:
            if self._users == 0:
                self._start()
            self._users += 1

    def close(self) -> None:
        """The last `close` stops the reader, after handling the records left in the ring buffers."""
        with self.lock:
            self._users -= 1
            if self._users:
                return
            self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.drain()
        with self.lock:
            if self._processes is not None:
                self._processes.close()
            self._processes = None
            self.cache.forget_executables()

    def add(self, stream: RecordStream, *, first: bool = False) -> None:
        """Read this ring buffer too, before all others if it is `first`; the reading thread calls the handler."""
        with self.lock:
            self._others.insert(0 if first else len(self._others), stream)

    def remove(self, stream: RecordStream) -> None:
        """Handle the records left in the ring buffer, and close it."""
        self.drain()
        with self.lock:
            if stream in self._others:
                self._others.remove(stream)
            stream.close()

    def drain(self) -> None:
        """Read all pending records."""
        with self.lock:
            if self._processes is None or self._failed:
                return
            begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            # the last mark is that of the ring that is read first, so what others refer to was read before
            marks = [(stream, stream.ring.end()) for stream in reversed(self._others)]
            self._note_losses()  # before the records that follow them, and again after reading
            caught_up = self._catch_up(self._processes)
            self._note_losses()
            if caught_up:
                for stream, end in reversed(marks):
                    self._consume(stream, end)
            self._tick()
            if caught_up:
                for callback in self.on_drained:
                    callback(begun - _RECORDING_NS)

    def received(self) -> int:
        """Number of process records so far."""
        return self._processes.received if self._processes else 0

    def undecoded(self) -> int:
        """Number of process records that could not be decoded."""
        return self._tracker.undecoded

    def lost(self) -> Counter[RecordKind]:
        """Process records dropped because the ring buffer was full."""
        with self.lock:
            if self._processes is None:
                return Counter()
            return Counter(
                {kind: count for kind, count in zip(RecordKind, self._processes.lost()[1:], strict=False) if count}
            )

    def take_early(self, name: str) -> AttachedObject | None:
        """An object that is attached already, once."""
        return None if self._early is None else self._early.take(name)

    @property
    def attached(self) -> int:
        """Since when processes are followed: boot time in ns."""
        return 0 if self._processes is None else self._processes.attached

    def oldest_fork(self) -> int | None:
        """The boot time (ns) of the oldest fork that is not reported yet."""
        return self._tracker.oldest_fork()

    def remaining_forks(self) -> list[ProcessChange]:
        """Starts of all forked processes that are not reported yet, when recording stops; none after a failure."""
        return [] if self._failed else self._tracker.settled(None)

    def has_pending(self, process: Process) -> bool:
        """Whether the fork of this process is not reported yet."""
        return self._tracker.has_pending(process)

    def _start(self) -> None:
        attached = self.take_early("processes") or attach_processes(self.ring_bytes)
        self._processes = RecordStream.of(attached, self._processes_changed)
        self.cache.forget_executables()
        self.cache.seed()
        self._missed = 0
        self._failed = False
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(self._processes.ring,), name="ebpf", daemon=True)
        self._thread.start()

    def _note_losses(self) -> None:
        lost = self.lost()
        if lost.total() == self._missed:
            return
        self._missed = lost.total()
        self._unreconciled = True
        if lost[RecordKind.EXEC] or lost[RecordKind.FORK]:
            self.cache.miss_execs(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def _run(self, ring: Ring) -> None:
        iterators.load_iterators()
        try:
            while not self._stopping.is_set():
                ring.wait(_TICK_SECONDS)
                self.drain()
        except Exception as error:
            self._failed = True
            log.exception("eBPF records are no longer readable")
            for callback in self.on_failure:
                callback(f"the reader ended: {error}")

    def _catch_up(self, stream: RecordStream) -> bool:
        """Read all pending records. False if one is not completed in time: then socket records have to wait."""
        end = stream.ring.end()
        deadline = time.monotonic() + _INCOMPLETE_TIMEOUT_SECONDS
        while True:
            self._consume(stream, end)
            if stream.ring.passed(end):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_INCOMPLETE_PAUSE_SECONDS)

    def _consume(self, stream: RecordStream, end: int) -> None:
        while batch := stream.ring.read(end):
            stream.received += len(batch)
            stream.handle(batch)

    def _processes_changed(self, batch: list[bytes]) -> None:
        changes = self._tracker.apply(batch)
        if changes and self.on_change is not None:
            self.on_change(changes)

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._housekeeping:
            return
        self._housekeeping = now + _HOUSEKEEPING_SECONDS
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        settled = self._tracker.settled(boot)
        if settled and self.on_change is not None:
            self.on_change(settled)
        self.cache.expire(boot)
        if self._unreconciled:
            self._unreconciled = False
            self.cache.reconcile(boot)
        for callback in self.on_tick:
            callback()
