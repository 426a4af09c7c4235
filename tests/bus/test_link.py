"""A connection to a real NATS server: requests, their failures, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scripted_nats
from nats_server import nats_server
from scripted_nats import handshake

from zeek_agent.bus import link
from zeek_agent.bus.link import Link, NoListenerError, Received


@asynccontextmanager
async def connected(*servers: str, name: str = "agent") -> AsyncIterator[Link]:
    connection = await link.connect(servers, name=name, inbox=f"inbox.{name}")
    try:
        yield connection
    finally:
        await connection.close()


async def test_requests_are_answered_over_the_bus(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with connected(server.url, name="asking") as asking, connected(server.url, name="answering") as answering:

            async def answer(message: Received) -> None:
                await answering.publish(message.reply, message.payload.upper())

            end = await answering.subscribe("questions.*", answer)
            await answering.flush()
            assert await asking.request("questions.one", b"who", 5) == b"WHO"
            await end()
            await answering.flush()
            with pytest.raises(NoListenerError):
                await asking.request("questions.one", b"who", 5)
            await answering.subscribe("silence", lambda _: asyncio.sleep(0))
            await answering.flush()
            with pytest.raises(TimeoutError):
                await asking.request("silence", b"who", 0.05)


async def test_a_flush_confirms_what_was_sent_before_it() -> None:
    received: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)
        while line := await reader.readline():
            received.append(line.split()[0])
            if received[-1] == b"PING":
                writer.write(b"PONG\r\n")

    async with scripted_nats.server(talk) as url, connected(url) as connection:
        end = await connection.subscribe("questions.*", lambda _: asyncio.sleep(0))
        await connection.flush()
        await connection.publish("rows", b"row")
        await end()
        await connection.flush()
    assert received == [b"SUB", b"PING", b"PUB", b"row", b"UNSUB", b"PING"]


async def test_the_end_of_a_server_ends_the_connection(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with connected(server.url) as connection:
            assert connection.is_open
            assert connection.server == f"127.0.0.1:{server.port}"
            server.kill()
            with pytest.raises(ConnectionError, match="connection to the bus lost"):
                await connection.ended()
            assert not connection.is_open
            with pytest.raises(ConnectionError):
                await connection.publish("somewhere", b"lost")
        server.start_again()
        async with connected(server.url) as again:
            assert again.is_open


async def test_no_server_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError):
        await link.connect(["nats://127.0.0.1:1"], name="agent", inbox="inbox.a")


async def test_a_second_server_is_used_when_the_first_is_away(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with connected("nats://127.0.0.1:1", server.url) as connection:
            assert connection.server.endswith(str(server.port))


@pytest.mark.parametrize("answer", [SimpleNamespace(data=b""), OSError("refused")])
async def test_a_task_that_is_cancelled_while_its_answer_arrives_ends(answer: object) -> None:
    arriving: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    class Client:
        async def request(self, *_: object, timeout: float) -> object:
            return await asyncio.wait_for(arriving, timeout)

    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(Link(Client(), "nats://127.0.0.1", ended).request("questions.one", b"", 5))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    if isinstance(answer, OSError):
        arriving.set_exception(answer)
    else:
        arriving.set_result(answer)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_task_that_is_cancelled_while_its_connection_closes_ends() -> None:
    class Client:
        async def close(self) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    closing = asyncio.create_task(Link(Client(), "nats://127.0.0.1", ended).close())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_cancellation_that_comes_with_an_answer_is_not_lost(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with connected(server.url) as connection:
            asking: asyncio.Task[bytes] | None = None

            async def answer(message: Received) -> None:
                await connection.publish(message.reply, b"here")

            await connection.subscribe("question", answer)
            library = connection._client._request_sub_callback

            async def cancel_too(message: Any) -> None:
                await library(message)
                assert asking is not None
                asking.cancel()

            connection._client._request_sub_callback = cancel_too  # type: ignore[method-assign]
            asking = asyncio.create_task(connection.request("question", b"", 5))
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_a_cancellation_that_comes_with_an_error_is_not_lost() -> None:
    async def ask() -> None:
        task = asyncio.current_task()
        assert task is not None
        with link._as_connection_error():
            task.cancel()
            with suppress(asyncio.CancelledError):  # as asyncio.wait_for does
                await asyncio.sleep(0)
            raise OSError("refused")

    asking = asyncio.create_task(ask())
    with pytest.raises(asyncio.CancelledError):
        await asking
