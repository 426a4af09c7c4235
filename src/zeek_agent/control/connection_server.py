"""What the servers of local sockets have in common: one task per connection, and an orderly end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from zeek_agent import platforms

if TYPE_CHECKING:
    from zeek_agent.control_transport import Listener, Section


class ConnectionServer(ABC):
    """Serves each connection in a task of its own.

    `stream_bytes` bounds what is read ahead of a connection, `connections_max` how many may wait to be accepted.
    """

    def __init__(self, *, connections_max: int, stream_bytes: int) -> None:
        self._connections_max = connections_max
        self._stream_bytes = stream_bytes
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None
        self._connections: dict[asyncio.Task[None], None] = {}
        """The tasks of open connections, the oldest first."""

    async def listen_on_path(self, path: Path, group: str | None, section: Section) -> None:
        """Listen on a Unix socket or a pipe, for its owner and a group. Raises as `ControlTransport.listen`."""
        self._listener = await platforms.HERE.control.listen(
            path,
            group,
            section,
            self._connected,
            backlog=self._connections_max,
            stream_bytes=self._stream_bytes,
        )

    async def listen_on_port(self, host: str, port: int) -> None:
        """Listen on a TCP port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._connected, host, port, limit=self._stream_bytes, backlog=self._connections_max
        )

    async def stop(self) -> None:
        """Stop listening, remove the socket, and close all connections."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()
        self._server = self._listener = None
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until its end, and close it; cancelled when the server stops."""

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = None
        try:
            await self._serve(reader, writer)
        finally:
            del self._connections[task]
