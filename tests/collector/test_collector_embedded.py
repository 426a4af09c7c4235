"""The collector on passed sockets: the same protocol as over TCP, on sockets that nobody else can reach."""

from __future__ import annotations

import asyncio
import io
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console
from scripted_agent import PACK, SETTINGS, THING, Agent, collecting, read
from waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from zeek_agent.collector import summary
from zeek_agent.collector.passed_connections import PassedConnections
from zeek_agent.collector.server import Collector, CollectorLimits
from zeek_agent.collector.summary import SummaryView
from zeek_agent.destination import EMBEDDED, PATH, formerly_embedded
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import InstallQuery, ZeekHello, ZeekShutdown

URL = f"ws://localhost{PATH}"


def embedded(logs: Path, limits: CollectorLimits | None = None) -> Collector:
    return Collector(replace(SETTINGS, logs=str(logs)), PACK, limits=limits)


@asynccontextmanager
async def started(logs: Path, limits: CollectorLimits | None = None) -> AsyncIterator[Collector]:
    collector = embedded(logs, limits)
    await collector.start_embedded()
    try:
        yield collector
    finally:
        await collector.stop()


def connected_to(collector: Collector) -> socket.socket:
    """The client's end of a new connection."""
    client, served = socket.socketpair()
    try:
        collector.serve_connection(served)
    except OSError:
        client.close()
        raise
    return client


@asynccontextmanager
async def agent_in(collector: Collector, agent_id: str = "HAbc", url: str = URL) -> AsyncIterator[Agent]:
    async with connect(url, sock=connected_to(collector), compression=None) as connection:
        yield Agent(connection, collector, agent_id)


async def test_an_agent_joins_reports_and_receives_the_shutdown_message(tmp_path: Path) -> None:
    async with started(tmp_path) as collector, agent_in(collector) as agent:
        hello, *queries = await agent.join()
        assert isinstance(hello, ZeekHello)
        assert all(isinstance(query, InstallQuery) for query in queries)
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        await collector.stop()
        assert isinstance([await agent.event() for _ in range(3)][-1], ZeekShutdown)
        with pytest.raises(ConnectionClosed, match="1001"):
            await agent.receive()
    (thing,) = read(tmp_path, "things")
    assert (thing["hid"], thing["name"], thing["change"]) == ("HAbc", "a thing", "new")


async def test_the_bytes_are_those_of_tcp(tmp_path: Path) -> None:
    """A client's conversation, as it is on the wire in both directions, over a socket pair and over TCP."""

    async def conversation(connected: socket.socket) -> bytes:
        connected.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connected)
        writer.write(
            f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        subscription = protocol.subscription_message(["/zeek/"]).encode()
        # A text frame, a ping and a close frame of a client whose mask is zero (RFC 6455).
        writer.write(bytes((0x81, 0x80 | len(subscription))) + bytes(4) + subscription)
        head = await reader.readexactly(2)
        answer += head + await reader.readexactly(head[1])
        writer.write(b"\x89\x82" + bytes(4) + b"hi" + b"\x88\x82" + bytes(4) + b"\x03\xe8")
        answer += await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith(b"Date: "))

    async with started(tmp_path / "one") as inside, collecting(tmp_path / "two") as outside:
        over_tcp = await conversation(socket.create_connection(outside.address))
        assert b" 101 " in over_tcp
        assert b"\x8a\x02hi" in over_tcp
        assert b"collector-websocket-0" in over_tcp
        assert await conversation(connected_to(inside)) == over_tcp


async def test_invalid_requests_are_refused_as_over_tcp(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with started(tmp_path, CollectorLimits(connections=1)) as collector:
        async with agent_in(collector, url="ws://localhost/elsewhere") as agent:
            assert (await agent.error()).code == "invalid_uri"
        async with agent_in(collector) as agent:
            await agent.send("nonsense")
            assert (await agent.error()).code == "deserialization_failed"
            await until(lambda: collector.stats.refused == 1)
            assert collector.stats.recent_errors[-1][1].startswith("subscription from embedded: ")
        async with agent_in(collector):
            with pytest.raises(InvalidStatus, match="503"):
                async with agent_in(collector):
                    pass
        client = connected_to(collector)
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        client.settimeout(5)
        assert await asyncio.to_thread(client.recv, 1) in (b"", b"H")
        client.close()
    assert "Traceback" not in caplog.text


async def test_many_connections_open_and_close(tmp_path: Path) -> None:
    async with started(tmp_path) as collector:
        for number in range(200):
            async with agent_in(collector, f"H{number}") as agent:
                await agent.subscribe()
        await until(lambda: collector.stats.connections == 0)
        agents = [agent_in(collector, f"H{number}") for number in range(50)]
        for agent in await asyncio.gather(*(one.__aenter__() for one in agents)):
            await agent.subscribe()
        assert collector.stats.connections == 50
        await asyncio.gather(*(one.__aexit__(None, None, None) for one in agents))


async def test_an_embedded_collector_has_no_address(tmp_path: Path) -> None:
    collector = embedded(tmp_path)
    with pytest.raises(ConnectionRefusedError):
        connected_to(collector)
    await collector.start_embedded()
    await collector.start_embedded()
    with pytest.raises(LookupError):
        _ = collector.address
    assert collector.place == "in the agent"
    await collector.stop()
    with pytest.raises(ConnectionRefusedError):
        connected_to(collector)


async def test_the_status_shows_that_it_is_embedded_and_why_it_has_not_started(tmp_path: Path) -> None:
    collector = embedded(tmp_path)
    async with started(tmp_path):
        with pytest.raises(UsageError):
            await collector.start_embedded()
    for start, head in ((False, "collector in the agent not started: "), (True, "collector in the agent for 0 s: ")):
        if start:
            await collector.start_embedded()
        view = SummaryView.after(None, collector.stats, collector.stats.started)
        console = Console(file=io.StringIO(), width=200)
        console.print(summary.screen(collector, view))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert head in text
        assert ("another collector" in text) is not start
        assert ("another collector" in summary.line(view)) is not start
    await collector.stop()


def test_closing_ends_connections_that_nobody_accepted() -> None:
    listener = PassedConnections()
    with pytest.raises(BlockingIOError):
        listener.accept()
    client, served = socket.socketpair()
    listener.add(served)
    listener.close()
    assert client.recv(1) == b""
    client.close()
    client, served = socket.socketpair()
    with pytest.raises(OSError, match=r"Bad file descriptor|WinError 10038"):
        listener.add(served)
    assert client.recv(1) == b""
    client.close()


async def test_logs_that_are_locked_are_tried_again(tmp_path: Path) -> None:
    collector = embedded(tmp_path)
    async with started(tmp_path):
        for attempt in (1, 2):
            with pytest.raises(UsageError, match="another collector"):
                await collector.start_embedded()
            assert collector.stats.disk_errors == attempt
        assert "another collector" in str(collector.stats.disk_error)
    await collector.start_embedded()
    assert collector.stats.disk_error is None
    async with agent_in(collector) as agent:
        await agent.join()
    await collector.stop()
    assert read(tmp_path, "zeek-agent")[0]["type_"] == "join"


async def test_logs_that_cannot_be_written_are_tried_again_and_not_held(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.write_text("in the way")
    collector = embedded(logs)
    with pytest.raises(ZeekAgentError, match=re.escape(f"cannot write {logs}: ")):
        await collector.start_embedded()
    logs.unlink()
    async with started(logs):
        pass
    await collector.start_embedded()
    assert collector.stats.disk_error is None
    await collector.stop()


def test_the_embedded_collector_has_a_name_that_is_not_a_url() -> None:
    assert str(EMBEDDED) == "embedded"
    assert EMBEDDED.title == "the embedded collector"
    assert formerly_embedded("127.0.0.1:27759") == ("ws://127.0.0.1:27759/v1/messages/json",)
    assert formerly_embedded("[::1]:27759") == ("ws://[::1]:27759/v1/messages/json",)
    assert formerly_embedded("localhost:4000") == (
        "ws://127.0.0.1:4000/v1/messages/json",
        "ws://[::1]:4000/v1/messages/json",
    )
    assert formerly_embedded("127.0.0.1:0") == (), "each start had another port"
