"""Chooses a backend for each kind of event, and replaces it if it fails."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from zeek_agent.recording.registry import candidates
from zeek_agent.recording.source import MissedTime, Source
from zeek_agent.recording.status import SourceStatus

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.events.store import EventStore
    from zeek_agent.masking.masker import Masker
    from zeek_agent.schema import EventRow

log = logging.getLogger(__name__)

_CHECK_INTERVAL_SECONDS: Final = 1.0
"""Interval of checks for failed sources, and so the accuracy of gaps."""
_RETRY_SECONDS: Final = 60.0
"""Interval at which a kind without a working backend is tried again; a probe costs little."""
_QUIET_CHECKS: Final = 3
"""Checks without further losses after which a gap ends."""
_STALL_SECONDS: Final = 300.0
"""Time without a check after which the monitoring thread counts as hung. Starting a source takes seconds."""
_GAP_SECONDS_MAX: Final = 60.0
"""Continuing losses are recorded as a gap after this time; further losses are the next gap."""


@dataclass(slots=True)
class _KindState:
    """One kind of event and its backends."""

    kind: str
    sources: Sequence[Source]
    active: Source | None = None
    recorded_by: Source | None = None
    """The source that recorded last, even if it has ended."""
    reasons: dict[str, str] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    unrecorded_since: float | None = None
    losing_since: float | None = None
    losing_until: float = 0.0
    lost: int = 0
    checked: float = 0.0
    try_again: float = 0.0
    try_better: float = math.inf
    """When backends that are better than the active one are tried, by the monotonic clock."""
    activated: float = 0.0
    """By the monotonic clock."""
    warned: bool = False


class Supervisor:
    """Runs the best working backend of each kind, and monitors it in a separate thread."""

    def __init__(
        self,
        settings: SourceSettings,
        store: EventStore,
        *,
        choose: Callable[[SourceSettings, Masker | None], Mapping[str, Sequence[Source]]] = candidates,
        masker: Masker | None = None,
        clock: Callable[[], float] = time.time,
        interval_seconds: float = _CHECK_INTERVAL_SECONDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._recorders = [_KindState(kind, sources) for kind, sources in choose(settings, masker).items()]
        self._is_recording = False
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._checked = time.monotonic()
        self._watcher = threading.Thread(target=self._watch, name="sources", daemon=True)

    def start(self) -> None:
        """Start the sources. Never raises: `rows` shows why a source could not be started."""
        missed_since = self._store.last_recorded
        with self._lock:
            for recorder in self._recorders:
                for source in recorder.sources:
                    source.clean_up()
                self._activate(recorder, recorder.sources, missed_since)
            begun = max(
                (one.checked for one in self._recorders if one.active and one.active.recorded_until() is not None),
                default=self._clock(),
            )
            for recorder in self._recorders:
                if recorder.sources and recorder.active is None:
                    recorder.unrecorded_since = begun
        self._store.end_restart_gap(begun)
        self._is_recording = True
        self._checked = time.monotonic()
        self._watcher.start()

    def recorded_until(self) -> float | None:
        """Until when (seconds since the epoch) all events were passed to the store; None before `start` has returned.

        Takes no lock, because the store calls it.
        """
        if not self._is_recording:
            return None
        times = []
        for recorder in self._recorders:
            if (source := recorder.recorded_by) is not None:
                times += [source.recorded_until(), recorder.unrecorded_since, recorder.losing_since]
        return min((at for at in times if at is not None), default=self._clock())

    def drain(self) -> None:
        """Pass the events pending in the kernel to the store."""
        for recorder in self._recorders:
            source = recorder.active
            if source is not None:
                try:
                    source.drain()
                except OSError as error:
                    source.failure = source.failure or str(error)

    def stop(self) -> None:
        """Stop all sources. May be called twice."""
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with self._lock:
            for recorder in reversed(self._recorders):
                self._end(recorder)

    def _end(self, recorder: _KindState) -> None:
        if recorder.active is not None:
            self._note_losses(recorder, recorder.active, at_end=True)
            self._stop(recorder.active)
            recorder.active = None
        elif recorder.recorded_by is not None:
            self._end_unrecorded(recorder)

    def change(self, gone: Collection[str], new: Mapping[str, Sequence[Source]]) -> None:
        """Stop recording these kinds of events, and record others. Blocks. To be called after `start`."""
        with self._lock:
            left = [recorder for recorder in self._recorders if recorder.kind in gone]
            self._recorders = [recorder for recorder in self._recorders if recorder.kind not in gone]
            for recorder in left:
                self._end(recorder)
            added = [_KindState(kind, sources) for kind, sources in new.items()]
            self._recorders = [*self._recorders, *added]
            for recorder in added:
                self._activate(recorder, recorder.sources, None)
                if recorder.active is None:
                    recorder.unrecorded_since = self._clock()

    def problem(self, now: float | None = None) -> str | None:
        """Why a failed source would not be replaced, by the monotonic clock; None if the sources are monitored."""
        if not self._watcher.is_alive():
            return "the thread that monitors event sources has ended"
        stalled = (time.monotonic() if now is None else now) - self._checked
        return f"an event source has hung for {stalled:.0f} s" if stalled > _STALL_SECONDS else None

    def status(self) -> list[SourceStatus]:
        return [self._status(recorder, source) for recorder in self._recorders for source in recorder.sources]

    def _status(self, recorder: _KindState, source: Source) -> SourceStatus:
        counters, active = source.counters, source is recorder.active
        tables = [self._store.counters[table] for table in recorder.tables] if active else []
        stored = [table.lost for table in tables]
        best = recorder.active
        standby = "a better one is active" if best is None else best.replaces(source)
        reason = source.note if active else recorder.reasons.get(source.backend, standby)
        return SourceStatus(
            source=recorder.kind,
            backend=source.backend,
            active=active,
            reason=reason,
            received=counters.received,
            lost_overrun=counters.lost["overrun"],
            lost_decode=counters.lost["decode"] + sum(lost["decode"] for lost in stored),
            lost_store=counters.lost["store"] + sum(lost["store"] for lost in stored),
            evicted=sum(table.evicted for table in tables),
            last_error=counters.last_error,
        )

    def _activate(self, recorder: _KindState, sources: Sequence[Source], missed_since: float | None) -> None:
        """Start the first of these sources that works. Nobody recorded the kind since `missed_since`."""
        for source in sources:
            source.missed = None if missed_since is None else MissedTime(missed_since, self._store.entities_since)
            lost_before = source.counters.lost["overrun"]
            reason = self._try(recorder, source)
            if reason is None:
                since = source.recording_since()
                recorder.checked = self._clock() if since is None else since
                recorder.active = recorder.recorded_by = source
                recorder.activated = time.monotonic()
                recorder.reasons.pop(source.backend, None)
                source.update_counters()
                # it may have lost events since it was attached; a count that has become lower began again
                recorder.lost = lost_before if source.counters.lost["overrun"] >= lost_before else 0
                recorder.warned = False
                self._schedule_better(recorder, source)
                log.info("%s events are recorded by %s", recorder.kind, source.backend)
                return
            if recorder.reasons.get(source.backend) != reason:
                log.info("%s events: %s cannot be used: %s", recorder.kind, source.backend, reason)
            recorder.reasons[source.backend] = reason
        if recorder.sources:
            retries = [source.retry_seconds for source in recorder.sources]
            recorder.try_again = time.monotonic() + min(_RETRY_SECONDS if each is None else each for each in retries)
            if not recorder.warned:
                recorder.warned = True
                reasons = "; ".join(f"{backend}: {reason}" for backend, reason in recorder.reasons.items())
                level = logging.WARNING if any(source.essential for source in recorder.sources) else logging.INFO
                log.log(level, "%s events are not recorded: no backend works (%s)", recorder.kind, reasons)

    def _schedule_better(self, recorder: _KindState, active: Source) -> None:
        better = recorder.sources[: recorder.sources.index(active)]
        intervals = [source.return_seconds for source in better if source.return_seconds is not None]
        recorder.try_better = time.monotonic() + min(intervals, default=math.inf)

    def _return_to_better(self, recorder: _KindState, active: Source) -> None:
        """Replace the active source if a better one works by now; until that is known, it records."""
        for number, source in enumerate(recorder.sources[: recorder.sources.index(active)]):
            if source.return_seconds is None or not self._works(recorder, source):
                continue
            self._note_losses(recorder, active, at_end=True)
            self._stop(active)
            recorded_until = active.recorded_until()
            since = recorder.checked if recorded_until is None else recorded_until
            recorder.active, recorder.unrecorded_since = None, since
            self._activate(recorder, recorder.sources[number:], since)
            return
        self._schedule_better(recorder, active)

    def _works(self, recorder: _KindState, source: Source) -> bool:
        try:
            reason = source.probe()
        except (OSError, ImportError) as error:
            reason = str(error)
        if reason is not None:
            recorder.reasons[source.backend] = reason
        return reason is None

    def _try(self, recorder: _KindState, source: Source) -> str | None:
        """Start the source. Returns None, or the reason if it could not be started."""

        def sink(table: str, rows: Sequence[EventRow], position: str | None = None, /) -> None:
            recorder.tables.add(table)
            for other in self._recorders:
                if other.active is not None:
                    rows = other.active.complete(table, rows)
            self._store.append(table, rows, position)

        source.failure = None
        try:
            reason = source.probe()
            if reason is None:
                source.resume(self._store.recording_position)
                source.start(sink)
        except (OSError, ImportError) as error:
            self._stop(source)
            return str(error)
        return reason

    def _stop(self, source: Source) -> None:
        try:
            source.stop()
        except OSError as error:
            log.warning("%s source %s failed to stop cleanly: %s", source.kind, source.backend, error)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            self._checked = time.monotonic()
            with self._lock:
                for recorder in self._recorders:
                    self._check(recorder)

    def _check(self, recorder: _KindState) -> None:
        now, checked = self._clock(), time.monotonic()
        source = recorder.active
        if source is not None and source.failure is not None:
            self._replace(recorder, source, source.failure)
        elif source is not None and checked >= recorder.try_better:
            self._return_to_better(recorder, source)
        elif source is not None:
            self._note_losses(recorder, source)
        elif recorder.sources and time.monotonic() >= recorder.try_again:
            self._activate(recorder, recorder.sources, recorder.unrecorded_since)
        if recorder.active is not source or recorder.activated > checked:
            self._end_unrecorded(recorder)
        else:
            recorder.checked = now

    def _end_unrecorded(self, recorder: _KindState) -> None:
        """Record the time without a source as a gap, when there is one again, or at the end."""
        if recorder.unrecorded_since is None or (recorder.active is None and not self._ended.is_set()):
            return
        until = self._clock() if recorder.active is None else recorder.checked
        self._store.record_gap(recorder.kind, recorder.unrecorded_since, until, "no source was active")
        recorder.unrecorded_since = None

    def _replace(self, recorder: _KindState, failed: Source, failure: str) -> None:
        """Replace a failed source with the next best, or start it again if it has worked for a while."""
        log.error("%s events: source %s has failed: %s", recorder.kind, failed.backend, failure)
        losing_since = recorder.losing_since
        self._note_losses(recorder, failed, at_end=True)
        self._stop(failed)
        failed.counters.last_error = failure
        recorded_until = failed.recorded_until()
        since = recorder.checked if recorded_until is None else recorded_until
        recorder.active, recorder.unrecorded_since = None, since
        recorder.reasons[failed.backend] = failure
        missed_since = since if losing_since is None else min(since, losing_since)
        ran_seconds, restart_after_seconds = time.monotonic() - recorder.activated, failed.restart_after_seconds
        is_restarted = restart_after_seconds is not None and ran_seconds >= restart_after_seconds
        first = recorder.sources.index(failed) + (0 if is_restarted else 1)
        self._activate(recorder, recorder.sources[first:], missed_since)

    def _note_losses(self, recorder: _KindState, source: Source, *, at_end: bool = False) -> None:
        """Record a period of overruns of the kernel's buffer as a gap, when it is over or has lasted long."""
        source.update_counters()
        now, lost = self._clock(), source.counters.lost["overrun"]
        if lost > recorder.lost:
            since = source.losses_since()
            begun = recorder.checked if since is None else min(since, recorder.checked)
            recorder.losing_since = begun if recorder.losing_since is None else min(begun, recorder.losing_since)
            recorder.losing_until = now
        recorder.lost = lost
        if recorder.losing_since is None:
            return
        quiet = now - recorder.losing_until
        over = (
            at_end or quiet < 0 or quiet >= _QUIET_CHECKS * self._interval_seconds
        )  # below 0 if the clock was set back
        if over or now >= recorder.losing_since + _GAP_SECONDS_MAX:
            self._store.record_gap(recorder.kind, recorder.losing_since, recorder.losing_until, "overrun")
            log.warning("%s events were lost: %s", recorder.kind, source.overrun)
            since, recorder.losing_since = recorder.losing_since, None
            if source.failure is None:
                source.find_lost(since)
