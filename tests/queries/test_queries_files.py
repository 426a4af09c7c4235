"""Files that an installed query leaves out: counted, told once for each cause, and never mistaken for files gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from asking import Agent
from recipients import Recorder
from test_queries import ADD, DELETE, SCHEDULE
from waiting import PATIENCE

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, EventSettings, LimitSettings
from zeek_agent.database.database import Database, Profile
from zeek_agent.events.store import EventStore
from zeek_agent.queries.installed import Installed
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.table import TableContext
from zeek_agent.tables.file_hashes import file_hashes
from zeek_agent.tables.files import files_lines

DIFFERENCES = Subscription.DIFFERENCES


@dataclass
class Rig:
    """A directory of files, and a runner whose rules deny the files with `secret` in their name."""

    directory: Path
    runner: QueryRunner

    @property
    def installed(self) -> Installed:
        (one,) = self.runner.installed
        return one

    async def install(self, zeek: Recorder, sql: str) -> None:
        await self.runner.install(zeek, "q", Query(sql, "Test::row", SCHEDULE, DIFFERENCES))
        await self.runs()

    async def runs(self, times: int = 2) -> None:
        """Wait until the query has run that many times more."""
        goal = self.installed.runs + times
        async with asyncio.timeout(10 * PATIENCE):
            while self.installed.runs < goal:
                await asyncio.sleep(0.005)

    def lines(self) -> str:
        return f"SELECT path, content FROM files_lines('{self.directory}/*')"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    files = tmp_path / "files"
    files.mkdir()
    tables = [files_lines, file_hashes]
    access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=("/**/*secret*",)))
    store = EventStore(tmp_path / "events.db", tables, EventSettings())
    database = Database(tables, TableContext(Agent(), access), LimitSettings(file_bytes=100_000), store)
    runner = QueryRunner(database, store)
    try:
        yield Rig(files, runner)
    finally:
        await runner.close()
        database.close()
        store.close()


async def test_files_left_out_are_counted_by_kind_and_cause(rig: Rig) -> None:
    (rig.directory / "open").write_text("line\n")
    (rig.directory / "secret1").write_text("line\n")
    (rig.directory / "secret2").write_text("line\n")
    (rig.directory / "large").write_text("line\n" * 100_000)
    await rig.install(Recorder(), rig.lines())
    files = rig.installed.files
    assert (files.refused, files.skipped, files.truncated) == (2, 0, 1)
    assert {cause.partition(":")[0] for cause in files.causes} == {"refused", "truncated"}


async def test_omitted_files_are_reported_once_and_again_for_another_cause(rig: Rig) -> None:
    zeek = Recorder()
    (rig.directory / "secret").write_text("line\n")
    await rig.install(zeek, rig.lines())
    await rig.runs(5)
    assert "1 refused" in zeek.failures.get_nowait()
    assert zeek.failures.empty()
    (rig.directory / "another secret").write_text("line\n")
    await rig.runs(3)
    assert zeek.failures.empty()
    (rig.directory / "large").write_text("line\n" * 100_000)
    await rig.runs(3)
    assert "1 truncated" in zeek.failures.get_nowait()
    assert zeek.failures.empty()


async def test_a_stock_package_gets_at_most_one_report(rig: Rig) -> None:
    zeek = Recorder(profile=Profile.STOCK)
    (rig.directory / "secret").write_text("line\n")
    await rig.install(zeek, rig.lines())
    (rig.directory / "large").write_text("line\n" * 100_000)
    await rig.runs(3)
    assert "1 refused" in zeek.failures.get_nowait()
    assert zeek.failures.empty()
    assert rig.installed.files.truncated == 1


async def test_a_query_that_omits_files_keeps_running(rig: Rig) -> None:
    (rig.directory / "secret").write_text("line\n")
    await rig.install(Recorder(), rig.lines())
    assert rig.installed.state.value == "running"
    assert rig.installed.errors == 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT path, content FROM files_lines('{}/*')",
        "SELECT content FROM files_lines('{}/*')",
        "SELECT path AS p, sha256 FROM file_hashes('{}/*')",
    ],
)
async def test_rows_of_a_file_that_is_no_longer_readable_are_not_removed(rig: Rig, sql: str) -> None:
    zeek = Recorder()
    (rig.directory / "a").write_text("first\n")
    (rig.directory / "b").write_text("second\n")
    await rig.install(zeek, sql.format(rig.directory))
    hidden, shown = rig.directory / "real secret", rig.directory / "a"
    shown.rename(hidden)
    shown.symlink_to(hidden)
    await rig.runs(3)
    assert rig.installed.files.refused == 2
    assert zeek.reports.empty()
    shown.unlink()
    hidden.rename(shown)
    await rig.runs(3)
    assert zeek.reports.empty()


async def test_a_deleted_file_is_reported_while_another_is_not_readable(rig: Rig) -> None:
    zeek = Recorder()
    (rig.directory / "a").write_text("first\n")
    (rig.directory / "secret").write_text("never\n")
    await rig.install(zeek, rig.lines())
    (rig.directory / "a").unlink()
    assert await zeek.next() == [(DELETE, (str(rig.directory / "a"), b"first"))]


async def test_lines_beyond_a_limit_are_not_removed_and_new_ones_before_it_are_added(rig: Rig) -> None:
    zeek = Recorder()
    file = rig.directory / "a"
    file.write_text("first\nlast\n")
    await rig.install(zeek, rig.lines())
    file.write_text("first\n" + "x" * 50_000 + "\n" + "y" * 50_000 + "\nlast\n")
    assert await zeek.next() == [(ADD, (f"{file}", b"x" * 50_000))]
    await rig.runs(3)
    assert zeek.reports.empty()


async def test_that_a_file_could_not_be_read_outlives_a_restart(rig: Rig) -> None:
    zeek = Recorder()
    (rig.directory / "a").write_text("first\n")
    await rig.install(zeek, f"SELECT content FROM files_lines('{rig.directory}/*')")
    rig.runner.cancel("q")
    (rig.directory / "a").rename(rig.directory / "secret")
    await rig.install(zeek, f"SELECT content FROM files_lines('{rig.directory}/*')")
    await rig.runs(2)
    assert rig.installed.files.refused == 1
    assert zeek.reports.empty()
