"""The logs of a real Zeek behind two gateways, and of one to which the same agents are connected directly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stock_zeek import stock_zeek
from test_zeek_gateways import drops
from twice_connected import (
    Fleet,
    Logs,
    changes,
    events,
    logs,
    missing,
    of_agents,
    repeated,
    states,
    twice_connected,
)
from zeek_program import needs_zeek, records, zeek

pytest.importorskip("zeek_agent.gateway", reason="needs gateways")
pytestmark = [needs_zeek, pytest.mark.timeout(1500)]

FEW = (6, 3.0)
MANY = pytest.param(50, 20.0, marks=pytest.mark.soak)
"""Numbers of agents, and seconds between runs of the queries on tables that change."""
ROUNDS = 4
PATIENT = """
@ifdef ( Cluster::default_websocket_ping_interval )
redef Cluster::default_websocket_ping_interval = 10min;
@endif
"""
"""Zeek closes a connection that leaves two pings unanswered. All agents of a test share one process, which answers late
while many of them connect again at once."""
EVENTS = ("Dns", "FileEvents", "Logins", "ProcessEvents", "SocketEvents")
OURS = ("Files", "ListeningPorts", "Processes", "SSH", "SetuidFiles", "Sockets", "Sources", "Users")
STOCK = ("Files", "Processes", "SSH", "Sockets", "SystemLogs", "Users")


def site(modules: Sequence[str], schedule: float) -> str:
    return "".join(f"redef ZeekAgent_{module}::query_interval = {schedule}sec;\n" for module in modules)


def pack(schedule: float) -> str:
    """The default pack with all its logs; queries on events run ten times as often as those on tables.

    By default they run so often that those of 50 agents would keep more than the one core busy that these have here.
    """
    often = f"redef ZeekAgent::claim_interval = {schedule / 10}sec;\n{site(EVENTS, schedule / 10)}"
    rare = f"redef ZeekAgent_SetuidFiles::query_interval_2 = {schedule}sec;"
    return f"redef ZeekAgent_Files::enabled = T;\n{rare}\n{often}{PATIENT}{site(OURS, schedule)}"


async def happen(fleet: Fleet, *, is_broken: bool) -> None:
    """Events and changes, and in the midst of them a gateway is killed and half of the direct connections are cut."""
    await fleet.record(ROUNDS, 0.3)
    if is_broken:
        fleet.break_one()
    await fleet.record(ROUNDS, 0.3)
    await fleet.delivered()


@pytest.mark.long
@pytest.mark.parametrize(("number", "schedule"), [FEW, MANY])
@pytest.mark.parametrize("is_broken", [False, True], ids=["whole", "a gateway killed"])
async def test_all_logs_of_the_default_pack_are_those_of_direct_connections(
    tmp_path: Path, number: int, schedule: float, is_broken: bool, record_property: Any
) -> None:
    direct, behind = tmp_path / "direct", tmp_path / "behind"
    with zeek(direct, site=pack(schedule)) as direct_url, zeek(behind, site=pack(schedule)) as behind_url:
        urls = (direct_url, behind_url)
        async with twice_connected(tmp_path, urls, number, schedule=schedule) as fleet:
            await happen(fleet, is_broken=is_broken)
    there, here = logs(direct), logs(behind)
    record_property("lines", {name: len(lines) for name, lines in here.items()})
    assert set(there) == set(here)
    assert len(here) >= 10
    assert events(here) == events(there)
    assert repeated(here) == repeated(there) == {}
    assert set(here["zeek-agent-process-events"][0]) >= {"store", "seq"}
    assert states(here) == states(there)
    if not is_broken:
        assert changes(here) == changes(there)
    for place in (direct, behind):
        assert not drops(place)
        assert not errors(place)


@contextmanager
def two_stock_zeeks(tmp_path: Path, version: str, schedule: float) -> Iterator[tuple[str, str]]:
    with (
        stock_zeek(tmp_path / "direct", version, PATIENT + site(STOCK, schedule)) as direct,
        stock_zeek(tmp_path / "behind", version, PATIENT + site(STOCK, schedule)) as behind,
    ):
        yield direct, behind


@pytest.mark.long
@pytest.mark.parametrize(("number", "schedule"), [FEW, MANY])
@pytest.mark.parametrize("version", ["2.4", "2.3"])
async def test_all_logs_of_a_stock_package_are_those_of_direct_connections(
    tmp_path: Path, number: int, schedule: float, version: str
) -> None:
    with two_stock_zeeks(tmp_path, version, schedule) as urls:
        async with twice_connected(tmp_path, urls, number, schedule=schedule) as fleet:
            await happen(fleet, is_broken=False)
    there, here = logs(tmp_path / "direct"), logs(tmp_path / "behind")
    assert set(there) == set(here) >= {"zeek-agent-users", "zeek-agent-system-logs", "zeek-agent-processes"}
    assert events(here) == events(there)
    assert repeated(here) == repeated(there) == {}
    assert changes(here) == changes(there)
    for place in ("direct", "behind"):
        assert not drops(tmp_path / place)
        assert not errors(tmp_path / place)


@pytest.mark.long
@pytest.mark.parametrize(("number", "schedule"), [FEW, MANY])
@pytest.mark.parametrize("version", ["2.4", "2.3"])
async def test_a_killed_gateway_costs_a_stock_package_no_more_than_cut_connections(
    tmp_path: Path, number: int, schedule: float, version: str, record_property: Any
) -> None:
    """Nothing is lost. Rows that Zeek had not confirmed may come twice: one delivery of each agent that moved."""
    with two_stock_zeeks(tmp_path, version, schedule) as urls:
        async with twice_connected(tmp_path, urls, number, schedule=schedule) as fleet:
            await happen(fleet, is_broken=True)
    there, here = logs(tmp_path / "direct"), logs(tmp_path / "behind")
    again = {name: repeated_lines(found) for name, found in (("direct", there), ("behind", here))}
    record_property("lines that came twice", again)
    assert not missing(there, here)
    assert not missing(here, there)
    assert states(here) == states(there)
    moved = sum(1 for one in records(tmp_path / "behind" / "zeek-agent.log") if one["type_"] == "reconnect")
    record_property("agents that moved", moved)
    assert again["behind"] <= moved * most_rows_in_a_delivery(here)


def repeated_lines(found: Logs) -> int:
    return sum(sum(agents.values()) for agents in repeated(found).values())


def most_rows_in_a_delivery(found: Logs) -> int:
    """All that an agent recorded, which one delivery can have."""
    return max(sum(1 for line in lines if line["hid"] == "A000") for lines in found.values())


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("is_broken", [False, True], ids=["whole", "a gateway killed"])
async def test_events_of_real_agents_are_those_of_direct_connections(tmp_path: Path, is_broken: bool) -> None:
    """Three agents that record what happens on this machine, from when both recipients have the queries."""
    direct, behind = tmp_path / "direct", tmp_path / "behind"
    number, schedule = FEW
    with zeek(direct, site=pack(schedule)) as direct_url, zeek(behind, site=pack(schedule)) as behind_url:
        urls = (direct_url, behind_url)
        async with twice_connected(tmp_path, urls, number, schedule=schedule, real=("R1", "R2", "R3")) as fleet:
            await happen(fleet, is_broken=is_broken)
    there, here = (of_agents(logs(place), "R") for place in (direct, behind))
    compared = 0
    for name in ("zeek-agent-process-events", "zeek-agent-socket-events"):
        for agent_id in ("R1", "R2", "R3"):
            mine, others = (numbered(found[name], agent_id) for found in (here, there))
            common = range(max(min(mine), min(others)), min(max(mine), max(others)) + 1)
            assert {seq: mine.get(seq) for seq in common} == {seq: others.get(seq) for seq in common}
            compared += len(common)
    assert compared > 100
    assert repeated(here) == repeated(there) == {}


def numbered(lines: list[Any], agent_id: str) -> dict[int, Any]:
    return {line["seq"]: line for line in lines if line["hid"] == agent_id}


def errors(directory: Path) -> list[str]:
    return [str(one["message"]) for one in records(directory / "reporter.log") if "ERROR" in str(one["level"])]
