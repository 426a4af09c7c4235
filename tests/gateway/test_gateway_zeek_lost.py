"""The end of the connection to Zeek while messages wait for it."""

from __future__ import annotations

import asyncio

from waiting import until
from zeek_server import zeek_server

from zeek_agent import destination
from zeek_agent.config.sections import ZeekSettings
from zeek_agent.gateway.zeek_side import ZeekSide
from zeek_agent.zeek import protocol

FRAME = b"x" * 50_000


async def test_messages_that_wait_when_the_connection_ends_are_discarded_and_the_next_one_works() -> None:
    lost: list[bool] = []

    async def ignore(_raw: bytes, _message: protocol.Message) -> None:
        """Zeek sends nothing here."""

    async with zeek_server() as zeek:
        side = ZeekSide(
            destination.parse(zeek.url()),
            ZeekSettings(reconnect_min=0.05, reconnect_max=0.1),
            application="test",
            topics=["/zeek-agent/query/host/"],
            on_connected=lambda _ack: None,
            on_message=ignore,
            on_lost=lambda: lost.append(True),
        )
        running = asyncio.create_task(side.run())
        try:
            first = await zeek.client()
            await until(lambda: side.ack is not None)
            first.pause()
            for _ in range(200):
                side.put([FRAME])
            await until(lambda: 0 < side.queued < 199)
            first.abort()
            await until(lambda: lost)
            await until(lambda: running.done() or side.ack is not None)
            assert not running.done(), running.result()
            acknowledged = asyncio.Event()
            side.put([], acknowledged.set)
            async with asyncio.timeout(20):
                await acknowledged.wait()
            assert side.queued == 0
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
