"""Attribution by a real Zeek while gateways of real agents are killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from attributed_hosts import HUB, NUMBERS, WIRE, Hosts, Score, compare, hosts
from nats_server import nats_server
from running_agent import running
from test_zeek_bus import gateways, gateways_of, joined_agents, modules_with_queries
from waiting import until
from zeek_program import needs_zeek, records, zeek

pytest.importorskip("zeek_agent.gateway", reason="needs gateways")
pytestmark = [needs_zeek, pytest.mark.root, pytest.mark.timeout(400)]

IDS = [f"Host{n}" for n in NUMBERS]
OTHER_SOURCES = ("dns", "logins", "system_logs")
"""Kinds of events that attribution does not need."""
KILLED_AFTER_SECONDS = 2.0
LOGGED_SECONDS = 12.0
"""Zeek removes a TCP connection five seconds after its end; a late claim may delay its line."""


@pytest.fixture
def network() -> Iterator[Hosts]:
    with hosts() as one:
        yield one


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "is_busy"),
    [
        pytest.param(150, False, id="attribution only"),
        pytest.param(600, False, id="attribution only, long", marks=pytest.mark.soak),
        pytest.param(600, True, id="all logs", marks=pytest.mark.soak),
    ],
)
async def test_connections_are_attributed_although_a_gateway_is_killed(
    tmp_path: Path, network: Hosts, number: int, is_busy: bool, record_property: pytest.RecordProperty
) -> None:
    """With the interval of many agents, and with all queries of the default pack or those for attribution only."""
    logs, hub = tmp_path / "zeek", network.at("hub")
    others = "" if is_busy else "".join(f"redef {name}::enabled = F;\n" for name in sorted(modules_with_queries()))
    site = f"""
    redef ZeekAgent::many_agents = 2;
    redef Site::local_nets = {{ {WIRE} }};
    {others}
    """
    capture = ("-i", "wire", "-f", f"net {WIRE} and not host {HUB}")
    with (
        nats_server(tmp_path / "nats", 'host: "0.0.0.0"', prefix=hub) as nats,
        zeek(logs, *capture, site=site, prefix=hub) as url,
        gateways(tmp_path, nats.url, url, prefix=hub) as programs,
    ):
        async with AsyncExitStack() as stack:
            for n in NUMBERS:
                directory = tmp_path / f"host{n}"
                directory.mkdir()
                await stack.enter_async_context(
                    running(
                        directory,
                        f"--zeek=nats://{HUB}:{nats.port}",
                        settings={"agent.id": f"Host{n}", **{f"sources.{name}": "off" for name in OTHER_SOURCES}},
                        prefix=network.at(n),
                    )
                )
            await until(lambda: set(IDS) <= joined_agents(logs), 90, "not all join")
            await asyncio.sleep(5.0)  # their queries are under way
            vias = await until(lambda: gateways_of(logs, IDS), 60, "no gateway is named")
            ((busiest, moved),) = Counter(vias.values()).most_common(1)
            load = asyncio.create_task(network.connections(number))
            await asyncio.sleep(KILLED_AFTER_SECONDS)
            programs[int(busiest.removeprefix("via/gw")) - 1].kill()
            truth = await load
            await asyncio.sleep(LOGGED_SECONDS)
    score = compare(truth, records(logs / "conn.log"))
    record_property("agents moved", moved)
    record_property("connections", told(score, truth_from=min(one["ended"] for one in truth)))
    assert score.seen >= 0.99 * 2 * number
    assert not score.wrong
    assert score.tagged >= 0.999 * score.seen


def told(score: Score, truth_from: float) -> str:
    """The figures, with when the connections ended whose process is unknown, in seconds since the first one's end."""
    missed = [f"{one['proto']} {one['ended'] - truth_from:.1f}" for one in score.missed]
    return f"{score.tagged} of {score.seen} with both processes, {len(score.wrong)} wrong, missed: {missed}"
