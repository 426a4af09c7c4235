"""Chooses a backend for each kind of event, and another one when that fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from zeek_agent.recording.registry import candidates
from zeek_agent.recording.source import Source
from zeek_agent.recording.status import SourceStatus

if TYPE_CHECKING:
    from zeek_agent.config import SourceSettings
    from zeek_agent.events.store import EventStore
    from zeek_agent.schema import Row

log = logging.getLogger(__name__)

_WATCH: Final = 1.0
_TRY_AGAIN: Final = 60.0
_QUIET: Final = 3
_LONGEST: Final = 60.0
"""Seconds after which a time of losses is recorded as a gap though it goes on; what follows is the next one."""


@dataclass(slots=True)
class _Post:
    """One kind of event, and who records it."""

    kind: str
    sources: Sequence[Source]
    active: Source | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    unrecorded_since: float | None = None
    losing_since: float | None = None
    losing_until: float = 0.0
    lost: int = 0
    checked: float = 0.0
    try_again: float = 0.0
    complained: bool = False


class Supervisor:
    """Runs the best backend of each kind that works here, and watches it from a thread of its own."""

    def __init__(
        self,
        settings: SourceSettings,
        store: EventStore,
        *,
        choose: Callable[[SourceSettings, Callable[[str], str]], Mapping[str, Sequence[Source]]] = candidates,
        redact: Callable[[str], str] = lambda command_line: command_line,
        clock: Callable[[], float] = time.time,
        interval: float = _WATCH,
    ) -> None:
        self._store = store
        self._clock = clock
        self._interval = interval
        self._posts = [_Post(kind, sources) for kind, sources in choose(settings, redact).items()]
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="sources", daemon=True)

    def start(self) -> None:
        """Start the sources. Never raises: what cannot be started is in `rows` with its reason."""
        with self._lock:
            for post in self._posts:
                for source in post.sources:
                    source.clean_up()
                self._fill(post, post.sources)
        self._watcher.start()

    def drain(self) -> None:
        """Hand over to the store what the kernel holds now."""
        for post in self._posts:
            source = post.active
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
            for post in reversed(self._posts):
                if post.active is not None:
                    self._note_losses(post, post.active, at_end=True)
                    self._stop(post.active)
                    post.active = None

    def status(self) -> list[SourceStatus]:
        return [self._status(post, source) for post in self._posts for source in post.sources]

    def _status(self, post: _Post, source: Source) -> SourceStatus:
        counters, active = source.counters, source is post.active
        stored = [self._store.counters[table].lost for table in post.tables] if active else []
        reason = None if active else post.reasons.get(source.backend, "a better one is at work")
        return SourceStatus(
            source=post.kind,
            backend=source.backend,
            active=active,
            reason=reason,
            received=counters.received,
            lost_overrun=counters.lost["overrun"],
            lost_decode=counters.lost["decode"] + sum(lost["decode"] for lost in stored),
            lost_store=counters.lost["store"] + sum(lost["store"] for lost in stored),
            last_error=counters.last_error,
        )

    def _fill(self, post: _Post, sources: Sequence[Source]) -> None:
        """Start the first of these that works."""
        for source in sources:
            reason = self._try(post, source)
            if reason is None:
                post.active = source
                post.reasons.pop(source.backend, None)
                post.lost = source.counters.lost["overrun"]
                post.complained = False
                log.info("%s events are recorded by %s", post.kind, source.backend)
                return
            if post.reasons.get(source.backend) != reason:
                log.info("%s events: %s cannot be used: %s", post.kind, source.backend, reason)
            post.reasons[source.backend] = reason
        if post.sources:
            post.try_again = time.monotonic() + _TRY_AGAIN
            if not post.complained:
                post.complained = True
                reasons = "; ".join(f"{backend}: {reason}" for backend, reason in post.reasons.items())
                level = logging.WARNING if any(source.essential for source in post.sources) else logging.INFO
                log.log(level, "%s events are not recorded: no source works (%s)", post.kind, reasons)

    def _try(self, post: _Post, source: Source) -> str | None:
        """None when the source has been started, else why not."""

        def sink(table: str, rows: Sequence[Row]) -> None:
            post.tables.add(table)
            for other in self._posts:
                if other.active is not None:
                    rows = other.active.complete(table, rows)
            self._store.append(table, rows)

        source.failure = None
        try:
            reason = source.probe()
            if reason is None:
                source.resume(self._store.past)
                source.start(sink)
        except (OSError, ImportError) as error:
            self._stop(source)
            return str(error)
        return reason

    def _stop(self, source: Source) -> None:
        try:
            source.stop()
        except OSError as error:
            log.warning("%s source %s did not end well: %s", source.kind, source.backend, error)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            with self._lock:
                for post in self._posts:
                    self._check(post)

    def _check(self, post: _Post) -> None:
        now = self._clock()
        source = post.active
        if source is not None and source.failure is not None:
            self._replace(post, source, source.failure)
        elif source is not None:
            self._note_losses(post, source)
        elif post.sources and time.monotonic() >= post.try_again:
            self._fill(post, post.sources)
        if post.active is not None and post.unrecorded_since is not None:
            self._store.record_gap(post.kind, post.unrecorded_since, self._clock(), "no source was at work")
            post.unrecorded_since = None
        post.checked = now

    def _replace(self, post: _Post, failed: Source, failure: str) -> None:
        """Put the next best in the place of one that has failed."""
        log.error("%s events: source %s has failed: %s", post.kind, failed.backend, failure)
        self._note_losses(post, failed, at_end=True)
        self._stop(failed)
        failed.counters.last_error = failure
        post.active, post.unrecorded_since = None, post.checked or self._clock()
        post.reasons[failed.backend] = failure
        self._fill(post, post.sources[post.sources.index(failed) + 1 :])

    def _note_losses(self, post: _Post, source: Source, *, at_end: bool = False) -> None:
        """Record the time in which the kernel's buffer overflowed as a gap, once that is over or has been long."""
        now, lost = self._clock(), source.counters.lost["overrun"]
        if lost > post.lost:
            post.losing_since = post.losing_since or post.checked or now
            post.losing_until = now
        post.lost = lost
        if post.losing_since is None:
            return
        over = at_end or now >= post.losing_until + _QUIET * self._interval
        if over or now >= post.losing_since + _LONGEST:
            self._store.record_gap(post.kind, post.losing_since, post.losing_until, "overrun")
            log.warning("%s events were lost: the kernel's buffer was full", post.kind)
            post.losing_since = None
