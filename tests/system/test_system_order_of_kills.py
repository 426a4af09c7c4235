"""A real Zeek and the real agent end in any order, in order or killed, under load.

Every stored event, by its store and number, is in one of Zeek's logs at least once.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from running_agent import RunningAgent, started
from test_system_outage import BURST
from waiting import until
from zeek_program import Zeek, needs_zeek, records, tool

pytestmark = pytest.mark.root

RATE: Final = 150
MARK: Final = "order-of-kills"
SETTINGS: Final = {"sources.sockets": "off", "sources.system_logs": "off", "osquery.socket": "off"}
ENDS: Final = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
ORDERS: Final = ("zeek, agent", "agent, zeek", "both", "zeek", "agent")


@contextmanager
def load() -> Iterator[None]:
    """Processes that start and end at once, until the end of the block."""
    script = subprocess.Popen([sys.executable, "-c", BURST, MARK, "1000000", str(RATE)])
    try:
        yield
    finally:
        script.kill()
        script.wait()


class Host:
    """Zeek, in one directory per life, and the agent, with one state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zeek = Zeek()
        self.directories: list[Path] = []
        self._lives = ExitStack()
        self.agent: RunningAgent | None = None
        self.is_zeek_running = False

    def start_zeek(self) -> None:
        self.directories.append(self.path / f"zeek {len(self.directories) + 1}")
        self.zeek.start(self.directories[-1])
        self.is_zeek_running = True

    async def start_agent(self) -> None:
        self._lives = ExitStack()
        self.agent = self._lives.enter_context(started(self.path, f"--zeek={self.zeek.url}", settings=SETTINGS))
        await self.agent.ready()

    def end_zeek(self, how: signal.Signals) -> None:
        self.zeek.stop(how)
        self.is_zeek_running = False

    def end_agent(self, how: signal.Signals) -> None:
        assert self.agent is not None
        if how == signal.SIGKILL:
            self.agent.kill()
        self._lives.close()
        self.agent = None

    def end_both(self, zeek: signal.Signals, agent: signal.Signals) -> None:
        """Signal both at the same time."""
        assert self.agent is not None
        self.agent.process.send_signal(agent)
        self.end_zeek(zeek)
        self.agent.process.wait()
        self._lives.close()
        self.agent = None

    async def start(self) -> None:
        """Start what does not run, and wait until events come through."""
        if not self.is_zeek_running:
            self.start_zeek()
        if self.agent is None:
            await self.start_agent()
        before = len(self.logged())
        await until(lambda: asyncio.to_thread(lambda: len(self.logged()) > before + RATE), 40, "no events arrive")

    def missing(self) -> set[tuple[str, int]]:
        """Stored events that are in no log, from the first on that Zeek asked for."""
        logged = self.logged()
        first = min((seq for _, seq in logged), default=0)
        return {one for one in self.stored() if one[1] >= first} - logged.keys()

    def stored(self) -> set[tuple[str, int]]:
        """The load's events in the agent's store."""
        file = sqlite3.connect(f"file:{next((self.path / 'state').glob('events.db'))}?mode=ro", uri=True)
        try:
            ((store,),) = file.execute("SELECT id FROM _store")
            sql = f"SELECT seq FROM processes_events WHERE cmdline LIKE '{MARK}%'"
            return {(store, seq) for (seq,) in file.execute(sql)}
        finally:
            file.close()

    def logged(self) -> Counter[tuple[str, int]]:
        """The load's events in the logs of all of Zeek's lives."""
        return Counter(
            (line["store"], line["seq"])
            for directory in self.directories
            for line in records(directory / "zeek-agent-process-events.log")
            if str(line["cmdline"]).startswith(MARK)
        )

    def close(self) -> None:
        if self.is_zeek_running:
            self.end_zeek(signal.SIGKILL)
        self._lives.close()


MATRIX: Final = [
    pytest.param(
        *(order, zeek, agent, reconnects),
        id=f"{order}; zeek {zeek}, agent {agent}{'; a reconnect between' if reconnects else ''}",
        marks=() if one_of_few else pytest.mark.soak,
    )
    for order, zeek, agent, reconnects in itertools.product(ORDERS, ENDS, ENDS, (False, True))
    if not (order in {"both", "zeek", "agent"} and reconnects)
    if not ((order == "zeek" and agent == "SIGTERM") or (order == "agent" and zeek == "SIGTERM"))
    for one_of_few in [
        (order, zeek, reconnects)
        in {("zeek, agent", "SIGKILL", False), ("agent, zeek", "SIGKILL", False), ("agent, zeek", "SIGTERM", False)}
        and (agent == "SIGTERM" or order == "zeek, agent")
    ]
]


@pytest.mark.long
@needs_zeek
@pytest.mark.parametrize(("order", "zeek", "agent", "reconnects"), MATRIX)
async def test_every_stored_event_is_in_zeeks_logs_whoever_ends_first_and_how(
    tmp_path: Path, order: str, zeek: str, agent: str, reconnects: bool
) -> None:
    tool("zeek")
    host = Host(tmp_path)
    try:
        with load():
            await host.start()
            if order == "both":
                await asyncio.to_thread(host.end_both, ENDS[zeek], ENDS[agent])
            else:
                for turn in order.split(", "):
                    if turn == "zeek":
                        await asyncio.to_thread(host.end_zeek, ENDS[zeek])
                    else:
                        await asyncio.to_thread(host.end_agent, ENDS[agent])
                    if reconnects:
                        await host.start()
            await host.start()
        await until(
            lambda: asyncio.to_thread(lambda: not host.missing()),
            complaint=lambda: f"missing: {sorted(host.missing())[:5]}",
        )
        await asyncio.to_thread(host.end_zeek, signal.SIGTERM)
        stored, missing = host.stored(), host.missing()
    finally:
        host.close()
    assert len({store for store, _ in stored}) == 1
    assert len(stored) > 3 * RATE
    assert not missing


@pytest.mark.long
@pytest.mark.parametrize("lives", [1, pytest.param(3, marks=pytest.mark.soak)])
@pytest.mark.parametrize("how", ENDS)
async def test_the_embedded_collector_logs_every_stored_event(tmp_path: Path, how: str, lives: int) -> None:
    def logged(agent: RunningAgent) -> Counter[int]:
        files = agent.logs.glob("zeek-agent-process-events*.log")  # an end in order gives it its final name
        lines = (line for file in files for line in records(file))
        return Counter(line["seq"] for line in lines if str(line["cmdline"]).startswith(MARK))

    async def more(agent: RunningAgent) -> None:
        before = logged(agent).total()
        await until(
            lambda: asyncio.to_thread(lambda: logged(agent).total() > before + 3 * RATE), 60, "nothing is logged"
        )

    def selected(sql: str) -> set[Any]:
        file = sqlite3.connect(f"file:{tmp_path / 'state' / 'events.db'}?mode=ro", uri=True)
        try:
            return {value for (value,) in file.execute(sql)}
        finally:
            file.close()

    stored = f"SELECT seq FROM processes_events WHERE cmdline LIKE '{MARK}%'"
    with load():
        for _ in range(lives):
            with started(tmp_path, settings=SETTINGS) as agent:
                await agent.ready()
                await more(agent)
                if how == "SIGKILL":
                    agent.kill()
            replayed = selected("SELECT incarnation FROM _delivered WHERE incarnation <> ''")
            assert bool(replayed) == (how == "SIGKILL"), "only what a killed collector may have lost is sent again"
    with started(tmp_path, settings=SETTINGS) as agent:
        await agent.ready()
        first = min(logged(agent))
        await until(
            lambda: asyncio.to_thread(
                lambda: {seq for seq in selected(stored) if seq >= first} <= logged(agent).keys()
            ),
            60,
            "not all are logged",
        )
