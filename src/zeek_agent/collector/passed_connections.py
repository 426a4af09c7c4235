"""A listening socket without an address: it accepts only connections that this process was passed.

The embedded collector serves the agent through it. asyncio and websockets treat it like any listening socket, so that
code and bytes are those of a TCP connection from the opening handshake to the close frame.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Final

PEER: Final = "embedded"
"""The peer address of an accepted connection."""


class _PassedConnection(socket.socket):
    """A connection whose peer a loop asks the socket for."""

    def getpeername(self) -> Any:
        return PEER


class PassedConnections(socket.socket):
    """Accepts connections given to `add`. Like a listening socket, it is readable while a connection waits."""

    def __init__(self) -> None:
        ours, self._bell = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self.setblocking(False)
        self._waiting: deque[socket.socket] = deque()

    def add(self, connection: socket.socket) -> None:
        """Have the server's end of a connection accepted; it is closed here on failure.

        Raises OSError if the listener is closed.
        """
        try:
            self._bell.send(b"\0")
        except OSError:
            connection.close()
            raise
        self._waiting.append(connection)

    def listen(self, backlog: int = 0, /) -> None:
        """No-op: connections are passed one at a time."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The server's end of the connection that has waited longest. Raises BlockingIOError if none is waiting."""
        self.recv(1)
        return self._waiting.popleft(), PEER

    async def next_connection(self, loop: asyncio.AbstractEventLoop) -> tuple[socket.socket, Any]:
        """The same for a loop that accepts connections without `accept`, as on Windows."""
        await loop.sock_recv(self, 1)
        return _PassedConnection(fileno=self._waiting.popleft().detach()), PEER

    def close(self) -> None:
        """Close, together with connections that were not accepted."""
        super().close()
        self._bell.close()
        while self._waiting:
            self._waiting.popleft().close()
