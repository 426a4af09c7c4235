"""A listening socket without an address: only this process can connect to it.

The embedded collector serves the agent through it. asyncio and websockets treat it as any listening socket, so from
the opening handshake to the close frame the code and the bytes are those of a TCP connection.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any, Final

PEER: Final = "embedded"
"""The peer address of an accepted connection."""


class InProcessListener(socket.socket):
    """Accepts what `connect_here` has connected. Readable, as a listening socket is, while a connection waits."""

    def __init__(self) -> None:
        ours, self._bell = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self.setblocking(False)
        self._waiting: deque[socket.socket] = deque()

    def connect_here(self) -> socket.socket:
        """The client's end of a new connection. Raises OSError when the listener is closed."""
        client, served = socket.socketpair()
        try:
            self._bell.send(b"\0")
        except OSError:
            client.close()
            served.close()
            raise
        self._waiting.append(served)
        return client

    def listen(self, backlog: int = 0, /) -> None:
        """No-op: only this process can connect, one connection at a time."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The server's end of the connection that waited longest. Raises BlockingIOError when none waits."""
        self.recv(1)
        return self._waiting.popleft(), PEER

    def close(self) -> None:
        """Close, together with connections that were not accepted."""
        super().close()
        self._bell.close()
        while self._waiting:
            self._waiting.popleft().close()
