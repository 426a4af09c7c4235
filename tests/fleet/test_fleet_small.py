"""A small fleet of simulated agents over leaf nodes, a hub and two gateways, while parts of it are killed or stopped.

All scenarios run on the same fleet, one after the other, and the oracle counts all rows since its start. `make soak`
runs them with 10,000 agents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_fleet.rig import Fleet, Plan, fleet
from simulated_fleet.scenarios import SCENARIOS, Scale, away, killed, recipient_killed, undisturbed

AGENTS = 200
SCALE = Scale(rows_per_second=2.0, seconds=4.0, down_seconds=1.5)
MEMORY_KIB_MAX = 150 * 1024
"""Of a server or gateway. They take 16 to 40 MB; buffers that grow with what waits would exceed it."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    plan = Plan(agents=AGENTS, canaries=2 if os.geteuid() == 0 else 0, quick=True, script_timeout=4.0)
    with fleet(tmp_path_factory.mktemp("small"), plan) as one:
        one.start_agents()
        yield one


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_each_row_is_delivered_exactly_once_when(small: Fleet, name: str) -> None:
    outcome = SCENARIOS[name](small, SCALE)
    assert outcome.findings.is_exactly_once, outcome
    servers = {name: kib for name, kib in outcome.resident.items() if name in small.servers}
    assert servers.keys() >= {"hub", "leaf-a", "leaf-b", "gateway-0", "gateway-1", "recipient"}
    assert max(servers.values()) < MEMORY_KIB_MAX, outcome


@pytest.mark.long
def test_rows_that_the_recipient_loses_when_it_is_killed_are_delivered_again(small: Fleet) -> None:
    outcome = recipient_killed(small, SCALE)
    assert outcome.findings.is_at_least_once, outcome


@pytest.mark.long
def test_rows_that_expire_while_a_host_is_away_are_counted_and_all_others_delivered(tmp_path: Path) -> None:
    with fleet(tmp_path, Plan(agents=20, quick=True)) as one:
        one.start_agents()
        outcome = away(one, Scale(seconds=3.0, down_seconds=0.5, away=4), 30.0)
    assert outcome.findings.is_exactly_once, outcome
    assert 4 * 240 <= outcome.findings.expired <= 4 * 260, outcome


@pytest.mark.long
@pytest.mark.parametrize("recipient", ["stand-in", "collector"])
def test_agents_that_are_connected_directly_deliver_each_row_once(tmp_path: Path, recipient: str) -> None:
    plan = Plan(agents=50, simulators=1, transport="ws", recipient=recipient)  # type: ignore[arg-type]
    with fleet(tmp_path, plan) as one:
        one.start_agents()
        outcome = undisturbed(one, Scale(seconds=2.0, rows_per_second=5.0))
    assert outcome.findings.is_exactly_once, outcome


@pytest.mark.long
def test_the_collector_gets_each_row_from_gateways_at_least_once_when_one_is_killed(tmp_path: Path) -> None:
    """Like a stock package, it does not recognize a report that comes again."""
    with fleet(tmp_path, Plan(agents=50, recipient="collector", quick=True)) as one:
        one.start_agents()
        outcome = undisturbed(one, Scale(seconds=2.0))
        assert outcome.findings.is_exactly_once, outcome
        outcome = killed(one, SCALE, ["gateway-0"])
    assert outcome.findings.is_at_least_once, outcome


@pytest.mark.long
@pytest.mark.zeek
def test_a_zeek_logs_each_row_once_when_a_gateway_is_killed_and_none_less_when_it_is_killed(tmp_path: Path) -> None:
    with fleet(tmp_path, Plan(agents=50, recipient="zeek", quick=True)) as one:
        one.start_agents()
        outcome = killed(one, SCALE, ["gateway-0"])
        assert outcome.findings.is_exactly_once, outcome
        outcome = recipient_killed(one, SCALE)
    assert outcome.findings.is_at_least_once, outcome
