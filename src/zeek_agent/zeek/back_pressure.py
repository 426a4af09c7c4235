"""Back pressure from Zeek: batches of frames, each followed by a ping, and a window of bytes without a pong.

Zeek answers a ping once it has read everything sent before it, and drops a client whose own pong is late. With a
saturated listener a client stays connected only with one batch in flight, while a fast Zeek keeps up with more. So the
window starts small, grows with each quick pong, stays the same when pongs take longer, and shrinks to one batch at a
time when one is late.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from zeek_agent.config.sections import ZeekSettings

QUICK_SHARE: Final = 0.25
"""A pong within this share of `slow_pong` is quick, so that the window grows well before Zeek is saturated."""
QUICK_PONGS_TO_REOPEN: Final = 20
"""Consecutive quick pongs after which a closed window opens again; fewer may be chance."""


class Window:
    """Limits the bytes in flight by the round-trip time of pongs."""

    def __init__(self, settings: ZeekSettings) -> None:
        self._settings = settings
        self._quick_pongs = 0
        self.limit_bytes = min(settings.window_bytes, settings.window_bytes_max)
        """Bytes; 0 means one batch at a time, of any size."""
        self.in_flight_bytes = 0

    def has_room(self, size_bytes: int) -> bool:
        """Whether a batch of this size may be sent now. Any may if nothing else is in flight."""
        return self.in_flight_bytes == 0 or self.in_flight_bytes + size_bytes <= self.limit_bytes

    def add_sent(self, size_bytes: int) -> None:
        self.in_flight_bytes += size_bytes

    def discard(self, size_bytes: int) -> None:
        """Remove a batch that will not be acknowledged."""
        self.in_flight_bytes -= size_bytes

    def acknowledged(self, size_bytes: int, seconds: float) -> None:
        """Record the pong of a batch, `seconds` after its first byte was sent."""
        self.in_flight_bytes -= size_bytes
        settings = self._settings
        if seconds > settings.slow_pong:
            self.limit_bytes = self._quick_pongs = 0
        elif seconds <= settings.slow_pong * QUICK_SHARE:
            self._quick_pongs += 1
            if self.limit_bytes:
                self.limit_bytes = min(self.limit_bytes + size_bytes, settings.window_bytes_max)
            elif self._quick_pongs >= QUICK_PONGS_TO_REOPEN:
                self.limit_bytes = min(settings.window_bytes, settings.window_bytes_max)


@dataclass(eq=False, slots=True)
class _SentBatch:
    size_bytes: int
    sent_at: float


class Sender:
    """Sends batches on one WebSocket within the window, in order of the calls.

    A frame shorter than `frame_bytes_min` is padded with blanks, which count towards the window. Every method raises
    ConnectionError once the connection is gone.
    """

    def __init__(
        self,
        websocket: ClientConnection,
        settings: ZeekSettings,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        frame_bytes_min: int = 0,
    ) -> None:
        self._websocket = websocket
        self._monotonic = monotonic
        self._frame_bytes_min = frame_bytes_min
        self._turn = asyncio.Lock()  # first come, first served: no sender gets two turns while another waits
        self._freed = asyncio.Event()
        self._in_flight: deque[_SentBatch] = deque()
        self.window = Window(settings)
        self.sent_bytes = 0

    @property
    def is_open(self) -> bool:
        return self._websocket.state is State.OPEN

    @property
    def waiting_since(self) -> float | None:
        """Send time of the oldest batch without a pong, or None."""
        return self._in_flight[0].sent_at if self._in_flight else None

    async def send(self, frames: Sequence[bytes], check: Callable[[], None] = lambda: None) -> asyncio.Future[float]:
        """Send text frames and a ping. The future ends with the ping's pong, or with ConnectionClosed.

        It may be shared: await it through `asyncio.shield`. `check` is called when it is their turn, and raises an
        error if they may not be sent any more.
        """
        frames = [frame.ljust(self._frame_bytes_min) for frame in frames]
        size_bytes = sum(map(len, frames))
        async with self._turn:
            while self.is_open and not self.window.has_room(size_bytes):
                self._freed.clear()
                await self._freed.wait()
            check()
            return await self._send(frames, size_bytes)

    async def _send(self, frames: Sequence[bytes], size_bytes: int) -> asyncio.Future[float]:
        batch = _SentBatch(size_bytes, self._monotonic())
        self._in_flight.append(batch)
        self.window.add_sent(size_bytes)
        try:
            for frame in frames:
                await self._websocket.send(frame, text=True)
                self.sent_bytes += len(frame)
            pong = asyncio.ensure_future(await self._websocket.ping())
        except ConnectionClosed as error:
            self._forget(batch)
            raise ConnectionError(f"connection to Zeek lost: {error}") from error
        except BaseException:
            self._forget(batch)
            raise
        pong.add_done_callback(partial(self._settle, batch))
        return pong

    def _settle(self, batch: _SentBatch, pong: asyncio.Future[float]) -> None:
        if pong.cancelled() or pong.exception() is not None:
            self._forget(batch)
            return
        self._in_flight.remove(batch)
        self.window.acknowledged(batch.size_bytes, self._monotonic() - batch.sent_at)
        self._freed.set()

    def _forget(self, batch: _SentBatch) -> None:
        self._in_flight.remove(batch)
        self.window.discard(batch.size_bytes)
        self._freed.set()
