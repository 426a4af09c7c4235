"""Statements in worker processes: results as before, and limits that hold whatever a statement does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import until
from workers import contained, resident

from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.containment import pool
from zeek_agent.containment.messages import Need
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.worker_process import WorkerState
from zeek_agent.database.database import Profile
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.tables import builtin_tables

SLOW = f"SELECT {' + '.join(['(a LIKE b)'] * 25)} FROM (SELECT {{a}} AS a, {{b}} AS b)".format(
    a="printf('%.*c', 4000000, 'a')", b="'%' || printf('%.*c', 250, 'a') || 'b'"
)
"""Twenty-five pattern matches on 4 MB: each is one call of a function, in which SQLite looks at no clock."""
MANY_ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {rows}) SELECT {columns} FROM n"


async def test_results_have_the_types_and_values_that_the_database_gives(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        result = await database.query(
            "SELECT 1 AS a, 1.5 AS b, 'x' AS c, x'00ff' AS d, NULL AS e, 3 AS \"f:count\", 0 AS \"g:bool\", "
            '\'["b","a","a"]\' AS "h:set[text]", \'{"port":80,"proto":"tcp"}\' AS "i:port", '
            '\'{"k":[1]}\' AS "j:record"'
        )
        own = await database.query("SELECT pid, ppid FROM processes WHERE pid = 1")
    assert result.rows == [
        (1, 1.5, "x", b"\0\xff", None, 3, False, ("a", "b"), (80, "tcp"), (("k", (1,)),)),
    ]
    kinds = ["int", "real", "text", "blob", "text", "count", "bool", "set[text]", "port", "record"]
    assert [str(column.type) for column in result.columns] == kinds
    assert own.rows == [(1, 0)]


async def test_an_error_of_a_statement_is_reported_as_such(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        with pytest.raises(SqlError, match="no such table: nowhere"):
            await database.query("SELECT * FROM nowhere")
        with pytest.raises(AccessDeniedError, match="pragma database_list"):
            await database.query("PRAGMA database_list")
        with pytest.raises(LimitError, match=r"limits\.statement_bytes"):
            await database.query(f"SELECT 1 -- {'x' * 200_000}")
        assert (await database.query("SELECT 1")).rows == [(1,)]
        assert [worker.statements for worker in database.pool.processes] == [4]


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("rows", [7, 200_000])
async def test_a_large_result_is_complete_and_in_order(tmp_path: Path, rows: int) -> None:
    sql = MANY_ROWS.format(
        rows=rows, columns="i AS \"n:count\", CASE WHEN i = 1 THEN NULL ELSE 'row ' || i END AS late"
    )
    async with contained(tmp_path) as database:
        result = await database.query(sql)
    assert [row[0] for row in result.rows] == list(range(1, rows + 1))
    assert str(result.columns[1].type) == "text"


@pytest.mark.long
@pytest.mark.root
async def test_statements_are_answered_while_the_disk_is_full(tmp_path: Path) -> None:
    """The events that wait in memory for room on the disk can be queried and sent."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        with suppress(OSError), Path(tmp_path, "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass
        assert os.statvfs(tmp_path).f_bavail == 0
        async with contained(tmp_path) as database:
            result = await database.query(MANY_ROWS.format(rows=20_000, columns="i"))
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert len(result.rows) == 20_000


async def test_a_statement_that_does_not_look_at_the_clock_is_killed_and_others_go_on(tmp_path: Path) -> None:
    async with contained(tmp_path, limits=LimitSettings(time=0.3)) as database:
        honest = 0
        slow = asyncio.create_task(database.query(SLOW, origin="ws://hostile"))
        while not slow.done():
            assert (await database.query("SELECT 1", origin="ws://honest")).rows == [(1,)]
            honest += 1
        with pytest.raises(LimitError, match=r"longer than limits\.time"):
            await slow
        with pytest.raises(LimitError, match="not run before"):
            await database.query(SLOW, origin="ws://hostile")
        assert (await database.query("SELECT 2", origin="ws://hostile")).rows == [(2,)]
    assert honest > 1
    assert database.pool.killed == {"time": 1}


@pytest.mark.long
@pytest.mark.parametrize("rows", [200_000, pytest.param(500_000, marks=pytest.mark.soak)])
async def test_a_result_within_the_limits_takes_no_memory_of_the_agent(tmp_path: Path, rows: int) -> None:
    columns = ", ".join(f"i + {number} AS c{number}" for number in range(40))
    limits = LimitSettings(time=60.0)
    async with contained(tmp_path, limits=limits) as database:
        before = resident(os.getpid())
        from zeek_agent.database.encodings import ControlEncoding

        encoded = await database.encoded(MANY_ROWS.format(rows=rows, columns=columns), ControlEncoding())
        (worker,) = database.pool.processes
        peak = resident(worker.pid, "VmHWM")
        passed = 0
        async for batch in encoded.batches():
            passed += batch.rows
        grown = resident(os.getpid()) - before
        encoded.close()
    assert passed == encoded.row_count == rows
    assert peak < limits.worker_bytes
    assert grown < 32 << 20


@pytest.mark.long
async def test_memory_beyond_the_bound_ends_the_statement_and_not_more(tmp_path: Path) -> None:
    greedy = "SELECT group_concat(printf('%.*c', 1000000, 'a'), '') FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
    greedy += "SELECT i + 1 FROM n LIMIT 400) SELECT * FROM n)"
    limits = LimitSettings(value_bytes=1 << 30, result_bytes=1 << 30, memory_bytes=1 << 30, time=60.0)
    async with contained(tmp_path, limits=limits) as database:
        with pytest.raises(SqlError):
            await database.query(greedy)
        assert (await database.query("SELECT 1")).rows == [(1,)]


async def test_a_worker_that_is_killed_from_outside_fails_its_statement_only(tmp_path: Path) -> None:
    async with contained(tmp_path, limits=LimitSettings(time=30.0)) as database:
        slow = asyncio.create_task(database.query(SLOW))

        def busy() -> int | None:
            return next((one.pid for one in database.pool.processes if one.state is WorkerState.BUSY), None)

        os.kill(await until(busy), signal.SIGKILL)
        with pytest.raises(SqlError, match="worker process was lost"):
            await slow
        assert (await database.query("SELECT 1")).rows == [(1,)]


async def test_the_end_of_the_zygote_ends_its_workers_and_a_new_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.containment.pool.RESTART_SECONDS", (0.05, 1.0))
    async with contained(tmp_path) as database:
        await database.query("SELECT 1")
        pool = database.pool
        pool._restart_pause = 0.05
        (worker,) = pool.processes
        assert pool.zygote_pid is not None
        os.kill(pool.zygote_pid, signal.SIGKILL)
        await until(lambda: not resident(worker.pid))

        async def again() -> bool:
            try:
                return (await database.query("SELECT 1")).rows == [(1,)]
            except SqlError:
                return False

        await until(again)
        assert pool.zygote_starts == 2


async def test_event_statements_run_in_a_worker_that_reads_nothing_else(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.db", builtin_tables(), EventSettings())
    width = len(next(table for table in builtin_tables() if table.name == "processes_events").recorded)
    try:
        async with contained(tmp_path, store) as database:
            for number in range(3):
                store.append("processes_events", [(float(number), *[None] * (width - 1))])
                assert store.flush(10)
                result = await database.query(
                    "SELECT time FROM processes_events", window={"processes_events": (number, number + 1)}
                )
                assert result.rows == [(float(number),)]
            stock = await database.query("SELECT count(*) FROM processes_events", profile=Profile.STOCK)
            mixed = await database.query("SELECT count(*) FROM processes_events, processes WHERE processes.pid = 1")
            kinds = {worker.kind: worker.protections for worker in database.pool.processes}
    finally:
        store.close()
    assert stock.rows == mixed.rows == [(3,)]
    assert kinds.keys() == {WorkerClass.EVENTS, WorkerClass.SNAPSHOTS}
    assert all(one is not None and one.worker_class is kind for kind, one in kinds.items())


async def test_an_empty_list_has_no_rows_in_a_worker_too(tmp_path: Path) -> None:
    sql = "SELECT pid FROM processes WHERE pid IN (SELECT pid FROM sockets WHERE local_port = 70000)"
    async with contained(tmp_path) as database:
        for _ in range(2):
            assert (await database.query(sql)).rows == []
        assert (await database.query("SELECT pid FROM processes WHERE pid IN (SELECT 1)")).rows == [(1,)]


async def test_lines_match_text_and_are_returned_as_bytes(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        for condition in ("LIKE 'ROOT:%'", "GLOB 'root:*'", f"= '{Path('/etc/passwd').read_text().splitlines()[0]}'"):
            result = await database.query(f"SELECT content FROM files_lines('/etc/passwd') WHERE content {condition}")
            assert [row[0][:5] for row in result.rows] == [b"root:"]  # type: ignore[index]
            assert [str(column.type) for column in result.columns] == ["blob"]


async def test_a_cancelled_statement_frees_its_worker(tmp_path: Path) -> None:
    async with contained(tmp_path, limits=LimitSettings(time=30.0, workers=1)) as database:
        await database.query("SELECT 1")
        slow = asyncio.create_task(database.query(SLOW))
        await until(lambda: any(worker.state is WorkerState.BUSY for worker in database.pool.processes))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert (await database.query("SELECT 1")).rows == [(1,)]


@pytest.mark.long
async def test_workers_are_bounded_and_shared_fairly(tmp_path: Path) -> None:
    async with contained(tmp_path, limits=LimitSettings(processes=3)) as database:
        answers = await asyncio.gather(
            *(database.query(f"SELECT {number}", origin=f"ws://{number % 7}") for number in range(70))
        )
        assert [one.rows for one in answers] == [[(number,)] for number in range(70)]
        assert len(list(database.pool.processes)) <= 3


async def test_a_worker_that_is_free_at_the_very_end_of_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SECOND_WORKER_SECONDS", 0.01)
    async with contained(tmp_path) as database:
        waiting = asyncio.create_task(database.pool._change())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.02, database.pool._wake)
        time.sleep(0.05)  # both are due now, and the task runs after them
        await waiting
        assert (await database.query("SELECT 1")).rows == [(1,)]


async def test_a_need_is_answered_and_a_refused_one_is_an_error(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    async def give(need: Need) -> tuple[bytes, Sequence[int]]:
        asked.append((need.what, need.name))
        if need.name == "log":
            raise SqlError("the log is elsewhere")
        import msgspec

        return msgspec.msgpack.encode([["source", 1.0, 2.0, "cause"]]), ()

    async with contained(tmp_path, need=give) as database:
        assert (await database.query("SELECT source, cause FROM zeek_agent_gaps")).rows == [("source", "cause")]
        with pytest.raises(SqlError, match="the log is elsewhere"):
            await database.query("SELECT * FROM zeek_agent_log")
    assert asked == [("agent", "gaps"), ("agent", "log")]


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with contained(tmp_path) as database:
        for _ in range(20):
            await database.query("SELECT * FROM processes")
            with pytest.raises(SqlError):
                await database.query("SELECT * FROM nowhere")
        pids = [worker.pid for worker in database.pool.processes]
        assert database.pool.zygote_pid is not None
        pids.append(database.pool.zygote_pid)
    await until(lambda: not any(map(resident, pids)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.long
async def test_idle_workers_are_ended_while_the_event_store_waits_for_its_readers(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        await database.query("SELECT 1")
        (worker,) = database.pool.processes
        database.pool.end_readers()
        await until(lambda: not resident(worker.pid))
        assert (await database.query("SELECT 1")).rows == [(1,)]
        assert database.pool.killed == {"blocking": 1}
