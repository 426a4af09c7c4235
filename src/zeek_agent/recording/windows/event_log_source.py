"""The part that all sources of Windows' event logs share: read, parse, map, count what cannot be, pass on."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from zeek_agent.host.windows.event_fields import SYSMON_CHANNEL
from zeek_agent.host.windows.event_xml import EventXmlError, parse_event
from zeek_agent.platforms.winapi.bookmarks import Bookmark
from zeek_agent.platforms.winapi.channel_reader import QUEUE_BATCHES, Batch, ChannelReader
from zeek_agent.platforms.winapi.event_log import Code, EventLogError
from zeek_agent.recording.source import Source
from zeek_agent.recording.windows.event_mapping import EventFieldError

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.host.windows.event_xml import WindowsEvent
    from zeek_agent.platforms.winapi.audit_policy import Subcategory
    from zeek_agent.platforms.winapi.event_log import RenderedEvent
    from zeek_agent.recording.source import Sink
    from zeek_agent.recording.windows.windows_host import WindowsHost
    from zeek_agent.schema import EventRow

log = logging.getLogger(__name__)

EXPERIMENTAL: Final = "experimental: tested with made-up events only, not on Windows itself"
_DRAIN_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.2
_ANY_EVENT: Final = "*"


class Log(NamedTuple):
    """A log and the events that are read from it, as an XPath query.

    `absent` is what to do if it has no event of the kind, for logs in which they are recorded only on request;
    `policy` is the part of the audit policy that requests them.
    """

    channel: str
    query: str = _ANY_EVENT
    absent: str | None = None
    policy: Subcategory | None = None


def events_query(*event_ids: int) -> str:
    """The XPath query for events with one of these numbers."""
    return f"*[System[({' or '.join(f'EventID={number}' for number in event_ids)})]]"


class EventLogSource(Source):
    """Records the events of one or more logs. It resumes where an earlier run ended, so no time is missed."""

    note = EXPERIMENTAL
    return_seconds = 600.0
    overrun = "records of an event log were overwritten or cleared before they were read"
    table: str
    logs: Sequence[Log]
    with_messages = False

    def __init__(self, host: WindowsHost, settings: SourceSettings) -> None:
        super().__init__()
        self._host = host
        self._settings = settings
        self._own_pid = os.getpid() if settings.ignore_self else None
        self._sink: Sink | None = None
        self._readers: dict[str, ChannelReader] = {}
        self._batches: queue.Queue[Batch] = queue.Queue(QUEUE_BATCHES)
        self._undecoded = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._consumer: threading.Thread | None = None

    @abstractmethod
    def row(self, event: WindowsEvent, message: str | None) -> EventRow | None:
        """The row of an event; None if it is excluded. Raises ValueError if a value that it needs is missing."""

    def probe(self) -> str | None:
        """Why no log can be read."""
        reasons = [self._why_not(each) for each in self.logs]
        return None if None in reasons else "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    def _why_not(self, wanted: Log) -> str | None:
        try:
            logs = self._host.logs
            logs.subscribe(wanted.channel, wanted.query, logs.log_range(wanted.channel).newest or None).close()
            audited = None if wanted.policy is None else self._host.is_audited(wanted.policy)
            if audited is False and wanted.policy is not None:
                return f"{wanted.policy.name} is not audited: {wanted.policy.remedy}"
            if audited is None and wanted.absent is not None and not logs.has_event(wanted.channel, wanted.query):
                return wanted.absent
        except EventLogError as error:
            if error.code == Code.CHANNEL_NOT_FOUND and wanted.channel == SYSMON_CHANNEL:
                return "Sysmon is not installed"
            return f"the log {wanted.channel} cannot be read: {error}"
        except OSError as error:
            return str(error)
        return None

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._ended.clear()
        self._host.context.known.seed()
        for wanted in self.logs:
            reason = self._why_not(wanted)
            if reason is not None:
                self.counters.last_error = reason
                continue
            reader = self._reader(wanted)
            self._readers[wanted.channel] = reader
            reader.start()
        if not self._readers:
            raise OSError(self.counters.last_error or "no log can be read")
        self._consumer = threading.Thread(target=self._consume, name=f"events {self.kind}", daemon=True)
        self._consumer.start()

    def _reader(self, wanted: Log) -> ChannelReader:
        bookmark = Bookmark(self._host.state, f"{self.kind}-{self.backend}-{wanted.channel}")
        return ChannelReader(
            self._host.logs,
            wanted.channel,
            wanted.query,
            bookmark,
            self._batches,
            failed=self.failed,
            with_messages=self.with_messages,
        )

    def stop(self) -> None:
        for reader in self._readers.values():
            reader.stop()
        self._ended.set()
        if self._consumer is not None:
            self._consumer.join()
            self._consumer = None
        self._process_queued()
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.finish()

    def drain(self) -> None:
        """Wait for what the logs have now, not for long, and pass it on."""
        until = time.monotonic() + _DRAIN_SECONDS
        for reader in list(self._readers.values()):
            reader.read_now(max(until - time.monotonic(), 0.0))
        self._process_queued()

    def update_counters(self) -> None:
        readers = list(self._readers.values())
        self.counters.lost["overrun"] = sum(reader.losses for reader in readers)
        self.counters.lost["decode"] = self._undecoded + sum(reader.unrendered for reader in readers)

    def losses_since(self) -> float | None:
        times = [reader.take_lost_since() for reader in list(self._readers.values())]
        return min((at for at in times if at is not None), default=None)

    def _consume(self) -> None:
        try:
            while not self._ended.is_set():
                with self._batches.not_empty:
                    if not self._batches.queue:
                        self._batches.not_empty.wait(_POLL_SECONDS)
                self._process_queued()
        except Exception as error:  # noqa: BLE001 - whatever it is, the source has ended and must be replaced
            self.failed(f"{type(error).__name__}: {error}")

    def _process_queued(self) -> None:
        """Pass on what is queued. Batches are taken under the lock, which keeps their order."""
        with self._lock:
            while True:
                try:
                    batch = self._batches.get_nowait()
                except queue.Empty:
                    return
                self._process(batch)

    def _process(self, batch: Batch) -> None:
        rows = [row for event in batch.events if (row := self._row_of(event)) is not None]
        if rows and self._sink is not None:
            self._sink(self.table, rows)
        reader = self._readers.get(batch.position.channel)
        if reader is not None:
            try:
                reader.passed(batch.position)
            except OSError as error:
                self.counters.last_error = f"the position in the log {reader.channel} cannot be saved: {error}"

    def _row_of(self, rendered: RenderedEvent) -> EventRow | None:
        """The row of an event; an event that cannot be read is counted."""
        self.counters.received += 1
        try:
            return self.row(parse_event(rendered.xml or ""), rendered.message)
        except (EventXmlError, EventFieldError) as error:
            self._undecoded += 1
            self.counters.last_error = f"an event cannot be read: {error}"
            return None
