"""Zeek and the agent end in any order, in order or killed: every stored event is in some Zeek's log at least once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import apsw
import pytest
from recipients import NobodysAgent

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database.database import Database, Profile
from zeek_agent.events.ages import BootTime
from zeek_agent.events.store import EventStore
from zeek_agent.queries import event_strategy
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import SCHEDULE_MIN_SECONDS, Query, Report, Subscription
from zeek_agent.schema import Column
from zeek_agent.table import Table, TableContext

HAPPENINGS = Table(
    "happenings",
    "happenings",
    description="Happenings of a test.",
    columns=[Column("time", "time", "when"), Column("what", "text", "what")],
    kind="events",
)
EVENTS = Query("SELECT seq FROM happenings", "Test::row", SCHEDULE_MIN_SECONDS, Subscription.EVENTS)
LOG_BUFFER_SECONDS = 1.0
"""How long this test's Zeek keeps lines in memory, on the clock of the test."""


@dataclass
class Clock:
    """The time since boot of the test's host, which passes only when the test says so."""

    boot: str = "first boot"
    seconds: float = 1_000.0

    def boot_time(self) -> BootTime:
        return BootTime(self.boot, lambda: self.seconds)


@dataclass
class BufferingZeek:
    """A Zeek that acknowledges rows before they are in its log, and that recognizes repeated results."""

    clock: Clock
    incarnation: str
    identity: str = "ws://zeek:1"
    profile: Profile = Profile.FULL
    durable: bool = True
    recognizes_replays: bool = True
    log: list[tuple[str, int]] = field(default_factory=list)
    buffered: list[tuple[float, tuple[str, int]]] = field(default_factory=list)
    done: dict[tuple[str, str], int] = field(default_factory=dict)
    mute: bool = False

    def encoding(self, report: Report) -> None:
        """It takes plain rows."""

    async def deliver(self, report: Report) -> None:
        while self.mute:
            await asyncio.sleep(0.01)
        self.write_old()
        stream, (_, high) = (report.store, report.stream), report.window
        if high <= self.done.get(stream, 0):
            return
        self.done[stream] = high
        self.buffered += [(self.clock.seconds, (report.store, int(str(row[0])))) for _, row in report.rows]

    async def report_error(self, query_id: str, query: Query, message: str) -> None:
        raise AssertionError(message)

    def write_old(self) -> None:
        """Write the lines that have waited long enough."""
        due = self.clock.seconds - LOG_BUFFER_SECONDS
        self.log += [line for at, line in self.buffered if at <= due]
        self.buffered = [(at, line) for at, line in self.buffered if at > due]

    def end(self, *, killed: bool) -> list[tuple[str, int]]:
        """The log that it leaves."""
        if not killed:
            self.log += [line for _, line in self.buffered]
        self.buffered.clear()
        return self.log


class Agent:
    """A store and a runner in a state directory. A kill leaves what was committed, in a directory of its own."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        directory.mkdir(exist_ok=True)
        self.path = directory / "events.db"
        self.store = EventStore(self.path, [HAPPENINGS], EventSettings(), boot_time=clock.boot_time())
        self.database = Database(
            [HAPPENINGS], TableContext(NobodysAgent(), AccessPolicy()), LimitSettings(), self.store
        )
        self.runner = QueryRunner(self.database, self.store)

    async def connect(self, zeek: BufferingZeek) -> None:
        await self.runner.install(zeek, f"{zeek.incarnation} q", EVENTS)
        await self.run(zeek)

    async def run(self, zeek: BufferingZeek) -> None:
        """Wait until everything that is stored was acknowledged."""
        async with asyncio.timeout(10):
            while True:
                (installed,) = self.runner.installed
                last = self.store.last_seq("happenings")
                if installed.runs and installed.seen.get("happenings") == last and not installed.under_way:
                    return
                await asyncio.sleep(0.01)

    def happen(self, number: int) -> None:
        self.store.append("happenings", [(time.time(), "x")] * number)
        assert self.store.flush()

    def stored(self) -> set[tuple[str, int]]:
        connection = apsw.Connection(
            f"file:{quote(str(self.path))}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        )
        try:
            return {(self.store.id, int(seq)) for (seq,) in connection.execute("SELECT seq FROM happenings")}
        finally:
            connection.close()

    def image(self, directory: Path) -> None:
        """Write what is committed, as it is after a kill."""
        directory.mkdir()
        uri = f"file:{quote(str(self.path))}?mode=ro"
        source = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        target = apsw.Connection(str(directory / "events.db"))
        with target.backup("main", source, "main") as backup:
            backup.step()
        source.close()
        target.close()

    async def end(self) -> None:
        await self.runner.close()
        self.database.close()
        self.store.close()


class Host:
    """Both programs, restarted one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.numbers: Iterator[int] = itertools.count(1)
        self.agent: Agent | None = Agent(path / "state 0", self.clock)
        self.directory = path / "state 0"
        self.zeek: BufferingZeek | None = None
        self.logged: Counter[tuple[str, int]] = Counter()
        self.stored: set[tuple[str, int]] = set()

    async def start_zeek(self) -> None:
        self.zeek = BufferingZeek(self.clock, f"zeek_{next(self.numbers)}")

    async def start_agent(self) -> None:
        self.agent = Agent(self.directory, self.clock)

    async def connect(self) -> None:
        assert self.agent is not None
        assert self.zeek is not None
        await self.agent.connect(self.zeek)

    async def work(self) -> None:
        """Events over some seconds; the last ones are acknowledged, and not in Zeek's log yet."""
        assert self.agent is not None
        assert self.zeek is not None
        for _ in range(5):
            self.clock.seconds += 0.4
            self.agent.happen(7)
            await self.agent.run(self.zeek)
        self.stored |= self.agent.stored()

    async def end_zeek(self, killed: bool) -> None:
        assert self.zeek is not None
        self.logged.update(self.zeek.end(killed=killed))
        if self.agent is not None:
            self.agent.runner.drop(self.zeek, in_order=not killed)
        self.zeek = None

    async def end_agent(self, killed: bool) -> None:
        assert self.agent is not None
        if self.zeek is not None:
            self.agent.runner.drop(self.zeek)
        if killed:
            self.directory = self.path / f"state {next(self.numbers)}"
            self.agent.image(self.directory)
        await self.agent.end()
        self.agent = None


@pytest.mark.long(kept=4)
@pytest.mark.parametrize("order", ["zeek first", "agent first", "only zeek", "only agent"])
@pytest.mark.parametrize("zeek_is_killed", [False, True], ids=["zeek by SIGTERM", "zeek by SIGKILL"])
@pytest.mark.parametrize("agent_is_killed", [False, True], ids=["agent by SIGTERM", "agent by SIGKILL"])
@pytest.mark.parametrize("reconnects", [False, True], ids=["no reconnect between", "a reconnect between"])
async def test_every_stored_event_is_logged_whoever_ends_first_and_how(
    tmp_path: Path, order: str, zeek_is_killed: bool, agent_is_killed: bool, reconnects: bool
) -> None:
    host = Host(tmp_path)
    await host.start_zeek()
    await host.connect()
    await host.work()
    first, second = ("zeek", "agent") if order == "zeek first" else ("agent", "zeek")
    turns = (order.removeprefix("only "),) if order.startswith("only") else (first, second)
    for turn in turns:
        if turn == "zeek":
            await host.end_zeek(zeek_is_killed)
        else:
            await host.end_agent(agent_is_killed)
        if reconnects:
            await host.start_zeek() if turn == "zeek" else await host.start_agent()
            await host.connect()
    if host.zeek is None:
        await host.start_zeek()
    if host.agent is None:
        await host.start_agent()
    if not host.agent.runner.installed:  # type: ignore[union-attr]
        await host.connect()
    await host.work()
    await host.end_zeek(killed=False)
    await host.end_agent(killed=False)
    missing = host.stored - host.logged.keys()
    assert not missing, f"{len(missing)} of {len(host.stored)} events are in no log"
    agent_knows = order == "only zeek" or (order == "zeek first" and not agent_is_killed)
    if order == "only agent" or (agent_knows and not zeek_is_killed):
        assert set(host.logged.values()) == {1}, "nobody lost anything, so nothing is sent twice"


async def test_the_last_seconds_of_progress_outlive_many_restarts_of_the_agent(tmp_path: Path) -> None:
    """Zeek is killed after the agent was restarted again and again, faster than it writes its log."""
    host = Host(tmp_path)
    await host.start_zeek()
    await host.connect()
    await host.work()
    for _ in range(4):
        await host.end_agent(killed=True)
        await host.start_agent()
        await host.connect()
        host.clock.seconds += 0.1
        host.agent.happen(3)  # type: ignore[union-attr]
        await host.agent.run(host.zeek)  # type: ignore[union-attr, arg-type]
        host.stored |= host.agent.stored()  # type: ignore[union-attr]
    await host.end_agent(killed=True)
    await host.end_zeek(killed=True)
    await host.start_zeek()
    await host.start_agent()
    await host.connect()
    await host.end_zeek(killed=False)
    await host.end_agent(killed=False)
    assert host.stored <= host.logged.keys()


async def test_steps_are_few_whatever_happens_to_the_clock(tmp_path: Path) -> None:
    host = Host(tmp_path)
    await host.start_zeek()
    await host.connect()
    assert host.agent is not None
    for seconds in (*(0.3,) * 60, -500.0, *(2.0,) * 40, -1e6, *(-1.0,) * 60):
        host.clock.seconds += seconds
        host.agent.happen(1)
        await host.agent.run(host.zeek)  # type: ignore[arg-type]
        (installed,) = host.agent.runner.installed
        assert installed.recent is not None
        assert len(installed.recent.steps) <= event_strategy.STEPS_MAX
        assert installed.recent.steps[0].seqs["happenings"] <= installed.seen["happenings"]
    state = host.agent.store.delivered(installed.key)
    assert state is not None
    assert state.recent == installed.recent
    await host.end_agent(killed=False)


async def test_rows_that_reuse_numbers_after_a_power_failure_are_another_series(tmp_path: Path) -> None:
    """What the disk had not is recorded again with the same numbers; a Zeek that goes on must not skip it."""
    host = Host(tmp_path)
    await host.start_zeek()
    await host.connect()
    await host.work()
    assert host.agent is not None
    assert host.zeek is not None
    host.agent.image(tmp_path / "on the disk")
    await host.work()
    host.agent.runner.drop(host.zeek)
    await host.agent.end()
    before = host.agent.store.id
    host.directory, host.clock.boot = tmp_path / "on the disk", "second boot"
    await host.start_agent()
    assert host.agent.store.id != before
    await host.connect()
    host.agent.happen(20)
    await host.agent.run(host.zeek)
    new = {(store, seq) for store, seq in host.agent.stored() if seq > 35}
    await host.end_zeek(killed=False)
    await host.end_agent(killed=False)
    assert len(new) == 20
    assert new <= host.logged.keys()


@pytest.mark.parametrize(("killed", "boot"), [(True, "first boot"), (False, "second boot")], ids=["a kill", "a reboot"])
async def test_the_series_goes_on_if_nothing_can_be_missing(tmp_path: Path, killed: bool, boot: str) -> None:
    host = Host(tmp_path)
    host.agent.happen(3)  # type: ignore[union-attr]
    before = host.agent.store.id  # type: ignore[union-attr]
    await host.end_agent(killed=killed)
    host.clock.boot = boot
    await host.start_agent()
    assert host.agent.store.id == before  # type: ignore[union-attr]
    await host.end_agent(killed=False)
