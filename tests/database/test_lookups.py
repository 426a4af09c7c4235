"""Tables of this host that are asked with a statement's constraints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.database.lookups import EAGER_KEYS_MAX, KEYS_PER_LOOKUP
from zeek_agent.errors import SqlError
from zeek_agent.host.files.reads import Omission
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, LookupTable, TableContext

COLUMNS = [Column("path", "text", "-"), Column("directory", "text", "-"), Column("size", "int", "-")]


class Files:
    """A table of `/0` … `/99` with sizes, and what was asked of it."""

    def __init__(self, *required: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.read = 0
        self.table = LookupTable("files", "-", description="-", columns=COLUMNS, required=required)
        self.table.snapshot(self.rows)

    def rows(self, wanted: Constraints) -> Iterator[Row]:
        bounds = {f"{bound.column} {bound.operator}": bound.value for bound in wanted.bounds}
        equal = {name: set(values) for name, values in wanted.equalities.items()}
        self.asked.append(equal | bounds)
        for number in range(100):
            path = f"/{number}"
            if path in wanted.equalities.get("path", {path}):
                self.read += 1
                yield path, "/", number


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
async def database(files: Files) -> AsyncIterator[Database]:
    async for opened in over(files):
        yield opened


async def over(files: Files) -> AsyncIterator[Database]:
    places = LookupTable("places", "-", description="-", columns=[Column("pattern", "text", "-")])
    places.snapshot(lambda wanted: [("/1%",), (None,), ("/99",)])
    opened = Database([files.table, places], TableContext(NoAgent()))
    yield opened
    await opened.aclose()


async def test_constraints_are_passed_on_and_checked_again(files: Files, database: Database) -> None:
    sql = "SELECT path FROM files WHERE size > 97 AND path LIKE '/9%' AND directory = '/'"
    assert (await database.query(sql)).rows == [("/98",), ("/99",)]
    assert files.asked == [{"size >": 97, "path LIKE": "/9%", "directory": {"/"}}]


async def test_rows_are_read_as_they_are_wanted(files: Files, database: Database) -> None:
    assert (await database.query("SELECT path FROM files WHERE size >= 0 AND length(path) = 3 LIMIT 1")).rows == [
        ("/10",)
    ]
    assert files.read < 100


async def test_bounded_scans_are_not_shared_with_others(files: Files, database: Database) -> None:
    for sql in ("SELECT size FROM files WHERE size < 2", "SELECT size FROM files", "SELECT size FROM files"):
        await database.query(sql)
    assert files.asked == [{"size <": 2}, {}], "the third statement uses the rows of the second"


async def test_values_of_a_join_are_asked_together(files: Files, database: Database) -> None:
    sql = "WITH want(p) AS (VALUES ('/3'), ('/4'), ('/3')) SELECT size FROM want CROSS JOIN files ON path = p"
    assert (await database.query(sql)).rows == [(3,), (4,), (3,)]
    assert files.asked == [{"path": {"/3", "/4"}}]


async def test_a_required_column_takes_patterns_of_other_tables() -> None:
    files = Files("path", "directory")
    async for database in over(files):
        result = await database.query("SELECT count(*) FROM places CROSS JOIN files ON path LIKE pattern")
        assert result.rows == [(12,)]
        assert files.asked == [{"path LIKE": "/1%"}, {"path LIKE": "/99"}]
        result = await database.query("SELECT size FROM files WHERE path LIKE '/' || 7")
        assert result.rows == [(7,)]
        for sql in ("SELECT * FROM files", "SELECT * FROM files WHERE size = 1"):
            with pytest.raises(SqlError, match="a value for directory or path is required"):
                await database.query(sql)


async def test_parts_of_an_or_find_each_row_once() -> None:
    files = Files("path", "directory")
    async for database in over(files):
        for where, count in (
            ("path LIKE '/1%' OR path LIKE '/%1'", 11 + 10 - 2),
            ("path = '/1' OR path IN ('/1', '/2') OR path LIKE '/2'", 2),
            ("(path LIKE '/1%' OR directory = '/') AND size < 30", 30),
            ("path LIKE '/1%' OR path = (SELECT '/99')", 12),
        ):
            assert (await database.query(f"SELECT count(*) FROM files WHERE {where}")).rows == [(count,)]
            rows = (await database.query(f"SELECT path FROM files WHERE {where}")).rows
            assert len(rows) == len(set(rows)) == count
        again = "SELECT count(*) FROM files a JOIN files b ON b.path = a.path OR b.path LIKE a.path || '0'"
        assert (await database.query(f"{again} WHERE a.path LIKE '/1%' OR a.path = '/2'")).rows == [(14,)]


async def test_rows_that_are_equal_in_what_a_statement_uses_are_all_counted() -> None:
    files = Files("path", "directory")
    async for database in over(files):
        sql = "SELECT directory FROM files WHERE directory = '/' OR directory LIKE '/%'"
        assert (await database.query(sql)).row_count == 100


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("size IN (SELECT 1 WHERE 0) LIMIT 1", []),
        ("size IN (SELECT 1 WHERE 0) OR path = '/7' LIMIT 1", [("/7",)]),
        ("size IN (7, 8, 9) AND directory NOT IN (SELECT '' WHERE 0) LIMIT 1 OFFSET 1", [("/8",)]),
        (
            "size IN (7, 8) AND NOT EXISTS (SELECT 1 FROM files z WHERE z.size IN (SELECT 1 WHERE 0))",
            [("/7",), ("/8",)],
        ),
    ],
)
async def test_a_limit_and_a_list_of_a_subquery_without_rows_go_together(
    database: Database, where: str, rows: list[tuple[str]]
) -> None:
    assert (await database.query(f"SELECT path FROM files WHERE {where}")).rows == rows


async def test_columns_of_tables_are_looked_at_when_a_statement_names_the_table(files: Files) -> None:
    looked_at: list[str] = []

    class Watched(AccessPolicy):
        def withheld(self, columns: Iterable[str], table: str, *aliases: str) -> frozenset[str]:
            looked_at.extend((table, *aliases))
            return super().withheld(columns, table, *aliases)

    opened = Database([files.table], TableContext(NoAgent(), Watched(AccessSettings(columns_deny=("files.size",)))))
    try:
        assert (await opened.query("SELECT 1")).rows == [(1,)]
        assert looked_at == []
        assert (await opened.query("SELECT path, size FROM files WHERE path = '/7'")).rows == [("/7", None)]
        assert looked_at == ["files"]
    finally:
        await opened.aclose()


class Reading(Files):
    """The same table, but one file is left out, with an error."""

    def rows(self, wanted: Constraints) -> Iterator[Row]:
        for row in super().rows(wanted):
            if row[0] == "/4":
                wanted.context.reads.leave_out(Omission.REFUSED, "/4", "denied here")
                wanted.report("/4 is left out")
            else:
                yield row


@pytest.mark.parametrize("required", [(), ("path", "directory")])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT path FROM files WHERE path IN ('/3', '/4')",
        "WITH want(p) AS (VALUES ('/3'), ('/4')) SELECT path FROM want CROSS JOIN files ON path = p",
        "SELECT a.path FROM files a CROSS JOIN places ON pattern = '/99' WHERE a.path IN ('/3', '/4')",
        "SELECT a.path FROM files a JOIN places b ON b.pattern > a.path JOIN files c ON c.path = a.path "
        "WHERE a.path IN ('/3', '/4') AND b.pattern = '/99'",
        "SELECT path FROM files WHERE (path = '/3' OR path = '/4') AND path IN (SELECT '/' || value FROM "
        "json_each('[3, 4, 5]'))",
        "SELECT b.path FROM files a RIGHT JOIN files b ON a.path = b.path || '0' WHERE b.path IN ('/3', '/4')",
    ],
)
async def test_what_a_join_leaves_out_is_reported_once(sql: str, required: tuple[str, ...]) -> None:
    async for database in over(Reading(*required)):
        if "RIGHT JOIN" in sql and required:
            continue  # a RIGHT JOIN passes no value on
        result = await database.query(sql)
        assert result.rows == [("/3",)]
        assert (result.files.refused, set(result.files.unread)) == (1, {"/4"})
        assert result.errors[0] == "/4 is left out"


async def test_what_a_scan_leaves_out_is_reported_to_each_statement() -> None:
    async for database in over(Reading()):
        results = await asyncio.gather(*(database.query("SELECT path FROM files") for _ in range(3)))
        assert [(result.files.refused, result.errors) for result in results] == [(1, ("/4 is left out",))] * 3


async def test_a_limit_spares_a_join_the_values_behind_it() -> None:
    files = Files("path")
    async for database in over(files):
        numbers = ", ".join(f"({number})" for number in range(99))
        sql = f"WITH want(n) AS (VALUES {numbers}) SELECT size FROM want CROSS JOIN files"
        assert (await database.query(f"{sql} ON path = '/' || n LIMIT 2")).rows == [(0,), (1,)]
        assert files.asked == [{"path": {"/0"}}, {"path": {"/1"}}]
        assert (await database.query(f"{sql} ON path = '/' || n")).row_count == 99
        many = "WITH RECURSIVE want(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM want WHERE n < 999) SELECT count(*) "
        files.asked.clear()
        assert (await database.query(f"{many} FROM want CROSS JOIN files ON path = '/' || n")).rows == [(100,)]
        assert len(files.asked) == EAGER_KEYS_MAX + (1_000 - EAGER_KEYS_MAX) / KEYS_PER_LOOKUP
