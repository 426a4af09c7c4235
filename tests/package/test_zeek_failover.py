"""Attribution by a real Zeek while gateways of real agents are killed."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
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
pytestmark = [needs_zeek, pytest.mark.root, pytest.mark.timeout(1800)]

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
    ("number", "is_busy", "kills"),
    [
        pytest.param(150, False, 1, id="attribution only"),
        pytest.param(600, False, 5, id="attribution only, five of six gateways", marks=pytest.mark.soak),
        pytest.param(600, True, 1, id="all logs", marks=pytest.mark.soak),
    ],
)
async def test_connections_are_attributed_although_a_gateway_is_killed(
    tmp_path: Path, network: Hosts, number: int, is_busy: bool, kills: int, record_property: pytest.RecordProperty
) -> None:
    """With the interval of many agents, and with all queries of the default pack or those for attribution only.

    So many connections are made by TCP and by UDP for each gateway that is killed.
    """
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
        gateways(tmp_path, nats.url, url, kills + 1, prefix=hub) as programs,
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
                        has_session=True,
                    )
                )
            await until(lambda: set(IDS) <= joined_agents(logs), 90, "not all join")
            await asyncio.sleep(5.0)  # their queries are under way
            truths = []
            for _ in range(kills):
                busiest, moved = await busiest_gateway(logs, programs)
                record_property("agents moved", moved)
                load = asyncio.create_task(network.connections(number))
                await asyncio.sleep(KILLED_AFTER_SECONDS)
                programs[busiest].kill()
                truths.append(await load)
                await asyncio.sleep(LOGGED_SECONDS)
    scores = [compare(truth, records(logs / "conn.log")) for truth in truths]
    for score, truth in zip(scores, truths, strict=True):
        record_property("connections", told(score, truth_from=min(one["ended"] for one in truth)))
    for score in scores:
        assert score.seen >= 0.99 * 2 * number
        assert not score.wrong
        assert score.tagged >= 0.999 * score.seen


async def busiest_gateway(logs: Path, programs: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """The index of the gateway with most agents, and their number, once all agents are at gateways that run."""

    def found() -> tuple[int, int] | None:
        vias = gateways_of(logs, IDS) or {}
        indices = Counter(int(via.removeprefix("via/gw")) - 1 for via in vias.values())
        if not indices or any(programs[index].poll() is not None for index in indices):
            return None
        return indices.most_common(1)[0]

    return await until(found, 60, "not all agents have a gateway")


def told(score: Score, truth_from: float) -> str:
    """The figures, with when the connections ended whose process is unknown, in seconds since the first one's end."""
    missed = [f"{one['proto']} {one['ended'] - truth_from:.1f}" for one in score.missed]
    return f"{score.tagged} of {score.seen} with both processes, {len(score.wrong)} wrong, missed: {missed}"
