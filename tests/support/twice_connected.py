"""A fleet whose agents are connected to one recipient directly and to another through two gateways.

Each agent has one store for both, so that the logs of the recipients are about the same events.

    async with twice_connected(tmp_path, (direct_url, behind_url), 50, schedule=15.0) as fleet:
        await fleet.record(5, 0.5)
        fleet.break_one()                  # a gateway is killed, and half of the direct connections are cut
        await fleet.delivered()
    assert events(logs(direct)) == events(logs(behind))
"""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from bus_agents import bus_agents
from gateway_program import gateway_program
from nats_server import nats_server
from relay import Relay, relay
from replayed_agents import SNAPSHOT_ROWS, ReplayedAgent
from running_agent import RunningAgent, running
from waiting import until
from zeek_log import parse_header
from zeek_program import records

CLUSTER: Final = "zeeks"
ROWS: Final = 4
"""Events of each kind that a host records in a round."""
CHANGED: Final = ("users", "processes", "sockets", "listening_ports", "files_list", "files_lines")
"""Tables of hosts that change, one in each round and each once: recipients run queries at different times, so they may
see several changes of a table in different steps."""
WAIT: Final = 600.0
REAL: Final = {"limits.time": 120}
"""Settings of real agents: several of them read all processes and sockets of one machine at the same time."""
AT_ONCE: Final = 5
"""Agents that start together: all are in this process, and each installs its queries twice."""

RECEIVED: Final = frozenset({"t", "ts"})
"""Columns with the time at which a recipient got a row."""
Line: TypeAlias = Mapping[str, Any]
Logs: TypeAlias = Mapping[str, Sequence[Line]]
Row: TypeAlias = tuple[tuple[str, Any], ...]


@dataclass
class Fleet:
    """Agents of this process, and real ones, which record what happens on this machine."""

    agents: list[ReplayedAgent]
    gateways: list[subprocess.Popen[bytes]]
    relays: list[Relay]
    schedule: float
    """Queries that run at least this often are waited for."""
    real: list[RunningAgent] = field(default_factory=list)
    changed: int = 0
    """How many tables have changed."""

    def busiest_gateway(self) -> int:
        """The one with most real agents."""
        found = [re.findall(r"through gateway gw(\d)", agent.output.read_text())[-1] for agent in self.real]
        return int(Counter(found).most_common(1)[0][0]) - 1

    async def stop(self) -> None:
        """End the agents of this process."""
        await asyncio.gather(*(agent.stop() for agent in self.agents))

    def break_one(self, gateway: int = 0) -> None:
        """Kill a gateway, and cut every other direct connection at the same time."""
        self.gateways[gateway].kill()
        assert self.relays[0].cut()

    async def record(self, rounds: int, pause: float) -> None:
        """Things happen on all hosts: events of all kinds, and changes of other tables."""
        for _ in range(rounds):
            changed = CHANGED[self.changed : self.changed + 1]
            self.changed += len(changed)
            for agent in self.agents:
                for table in agent.event_tables:
                    agent.record(table, ROWS)
                for table in changed:
                    agent.change(table)
            await asyncio.sleep(pause)

    async def delivered(self) -> None:
        """Wait until all events are acknowledged, and the last changes of other tables: those of two more runs."""
        for agent in self.agents:
            await until(agent.has_delivered, WAIT, lambda agent=agent: f"{agent.id}: {agent.waiting()}")
        before = [agent.runs() for agent in self.agents]
        for agent, runs in zip(self.agents, before, strict=True):
            await until(
                lambda agent=agent, runs=runs: agent.has_run_again(runs, 2, self.schedule),
                WAIT,
                lambda agent=agent: f"{agent.id}: {agent.waiting()}",
            )

    async def have_run(self) -> None:
        """Wait until all queries of all agents have run."""
        for agent in self.agents:
            await until(agent.has_run, WAIT, lambda agent=agent: f"{agent.id}: {agent.waiting()}")
        for real in self.real:
            await until(lambda real=real: _has_run(real), WAIT, f"{real.state}: not all queries have run")


async def _has_run(real: RunningAgent) -> bool:
    """Whether there are queries of both recipients, and all of them have run."""
    found = await real.ask("SELECT recipient, state, runs FROM zeek_agent_queries")
    return len({one["recipient"] for one in found}) == 2 and all(
        one["runs"] or one["state"] == "waiting" for one in found
    )


@contextmanager
def gateways(directory: Path, nats_url: str, zeek_url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two gateways as programs."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(gateway_program(nats_url, zeek_url, name, directory, cluster=CLUSTER))
            for name in ("gw1", "gw2")
        ]


@asynccontextmanager
async def twice_connected(
    directory: Path,
    urls: tuple[str, str],
    number: int,
    *,
    schedule: float,
    real: Sequence[str] = (),
    settings: Mapping[str, object] = MappingProxyType({}),
    prefix: Sequence[str] = (),
) -> AsyncIterator[Fleet]:
    """So many agents, and real ones by their ids, once their queries have run: on `schedule`, or more often.

    The first URL is for direct connections, the second for gateways. Real agents have these settings, and run by a
    command before their own if one is given.
    """
    direct_url, behind_url = urls
    async with AsyncExitStack() as stack:
        nats = stack.enter_context(nats_server(directory / "nats"))
        programs = stack.enter_context(gateways(directory, nats.url, behind_url))
        port = int(direct_url.rpartition(":")[2])
        relays = [await stack.enter_async_context(relay("127.0.0.1", port)) for _ in range(2)]
        async with bus_agents(nats.url, CLUSTER) as bus:
            await until(lambda: {one.gateway for one in bus.beacons} >= {"gw1", "gw2"}, 90, "not both are ready")
        fleet = Fleet([], programs, relays, schedule)
        stack.push_async_callback(fleet.stop)
        for n in range(number):
            agent = ReplayedAgent(f"A{n:03}", directory / f"A{n:03}", (relays[n % 2].url, nats.url))
            fleet.agents.append(agent)
            await agent.start()
            if len(fleet.agents) % AT_ONCE == 0:
                await fleet.have_run()
        for agent_id, one in zip(real, itertools.cycle(relays), strict=False):
            (directory / agent_id).mkdir()
            destinations = (f"--zeek={one.url}", f"--zeek={nats.url}")
            started = running(
                directory / agent_id,
                *destinations,
                settings={**REAL, **settings, "agent.id": agent_id},
                prefix=prefix,
                has_session=True,
            )
            fleet.real.append(await stack.enter_async_context(started))
        await fleet.have_run()
        yield fleet


def logs(directory: Path) -> dict[str, list[Line]]:
    """The logs with rows of agents, without the columns that differ between recipients."""
    return {path.stem: list(_lines(path)) for path in sorted(directory.glob("zeek-agent-*.log"))}


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a log. Each Zeek writes the members of a set in an order of its own; here they are sorted."""
    header = parse_header(path.read_bytes())
    sets = {name for name, kind in zip(header["#fields"], header["#types"], strict=True) if kind.startswith("set[")}
    for line in records(path):
        yield {
            name: tuple(sorted(cell)) if name in sets and cell is not None else cell
            for name, cell in line.items()
            if name not in RECEIVED
        }


def of_agents(found: Logs, prefix: str) -> dict[str, list[Line]]:
    """The lines of agents with such ids."""
    return {name: [line for line in lines if str(line["hid"]).startswith(prefix)] for name, lines in found.items()}


def row(line: Line) -> Row:
    return tuple(sorted(line.items()))


def events(found: Logs) -> dict[str, Counter[Row]]:
    """How often each event is in each log; events do not appear and disappear."""
    return {name: Counter(map(row, lines)) for name, lines in found.items() if not _is_of_states(name, lines)}


def changes(found: Logs) -> dict[str, Counter[Row]]:
    """How often each row of the other logs is there."""
    return {name: Counter(map(row, lines)) for name, lines in found.items() if _is_of_states(name, lines)}


def states(found: Logs) -> dict[str, dict[tuple[str, str], set[Row]]]:
    """What each host has in the end, by the logs whose rows appear and disappear: by host, and by pattern of paths.

    Rows without a change are a snapshot. Another one, as after a connection broke, takes the place of all before.
    """
    told: dict[str, dict[tuple[str, str], set[Row]]] = {}
    for name, lines in found.items():
        if not _is_of_states(name, lines):
            continue
        hosts: dict[tuple[str, str], set[Row]] = defaultdict(set)
        for line in lines:
            there = hosts[line["hid"], str(line.get("path", "")).rpartition(" ")[0]]
            rest = row({column: cell for column, cell in line.items() if column != "change"})
            if line["change"] is None and len(there) >= SNAPSHOT_ROWS:
                there.clear()
            if line["change"] == "gone":
                there.discard(rest)
            else:
                there.add(rest)
        told[name] = dict(hosts)
    return told


_EVENTS_OF_STOCK: Final = frozenset({"zeek-agent-system-logs"})
"""In a stock package's log they have a change, too."""


def _is_of_states(name: str, lines: Sequence[Line]) -> bool:
    return bool(lines) and "change" in lines[0] and name not in _EVENTS_OF_STOCK


def repeated(found: Logs) -> dict[str, Counter[str]]:
    """Lines that are there again, by log and agent."""
    told: dict[str, Counter[str]] = {}
    for name, counted in events(found).items():
        again: Counter[str] = Counter()
        for one, times in counted.items():
            again[dict(one)["hid"]] += times - 1
        if again := +again:
            told[name] = again
    return told


def missing(there: Logs, here: Logs) -> dict[str, set[Row]]:
    """Events that are in a log there and not here."""
    other = events(here)
    lost = {name: set(counted) - set(other.get(name, ())) for name, counted in events(there).items()}
    return {name: rows for name, rows in lost.items() if rows}
