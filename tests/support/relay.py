"""A TCP relay in front of a server, whose connections a test can break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 64 * 1024


@dataclass(eq=False)
class Relay:
    """Listens at `port`; `cut` resets all connections, on both sides, and new ones are accepted at once."""

    target: tuple[str, int]
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self) -> int:
        """What was sent and not read is lost. Returns the number of connections."""
        number = len(self._writers) // 2
        for writer in list(self._writers):
            writer.transport.abort()
        return number

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with suppress(OSError):
                upstream_reader, upstream_writer = await asyncio.open_connection(*self.target)
                self._writers.add(upstream_writer)
                try:
                    await asyncio.gather(_pump(reader, upstream_writer), _pump(upstream_reader, writer))
                finally:
                    await self._end(upstream_writer)
        finally:
            await self._end(writer)
            self._tasks.discard(task)

    async def _end(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()

    async def stop(self) -> None:
        self.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def relay(host: str, port: int) -> AsyncIterator[Relay]:
    one = Relay((host, port))
    server = await asyncio.start_server(one.accept, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        await one.stop()
        await server.wait_closed()
