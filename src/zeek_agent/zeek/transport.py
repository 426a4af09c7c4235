"""What a session with Zeek needs of the connection that carries it: a WebSocket, or a session on the bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from zeek_agent.zeek.back_pressure import Sender

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from zeek_agent.config.sections import ZeekSettings


class SendWindow(Protocol):
    """Bytes that were sent and are not acknowledged, and the limit on them."""

    @property
    def in_flight_bytes(self) -> int: ...

    @property
    def limit_bytes(self) -> int: ...


class FrameSender(Protocol):
    """Sends batches of frames under back pressure. Every method raises ConnectionError once the connection is gone."""

    @property
    def is_open(self) -> bool: ...

    @property
    def window(self) -> SendWindow: ...

    @property
    def sent_bytes(self) -> int: ...

    @property
    def waiting_since(self) -> float | None:
        """Send time of the oldest batch without an acknowledgement, or None."""
        ...

    async def send(self, frames: Sequence[bytes], check: Callable[[], None] = ...) -> asyncio.Future[float]:
        """Send text frames; without any, only test the connection. Returns when they are sent, in order of the calls
        of one task.

        The future ends when the peer has read them, or with the connection. It may be shared: await it through
        `asyncio.shield`. `check` is called when it is their turn, and raises an error if they may not be sent any more.
        """
        ...


class Transport(Protocol):
    """A connection on which a server has acknowledged the agent's subscription."""

    @property
    def sender(self) -> FrameSender: ...

    async def recv(self) -> bytes:
        """The next frame from Zeek. Raises the connection's error at its end."""
        ...

    async def close(self) -> None:
        """End the connection in order."""
        ...

    def abort(self) -> None:
        """End it at once."""
        ...


class WebSocketTransport:
    """A WebSocket to Zeek or a collector; a frame shorter than `frame_bytes_min` is padded."""

    def __init__(
        self,
        websocket: ClientConnection,
        settings: ZeekSettings,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        frame_bytes_min: int = 0,
    ) -> None:
        self._websocket = websocket
        self.sender = Sender(websocket, settings, monotonic, frame_bytes_min=frame_bytes_min)

    async def recv(self) -> bytes:
        return await self._websocket.recv(decode=False)

    async def close(self) -> None:
        await self._websocket.close()

    def abort(self) -> None:
        self._websocket.transport.abort()
