"""Bounds the pongs waiting for a peer: each ping is answered immediately, whether or not the peer reads the answers."""

from __future__ import annotations

from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection
from websockets.frames import CloseCode

PONG_BYTES_MAX: Final = 65_536
"""Pongs waiting in memory. A peer that pings every second and does not read for an hour accumulates 14 KB."""
UNREAD_PONGS: Final = f"more than {PONG_BYTES_MAX:,} bytes of pongs were not read"


class PongBound(Connection):
    """Ends the connection of a peer that pings but does not read. Other data in the write buffer does not count."""

    _pong_bytes = 0

    def data_received(self, data: bytes) -> None:
        before = self.transport.get_write_buffer_size()
        super().data_received(data)
        after = self.transport.get_write_buffer_size()
        # Answers to messages are sent later, by a task, so only pongs were added here.
        self._pong_bytes = min(self._pong_bytes, before) + after - before
        if self._pong_bytes > PONG_BYTES_MAX:
            self.disconnect(CloseCode.POLICY_VIOLATION, UNREAD_PONGS)

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection without waiting for the peer. The close frame is sent if the socket has room for it."""
        self.protocol.fail(code, reason)
        self.send_data()
        self.transport.abort()


class BoundedClientConnection(PongBound, ClientConnection):
    """An agent's connection to a Zeek."""
