"""Differences queries whose results are compared by worker processes and kept on disk."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recipients import NobodysAgent, Recorder
from waiting import until
from workers import contained

from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.database.encodings import RowsEncoding
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Report, Subscription
from zeek_agent.results.store import ResultStore
from zeek_agent.table import TableContext

SCHEDULE = 0.05


class EncodedRecorder(Recorder):
    """Takes rows as a worker encodes them, and keeps them decoded."""

    def encoding(self, report: Report) -> RowsEncoding:  # type: ignore[override]
        return RowsEncoding()

    async def deliver(self, report: Report) -> None:
        await self.gate.wait()
        assert report.encoded is not None
        rows = []
        async for batch in report.encoded.batches():
            for frame in batch.frames:
                rows += msgspec.msgpack.decode(frame)
        assert len(rows) == report.row_count
        self.taken.append(sorted(map(tuple, rows)))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.taken: list[list[tuple[Any, ...]]] = []


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory, whose files no statement may read."""
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


ACCESS = AccessSettings(files_allow=("/**",))


@asynccontextmanager
async def running(
    state: Path, access: AccessSettings = ACCESS, **limits: Any
) -> AsyncIterator[tuple[QueryRunner, ResultStore]]:
    async with contained(state, limits=LimitSettings(**limits), access=access) as database:
        results = ResultStore(state / "results.db", database.limits.state_bytes)
        runner = QueryRunner(database, None, results=results)
        try:
            yield runner, results
        finally:
            await runner.close()
            await asyncio.to_thread(results.close)


def reconfigure(runner: QueryRunner, access: AccessSettings) -> None:
    """What a reload does with other access rules."""
    database = runner._database
    assert isinstance(database, ContainedDatabase)
    config = Config(access=access, limits=database.limits)
    setup = msgspec.structs.replace(database.pool.setup, config=msgspec.msgpack.encode(config))
    context = TableContext(NobodysAgent(), AccessPolicy(access, setup.protected))
    database.reconfigure(context, config.limits, setup)


def lines_of(path: Path, subscription: Subscription = Subscription.DIFFERENCES) -> Query:
    return Query(f"SELECT content FROM files_lines('{path}')", "rows", SCHEDULE, subscription)


async def test_changes_are_reported_once_and_over_a_restart(tmp_path: Path, state: Path) -> None:
    watched = tmp_path / "hosts"
    watched.write_text("one\ntwo\n")
    async with running(state) as (runner, results):
        recorder = EncodedRecorder()
        await runner.install(recorder, "q1", lines_of(watched))
        await until(lambda: results.usage().queries)
        watched.write_text("one\nthree\nthree\n")
        await until(lambda: recorder.taken)
        await until(lambda: runner.installed[0].runs > 5)
        assert recorder.taken == [[(b"three",), (b"three",), (b"two",)]]
    watched.write_text("one\n")
    async with running(state) as (runner, results):
        again = EncodedRecorder()
        await runner.install(again, "q2", lines_of(watched))
        await until(lambda: again.taken)
        await until(lambda: runner.installed[0].runs > 3)
        assert again.taken == [[(b"three",), (b"three",)]]


async def test_what_was_not_delivered_is_reported_again(tmp_path: Path, state: Path) -> None:
    watched = tmp_path / "hosts"
    watched.write_text("one\n")
    async with running(state) as (runner, results):
        recorder = EncodedRecorder()
        await runner.install(recorder, "q1", lines_of(watched))
        await until(lambda: results.usage().queries)
        recorder.gate.clear()
        watched.write_text("one\ntwo\n")
        runs = runner.installed[0].runs
        await asyncio.sleep(4 * SCHEDULE)
        assert runner.installed[0].runs <= runs + 1, "a query never runs again before its rows were delivered"
        runner.cancel("q1")
        await until(lambda: not runner.installed)
        recorder.gate.set()
        await runner.install(recorder, "q1", lines_of(watched))
        await until(lambda: recorder.taken)
    assert recorder.taken == [[(b"two",)]]


async def test_snapshot_plus_differences_begins_with_the_whole_result(tmp_path: Path, state: Path) -> None:
    watched = tmp_path / "hosts"
    watched.write_text("one\ntwo\n")
    async with running(state) as (runner, _):
        recorder = EncodedRecorder()
        await runner.install(recorder, "q1", lines_of(watched, Subscription.SNAPSHOT_PLUS_DIFFERENCES))
        await until(lambda: recorder.taken)
        watched.write_text("one\n")
        await until(lambda: len(recorder.taken) > 1)
    assert recorder.taken == [[(b"one",), (b"two",)], [(b"two",)]]


async def test_a_result_over_the_budget_is_a_clear_error_and_others_go_on(tmp_path: Path, state: Path) -> None:
    watched = tmp_path / "hosts"
    watched.write_text("".join(f"line {number} {'x' * 500}\n" for number in range(1_000)))
    small = tmp_path / "small"
    small.write_text("one\n")
    async with running(state, state_bytes=200_000) as (runner, results):
        recorder = EncodedRecorder()
        await runner.install(recorder, "q1", lines_of(watched))
        await runner.install(recorder, "q2", lines_of(small))
        assert "limits.state_bytes" in await asyncio.wait_for(recorder.failures.get(), 10)
        await until(lambda: results.usage().queries)
        small.write_text("two\n")
        await until(lambda: recorder.taken)
        assert results.usage().bytes < 200_000
    assert recorder.taken == [[(b"one",), (b"two",)]]


async def test_a_second_identical_query_has_a_result_of_its_own_that_ends_with_it(tmp_path: Path, state: Path) -> None:
    watched = tmp_path / "hosts"
    watched.write_text("one\n")
    async with running(state) as (runner, results):
        first, second = EncodedRecorder(), EncodedRecorder()
        await runner.install(first, "q1", lines_of(watched))
        await runner.install(second, "q2", lines_of(watched))
        await until(lambda: len(results.usage().queries) == 2)
        watched.write_text("two\n")
        await until(lambda: first.taken and second.taken)
        runner.cancel("q2")
        await until(lambda: len(results.usage().queries) == 1)
    assert first.taken == second.taken == [[(b"one",), (b"two",)]]


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("restarts", [False, True])
async def test_values_of_a_column_that_is_denied_later_are_not_reported_as_gone(
    tmp_path: Path, state: Path, restarts: bool
) -> None:
    """The first result of Differences is not reported, so that its values would be new to the recipient."""
    watched = tmp_path / "hosts"
    watched.write_text("one\ntwo\n")
    query, other = lines_of(watched), Query("SELECT name FROM users", "rows", SCHEDULE, Subscription.DIFFERENCES)
    recorder = EncodedRecorder()

    async def installed(runner: QueryRunner, results: ResultStore) -> None:
        await runner.install(recorder, "q1", query)
        await runner.install(recorder, "q2", other)
        await until(lambda: len(results.usage().queries) == 2)
        await until(lambda: all(one.runs > 2 for one in runner.installed))

    async def after(runner: QueryRunner) -> None:
        runs = {one.query_id: one.runs for one in runner.installed}
        await until(lambda: all(one.runs > runs[one.query_id] + 2 for one in runner.installed))
        watched.write_text("one\ntwo\nthree\n")
        await until(lambda: recorder.taken)

    denying = AccessSettings(files_allow=("/**",), columns_deny=("files_lines.content",))
    async with running(state) as (runner, results):
        await installed(runner, results)
        rows_of_others = {key: one for key, one in results.usage().queries.items() if one.rows != 2}
        if not restarts:
            reconfigure(runner, denying)
            await after(runner)
            assert results.usage().queries.items() >= rows_of_others.items()
    if restarts:
        async with running(state, access=denying) as (runner, results):
            await installed(runner, results)
            await after(runner)
    assert recorder.taken == [[(None,)]]


async def test_values_that_are_masked_later_are_not_reported_as_gone(state: Path) -> None:
    recorder = EncodedRecorder()
    with subprocess.Popen(["sleep", "0600.25"]) as process:
        sql = f"SELECT cmdline FROM processes WHERE pid = {process.pid}"
        async with running(state) as (runner, results):
            await runner.install(recorder, "q1", Query(sql, "rows", SCHEDULE, Subscription.DIFFERENCES))
            await until(lambda: results.usage().queries)
            reconfigure(runner, AccessSettings(redact=("0600",)))
            runs = runner.installed[0].runs
            await until(lambda: runner.installed[0].runs > runs + 3)
            process.kill()
            process.wait()
            await until(lambda: recorder.taken)
    assert recorder.taken == [[("sleep ***.25",)]]
