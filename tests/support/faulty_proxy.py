"""A TCP proxy that forwards badly: not at all, in one direction only, late, slowly, or garbage.

async with faulty_proxy(server.port) as proxy:
    ...                        # connect to 127.0.0.1:proxy.port
    proxy.to_server.hold()     # bytes stay where they are, nothing is closed
    proxy.cut()                # all connections are reset, and new ones refused until `mend`
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(eq=False)
class Direction:
    """One way through the proxy, for all its connections."""

    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """0: no limit."""
    forwarded_bytes: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def hold(self) -> None:
        """Forward nothing more."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, vanished: asyncio.Event) -> None:
        free_at = 0.0
        while data := await reader.read(65_536):
            await self._open.wait()
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.bytes_per_second:
                free_at = max(free_at, time.monotonic()) + len(data) / self.bytes_per_second
                await asyncio.sleep(free_at - time.monotonic())
            await self._open.wait()
            if vanished.is_set():
                await asyncio.get_running_loop().create_future()
            writer.write(data)
            self.forwarded_bytes += len(data)
            await writer.drain()


@dataclass(eq=False)
class FaultyProxy:
    """`port` is where it listens, `server_port` where it forwards to."""

    server_port: int
    port: int = 0
    to_server: Direction = field(default_factory=Direction)
    to_client: Direction = field(default_factory=Direction)
    connections: int = 0
    refuses: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _vanished: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the connections of this moment."""

    def hold(self) -> None:
        """Forward nothing in either direction; connections stay open."""
        self.to_server.hold()
        self.to_client.hold()

    def release(self) -> None:
        self.to_server.release()
        self.to_client.release()

    def vanish(self) -> None:
        """Forward nothing more over the present connections, without an end; new ones work."""
        self._vanished.set()
        self._vanished = asyncio.Event()

    def cut(self) -> None:
        """Reset all connections, and new ones at once."""
        self.refuses = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self.refuses = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            writer.transport.abort()
            return
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        with suppress(OSError):  # without a server, the client sees its connection end
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.server_port)
        try:
            if far is None:
                return
            self._writers.add(far)
            vanished = self._vanished
            ways = [
                asyncio.create_task(self.to_server.carry(reader, far, vanished)),
                asyncio.create_task(self.to_client.carry(far_reader, writer, vanished)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except asyncio.CancelledError:
            return  # the event loop ends; the server would log it as an error
        finally:
            for one in (writer, far):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()


@asynccontextmanager
async def faulty_proxy(server_port: int, port: int = 0) -> AsyncIterator[FaultyProxy]:
    proxy = FaultyProxy(server_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await server.wait_closed()
