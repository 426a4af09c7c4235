"""A server whose side of NATS' protocol a test writes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

INFO: Final = b'INFO {"server_id":"x","version":"2.12.7","proto":1,"max_payload":1048576,"headers":true%s}\r\n'
PLAIN: Final = INFO % b""

Talk: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[str]:
    """The URL of a server that talks so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client has closed the connection, or the test ends
        finally:
            writer.transport.abort()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(PLAIN)
    while (await reader.readline()).strip() != b"PING":
        pass
    writer.write(b"PONG\r\n")
