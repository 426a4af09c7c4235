"""A few simulated agents, a gateway and a stand-in for Zeek in one process, with a faulty proxy on each connection.

async with proxied_fleet(tmp_path) as fleet:
    fleet.agents_bus.hold()        # between the agents and NATS; also gateway_bus and gateway_zeek
    fleet.record(100)              # rows of each agent
    await fleet.delivered()        # all rows are in the log, each exactly once
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from faulty_proxy import FaultyProxy, faulty_proxy
from gateways import CLUSTER, ZEEK
from nats_server import NatsServer, nats_server
from simulated_fleet.agents import SimulatedAgent
from simulated_fleet.fake_host import Recording
from simulated_fleet.stand_in import StandIn
from waiting import until
from websockets.asyncio.server import serve

from zeek_agent.bus.session import Times
from zeek_agent.config.sections import BusSettings, ZeekSettings
from zeek_agent.config.server_sections import GatewaySettings
from zeek_agent.gateway.gateway import Gateway

TIMES = Times(beat=0.5, silence=3.0, hello=1.0, grant=10.0, probe=0.5, tick=0.1, uninvited=2.0, server=1.0)
"""Much shorter than in use."""
SETTINGS = ZeekSettings(
    reconnect_min=0.05, reconnect_max=0.5, ping_interval=0.5, pong_timeout=2.0, ack_timeout=2.0, script_timeout=4.0
)


@dataclass(eq=False)
class ProxiedFleet:
    nats: NatsServer
    gateway: Gateway
    agents: list[SimulatedAgent]
    recording: Recording
    stand_in: StandIn
    agents_bus: FaultyProxy
    gateway_bus: FaultyProxy
    gateway_zeek: FaultyProxy

    def record(self, rows: int) -> None:
        """Each agent records so many rows now."""
        self.recording.bursts.append((time.time(), rows))

    def logged(self) -> Counter[tuple[str, int]]:
        """How often each row, by store and number, is in the log."""
        lines = (line.split("\t") for line in self.stand_in._lines)
        return Counter((store, int(number)) for _, _, store, number, *_ in lines)

    def expected(self) -> set[tuple[str, int]]:
        return {(one.store.id, number) for one in self.agents for number in range(1, one.recorded + 1)}

    async def delivered(self, seconds: float = 60.0) -> None:
        """Wait until all rows are logged and acknowledged, and check that each is there once."""
        await until(lambda: self.logged().keys() >= self.expected(), seconds, lambda: f"{len(self.logged())} rows")
        await until(lambda: not any(one.undelivered for one in self.agents), seconds)
        logged = self.logged()
        assert set(logged) == self.expected()
        assert set(logged.values()) == {1}


@asynccontextmanager
async def proxied_fleet(
    directory: Path,
    agents: int = 3,
    *,
    configuration: str = "",
    times: Times = TIMES,
    detail_bytes: int = 40,
    settings: ZeekSettings = SETTINGS,
) -> AsyncIterator[ProxiedFleet]:
    async with AsyncExitStack() as stack:
        nats = stack.enter_context(nats_server(directory / "nats", configuration))
        stand_in = StandIn(io.BytesIO(), 0.1)
        zeek = await stack.enter_async_context(serve(stand_in.serve, "127.0.0.1", 0, max_size=None, compression=None))
        zeek_port = next(iter(zeek.sockets)).getsockname()[1]
        proxies = [await stack.enter_async_context(faulty_proxy(port)) for port in (nats.port, nats.port, zeek_port)]
        agents_bus, gateway_bus, gateway_zeek = proxies
        gateway = Gateway(
            GatewaySettings(
                servers=(f"nats://127.0.0.1:{gateway_bus.port}",),
                cluster=CLUSTER,
                name="gw1",
                zeek=f"ws://127.0.0.1:{gateway_zeek.port}",
            ),
            msgspec.structs.replace(ZEEK, pong_timeout=2.0, ping_interval=0.5, ack_timeout=2.0),
            hostname="test",
        )
        running = asyncio.create_task(gateway.run())
        recording = Recording(detail_bytes)
        made = [
            SimulatedAgent(number, recording, settings, BusSettings(), times, [f"nats://127.0.0.1:{agents_bus.port}"])
            for number in range(agents)
        ]
        fleet = ProxiedFleet(nats, gateway, made, recording, stand_in, *proxies)
        try:
            for one in made:
                one.start()
            await until(lambda: all(one.is_ready for one in made))
            yield fleet
        finally:
            for proxy in proxies:
                proxy.cut()
            for one in made:
                await one.kill()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
