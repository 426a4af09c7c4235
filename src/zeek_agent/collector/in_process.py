"""A listening socket without an address: only this process can connect to it.

The embedded collector serves the agent through it. asyncio and websockets treat it like any listening socket, so that
code and bytes are those of a TCP connection from the opening handshake to the close frame.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any, Final

PEER: Final = "embedded"
"""The peer address of an accepted connection."""


class InProcessListener(socket.socket):
    """Accepts connections of `connect_here`. Like a listening socket, it is readable while a connection waits."""

    def __init__(self) -> None:
        ours, self._bell = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self.setblocking(False)
        self._waiting: deque[socket.socket] = deque()

    def connect_here(self) -> socket.socket:
        """The client's end of a new connection. Raises OSError if the listener is closed."""
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
        """The server's end of the connection that has waited longest. Raises BlockingIOError if none is waiting."""
        self.recv(1)
        return self._waiting.popleft(), PEER

    def close(self) -> None:
        """Close, together with connections that were not accepted."""
        super().close()
        self._bell.close()
        while self._waiting:
            self._waiting.popleft().close()
