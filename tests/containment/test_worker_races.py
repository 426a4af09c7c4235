"""Races of the worker pool: kills, cancellation, changes and stopped processes at any time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from running_agent import running
from scripted_worker import open_descriptors
from waiting import until
from workers import contained, descendants, is_running, quick_kills, resident

from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.containment import pool as pool_module
from zeek_agent.containment import rests
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.worker_process import WorkerProcess, WorkerState
from zeek_agent.containment.zygote import Zygote
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.tables import builtin_tables

BRIEF = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) SELECT i, hex(i) FROM n"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@asynccontextmanager
async def quick_restarts(
    directory: Path, monkeypatch: pytest.MonkeyPatch, **arguments: Any
) -> AsyncIterator[ContainedDatabase]:
    monkeypatch.setattr(pool_module, "RESTART_SECONDS", (0.01, 0.01))
    async with contained(directory, **arguments) as database:
        database.pool._restart_pause = 0.01
        yield database


async def forgiving(database: ContainedDatabase, sql: str, **arguments: Any) -> bool:
    """Run a statement that may fail; its result, if there is one, is right."""
    try:
        result = await database.query(sql, **arguments)
    except SqlError:
        return False
    assert len(result.rows) in (1, 3000)
    return True


@pytest.mark.long
@pytest.mark.parametrize("kills", [150, pytest.param(3_000, marks=pytest.mark.soak)])
async def test_workers_and_zygote_are_killed_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """Each statement gives a complete result or an error, and nothing is left behind."""
    chance = random.Random(11)
    descriptors = open_descriptors()
    async with quick_restarts(tmp_path, monkeypatch, limits=LimitSettings(processes=4)) as database:
        pool = database.pool
        ended = asyncio.Event()
        succeeded = failed = 0

        async def ask(number: int) -> None:
            nonlocal succeeded, failed
            while not ended.is_set():
                sql = f"{BRIEF} -- {chance.random()}"
                task = asyncio.create_task(forgiving(database, sql, origin=f"ws://{number % 3}"))
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.03)
                    task.cancel()
                try:
                    good = await task
                except asyncio.CancelledError:
                    continue
                succeeded, failed = succeeded + good, failed + (not good)

        askers = [asyncio.create_task(ask(number)) for number in range(6)]
        for number in range(kills):
            await asyncio.sleep(chance.random() * 0.03)
            victims = [worker.pid for worker in pool.processes if worker.is_alive]
            if pool.zygote_pid is not None and number % 20 == 0:
                victims = [pool.zygote_pid]
            if victims:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT]))
        ended.set()
        await asyncio.gather(*askers)
        await until(lambda: forgiving(database, "SELECT 1"))
        assert not pool._sleepers
        assert not pool._waiting
        assert not pool._starting
        pids = [*(worker.pid for worker in pool.processes), pool.zygote_pid or 0]
    assert succeeded > 0
    assert failed > 0
    await until(lambda: not any(map(is_running, pids)))
    await until(lambda: open_descriptors() <= descriptors)


@pytest.mark.long
async def test_a_statement_that_is_cancelled_while_its_worker_starts_leaves_no_worker_behind(tmp_path: Path) -> None:
    async with contained(tmp_path, limits=LimitSettings(workers=1)) as database:
        for step in range(40):
            task = asyncio.create_task(database.query("SELECT 1", origin=f"ws://{step}"))
            for _ in range(step):
                await asyncio.sleep(0.001)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert (await database.query("SELECT 1", origin=f"ws://{step}")).rows == [(1,)]
        await until(lambda: all(one.state is WorkerState.IDLE for one in database.pool.processes if one.counts))
        assert len([one for one in database.pool.processes if one.counts]) <= database.limits.processes


async def test_a_start_that_is_cancelled_when_it_has_succeeded_keeps_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Zygote._handle
    starting: list[asyncio.Task[Any]] = []

    def cancelling(self: Zygote, body: bytes, descriptors: list[int]) -> None:
        handle(self, body, descriptors)
        while starting:
            starting.pop().cancel()

    async with contained(tmp_path) as database:
        assert (await database.query("SELECT 1", origin="ws://other")).rows == [(1,)]
        before = open_descriptors()
        monkeypatch.setattr(Zygote, "_handle", cancelling)
        for number in range(5):
            start = asyncio.create_task(database.query(f"SELECT {number}"))
            starting.append(start)
            with pytest.raises(asyncio.CancelledError):
                await start
        await until(lambda: open_descriptors() <= before, 10)


async def test_a_worker_that_dies_as_soon_as_it_is_ready_is_an_error_of_the_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = WorkerProcess.ready

    async def ready_and_dead(self: WorkerProcess) -> None:
        await ready(self)
        os.kill(self.pid, signal.SIGKILL)
        await until(lambda: not self.is_alive, 10)

    async with contained(tmp_path) as database:
        with monkeypatch.context() as patch:
            patch.setattr(WorkerProcess, "ready", ready_and_dead)
            with pytest.raises(SqlError, match="it ended as soon as it was ready"):
                await database.query("SELECT 1")
        assert (await database.query("SELECT 1")).rows == [(1,)]


@pytest.mark.long
async def test_nobody_keeps_a_place_by_being_busy(tmp_path: Path) -> None:
    """With more recipients than processes each gets its turn, however many statements others have waiting."""
    async with contained(tmp_path, limits=LimitSettings(processes=2, workers=1)) as database:
        order: list[str] = []

        async def ask(origin: str, number: int) -> None:
            assert await forgiving(database, f"{BRIEF} -- {number}", origin=origin)
            order.append(origin)

        await database.query("SELECT 1", origin="ws://greedy0")
        await database.query("SELECT 1", origin="ws://greedy1")
        greedy = [asyncio.create_task(ask(f"ws://greedy{number % 2}", number)) for number in range(200)]
        await until(lambda: len(order) > 5)
        before = len(order)
        honest = [asyncio.create_task(ask(f"ws://honest{number}", number)) for number in range(3)]
        await asyncio.gather(*honest)
        assert len(order) - before < 60
        await asyncio.gather(*greedy)
        assert len(order) == 203


@pytest.mark.long
async def test_a_statement_that_kills_its_worker_while_frames_are_written_rests(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        finish = WorkerProcess._handle
        ended = []

        def handle(worker: WorkerProcess, message: Any) -> None:
            if type(message).__name__ == "SpoolBatch" and not ended:
                ended.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
            elif type(message).__name__ != "Finished" or worker.pid not in ended:
                finish(worker, message)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(WorkerProcess, "_handle", handle)
            with pytest.raises(SqlError, match="was lost"):
                await database.query(BRIEF)
        with pytest.raises(LimitError, match="not run before"):
            await database.query(BRIEF)


@pytest.mark.long
async def test_statements_that_wait_do_not_kill_one_worker_each(tmp_path: Path) -> None:
    from test_workers import SLOW

    async with contained(tmp_path, limits=LimitSettings(time=0.2, workers=1)) as database:
        with quick_kills():
            outcomes = await asyncio.gather(*(database.query(SLOW) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(one, LimitError) for one in outcomes)
        assert sum("not run before" in str(one) for one in outcomes) == 4
        assert database.pool.killed["time"] == 1


@pytest.mark.long
async def test_the_rest_grows_although_the_statement_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_workers import SLOW

    monkeypatch.setattr(rests, "FIRST_SECONDS", 0.01)
    async with contained(tmp_path, limits=LimitSettings(time=0.1)) as database:
        for expected in (0.01, 0.04, 0.16):
            with quick_kills(), pytest.raises(LimitError, match="was killed"):
                await database.query(SLOW)
            database._compiled.clear()
            (rest,) = database.pool._resting._rests.values()
            assert rest.seconds == pytest.approx(expected)
            await asyncio.sleep(expected + 0.02)
        await database.query("SELECT 1")


@pytest.mark.long
async def test_changes_of_tables_and_store_retire_workers(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.db", builtin_tables(), EventSettings())
    try:
        async with contained(tmp_path, store) as database:
            table = next(table for table in builtin_tables() if table.name == "users")

            async def ask() -> int:
                results = 0
                for number in range(60):
                    for sql in ("SELECT count(*) FROM processes_events", "SELECT count(*) FROM users", BRIEF):
                        results += len((await database.query(sql, origin=f"ws://{number % 2}")).rows) > 0
                return results

            asking = asyncio.create_task(ask())
            for _ in range(60):
                database.replace_tables(["users"], [table])
                await asyncio.sleep(0.02)
            assert await asking == 180
            generation = database._catalog.generation
            await database.query("SELECT count(*) FROM users")
            current = [one.spawn.generation for one in database.pool.processes if one.counts and one.statements]
            assert max(current) == generation
            await until(lambda: len(list(database.pool.processes)) <= database.limits.processes)
    finally:
        store.close()


async def test_a_stopped_worker_is_killed_and_a_stopped_zygote_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with quick_restarts(tmp_path, monkeypatch, limits=LimitSettings(time=0.2)) as database:
        await database.query("SELECT 1")
        (worker,) = database.pool.processes
        os.kill(worker.pid, signal.SIGSTOP)
        with quick_kills(), pytest.raises(LimitError, match="was killed"):
            await database.query("SELECT 2")
        await until(lambda: not is_running(worker.pid))
        zygote = database.pool.zygote_pid
        assert zygote is not None
        os.kill(zygote, signal.SIGSTOP)
        with monkeypatch.context() as patched:  # not for the next one: a busy machine may take longer to start it
            patched.setattr(pool_module, "START_SECONDS", 0.5)
            with pytest.raises(SqlError, match="cannot start a worker process"):
                await database.query("SELECT 3", origin="ws://other")
        await until(lambda: forgiving(database, "SELECT 4", origin="ws://other"))
        assert database.pool.zygote_pid != zygote
        assert not is_running(zygote)


async def test_a_zygote_that_loads_slowly_is_left_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with contained(tmp_path) as database:
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "START_SECONDS", 0.001)
            for _ in range(3):
                with pytest.raises(SqlError, match=r"not ready after 0\.001 s"):
                    await database.query("SELECT 1")
        assert (await database.query("SELECT 1")).rows == [(1,)]
        assert database.pool.zygote_starts == 1


@pytest.mark.long
async def test_signals_for_the_whole_service_are_the_agents_alone(tmp_path: Path) -> None:
    """A service manager sends SIGTERM to all processes, a terminal SIGINT: statements go on until the agent ends."""
    async with contained(tmp_path) as database:
        await database.query("SELECT 1")
        assert database.pool.zygote_pid is not None
        pids = [database.pool.zygote_pid, *(worker.pid for worker in database.pool.processes)]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for pid in pids:
                os.kill(pid, number)
        assert (await database.query("SELECT 1")).rows == [(1,)]
        assert [database.pool.zygote_pid, *(worker.pid for worker in database.pool.processes)] == pids


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("stopped", [False, True])
async def test_no_process_outlives_a_killed_agent(tmp_path: Path, stopped: bool) -> None:
    async with running(tmp_path) as agent:
        agent.query("SELECT count(*) FROM processes")
        pids = descendants(agent.pid)
        assert len(pids) >= 2
        for pid in pids if stopped else ():
            os.kill(pid, signal.SIGSTOP)
        agent.kill()
        await until(lambda: not any(map(is_running, pids)))


@pytest.mark.long
async def test_a_killed_statement_costs_its_recipient_processor_time(tmp_path: Path) -> None:
    """Its worker cannot report it any more, so the zygote does."""
    from test_workers import SLOW

    async with contained(tmp_path, limits=LimitSettings(time=0.2)) as database:
        with pytest.raises(LimitError, match="was killed"):
            await database.query(SLOW, origin="ws://hostile")
        share = database.pool._share_of("ws://hostile")
        await until(lambda: share._saved < 19.9)
        assert not database.pool._unaccounted


async def test_workers_share_no_open_file_of_the_zygote(tmp_path: Path) -> None:
    """Descriptors that are shared by a fork share their offset, and mountinfo(5) announces a change only once."""
    async with contained(tmp_path) as database:
        await database.query("SELECT path FROM files_list('/etc/hosts')")
        opened = [str(link.readlink()) for link in Path(f"/proc/{database.pool.zygote_pid}/fd").iterdir()]
    files = [name for name in opened if name.startswith("/") and name != "/dev/null"]
    assert not [name for name in files if "/proc/" in name], opened
    assert sum(name.startswith("socket:") for name in opened) == 1, opened


@pytest.mark.long
async def test_a_clock_that_jumps_changes_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_workers import SLOW

    async with contained(tmp_path, limits=LimitSettings(time=0.2)) as database:
        with quick_kills(), pytest.raises(LimitError, match="was killed"):
            await database.query(SLOW)
        for jump in (-1e9, 1e9):
            monkeypatch.setattr(time, "time", lambda now=time.time, jump=jump: now() + jump)
            with pytest.raises(LimitError, match="not run before"):
                await database.query(SLOW)
            assert (await database.query("SELECT 1")).rows == [(1,)]
            monkeypatch.undo()


@pytest.mark.long
@pytest.mark.parametrize("statements", [1_500, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_statements_leak_neither_descriptors_nor_memory(tmp_path: Path, statements: int) -> None:
    """Counted over different statements, failing ones, closed results, and recipients that come and go."""
    async with contained(tmp_path, limits=LimitSettings(processes=3)) as database:

        async def work(first: int, number: int) -> None:
            for step in range(first, first + number):
                origin = f"ws://{step // 100}"
                with suppress(SqlError):
                    await database.query(f"SELECT {step} FROM {'nowhere' if step % 5 == 0 else 'users'}")
                if step % 50 == 0:
                    await database.query("SELECT 1", origin=origin)

        await work(0, 1_100)  # fills what is remembered of statements
        descriptors, memory = open_descriptors(), resident(os.getpid())
        workers = {worker.pid: resident(worker.pid) for worker in database.pool.processes}
        await work(1_100, statements)
        assert open_descriptors() <= descriptors + 2
        assert resident(os.getpid()) - memory < 4 << 20
        for worker in database.pool.processes:
            if worker.pid in workers:
                assert resident(worker.pid) - workers[worker.pid] < 8 << 20


@pytest.mark.long
async def test_many_different_long_statements_are_not_kept(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        await database.query("SELECT 1")
        before = resident(os.getpid())
        for number in range(300):
            with suppress(SqlError):
                await database.prepare(f'SELECT {number} AS "{"😀" * 20_000}"')
        assert resident(os.getpid()) - before < 24 << 20
