"""A bound on the memory of received messages that the collector has not read yet, for all connections together.

The longest message that an agent may send has 32 MiB, so with only a limit per connection a thousand clients could take
32 GiB. Instead, each connection has an allowance, which exceeds agents' ordinary messages; anything beyond that comes
from a pool. When the pool is exhausted, the connection with the largest share is closed. So a client with an unfinished
message cannot block others, and one within its allowance is never closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosedError
from websockets.frames import DATA_OPCODES, CloseCode, Frame
from websockets.protocol import Event, State

from zeek_agent.zeek.pongs import PongBound

ALLOWANCE_BYTES: Final = 512 * 1024
"""Memory of one read from a socket, 256 KiB, as rows of a few hundred bytes with their frame objects."""
POOL_BYTES: Final = 128 * 1024 * 1024
"""Four of the longest messages."""
OPENING_BYTES: Final = 16_384
"""Maximum of the HTTP request. An agent's has 300 bytes, a proxy may add some hundreds."""
SUBSCRIPTION_BYTES: Final = 1024 * 1024
"""Everything up to the subscription, whose topics have at most 131,072 bytes, each of which may be escaped."""
_FRAME_BYTES: Final = 256
"""Memory of a frame object, counted so that empty frames are bounded too."""


class ReceiveMemory:
    """The pool, and the connections that share it. `refuse` reports a client whose connection was refused."""

    def __init__(self, *, connections: int, pool_bytes: int, refuse: Callable[[str], None]) -> None:
        self.connections: set[BoundedConnection] = set()
        self.connections_max = connections
        self.refuse = refuse
        self._pool_bytes = pool_bytes
        self._used_by: dict[BoundedConnection, int] = {}
        self._pool_used = 0

    @property
    def pool_used_bytes(self) -> int:
        """Bytes used by connections beyond their allowances."""
        return self._pool_used

    def update(self, connection: BoundedConnection, unread_bytes: int) -> None:
        """Record the memory of a connection, and close the largest ones while the pool is exceeded."""
        self._pool_used -= self._used_by.pop(connection, 0)
        if unread_bytes > ALLOWANCE_BYTES:
            self._used_by[connection] = unread_bytes - ALLOWANCE_BYTES
            self._pool_used += self._used_by[connection]
        while self._pool_used > self._pool_bytes:
            largest = max(self._used_by, key=self._used_by.__getitem__)
            largest.disconnect(CloseCode.TRY_AGAIN_LATER, f"no memory for {largest.unread_bytes:,} unread bytes")


class BoundedConnection(PongBound, ServerConnection):
    """A client's connection that accounts for its memory in `memory`, which `bounded_by` sets in a subclass."""

    memory: ReceiveMemory

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._messages: deque[int] = deque()
        self._messages_bytes = self._unfinished_bytes = 0
        self._opening_bytes = 0
        self._subscribed = False
        self._disconnected = False

    @property
    def unread_bytes(self) -> int:
        """Bytes of unread messages and of an incomplete frame."""
        return self._messages_bytes + self._unfinished_bytes + len(self.protocol.reader.buffer)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.memory.connections) >= self.memory.connections_max:
            self.memory.refuse(f"more than {self.memory.connections_max:,} connections")
            self.transport.abort()
        self.memory.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.memory.connections.discard(self)
        self.memory.update(self, 0)

    def data_received(self, data: bytes) -> None:
        if self.protocol.state is State.CONNECTING:
            self._opening_bytes += len(data)
            if self._opening_bytes > OPENING_BYTES:
                self.memory.refuse(f"an HTTP request of more than {OPENING_BYTES:,} bytes")
                self.transport.abort()
                return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._subscribed and self.unread_bytes > SUBSCRIPTION_BYTES:
            self.disconnect(CloseCode.MESSAGE_TOO_BIG, f"more than {SUBSCRIPTION_BYTES:,} bytes before a subscription")
            return
        self.memory.update(self, self.unread_bytes)

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            self._unfinished_bytes += len(event.data) + _FRAME_BYTES
            if event.fin:
                self._messages.append(self._unfinished_bytes)
                self._messages_bytes += self._unfinished_bytes
                self._unfinished_bytes = 0

    async def receive(self) -> bytes:
        """The next message. Raises ConnectionClosed."""
        message = await self.recv(decode=False)
        if self._disconnected:
            raise ConnectionClosedError(self.protocol.close_rcvd, self.protocol.close_sent)
        if self._messages:
            self._messages_bytes -= self._messages.popleft()
        self.memory.update(self, self.unread_bytes)
        return message

    def subscribed(self) -> None:
        """Allow long messages from now on."""
        self._subscribed = True

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection and discard unread messages."""
        super().disconnect(code, reason)
        self._disconnected = True
        for frame in self.recv_messages.frames.queue:  # `receive` may be about to take one, so they stay
            frame.data = b""
        self._messages.clear()
        self._messages_bytes = self._unfinished_bytes = 0
        self.memory.update(self, 0)


def bounded_by(memory: ReceiveMemory) -> type[BoundedConnection]:
    """The class that websockets instantiates for connections that share this memory."""
    return type("BoundedConnection", (BoundedConnection,), {"memory": memory})
