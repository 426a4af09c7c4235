"""The gateway's one WebSocket, to a Zeek or a collector, kept connected for as long as the gateway runs.

Frames of all agents go through one queue, in order. Those that wait together are sent together, with one ping: its pong
acknowledges them all. The window of bytes without a pong is that of an agent (`zeek/back_pressure.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from websockets.exceptions import WebSocketException

from zeek_agent.errors import UsageError
from zeek_agent.text import clipped
from zeek_agent.zeek import broker_json, connection, connection_errors, protocol
from zeek_agent.zeek.back_pressure import Sender
from zeek_agent.zeek.connection_errors import UnusableError
from zeek_agent.zeek.lasting_connection import LastingConnection
from zeek_agent.zeek.session import first_to_end

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.destination import Destination

log = logging.getLogger(__name__)

GATHERED_BYTES: Final = 65_536
"""Frames that are sent with one ping, in bytes; a larger batch is sent alone."""


class _Waiting(NamedTuple):
    frames: Sequence[bytes]
    size_bytes: int
    acknowledged: Callable[[], None] | None
    since: float


class ZeekSide(LastingConnection):
    """`run` connects and reconnects; frames are accepted while `ack` is not None.

    `on_connected` is called when Zeek has acknowledged the subscription, `on_message` with each message and its bytes,
    and `on_lost` when the connection has ended.
    """

    def __init__(
        self,
        target: Destination,
        settings: ZeekSettings,
        *,
        application: str,
        topics: Sequence[str],
        on_connected: Callable[[protocol.Ack], None],
        on_message: Callable[[bytes, protocol.Message], Awaitable[None]],
        on_lost: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(target, settings, log, monotonic=monotonic)
        self.ack: protocol.Ack | None = None
        """Zeek's acknowledgement while it is connected."""
        self.bad_messages = 0
        """Messages that could not be read, and errors that Zeek reported."""
        self._application = application
        self._topics = topics
        self._on_connected = on_connected
        self._on_message = on_message
        self._on_lost = on_lost
        self._sender: Sender | None = None
        self._queue: deque[_Waiting] = deque()
        self._queued = asyncio.Event()
        self._in_flight: deque[_Waiting] = deque()
        self._sent_bytes = 0

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        return (OSError, WebSocketException, UsageError, broker_json.ProtocolError)

    def _explain(self, error: Exception) -> str:
        return connection_errors.explain(error, self.destination)

    @property
    def reconnects(self) -> int:
        return self._reconnects

    @property
    def waiting_bytes(self) -> int:
        """Bytes of frames that are queued or without a pong."""
        return sum(one.size_bytes for one in (*self._queue, *self._in_flight))

    @property
    def queued(self) -> int:
        """Batches and other messages that wait to be sent."""
        return len(self._queue)

    @property
    def oldest(self) -> float | None:
        """When the oldest frames without a pong were queued."""
        oldest = self._in_flight or self._queue
        return oldest[0].since if oldest else None

    @property
    def sent_bytes(self) -> int:
        return self._sent_bytes + (self._sender.sent_bytes if self._sender is not None else 0)

    @property
    def window_bytes(self) -> int:
        """The limit on bytes without a pong."""
        return self._sender.window.limit_bytes if self._sender is not None else 0

    def put(self, frames: Sequence[bytes], acknowledged: Callable[[], None] | None = None) -> None:
        """Queue frames, whose number the caller bounds. `acknowledged` is called with Zeek's pong.

        It is not called if the connection ends before; `on_lost` is. Without a connection nothing is queued.
        """
        if self.ack is None:
            return
        self._queue.append(_Waiting(frames, sum(map(len, frames)), acknowledged, self._monotonic()))
        self._queued.set()

    async def drained(self) -> None:
        """Wait until all frames are acknowledged, or the connection has ended."""
        while self.ack is not None and (self._queue or self._in_flight):
            await asyncio.sleep(0.05)

    async def _connect_and_work(self) -> None:
        websocket = await connection.open_websocket(self.destination, self._settings, self._application)
        try:
            connection.limit_send_buffer(websocket)
            ack = await connection.subscribe(websocket, self._topics, self._settings.ack_timeout)
            self._sender = Sender(
                websocket,
                self._settings,
                self._monotonic,
                frame_bytes_min=protocol.BROKER_FRAME_BYTES if ack.is_broker else 0,
            )
            self.ack = ack
            self._logged_error = None
            log.info("connected to %s, version %s", self.destination.title, ack.version)
            self._on_connected(ack)
            await first_to_end(self._read(websocket), self._send(self._sender), self._check_liveness(self._sender))
        finally:
            self._forget()
            await connection.close(websocket)

    def _forget(self) -> None:
        if self._sender is not None:
            self._sent_bytes += self._sender.sent_bytes
            self._sender = None
        self._queue.clear()
        self._queued.clear()
        self._in_flight.clear()
        if self.ack is not None:
            self.ack = None
            self._on_lost()

    async def _read(self, websocket: ClientConnection) -> None:
        while True:
            raw = await websocket.recv(decode=False)
            try:
                message = protocol.read_message(raw)
                if isinstance(message, protocol.Error):
                    reported = clipped(f"{message.code}: {message.context}")
                    self._note_bad(f"Zeek at {self.destination} reports {reported}")
                elif isinstance(message, protocol.Message):
                    await self._on_message(raw, message)
            except broker_json.ProtocolError as error:
                self._note_bad(f"skipped a message of Zeek at {self.destination}: {error}")

    def _note_bad(self, text: str) -> None:
        """Log the first, tenth, hundredth… problem with a message."""
        self.bad_messages += 1
        times = self.bad_messages
        is_power_of_ten = str(times).rstrip("0") == "1"
        log.log(logging.WARNING if is_power_of_ten else logging.DEBUG, "%s%s", text, f" ({times} times)" * (times > 1))

    async def _send(self, sender: Sender) -> None:
        while True:
            await self._queued.wait()
            gathered, size = [self._queue.popleft()], 0
            size = gathered[0].size_bytes
            while self._queue and size + self._queue[0].size_bytes <= GATHERED_BYTES:
                gathered.append(self._queue.popleft())
                size += gathered[-1].size_bytes
            if not self._queue:
                self._queued.clear()
            self._in_flight.extend(gathered)
            pong = await sender.send([frame for one in gathered for frame in one.frames])
            pong.add_done_callback(partial(self._settle, sender, len(gathered)))

    def _settle(self, sender: Sender, number: int, pong: asyncio.Future[float]) -> None:
        if pong.cancelled() or pong.exception() is not None or sender is not self._sender:
            return  # the connection has ended
        for _ in range(number):
            one = self._in_flight.popleft()
            if one.acknowledged is not None:
                one.acknowledged()

    async def _check_liveness(self, sender: Sender) -> None:
        """Ping an idle connection, and end a dead one."""
        settings = self._settings
        while True:
            await asyncio.sleep(min(settings.ping_interval, settings.pong_timeout / 4))
            since = sender.waiting_since
            if since is None:
                self.put([])
            elif self._monotonic() - since > settings.pong_timeout:
                raise UnusableError(f"sent no pong for {self._monotonic() - since:.0f} s")
