"""Running gateways for tests, in the test's own event loop or as programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from waiting import until

from zeek_agent.config.sections import ZeekSettings
from zeek_agent.config.server_sections import GatewaySettings
from zeek_agent.gateway.gateway import Gateway

CLUSTER = "zeeks"
ZEEK = ZeekSettings(reconnect_min=0.05, reconnect_max=0.2, ping_interval=1.0)


@asynccontextmanager
async def gateway(
    nats_url: str,
    zeek_url: str,
    name: str = "gw1",
    *,
    cluster: str = CLUSTER,
    ready: bool = True,
    seconds: float = 30.0,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """A gateway that has Zeek, unless it is not to be waited for."""
    one = Gateway(
        GatewaySettings(servers=(nats_url,), cluster=cluster, name=name, zeek=zeek_url, **settings),
        ZEEK,
        hostname="test",
    )
    running = asyncio.create_task(one.run())
    try:
        if ready:
            await until(lambda: running.done() or one._listening, seconds)
            if running.done():
                running.result()
        yield one
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
