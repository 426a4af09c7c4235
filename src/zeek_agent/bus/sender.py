"""Batches of frames to a gateway under its credits.

A small batch may go unasked while no other small one is unacknowledged; everything else waits for a grant. The gateway
counts in the same way, and a grant that it may have left unused is returned. Small batches have a lane of their own, so
that connections of processes do not wait behind bulk. When a batch may go, all small ones that wait go with it. Each
sender of frames has at most one batch in the lanes, so that its frames stay in order.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from zeek_agent.bus import messages
from zeek_agent.bus.messages import Ack, BadMessageError, Grant, Want
from zeek_agent.bus.oversized import Refit
from zeek_agent.errors import ZeekAgentError

USABLE_SHARE: Final = 0.8
"""Part of a grant's time in which it is used: it began when the gateway wrote it."""
PATIENCE_SECONDS: Final = 0.1
"""Small batches wait this long for an acknowledgement before they ask for a grant."""
WANT_SECONDS_MAX: Final = 60.0
"""Longest pause between repetitions of the same `Want`."""


@dataclass(eq=False, slots=True)
class CreditWindow:
    """Bytes without an acknowledgement. `limit_bytes` is what may be sent unasked, or was granted."""

    in_flight_bytes: int = 0
    limit_bytes: int = messages.SMALL_BATCH_BYTES


@dataclass(eq=False, slots=True)
class _Waiting:
    payload: bytes
    check: Callable[[], None]
    since: float
    sent: asyncio.Future[asyncio.Future[float]]


@dataclass(eq=False, slots=True)
class _Sent:
    number: int
    size_bytes: int
    at: float
    acknowledged: asyncio.Future[float]


class BusSender:
    """Sends batches of one session with Zeek; `run` sends those that have to wait.

    `publish_batch` and `publish_want` hand a message to the bus and raise ConnectionError; the former is called with
    the batch's number, which goes on from `last_number`. Numbers of wants go on from `last_want`, that of the bus
    session's last one. `refit` replaces frames that are longer than a batch can be. Every method raises ConnectionError
    once the sender is closed.
    """

    def __init__(
        self,
        publish_batch: Callable[[int, bytes], Awaitable[None]],
        publish_want: Callable[[Want], Awaitable[None]],
        refit: Refit,
        *,
        last_number: int = 0,
        last_want: int = 0,
        grant_seconds: float = messages.GRANT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publish_batch = publish_batch
        self._publish_want = publish_want
        self._refit = refit
        self._grant_seconds = grant_seconds
        self._monotonic = monotonic
        self._small: deque[_Waiting] = deque()
        self._bulk: deque[_Waiting] = deque()
        self._unacknowledged: deque[_Sent] = deque()
        self._unasked = 0
        """Number of the last small batch that is unacknowledged; 0: none. One that went under a grant counts, too: if
        the gateway has acknowledged the one before, it takes this one for unasked."""
        self._grant_may_remain = False
        """Whether a small batch went under a grant, which the gateway still has if it took the batch for unasked."""
        self._changed = asyncio.Event()
        self._cause: str | None = None
        self._granted_until: float | None = None
        self._wanted: Want | None = None
        self._wants = 0
        self._wanted_at = 0.0
        self._want_again_at = 0.0
        self._want_pause = grant_seconds
        self.window = CreditWindow()
        self.last_number = last_number
        self.last_want = last_want
        self.sent_bytes = 0

    @property
    def is_open(self) -> bool:
        return self._cause is None

    @property
    def waiting_since(self) -> float | None:
        """Send time of the oldest batch without an acknowledgement, or None."""
        return self._unacknowledged[0].at if self._unacknowledged else None

    @property
    def unanswered_since(self) -> float | None:
        """Since when the gateway owes an answer, an acknowledgement or a grant; None if it owes none."""
        if self._cause is not None:
            return None
        since = self.waiting_since
        if self._wanted is None or (since is not None and since < self._wanted_at):
            return since
        return self._wanted_at

    async def send(self, frames: Sequence[bytes], check: Callable[[], None] = lambda: None) -> asyncio.Future[float]:
        """As `FrameSender.send`. The future ends with the gateway's `Ack`, or with ConnectionError."""
        self._raise_if_closed()
        loop = asyncio.get_running_loop()
        if not frames:
            return self._test(loop)
        payload = messages.join(self._refit(frames))
        is_small = len(payload) <= messages.SMALL_BATCH_BYTES
        if is_small and not self._small and not self._unasked:
            check()
            return await self._publish(payload)
        entry = _Waiting(payload, check, self._monotonic(), loop.create_future())
        lane = self._small if is_small else self._bulk
        lane.append(entry)
        self._changed.set()
        try:
            return await entry.sent
        finally:
            if not entry.sent.done() or entry.sent.cancelled():
                with suppress(ValueError):  # it has been taken from there
                    lane.remove(entry)
                self._changed.set()

    async def run(self) -> None:
        """Send what waits, until cancelled. Raises ConnectionError if the bus is gone."""
        while True:
            self._changed.clear()
            while entries := self._next_batch():
                await self._publish_waiting(entries)
            pause = await self._ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def acknowledge(self, ack: Ack) -> None:
        """Zeek has read the batches up to that number. Raises BadMessageError if one of them was not sent."""
        if ack.number > self.last_number:
            raise BadMessageError(f"an acknowledgement of batch {ack.number}, the last one is {self.last_number}")
        now = self._monotonic()
        while self._unacknowledged and self._unacknowledged[0].number <= ack.number:
            sent = self._unacknowledged.popleft()
            self.window.in_flight_bytes -= sent.size_bytes
            if not sent.acknowledged.done():
                sent.acknowledged.set_result(now - sent.at)
        if self._unasked <= ack.number:
            self._unasked = 0
        if ack.grant is not None:
            self.grant(Grant(self._grant_seconds, ack.grant))
        if self._small:
            self._changed.set()

    def grant(self, grant: Grant) -> None:
        """One batch may be sent. A grant of an earlier `Want` is ignored: the gateway has replaced it."""
        if self._wanted is not None and grant.number == self._wanted.number:
            self._granted_until = self._monotonic() + grant.seconds * USABLE_SHARE
            self._changed.set()

    def close(self, cause: str) -> None:
        """End all sending with ConnectionError."""
        if self._cause is not None:
            return
        self._cause = cause
        for entry in (*self._small, *self._bulk):
            _end_future(entry.sent, cause)
        for sent in self._unacknowledged:
            _end_future(sent.acknowledged, cause)
        self._small.clear()
        self._bulk.clear()
        self._unacknowledged.clear()
        self.window.in_flight_bytes = 0

    def _raise_if_closed(self) -> None:
        if self._cause is not None:
            raise ConnectionError(self._cause)

    def _test(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[float]:
        """The bus session tests its connection by itself."""
        tested: asyncio.Future[float] = loop.create_future()
        tested.set_result(0.0)
        return tested

    def _next_batch(self) -> list[_Waiting]:
        """What may be sent now, taken from the lanes; nothing if a grant is needed."""
        if self._small and not self._unasked:
            return list(self._permitted(self._taken(messages.SMALL_BATCH_BYTES, with_bulk=False)))
        if self._granted_until is None or self._wanted is None:
            return []
        if self._monotonic() >= self._granted_until:
            self._granted_until = self._wanted = None
            return []
        self._forget_abandoned()
        if self._bulk and len(self._bulk[0].payload) > self._wanted.bytes:
            self._granted_until = self._wanted = None  # the batch that it was wanted for has been cancelled
            return []
        while self._small or self._bulk:
            if entries := list(self._permitted(self._taken(self._wanted.bytes, with_bulk=True))):
                self._granted_until = self._wanted = None
                return entries
        return []

    def _taken(self, most: int, *, with_bulk: bool) -> Iterator[_Waiting]:
        """Small batches that fit together into `most` bytes, after these the first large one."""
        room = most - (len(self._bulk[0].payload) + 1 if with_bulk and self._bulk else 0)
        while self._small and (room := room - len(self._small[0].payload) - 1) >= -1:
            yield self._small.popleft()
        if with_bulk and self._bulk:
            yield self._bulk.popleft()

    def _permitted(self, entries: Iterator[_Waiting]) -> Iterator[_Waiting]:
        """Those that may still be sent; the senders of others get the error."""
        for entry in entries:
            if entry.sent.done():
                continue
            try:
                entry.check()
            except ZeekAgentError as error:
                entry.sent.set_exception(error)
            else:
                yield entry

    async def _publish_waiting(self, entries: Sequence[_Waiting]) -> None:
        try:
            acknowledged = await self._publish(messages.join([entry.payload for entry in entries]))
        except ConnectionError as error:
            for entry in entries:
                _end_future(entry.sent, str(error))
            raise
        for entry in entries:
            if not entry.sent.done():
                entry.sent.set_result(acknowledged)

    async def _publish(self, payload: bytes) -> asyncio.Future[float]:
        self.last_number += 1
        if len(payload) <= messages.SMALL_BATCH_BYTES:
            self._grant_may_remain = self._grant_may_remain or self._unasked > 0
            self._unasked = self.last_number
        acknowledged: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._unacknowledged.append(_Sent(self.last_number, len(payload), self._monotonic(), acknowledged))
        self.window.in_flight_bytes += len(payload)
        await self._publish_batch(self.last_number, payload)
        self.sent_bytes += len(payload)
        return acknowledged

    async def _ask(self) -> float | None:
        """Ask for a grant if one is needed and it is time; the seconds until it is time again."""
        if self._cause is not None:
            return None  # what it would send now could be taken for a message of the next sender
        self._forget_abandoned()
        first = self._bulk[0] if self._bulk else None
        if first is None and not self._small:
            await self._withdraw()
            return None
        now = self._monotonic()
        if first is None and (remaining := self._small[0].since + PATIENCE_SECONDS - now) > 0:
            return remaining
        size = messages.SMALL_BATCH_BYTES + (0 if first is None else len(first.payload) + 1)
        if self._wanted is None:
            self._want_pause = self._grant_seconds
            self._wanted_at = now
        elif size <= self._wanted.bytes and now < self._want_again_at:
            return self._want_again_at - now
        self.last_want += 1
        self._wanted = Want(min(size, messages.BATCH_BYTES_MAX), self.last_want)
        self._granted_until = None
        self._want_again_at = now + self._want_pause * random.uniform(1, 1.25)
        self._want_pause = min(self._want_pause * 2, WANT_SECONDS_MAX)
        self._grant_may_remain = False
        await self._publish_want(self._wanted)
        return self._want_again_at - now

    async def _withdraw(self) -> None:
        """Return a grant, or the turn for one, that is not needed any more: others wait for it."""
        if self._wanted is None and not self._grant_may_remain:
            return
        self.last_want += 1
        self._wanted = self._granted_until = None
        self._grant_may_remain = False
        await self._publish_want(Want(0, self.last_want))

    def _forget_abandoned(self) -> None:
        """Remove batches whose senders were cancelled, from the front: those behind are removed by their senders."""
        for lane in (self._small, self._bulk):
            while lane and lane[0].sent.done():
                lane.popleft()


def _end_future(future: asyncio.Future[Any], cause: str) -> None:
    if not future.done():
        future.set_exception(ConnectionError(cause))
        future.exception()  # nobody may be waiting for it
