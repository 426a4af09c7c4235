"""Reads a Windows event log in a thread of its own, and hands the events over by one bounded queue.

The log itself is the buffer: while the queue is full, the thread waits, and events are lost only when Windows
overwrites records that were not read. That, and a log that was cleared, is noticed by the numbers of its records,
because a subscription does not report it reliably.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from zeek_agent.platforms.winapi.bookmarks import Bookmark, Position
from zeek_agent.platforms.winapi.event_log import Code, EventLogError, LogRange, RenderedEvent

log = logging.getLogger(__name__)

QUEUE_BATCHES: Final = 16
BATCH_EVENTS: Final = 64
"""More in one call makes EvtNext fail if they are large."""
BATCH_CHARACTERS: Final = 1 << 20
"""After a larger batch the next ones have fewer events, so that the queue has a few dozen MB at most."""
_WAIT_SECONDS: Final = 1.0
"""A subscription that does not signal is read at this interval."""
_CHECK_SECONDS: Final = 5.0
"""Interval at which an idle reader compares its position with the log's records."""
_FAILURES_MAX: Final = 5
"""Consecutive subscriptions without an event that fail before the reader does."""
_STEADY_SECONDS: Final = 60.0
"""A subscription of this age has worked, even without an event."""
_BLOCKED_SECONDS: Final = 1.0
"""Waiting for room in the queue for longer may let the log wrap around."""
_SAVE_SECONDS: Final = 1.0
"""Interval at which the position is saved; that of the time before, whose events the store has on its disk by now."""
_PAUSE_SECONDS: Final = 1.0
_STALLED_SECONDS: Final = 60.0
"""Some healthy subscriptions answer INVALID_OPERATION for a while, others for ever."""

_RECORD: Final = re.compile(r"<EventRecordID>(\d{1,20})</EventRecordID>")
_PROVIDER: Final = re.compile(r"""<Provider Name=(['"])([^'"<>&]{1,512})\1""")


class EventSubscription(Protocol):
    """A subscription, as `event_log.Subscription` is one."""

    def wait(self, seconds: float) -> None: ...

    def wake(self) -> None: ...

    def read(self, count: int, publisher_of: Callable[[str], str | None] | None = None) -> list[RenderedEvent]: ...

    def close(self) -> None: ...


class EventLogs(Protocol):
    """The event logs of the host, as `event_log.EventLog` reads them."""

    def log_range(self, channel: str) -> LogRange: ...

    def has_event(self, channel: str, query: str) -> bool: ...

    def subscribe(self, channel: str, query: str, after: int | None) -> EventSubscription: ...


class Batch(NamedTuple):
    """Events in their order, and the position after them."""

    events: list[RenderedEvent]
    position: Position


class ChannelReader:
    """Reads the events of a log that match a query, from the bookmark on.

    Without a bookmark it begins with the next event. Batches go to `batches`, which readers of several logs can share;
    `passed` is to be called with the position of each one when its events were passed on.
    """

    def __init__(
        self,
        logs: EventLogs,
        channel: str,
        query: str,
        bookmark: Bookmark,
        batches: queue.Queue[Batch],
        *,
        failed: Callable[[str], None],
        with_messages: bool = False,
        clock: Callable[[], float] = time.time,
        pause_seconds: float = _PAUSE_SECONDS,
        check_seconds: float = _CHECK_SECONDS,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self.losses = 0
        """How often records were lost; how many is not known."""
        self._lost_since: float | None = None
        self.unrendered = 0
        self.channel = channel
        self._logs = logs
        self._query = query
        self._bookmark = bookmark
        self._batches = batches
        self._failed = failed
        self._publisher_of = provider_name if with_messages else None
        self._clock = clock
        self._pause_seconds = pause_seconds
        self._check_seconds = check_seconds
        self._wait_seconds = wait_seconds
        self._position = Position(channel, 0, 0.0)
        self._newest = 0
        """The newest record at the last check: the next one finds everything up to it read."""
        self._checked = 0.0
        self._batch_events = self._batch_events_max = BATCH_EVENTS
        self._subscription: EventSubscription | None = None
        self._stalled_since: float | None = None
        self._rounds = 0
        self._round_ended = threading.Condition()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._passed: Position | None = None
        self._to_save: Position | None = None
        self._saved = 0.0

    def start(self) -> None:
        """Begin to read. Raises OSError if that is not possible."""
        position = self._bookmark.load(self.channel)
        if position is None:
            newest = self._logs.log_range(self.channel).newest
            position = Position(self.channel, max(newest, 0), self._clock())
            self._bookmark.save(position)
        self._position = position
        self._passed = self._to_save = None
        self._newest = 0
        self._stalled_since = None
        self._ended.clear()
        self._subscription = self._subscribe()
        self._thread = threading.Thread(target=self._run, name=f"event-log {self.channel}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. What is in the queue stays there. May be called twice."""
        self._ended.set()
        self._wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def read_now(self, timeout_seconds: float) -> None:
        """Wait until what the log has now is queued, at most for that time."""
        until = time.monotonic() + timeout_seconds
        with self._round_ended:
            begun = self._rounds
            for wanted in (begun + 1, begun + 2):  # the round that is in progress may have read the log already
                self._wake()
                self._round_ended.wait_for(
                    lambda wanted=wanted: self._rounds >= wanted or self._ended.is_set(),  # type: ignore[misc]
                    max(until - time.monotonic(), 0.0),
                )

    def passed(self, position: Position) -> None:
        """Note that all events up to this position were passed on."""
        self._passed = position
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            if self._to_save is not None:
                self._bookmark.save(self._to_save)
            self._to_save, self._saved = position, time.monotonic()

    def finish(self) -> None:
        """Save the last position that was passed on, after `stop`. Raises OSError."""
        if self._passed is not None:
            self._bookmark.save(self._passed)

    def take_lost_since(self) -> float | None:
        """Until when everything was read before the losses since the last call (seconds since the epoch)."""
        since, self._lost_since = self._lost_since, None
        return since

    def _wake(self) -> None:
        subscription = self._subscription
        if subscription is not None:
            subscription.wake()

    def _subscribe(self) -> EventSubscription:
        """Subscribe to what follows the position. Notes a loss if the log no longer has that."""
        oldest, newest = self._logs.log_range(self.channel)
        position = self._position
        after: int | None = position.record
        if newest < position.record:
            log.warning("the log %s was cleared, or is another one: it is read from its beginning", self.channel)
            self._lose()
            self._position = Position(self.channel, 0, position.time)
            after = None
        elif position.record == 0:
            after = None
        elif self._is_overwritten(oldest, newest):
            self._lose()
            after = None
        try:
            return self._logs.subscribe(self.channel, self._query, after)
        except EventLogError as error:
            if after is None or error.code not in {Code.NOT_FOUND, Code.RESULT_STALE, Code.INVALID_POSITION}:
                raise
            self._lose()
            return self._logs.subscribe(self.channel, self._query, None)

    def _is_overwritten(self, oldest: int, newest: int) -> bool:
        """Whether the log no longer has the record after the position."""
        return oldest > self._position.record + 1 and newest > self._position.record

    def _lose(self) -> None:
        self.losses += 1
        since = self._position.time
        self._lost_since = since if self._lost_since is None else min(self._lost_since, since)
        log.warning("records of the log %s were overwritten or cleared before they were read", self.channel)

    def _run(self) -> None:
        failures = 0
        try:
            while not self._ended.is_set():
                before, begun = self._position.record, time.monotonic()
                try:
                    self._follow()
                except EventLogError as error:
                    has_worked = self._position.record != before or time.monotonic() - begun > _STEADY_SECONDS
                    failures = 1 if has_worked else failures + 1
                    if failures > _FAILURES_MAX:
                        raise
                    log.warning("the log %s is opened again: %s", self.channel, error)
                    if error.code == Code.INVALID_BOUND:
                        self._batch_events = self._batch_events_max = max(self._batch_events // 4, 1)
                    self._close()
                    self._ended.wait(self._pause_seconds * failures)
        except OSError as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader has ended and must be replaced
            self._failed(f"{type(error).__name__}: {error}")
        finally:
            self._close()
            self._end_round()

    def _follow(self) -> None:
        """Read until the reader is stopped. Raises EventLogError if the subscription no longer works."""
        if self._subscription is None:
            self._subscription = self._subscribe()
        subscription = self._subscription
        while not self._ended.is_set():
            self._check(is_drained=self._read_all(subscription))
            self._end_round()
            subscription.wait(self._wait_seconds)

    def _read_all(self, subscription: EventSubscription) -> bool:
        """Read until there are no more events at present; returns whether that is certain. Raises EventLogError."""
        try:
            while not self._ended.is_set() and (events := subscription.read(self._batch_events, self._publisher_of)):
                self._stalled_since = None
                self._hand_over(events)
        except EventLogError as error:
            now = time.monotonic()
            self._stalled_since = now if self._stalled_since is None else self._stalled_since
            if error.code != Code.INVALID_OPERATION or now - self._stalled_since > _STALLED_SECONDS:
                self._stalled_since = None
                raise
            return False
        self._stalled_since = None
        return True

    def _hand_over(self, events: list[RenderedEvent]) -> None:
        """Queue events, except those that were read before; waits for room."""
        fresh, last = [], self._position.record
        for event in events:
            record = None if event.xml is None else record_id(event.xml)
            if record is None:
                self.unrendered += 1
            elif record > self._position.record:
                fresh.append(event)
                last = max(last, record)
        self._put(Batch(fresh, Position(self.channel, last, self._clock())))
        self._adjust_batches(sum(len(event.xml or "") for event in events))

    def _adjust_batches(self, characters: int) -> None:
        """Read fewer events at a time while they are large."""
        if characters > BATCH_CHARACTERS:
            self._batch_events = max(self._batch_events * BATCH_CHARACTERS // characters, 1)
        else:
            self._batch_events = min(2 * self._batch_events, self._batch_events_max)

    def _put(self, batch: Batch) -> None:
        waited = time.monotonic()
        while not self._ended.is_set():
            try:
                self._batches.put(batch, timeout=0.2)
            except queue.Full:
                continue
            self._position = batch.position
            if time.monotonic() - waited > _BLOCKED_SECONDS:
                self._note_overwritten()
            return

    def _note_overwritten(self) -> LogRange:
        """Note a loss if the log has wrapped around beyond the position."""
        found = self._logs.log_range(self.channel)
        if self._is_overwritten(found.oldest, found.newest):
            self._lose()
            self._position = Position(self.channel, found.oldest - 1, self._clock())
        return found

    def _check(self, *, is_drained: bool) -> None:
        """Compare the position with the records of the log, from time to time. Raises EventLogError."""
        now = time.monotonic()
        if not is_drained or now - self._checked < self._check_seconds:
            return
        self._checked = now
        found = self._note_overwritten()
        if found.newest < self._position.record:
            raise EventLogError("EvtGetLogInfo", Code.RESULT_STALE)
        if self._newest > self._position.record:
            self._put(Batch([], Position(self.channel, self._newest, self._clock())))
        self._newest = found.newest

    def _end_round(self) -> None:
        with self._round_ended:
            self._rounds += 1
            self._round_ended.notify_all()

    def _close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


def record_id(xml: str) -> int | None:
    """The number of an event's record. Values of the event cannot contain such an element: `<` is escaped there."""
    match = _RECORD.search(xml)
    return None if match is None else int(match[1])


def provider_name(xml: str) -> str | None:
    """The publisher of an event."""
    match = _PROVIDER.search(xml)
    return None if match is None else match[2]
