"""Messages to agents and other gateways that wait for the bus, bounded in bytes and number."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zeek_agent.bus.link import Link

BYTES_MAX: Final = 64 * 1024 * 1024
"""Beyond this, the server does not keep up, and the connection to it ends."""
MESSAGES_MAX: Final = 400_000
"""As many as 10,000 agents need to be sent 20 queries each."""
UNCONFIRMED_BYTES: Final = 1024 * 1024
"""After so many, wait until the server has read them: the client's own buffer has no bound."""
FLUSH_SECONDS: Final = 30
MESSAGE_BYTES: Final = 200
"""Memory of a message apart from its payload, counted so that empty ones are bounded, too."""


class OutboxFullError(ConnectionError):
    """The server does not read."""


class Outbox:
    """A queue in order of the calls."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bytes, str]] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self.waiting_bytes = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Queue a message. If there is no room, `run` ends with OutboxFullError."""
        if self.waiting_bytes >= BYTES_MAX or len(self._waiting) >= MESSAGES_MAX:
            self.overflowed = True
        else:
            self._waiting.append((subject, payload, reply))
            self.waiting_bytes += len(payload) + MESSAGE_BYTES
        self._filled.set()

    async def room(self) -> None:
        """Wait until it is at most half full, which whoever can wait does before `put`."""
        while self.waiting_bytes > BYTES_MAX // 2 or len(self._waiting) > MESSAGES_MAX // 2:
            self._emptied.clear()
            await self._emptied.wait()

    def clear(self) -> None:
        """Discard everything: the connection has ended."""
        self._waiting.clear()
        self.waiting_bytes = 0
        self.overflowed = False
        self._emptied.set()

    async def run(self, link: Link) -> None:
        """Publish until the connection ends. Raises ConnectionError."""
        unconfirmed = 0
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._waiting:
                if self.overflowed:
                    raise OutboxFullError(
                        f"the server has not read {self.waiting_bytes:,} bytes in {len(self._waiting):,} messages"
                    )
                subject, payload, reply = self._waiting.popleft()
                size = len(payload) + MESSAGE_BYTES
                self.waiting_bytes -= size
                await link.publish(subject, payload, reply)
                unconfirmed += size
                if unconfirmed >= UNCONFIRMED_BYTES:
                    self._emptied.set()
                    await link.flush(FLUSH_SECONDS)
                    unconfirmed = 0
            self._emptied.set()
