"""10,000 simulated agents over leaf nodes, a hub and two gateways, with real agents among them, while parts are killed.

As in `test_fleet_small.py`, all scenarios run on one fleet, and the oracle counts all rows since its start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from simulated_fleet.rig import Fleet, Plan, fleet
from simulated_fleet.scenarios import SCENARIOS, Scale, outage, recipient_killed

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

AGENTS = int(os.environ.get("FLEET_AGENTS", "10000"))
"""Without any for canaries, which are 20 more."""
SCALE = Scale(rows_per_second=0.2, seconds=40.0, down_seconds=8.0, burst_rows=20, away=200, delivered_within=300.0)
BURST = Scale(rows_per_second=0.05, seconds=30.0, down_seconds=5.0, burst_rows=70, delivered_within=300.0)
"""70 rows of 250 bytes from each of 10,000 hosts are 175 MB."""
GATEWAY_KIB_MAX = 150 * 1024
SERVER_KIB_MAX = 1024 * 1024
"""Of a leaf node: 5,000 connections of 80 KB, and what waits for slow ones."""
AGENT_KIB_MAX = 450
"""Of a simulated agent: 110 connected, and waiting with a backlog, which it holds in several forms."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    canaries = 20 if os.geteuid() == 0 else 0
    plan = Plan(agents=AGENTS, simulators=4, schedule=10.0, detail_bytes=200, canaries=canaries, script_timeout=20.0)
    with fleet(tmp_path_factory.mktemp("large"), plan) as one:
        one.start_agents(600.0)
        yield one


def bounded(one: Fleet) -> bool:
    """Whether no process took more memory than it should."""
    limits = {"leaf-a": SERVER_KIB_MAX, "leaf-b": SERVER_KIB_MAX, "hub": SERVER_KIB_MAX}
    limits |= dict.fromkeys(("gateway-0", "gateway-1"), GATEWAY_KIB_MAX)
    limits |= {each.process.name: 60 * 1024 + AGENT_KIB_MAX * len(each.numbers) for each in one.simulators.processes}
    peaks = one.sampler.peaks()
    return all(peaks[name] < limit for name, limit in limits.items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_row_of_10_000_agents_is_delivered_exactly_once_when(
    large: Fleet, name: str, record_property: Callable[[str, object], None]
) -> None:
    outcome = SCENARIOS[name](large, SCALE)
    record_property(name, outcome)
    assert outcome.findings.is_exactly_once, outcome
    assert bounded(large), outcome


def test_a_backlog_of_175_mb_is_delivered_after_an_outage_in_bounded_memory(
    large: Fleet, record_property: Callable[[str, object], None]
) -> None:
    outcome = outage(large, BURST, "hub")
    record_property("replay storm", outcome)
    assert outcome.findings.is_exactly_once, outcome
    assert bounded(large), outcome


def test_rows_of_10_000_agents_that_a_killed_recipient_loses_are_delivered_again(
    large: Fleet, record_property: Callable[[str, object], None]
) -> None:
    outcome = recipient_killed(large, SCALE)
    record_property("recipient killed", outcome)
    assert outcome.findings.is_at_least_once, outcome
    assert bounded(large), outcome
