"""What the servers of local sockets have in common: one task per connection, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from zeek_agent.control import unix_listener


class ConnectionServer(ABC):
    """Serves each connection in a task of its own.

    `stream_bytes` bounds what is read ahead of a connection, `connections_max` how many may wait to be accepted.
    """

    def __init__(self, *, connections_max: int, stream_bytes: int) -> None:
        self._connections_max = connections_max
        self._stream_bytes = stream_bytes
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._connections: dict[asyncio.Task[None], None] = {}
        """The tasks of open connections, the oldest first."""

    async def listen_on_path(self, path: Path, group: str | None, section: Literal["control", "metrics"]) -> None:
        """Listen on a Unix socket, for its owner and a group. Raises as `unix_listener.listening`."""
        listener = unix_listener.listening(path, group, section, self._connections_max)
        self._path = path
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=self._stream_bytes, backlog=self._connections_max
        )

    async def listen_on_port(self, host: str, port: int) -> None:
        """Listen on a TCP port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._connected, host, port, limit=self._stream_bytes, backlog=self._connections_max
        )

    async def stop(self) -> None:
        """Close all connections, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

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
