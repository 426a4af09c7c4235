"""What an asker can do to the real program: the limits hold, others' statements and the recording go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from hung_mount import OWN_MOUNTS, hung_mount
from mounting import needs_fuse
from running_agent import STOP, RunningAgent, running
from waiting import until
from workers import descendants, is_running, resident
from zeek_server import Client, zeek_server

from zeek_agent.errors import ZeekAgentError
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek.protocol import AgentError, AgentHello, ResultRow

pytestmark = pytest.mark.root

LIKES = f"SELECT {' + '.join(['(a LIKE b)'] * 25)} FROM (SELECT {{a}} AS a, {{b}} AS b)".format(
    a="printf('%.*c', 4000000, 'a')", b="'%' || printf('%.*c', 250, 'a') || 'b'"
)
"""Twenty-five pattern matches on 4 MB, each one step of SQLite."""
WIDE = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) SELECT "
    + ", ".join(f"i + {number} AS c{number}" for number in range(40))
    + " FROM n"
)
"""A million rows of forty columns: within `limits.rows`, and 200 MB if it is packed."""
FEW = WIDE.replace("LIMIT 1000000", "LIMIT 550000")
"""The same within `limits.result_bytes`."""
NOBODY = "--zeek=ws://127.0.0.1:9"
"""Without the embedded collector, whose queries would be in the way."""
ONE_STATEMENT_BYTES = 160 << 20


async def fails(agent: RunningAgent, sql: str) -> str:
    """The error of a statement on the control socket."""
    with pytest.raises(ZeekAgentError) as caught:
        await agent.ask(sql)
    return str(caught.value)


def memory_of(agent: RunningAgent) -> int:
    """Bytes that the agent and all its processes have resident, shared pages once for each."""
    return sum(resident(pid) for pid in (agent.pid, *descendants(agent.pid)))


@pytest.mark.long
async def test_pattern_matches_that_take_a_minute_are_ended_at_the_limit(tmp_path: Path) -> None:
    async with running(tmp_path, NOBODY, settings={"limits.time": 0.5}) as agent:
        assert "longer than limits.time" in await fails(agent, LIKES)
        assert "not run before" in await fails(agent, LIKES)
        assert await agent.ask("SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.long
async def test_an_ignore_pattern_that_takes_a_minute_is_ended_at_the_limit(tmp_path: Path) -> None:
    """One match on one line, too varied for the automaton to remember its states."""
    chance = random.Random(1)
    (tmp_path / "lines").write_bytes(bytes(chance.choices(b"ab", k=8_000_000)))
    sql = f"SELECT * FROM files_columns('{tmp_path}/lines', '$1:text', ' ', 'a.{{900}}Z')"
    settings = {"limits.time": 0.5, "access.files_allow": f'["{tmp_path}/lines"]'}
    async with running(tmp_path, NOBODY, settings=settings) as agent:
        assert "longer than limits.time" in await fails(agent, sql)
        assert await agent.ask("SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.long
@needs_fuse
async def test_a_hung_mount_that_is_allowed_stops_only_the_statements_that_enter_it(tmp_path: Path) -> None:
    place = tmp_path / "hung"
    place.mkdir()
    settings = {"limits.time": 3, "access.filesystems_allow": '["fuse"]'}
    async with running(tmp_path, NOBODY, settings=settings, prefix=OWN_MOUNTS) as agent:
        with hung_mount(agent.pid, place):
            hung = f"SELECT * FROM files_list('{place}/*')"
            recorded = "SELECT count(*) AS number FROM processes_events"
            waiting = [asyncio.create_task(fails(agent, f"{hung} -- {number}")) for number in range(4)]
            honest = 0
            while not all(one.done() for one in waiting):
                assert await agent.ask("SELECT pid FROM processes WHERE pid = 1") == [{"pid": 1}]
                assert (await agent.ask(recorded))[0]["number"] >= 0
                honest += 1
            assert honest > 1
            for one in waiting:
                assert "longer than limits.time" in await one
            stuck = [pid for pid in descendants(agent.pid) if state(pid) == "D"]
            assert len(stuck) == 4
            assert "wait in the kernel" in await fails(agent, f"{hung} -- 5")
            assert "wait in the kernel" in await fails(agent, "SELECT * FROM files_list('/etc/passwd')")
            assert await agent.ask("SELECT pid FROM processes WHERE pid = 1") == [{"pid": 1}]
            assert (await agent.ask(recorded))[0]["number"] >= 0
            agent.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.process.wait, STOP) == 0
            assert [pid for pid in stuck if is_running(pid)] == stuck
        await until(lambda: not any(map(is_running, stuck)))


@pytest.mark.long
async def test_every_worker_sees_mounts_that_are_made_later(tmp_path: Path) -> None:
    place = tmp_path / "later"
    place.mkdir()
    async with running(tmp_path, NOBODY, settings={"limits.workers": 1}, prefix=OWN_MOUNTS) as agent:
        assert not await agent.ask(f"SELECT path FROM files_list('{place}/*')")
        agent.run_beside("mount", "-t", "tmpfs", "later", str(place))
        agent.run_beside("touch", str(place / "file"))
        for _ in range(3):
            found = await agent.ask(f"SELECT path, size FROM files_list('{place}/*')")
            assert found == [{"path": str(place / "file"), "size": 0}]
            workers = [pid for pid in descendants(agent.pid) if not descendants(pid)]
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            await until(lambda pids=tuple(workers): not any(map(is_running, pids)))


@pytest.mark.long
@needs_fuse
async def test_the_daemon_of_a_hung_mount_that_ends_gives_the_places_back(tmp_path: Path) -> None:
    place = tmp_path / "hung"
    place.mkdir()
    settings = {"limits.time": 0.2, "access.filesystems_allow": '["fuse"]'}
    async with running(tmp_path, NOBODY, settings=settings, prefix=OWN_MOUNTS) as agent:
        with hung_mount(agent.pid, place):
            hung = f"SELECT * FROM files_list('{place}/*')"
            await asyncio.gather(*(fails(agent, f"{hung} -- {number}") for number in range(4)))
            assert "wait in the kernel" in await fails(agent, "SELECT * FROM files_list('/etc/passwd')")

        async def lists() -> bool:
            try:
                return bool(await agent.ask("SELECT path FROM files_list('/etc/passwd')"))
            except ZeekAgentError:
                return False

        await until(lists)


def state(pid: int) -> str:
    """The letter that ps(1) shows."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.long
async def test_one_hostile_zeek_delays_no_row_of_an_honest_one(tmp_path: Path) -> None:
    """It installs statements that look at no clock, as many as it likes."""
    async with (
        zeek_server() as hostile,
        zeek_server() as honest,
        running(tmp_path, f"--zeek={hostile.url()}", f"--zeek={honest.url()}", settings={"limits.time": 2}) as agent,
    ):
        attacker, victim = await hostile.client(), await honest.client()
        await attacker.expect(AgentHello)
        await victim.expect(AgentHello)
        for number in range(20):
            sql = f"{LIKES} -- {number}"
            query = Query(sql, "Test::hostile", schedule=0.5, subscription=Subscription.SNAPSHOTS)
            await attacker.install(f"h{number}", query)
        await until(lambda: busy_for(agent, hostile.url()))
        await victim.install("now", Query("SELECT pid FROM processes WHERE pid = 1", "Test::now", schedule=0.0))
        events = Query(
            "SELECT cmdline FROM processes_events WHERE state = 'started'",
            "Test::events",
            schedule=0.2,
            subscription=Subscription.EVENTS,
        )
        await victim.install("events", events)
        await victim.expect(ResultRow, lambda row: row.context.query_id == "now")
        await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_queries WHERE id = 'events' AND runs > 0"))
        for number in range(50):
            process = await asyncio.create_subprocess_exec("sleep", f"0.0{number}")
            await process.wait()
        await victim.expect(ResultRow, lambda row: "sleep 0.0" in repr(row.columns), number=50)
        rows = [repr(row.columns) for row in victim.of(ResultRow, lambda row: "sleep 0.0" in repr(row.columns))]
        assert len(rows) == len(set(rows)) == 50
        assert not attacker.of(ResultRow)
        await attacker.expect(AgentError, lambda error: "longer than" in error.message)


async def busy_for(agent: RunningAgent, recipient: str) -> bool:
    return len(descendants(agent.pid)) >= 3


@pytest.mark.long
@pytest.mark.parametrize(
    "sql", [pytest.param(WIDE, id="too large"), pytest.param(FEW, id="large", marks=pytest.mark.soak)]
)
async def test_a_statement_raises_the_memory_of_all_processes_by_less_than_160_mib(tmp_path: Path, sql: str) -> None:
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}", settings={"limits.time": 60}) as agent:
        client = await zeek.client()
        await client.expect(AgentHello)
        await agent.ask("SELECT count(*) FROM processes")
        before, main = memory_of(agent), agent.resident()
        most = most_main = before
        most_main = main
        await client.install("q", Query(sql, "Test::rows", schedule=0.0))
        ended = asyncio.create_task(until(lambda: done(client), 100))
        while not ended.done():
            most, most_main = max(most, memory_of(agent)), max(most_main, agent.resident())
            await asyncio.sleep(0.05)
        await ended
    assert most - before < ONE_STATEMENT_BYTES
    assert most_main - main < 32 << 20


def done(client: Client) -> bool:
    return bool(client.of(AgentError)) or len(client.of(ResultRow)) >= 550_000


@pytest.mark.long
async def test_no_asker_makes_a_statement_that_takes_more(tmp_path: Path) -> None:
    """Whatever grows in SQLite, in Python or in the encoding."""
    hungry = [
        "SELECT group_concat(printf('%.*c', 2000000, 'a'), '') FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
        "SELECT i + 1 FROM n LIMIT 400) SELECT * FROM n)",
        "WITH RECURSIVE n(i, v) AS (SELECT 1, printf('%.*c', 4000000, 'a') UNION ALL SELECT i + 1, v FROM n LIMIT 300) "
        "SELECT * FROM n ORDER BY v || i",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300) "
        "SELECT i, CAST(printf('%.*c', 4000000, 'a') AS BLOB) AS v FROM n",
        "SELECT " + ", ".join(["replace(printf('%.*c', 200000, 'a'), 'a', char(1))"] * 40),
        "SELECT " + ", ".join(["CAST(printf('%.*c', 800000, 'a') AS BLOB)"] * 40),
        "SELECT " + ", ".join(["printf('%.*c', 4000000, 'a')"] * 8),
    ]
    async with running(tmp_path, NOBODY, settings={"limits.time": 20}) as agent:
        await agent.ask("SELECT count(*) FROM processes")
        for sql in hungry:
            before = memory_of(agent)
            most = before
            asked = asyncio.create_task(outcome(agent, sql))
            while not asked.done():
                most = max(most, memory_of(agent))
                await asyncio.sleep(0.02)
            assert "may not be used" not in await asked
            assert most - before < ONE_STATEMENT_BYTES, sql
            assert await agent.ask("SELECT 1 AS one") == [{"one": 1}]


async def outcome(agent: RunningAgent, sql: str) -> str:
    try:
        return f"{len(await agent.ask(sql))} rows"
    except ZeekAgentError as error:
        return str(error)
