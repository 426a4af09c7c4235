"""A server that sends garbage, lines without end or nothing: a clear error in bounded time and memory."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from scripted_nats import INFO, PLAIN, Talk, handshake, server

from zeek_agent.bus import link
from zeek_agent.bus.link import Link

ENDLESS_BYTES = 64 * 1024 * 1024
"""What is sent at most of what has no end."""


async def connect(url: str) -> Link:
    return await link.connect([url], name="test", inbox="za.v1.dn.H.r")


async def wait_for_ever(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.get_running_loop().create_future()


def saying(first: bytes, endless: bytes = b"") -> Talk:
    """A server that says this before the handshake, and something without end."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while endless:
            writer.write(endless)
            await writer.drain()
        await asyncio.get_running_loop().create_future()

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        wait_for_ever,
        saying(b"\x00\xff\xfe garbage\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"),
        saying(b"INFO {\r\n"),
        saying(b"INFO []\r\n"),
        saying(b"INFO " + b"[" * 5_000 + b"\r\n"),
        saying(b'INFO {"max_payload":"x"}\r\n'),
        saying(b"INFO ", b"x" * 65_536),
        saying(PLAIN),
        saying(PLAIN, b"\xff" * 65_536),
        saying(PLAIN + b"-ERR 'no'\r\n"),
    ],
    ids=["silence", "garbage", "http", "json", "array", "nested", "type", "endless", "no pong", "more", "error"],
)
async def test_a_handshake_with_something_else_ends_in_an_error(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_SECONDS", 1)
    async with server(talk) as url:
        with pytest.raises(ConnectionError, match=r"^nats://127\.0\.0\.1:\d+: .*[a-z]"):
            await connect(url)


async def test_a_tls_handshake_that_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_SECONDS", 1)
    async with server(saying(INFO % b',"tls_required":true,"tls_available":true')) as url:
        with pytest.raises(ConnectionError, match=r"^tls://127\.0\.0\.1:\d+"):
            await link.connect(
                [url.replace("nats:", "tls:")], name="test", inbox="za.v1.dn.H.r", tls=ssl.create_default_context()
            )


@pytest.mark.parametrize(
    ("first", "endless"),
    [
        (b"", b"\xff" * 65_536),
        (b"MSG ", b"x" * 65_536),
        (b"MSG za.v1.dn.H.r.x 1 99999999999\r\n", b"x" * 65_536),
        (b"HMSG za.v1.dn.H.r.x 1 5 99999999999\r\n", b"x" * 65_536),
        (b"INFO ", b"x" * 65_536),
        (b"-ERR '", b"x" * 65_536),
        (b"INFO {\r\n", b""),
        (b"INFO []\r\n", b""),
        (b'INFO {"connect_urls":[1]}\r\n', b""),
        (b"MSG a 1 -1\r\n", b""),
        (b"nonsense\r\n", b""),
        (b"MSG x " + b"9" * 3_000 + b" 1\r\n", b""),
    ],
    ids=range(12),
)
async def test_anything_but_a_message_ends_the_connection_and_is_not_kept(
    first: bytes, endless: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_SECONDS", 1)
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await handshake(reader, writer)
        writer.write(first)
        while endless:
            writer.write(endless)
            sent += len(endless)
            await writer.drain()
            if sent >= ENDLESS_BYTES:
                return
        await asyncio.get_running_loop().create_future()

    async with server(talk) as url:
        connected = await connect(url)
        try:
            with pytest.raises(ConnectionError, match="connection to the bus lost"):
                await connected.ended()
            assert sent < ENDLESS_BYTES
        finally:
            await connected.close()
