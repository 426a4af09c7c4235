"""A Zeek instance behind a connection, which installs queries and receives their rows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from websockets.exceptions import ConnectionClosed

from zeek_agent.database.database import Profile
from zeek_agent.database.encodings import BatchesEncoding, EventsEncoding
from zeek_agent.text import STATEMENT_SHOWN, clipped
from zeek_agent.zeek import protocol
from zeek_agent.zeek.acknowledgements import Acknowledgements
from zeek_agent.zeek.frames import batch_frames, event_frames
from zeek_agent.zeek.protocol import Context, RowsAck, ZeekHello

if TYPE_CHECKING:
    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.database.encodings import FrameBatch
    from zeek_agent.queries.subscriptions import Query, Report
    from zeek_agent.zeek.transport import FrameSender

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Traffic:
    """Traffic over the connections to one destination since the agent started."""

    queued_rows: int = 0
    """Rows that were submitted for delivery and are not sent yet."""
    sent_rows: int = 0
    dropped_rows: Counter[str] = field(default_factory=Counter)
    """Rows that were not acknowledged when their delivery ended, by cause: `disconnected` or `cancelled`.

    The query decides what happens to them: events are delivered again.
    """


def chosen_profile(hello: ZeekHello | None) -> Profile:
    """The profile for an instance: one that accepts batches identifies columns by name, a stock one by position."""
    supports_batches = hello is not None and protocol.BATCHES in hello.features
    return Profile.FULL if supports_batches else Profile.STOCK


@dataclass(eq=False, slots=True)
class Instance:
    """A recipient of reports. `identity` is the destination, because Zeek's own ids change at each start."""

    id: str
    agent_id: str
    identity: str
    sender: FrameSender
    settings: ZeekSettings
    traffic: Traffic
    last_seen: float
    clock: Callable[[], float] = time.time
    hello: ZeekHello | None = None
    is_disabled: bool = False
    """Whether its package is too old."""
    acknowledgements: Acknowledgements = field(default_factory=Acknowledgements)

    @property
    def profile(self) -> Profile:
        return chosen_profile(self.hello)

    @property
    def durable(self) -> bool:
        """Delivery state is saved: a change during Zeek's absence is reported when it is back."""
        return True

    @property
    def incarnation(self) -> str:
        """A restarted Zeek has a different id, and may have lost rows that it had received."""
        return self.id

    @property
    def recognizes_replays(self) -> bool:
        """A stock package does not: it logs each row that it receives, even a second time."""
        return self.profile is not Profile.STOCK

    def encoding(self, report: Report) -> EventsEncoding | BatchesEncoding:
        """Batches for our package's handler, one event per row for any other."""
        query, settings, now = report.query, self.settings, self.clock()
        topic = protocol.response_topic(self.agent_id, self.id)
        if query.event != protocol.ROWS:
            return EventsEncoding(
                topic=topic,
                event=query.event,
                agent_id=self.agent_id,
                host_time=now,
                query_id=report.query_id,
                cookie=query.cookie,
                batch_rows=settings.batch_rows,
                batch_bytes=settings.batch_bytes,
            )
        low, high = report.window
        return BatchesEncoding(
            topic=topic,
            agent_id=self.agent_id,
            host_time=now,
            query_id=report.query_id,
            cookie=query.cookie,
            batch_rows=settings.batch_rows,
            batch_bytes=settings.batch_bytes,
            store=report.store,
            stream=report.stream,
            low=low,
            high=high,
        )

    async def deliver(self, report: Report) -> None:
        """Send the rows and return when Zeek has accepted them. Raises ConnectionError if the connection is lost."""
        delivery = _ReportDelivery(self.traffic, report.row_count)
        try:
            if report.query.event == protocol.ROWS:
                await self._deliver_batches(report, delivery)
            else:
                async for batch in self.frames(report):
                    delivery.sent(batch.rows, await self.sender.send(batch.frames, report.check))
                    await asyncio.sleep(0)
            await delivery.acknowledged()
        except ConnectionClosed as error:
            raise ConnectionError(f"connection to Zeek lost: {error}") from error
        finally:
            delivery.end("cancelled" if self.sender.is_open else "disconnected")

    async def _deliver_batches(self, report: Report, delivery: _ReportDelivery) -> None:
        """Send batches until the script has acknowledged all; unacknowledged ones are sent again after a timeout."""
        self.acknowledgements.expect(report)
        highest = -1
        try:
            while True:
                last = -1
                acknowledged = self.acknowledgements.index(report)
                async for batch in self.frames(report):
                    last += 1
                    if last > acknowledged:
                        pong = await self.sender.send(batch.frames, report.check)
                        delivery.sent(batch.rows if last > highest else 0, pong)
                        highest = max(highest, last)
                        await asyncio.sleep(0)
                try:
                    await self.acknowledgements.wait(report, last, self.settings.script_timeout)
                except TimeoutError:
                    log.warning(
                        "Zeek at %s did not acknowledge rows of %s: sent again",
                        self.identity,
                        clipped(report.query.sql, STATEMENT_SHOWN),
                    )
                else:
                    return
        finally:
            self.acknowledgements.stop_expecting(report)

    async def frames(self, report: Report) -> AsyncIterator[FrameBatch]:
        """The report's frames, in the batches in which they are sent."""
        if report.encoded is not None:
            async for batch in report.encoded.batches():
                yield batch
            return
        encoding = self.encoding(report)
        if isinstance(encoding, EventsEncoding):
            frames = event_frames(report.columns, report.rows, encoding)
        else:
            frames = batch_frames(report.columns, report.rows, encoding)
        for batch in frames:
            yield batch

    def acknowledge(self, ack: RowsAck) -> None:
        """Record that Zeek's script has processed a batch."""
        if not self.acknowledgements.accept(ack):
            log.debug("unexpected acknowledgement: %s", ack)

    async def report_error(self, query_id: str, query: Query, message: str) -> None:
        """Report that a query could not be compiled or run. Raises ConnectionError if the connection is lost."""
        await self.sender.send([self.error_frame(message, query_id, query.cookie)])

    def error_frame(self, message: str, query_id: str | None = None, cookie: str | None = None) -> bytes:
        """An error as a message for this instance."""
        context = Context(self.agent_id, self.clock(), query_id, cookie=cookie)
        return protocol.agent_error(self.id, context, message).encode()


class _ReportDelivery:
    """Counts one report's rows: waiting, in flight, acknowledged."""

    def __init__(self, traffic: Traffic, rows: int) -> None:
        self._traffic = traffic
        self._queued = self._unacknowledged = rows
        self._pongs: deque[tuple[int, asyncio.Future[float]]] = deque()
        traffic.queued_rows += rows

    def sent(self, rows: int, pong: asyncio.Future[float]) -> None:
        self._queued -= rows
        self._traffic.queued_rows -= rows
        self._traffic.sent_rows += rows
        self._pongs.append((rows, pong))
        self._settle()

    async def acknowledged(self) -> None:
        """Returns with the last batch's pong. Raises ConnectionClosed."""
        if self._pongs:
            await asyncio.shield(self._pongs[-1][1])

    def end(self, cause: str) -> None:
        """Count unacknowledged rows as dropped."""
        self._settle()
        self._traffic.queued_rows -= self._queued
        if self._unacknowledged:
            self._traffic.dropped_rows[cause] += self._unacknowledged

    def _settle(self) -> None:
        while self._pongs and self._pongs[0][1].done():
            rows, pong = self._pongs.popleft()
            if not pong.cancelled() and pong.exception() is None:
                self._unacknowledged -= rows
