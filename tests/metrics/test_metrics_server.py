"""The HTTP server of metrics: what it answers, whom it refuses, and its bounds."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from waiting import until

from zeek_agent.config.sections import MetricsSettings
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.metrics import server as metrics_server
from zeek_agent.metrics.server import CONNECTIONS_MAX, MetricsServer

TEXT = "# TYPE one gauge\none 1\n"


@asynccontextmanager
async def serving(listen: str, **settings: str) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(MetricsSettings(listen=listen, **settings), lambda: TEXT)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def answer(server: MetricsServer, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to a request, after which the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    reply = await reader.read()
    writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    return head, body


async def test_get_returns_the_metrics() -> None:
    async with serving("127.0.0.1:0") as server:
        head, body = await answer(server, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9131\r\nAccept: */*\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert f"Content-Length: {len(TEXT)}".encode() in head
    assert body.decode() == TEXT


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0\r\nHost: localhost\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\nhost: [::1]:1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nX: y\r\nX-Host: localhost\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/2\r\nHost: localhost\r\n\r\n", b"400"),
        (b"\x16\x03\x01 no HTTP\n\r\n", b"400"),
    ],
)
async def test_other_requests_get_the_status_that_says_why(request_: bytes, status: bytes) -> None:
    async with serving("127.0.0.1:0") as server:
        head, body = await answer(server, request_)
    assert head.split(b" ")[1] == status
    assert (body.decode() == TEXT) == (status == b"200" and request_.startswith(b"GET"))


async def test_a_request_that_is_too_long_ends_the_connection() -> None:
    async with serving("127.0.0.1:0") as server:
        assert await answer(server, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000) == (b"", b"")
        head, _ = await answer(server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")


async def test_clients_that_say_nothing_are_bounded_and_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT_SECONDS", 60.0)
    async with serving("127.0.0.1:0") as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2 * CONNECTIONS_MAX)]
        head, _ = await answer(server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reader, _ in silent[:CONNECTIONS_MAX]:
            assert await reader.read() == b""
        await until(lambda: len(server._connections) <= CONNECTIONS_MAX)
        for _, writer in silent:
            writer.close()
    assert head.startswith(b"HTTP/1.1 200")


async def test_a_client_that_says_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT_SECONDS", 0.2)
    async with serving("127.0.0.1:0") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await reader.read() == b""
        writer.close()


async def test_a_unix_socket_is_the_owners_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with serving(f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: any\r\n\r\n")
        assert (await reader.read()).endswith(TEXT.encode())
        writer.close()
    assert not path.exists()


@pytest.mark.root
async def test_a_group_may_use_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with serving(f"unix:{path}", group="nogroup"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid != os.getgid()


async def test_an_unknown_group_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics\.group: no such group: 'no-such-group'"):
        async with serving(f"unix:{tmp_path}/metrics.sock", group="no-such-group"):
            pass


async def test_a_port_in_use_is_an_error_that_names_it() -> None:
    async with serving("127.0.0.1:0") as server:
        with pytest.raises(ZeekAgentError, match=f"cannot serve metrics on 127.0.0.1 port {server.port}"):
            async with serving(f"127.0.0.1:{server.port}"):
                pass


async def test_stopping_ends_open_connections() -> None:
    async with serving("127.0.0.1:0") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: bool(server._connections))
    assert await reader.read() == b""
    writer.close()
