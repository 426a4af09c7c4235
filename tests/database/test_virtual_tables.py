"""Tables under SQL: what reaches a table of a statement, and that rows come through whole."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest
from sql import Recorder, database

from zeek_agent.database.database import Database, Lane, Profile
from zeek_agent.database.virtual_tables import LOOKUPS_BEFORE_INDEXING
from zeek_agent.errors import LimitError, SqlError, ZeekAgentError
from zeek_agent.schema import Parameter, Row
from zeek_agent.table import Constraints

PROCESS_ROWS = [(1, "init", 0.5), (2, "sh", 1.0), (3, "sh", 2.0), (10, None, 2.5)]


def process_table(name: str = "processes") -> Recorder:
    return Recorder(name, [("pid", "count"), ("name", "text"), ("startup", "time")], PROCESS_ROWS)


def list_table(name: str = "listing") -> Recorder:
    """As many rows as `_pattern` has characters."""

    def rows(wanted: Constraints) -> Iterable[Row]:
        pattern = str(wanted.parameter("pattern"))
        return [(character, index) for index, character in enumerate(pattern)]

    return Recorder(
        name,
        [("character", "text"), ("position", "count")],
        rows,
        [Parameter("pattern", "text", "what to list"), Parameter("depth", "count", "how deep", default=3)],
    )


@pytest.fixture
def processes() -> Recorder:
    return process_table()


@pytest.fixture
def listing() -> Recorder:
    return list_table()


@pytest.fixture
async def db(processes: Recorder, listing: Recorder) -> AsyncIterator[Database]:
    opened = database(processes, listing, process_table("others"))
    opened.scans.max_age_seconds = 0
    yield opened
    await opened.aclose()


async def rows(db: Database, sql: str) -> list[tuple[object, ...]]:
    result = await db.query(sql)
    assert result.errors == ()
    return result.rows


@pytest.mark.parametrize(
    ("where", "equalities"),
    [
        ("pid = 1", {"pid": {1}}),
        ("1 = pid", {"pid": {1}}),
        ("pid = '1'", {"pid": {1}}),
        ("pid = 1.0", {"pid": {1}}),
        ("pid IN (1, 2, '3')", {"pid": {1, 2, 3}}),
        ("pid = 1 OR pid = 2", {"pid": {1, 2}}),
        ("pid = 2 AND name = 'sh'", {"pid": {2}, "name": {"sh"}}),
        ("name IN (SELECT 'sh')", {"name": {"sh"}}),
        ("startup = 1", {"startup": {1.0}}),
        ("pid > 1", {}),
        ("name = 'SH' COLLATE NOCASE", {}),
        ("name LIKE 's%'", {}),
        ("name = 5", {}),
        ("pid + 0 = 1", {}),
        ("pid = 99999999999999999999", {}),
    ],
)
async def test_equality_reaches_the_table(
    db: Database, processes: Recorder, where: str, equalities: dict[str, set[object]]
) -> None:
    expected = [row for row in PROCESS_ROWS if await _matches(db, row, where)]
    processes.scans.clear()
    assert await rows(db, f"SELECT * FROM processes WHERE {where}") == expected
    assert processes.equalities == [equalities]
    assert all(isinstance(pid, int) for pid in processes.scans[0].equal("pid") or ())


async def _matches(db: Database, row: Row, where: str) -> bool:
    """What SQLite says of the row by itself."""
    pid, name, startup = row
    literal = "NULL" if name is None else f"'{name}'"
    table = f"(SELECT {pid} AS pid, {literal} AS name, {startup} AS startup)"
    if "'1'" in where or "'3'" in where:  # affinity is a table column's
        where = where.replace("'", "")
    return bool(await rows(db, f"SELECT 1 FROM {table} WHERE {where}"))


async def test_values_that_nothing_can_equal_need_no_scan(db: Database, processes: Recorder) -> None:
    for where in ("pid = NULL", "pid = 'abc'", "pid = 1.5", "pid IN ('x', NULL)", "pid = 1 AND pid = 2"):
        assert await rows(db, f"SELECT * FROM processes WHERE {where}") == []
    assert processes.scans == []


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT pid FROM processes WHERE pid IN (SELECT 1 WHERE 0)", []),
        ("SELECT pid FROM processes WHERE pid IN (SELECT pid FROM others WHERE name = 'nothing')", []),
        ("SELECT pid FROM processes WHERE name IN (SELECT name FROM others WHERE pid IN (SELECT 1 WHERE 0))", []),
        ("SELECT pid FROM processes WHERE pid IN (SELECT 1 WHERE 0) AND name IN ('sh', 'init')", []),
        (
            "SELECT p.pid FROM processes p LEFT JOIN others o ON o.pid IN (SELECT 1 WHERE 0) AND p.pid = 2",
            [1, 2, 3, 10],
        ),
        ("SELECT pid FROM processes WHERE pid IN (SELECT 1 WHERE 0) OR name = 'init'", [1]),
        ("SELECT pid FROM processes WHERE pid NOT IN (SELECT 1 WHERE 0)", [1, 2, 3, 10]),
        (
            "SELECT pid FROM processes WHERE pid IN (1, 2) UNION SELECT pid FROM others WHERE pid IN (SELECT 3)",
            [1, 2, 3],
        ),
    ],
)
async def test_an_empty_list_has_no_rows(db: Database, sql: str, expected: list[int]) -> None:
    assert sorted(str(row) for row in await rows(db, sql)) == sorted(f"({pid},)" for pid in expected)


async def test_a_list_that_was_empty_once_is_passed_whole_again_later(db: Database, processes: Recorder) -> None:
    sql = "SELECT pid FROM processes WHERE pid IN (SELECT position + 1 FROM listing WHERE _pattern = '{}')"
    assert await rows(db, sql.format("")) == []
    processes.scans.clear()
    assert await rows(db, sql.format("ab")) == [(1,), (2,)]
    assert processes.equalities == [{"pid": {1, 2}}]


async def test_the_table_receives_the_columns_that_are_read(db: Database, processes: Recorder) -> None:
    await rows(db, "SELECT name FROM processes WHERE startup > 1")
    await rows(db, "SELECT count(*) FROM processes")
    assert [set(scan.columns) for scan in processes.scans] == [{"name", "startup"}, set()]


async def test_columns_after_the_sixty_third_are_marked_as_read() -> None:
    wide = Recorder("wide", [(f"c{index}", "count") for index in range(80)], [tuple(range(80))])
    db = database(wide)
    assert await rows(db, "SELECT c70, c2 FROM wide") == [(70, 2)]
    assert wide.scans[0].needs("c70")
    assert not wide.scans[0].needs("c3")
    await db.aclose()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM listing('ab')",
        "SELECT * FROM listing WHERE _pattern = 'ab'",
        "SELECT listing.* FROM (SELECT 'ab' AS p), listing(p)",
        "SELECT * FROM listing('ab', 3)",
    ],
)
async def test_parameters_are_arguments_or_equalities(db: Database, listing: Recorder, sql: str) -> None:
    assert await rows(db, sql) == [("a", 0), ("b", 1)]
    assert [dict(scan.parameters) for scan in listing.scans] == [{"pattern": "ab", "depth": 3}]


async def test_parameters_can_be_selected(db: Database) -> None:
    result = await db.query("SELECT _pattern, _depth, character FROM listing('a', 7)")
    assert result.rows == [("a", 7, "a")]
    assert [str(column.type) for column in result.columns] == ["text", "count", "text"]


async def test_a_list_of_parameters_is_one_scan_each(db: Database, listing: Recorder) -> None:
    found = await rows(db, "SELECT _pattern, character FROM listing WHERE _pattern IN ('ab', 'c')")
    assert sorted(found) == [("ab", "a"), ("ab", "b"), ("c", "c")]
    assert [scan.parameter("pattern") for scan in listing.scans] == ["ab", "c"]


async def test_two_uses_of_a_table_have_their_own_parameters(db: Database) -> None:
    assert await rows(
        db, "SELECT a.character, b.character FROM listing('xy', 1) AS a, listing('zw', 2) AS b ORDER BY 1, 2"
    ) == [("x", "w"), ("x", "z"), ("y", "w"), ("y", "z")]


async def test_another_table_feeds_a_parameter(db: Database) -> None:
    found = await rows(
        db, "SELECT pid, character FROM processes, listing WHERE _pattern = name AND position = 0 ORDER BY pid"
    )
    assert found == [(1, "i"), (2, "s"), (3, "s")]
    assert await rows(db, "SELECT pid, character FROM listing(name), processes WHERE position = 0 ORDER BY 1") == found


@pytest.mark.parametrize("sql", ["SELECT * FROM listing", "SELECT * FROM listing WHERE _pattern LIKE 'x'"])
async def test_a_missing_parameter_is_an_error_of_compilation(db: Database, sql: str) -> None:
    with pytest.raises(SqlError, match=r"^table listing: parameter _pattern is required$"):
        await db.prepare(sql)


async def test_a_parameter_of_the_wrong_type_is_an_error(db: Database) -> None:
    with pytest.raises(SqlError, match="table listing: parameter _depth: 'x' is not an integer"):
        await db.query("SELECT * FROM listing('a', 'x')")
    assert await rows(db, "SELECT character FROM listing(12, '4')") == [("1",), ("2",)]


async def test_either_of_two_conditions_finds_each_row_once(db: Database) -> None:
    assert await rows(db, "SELECT pid FROM processes WHERE pid = 1 OR name = 'sh' OR name = 'init'") == [
        (1,),
        (2,),
        (3,),
    ]
    assert await rows(db, "SELECT character FROM listing('aba') WHERE character = 'a' OR position = 0") == [
        ("a",),
        ("a",),
    ]


async def test_outer_joins_keep_rows_without_a_partner(db: Database) -> None:
    pairs = "SELECT processes.pid, others.pid FROM processes {} JOIN others ON processes.pid + 1 = others.pid"
    inner = [(1, 2), (2, 3)]
    assert sorted(await rows(db, pairs.format("LEFT")), key=str) == sorted([*inner, (3, None), (10, None)], key=str)
    assert sorted(await rows(db, pairs.format("RIGHT")), key=str) == sorted([*inner, (None, 1), (None, 10)], key=str)
    assert len(await rows(db, pairs.format("FULL"))) == 6


async def test_a_join_scans_the_inner_table_only_a_few_times() -> None:
    outer = Recorder("outer_rows", [("key", "count")], [(number,) for number in range(500)])
    inner = Recorder(
        "inner_rows", [("key", "count"), ("value", "text")], [(number, f"v{number}") for number in range(0, 500, 2)]
    )
    db = database(outer, inner)
    found = await rows(db, "SELECT count(*), max(value) FROM outer_rows LEFT JOIN inner_rows USING (key)")
    assert found == [(500, "v98")]
    assert len(outer.scans) == 1
    assert len(inner.scans) == LOOKUPS_BEFORE_INDEXING + 1
    inner.scans.clear()
    assert await rows(db, "SELECT count(*) FROM outer_rows, inner_rows AS a, inner_rows AS b WHERE a.key < 10") == [
        (500 * 5 * 250,)
    ]
    assert len(inner.scans) <= 4
    await db.aclose()


async def test_joins_agree_with_sqlites_own_tables() -> None:
    generator = random.Random(7)
    kinds = [("a", "int"), ("b", "text"), ("c", "real")]
    data = {
        name: [
            (generator.choice([None, 0, 1, 2]), generator.choice([None, "0", "1", "x"]), generator.choice([0.0, 1.5]))
            for _ in range(12)
        ]
        for name in ("t", "u")
    }
    db = database(*(Recorder(name, kinds, content) for name, content in data.items()))
    values = {
        name: "(SELECT CAST(NULL AS INT) a, CAST(NULL AS TEXT) b, CAST(NULL AS REAL) c WHERE 0 "
        + "".join(
            f"UNION ALL SELECT {'NULL' if a is None else a}, {'NULL' if b is None else repr(b)}, {c}" + " "
            for a, b, c in content
        )
        + ")"
        for name, content in data.items()
    }
    conditions = ["t.a = u.a", "t.b = u.b", "t.a = u.c", "t.a = u.a OR t.b = u.b", "t.a = u.a AND t.c = u.c"]
    for kind in ("", "LEFT", "RIGHT", "FULL"):
        for condition in conditions:
            sql = "SELECT t.*, u.* FROM {t} AS t " + kind + " JOIN {u} AS u ON " + condition
            assert sorted(await rows(db, sql.format(t="t", u="u")), key=repr) == sorted(
                await rows(db, sql.format(**values)), key=repr
            ), sql
    await db.aclose()


@pytest.mark.parametrize(
    "cell",
    [
        bytes(range(256)),
        "".join(map(chr, range(1, 256))),
        "a\0b",
        "x" * 1_000_000,
        "é" * 400_000,
        "",
        "\ud800 lone \udc80",
        b"",
    ],
    ids=lambda cell: f"{type(cell).__name__}{len(cell)}",
)
async def test_hostile_cells_are_returned_unchanged(cell: str | bytes) -> None:
    kind = "blob" if isinstance(cell, bytes) else "text"
    db = database(Recorder("t", [("c", kind), ("n", "count")], [(cell, 1), (None, 2)]))
    [(found, _), (null, _)] = await rows(db, "SELECT c, n FROM t")
    assert null is None
    if isinstance(cell, str) and "lone" in cell:
        assert " lone " in str(found)
    else:
        assert found == cell
        assert len(await rows(db, "SELECT a.n FROM t AS a, t AS b WHERE a.c = b.c")) == 1
    await db.aclose()


LINES = [(1, b"PermitRootLogin yes"), (2, b"permit \xff all"), (3, "Bücher".encode()), (4, b"42"), (5, None)]


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("line LIKE 'permit%'", [1, 2]),
        ("line LIKE '%ALL'", [2]),
        ("line NOT LIKE 'permit%'", [3, 4]),
        ("line GLOB 'Permit*'", [1]),
        ("line GLOB 'B?cher'", [3]),
        ("line = 'PermitRootLogin yes'", [1]),
        ("line <> 'PermitRootLogin yes'", [2, 3, 4]),
        ("line IN ('42', 'Bücher')", [3, 4]),
        ("line = 42", [4]),
        ("line BETWEEN 'A' AND 'C'", [3]),
        ("line REGEXP 'all$'", [2]),
        ("instr(line, 'Root') = 7", [1]),
        ("CAST(line AS TEXT) LIKE '%all'", [2]),
        ("line = 'PermitRootLogin' || ' yes'", [1]),
        ("line IN (SELECT line FROM lines WHERE number > 2)", [3, 4]),
    ],
)
async def test_bytes_match_text(where: str, numbers: list[int]) -> None:
    db = database(Recorder("lines", [("number", "count"), ("line", "blob")], LINES))
    result = await db.query(f"SELECT number, line FROM lines WHERE {where}")
    assert result.rows == [LINES[number - 1] for number in numbers]
    assert [str(column.type) for column in result.columns] == ["count", "blob"]
    await db.aclose()


@pytest.mark.parametrize("blob", ["x'3432'", "CAST('42' AS BLOB)", "(SELECT x'3432')"])
async def test_comparing_bytes_with_a_blob_is_an_error_that_names_the_column(blob: str) -> None:
    db = database(Recorder("lines", [("number", "count"), ("line", "blob")], LINES))
    with pytest.raises(SqlError, match="table lines: column line is text in SQL: compare it with a text, not a blob"):
        await db.query(f"SELECT number FROM lines WHERE line = {blob}")
    await db.aclose()


@pytest.mark.parametrize(
    ("kind", "cell", "expected"),
    [
        ("bool", True, True),
        ("bool", 0, False),
        ("count", 2**64 - 1, 2**64 - 1),
        ("int", -(2**63), -(2**63)),
        ("real", 3, 3.0),
        ("time", 1.25, 1.25),
        ("interval", 2, 2.0),
        ("address", "::1", "::1"),
        ("enum", "Tcp", "Tcp"),
        ("port", (80, "tcp"), (80, "tcp")),
        ("set[address]", {"10.0.0.2", "10.0.0.1"}, ("10.0.0.1", "10.0.0.2")),
        ("set[count]", [3, 1, 3], (1, 3)),
        ("vector[text]", ["b", "a", "b"], ("b", "a", "b")),
        ("vector[port]", [(1, "udp")], ((1, "udp"),)),
        ("vector[bool]", [True, False], (True, False)),
        ("vector[time]", [1.5, 2], (1.5, 2.0)),
        ("record", {"a": 1, "b": [None, "x"]}, (("a", 1), ("b", (None, "x")))),
        ("text", b"raw\xff", "raw\uefff"),
    ],
)
async def test_each_type_is_returned_unchanged(kind: str, cell: object, expected: object) -> None:
    db = database(Recorder("t", [("c", kind)], [(cell,), (None,)]))
    result = await db.query("SELECT c FROM t")
    assert result.errors == ()
    assert result.rows == [(expected,), (None,)]
    assert type(result.rows[0][0]) is type(expected)
    assert str(result.columns[0].type) == kind
    hash(result.rows[0])
    await db.aclose()


async def test_containers_are_json_within_sql() -> None:
    db = database(Recorder("t", [("a", "set[address]"), ("p", "port")], [(["10.0.0.1", "::1"], (80, "tcp"))]))
    assert await rows(db, "SELECT value FROM t, json_each(a)") == [("10.0.0.1",), ("::1",)]
    assert await rows(db, "SELECT p ->> 'port', p ->> '$.proto' FROM t") == [(80, "tcp")]
    await db.aclose()


@pytest.mark.parametrize(
    ("kind", "bad", "reason"),
    [
        ("count", "many", "'many' is not an integer"),
        ("count", -1, "-1 is negative"),
        ("count", 2**64, "does not fit 64 bits"),
        ("int", 1.5, "1.5 is not an integer"),
        ("real", "x", "'x' is not a number"),
        ("bool", 2, "2 is not true or false"),
        ("text", 5, "5 is not text"),
        ("address", "nowhere", "'nowhere' is not an address"),
        ("port", 80, "80 is not a port"),
        ("set[count]", ["a"], "'a' is not an integer"),
        ("text", "x" * 5_000_000, "longer than"),
    ],
)
async def test_a_bad_row_is_omitted_and_reported(kind: str, bad: object, reason: str) -> None:
    good = {"count": 1, "int": 1, "real": 1.0, "bool": True, "text": "t", "address": "::1", "port": (1, "tcp")}
    cell = good.get(kind, [1])
    db = database(Recorder("t", [("n", "count"), ("c", kind)], [(1, cell), (2, bad), (3, cell)]))
    result = await db.query("SELECT n, c FROM t")
    assert [row[0] for row in result.rows] == [1, 3]
    assert len(result.errors) == 1
    assert f"column c ({kind})" in result.errors[0]
    assert reason in result.errors[0]
    assert (await db.query("SELECT n FROM t")).rows == [(1,), (2,), (3,)], "a column that is not read does no harm"
    await db.aclose()


async def test_rows_of_the_wrong_width_are_omitted() -> None:
    db = database(Recorder("t", [("a", "count"), ("b", "count")], [(1, 2), (3,), (4, 5, 6)]))
    result = await db.query("SELECT a FROM t")
    assert result.rows == [(1,)]
    assert result.errors == (
        "table t: row omitted: a row has 1 cells instead of 2",
        "table t: row omitted: a row has 3 cells instead of 2",
    )
    await db.aclose()


async def test_many_errors_are_counted_not_listed() -> None:
    db = database(Recorder("t", [("a", "count")], [(f"bad{number}",) for number in range(50)]))
    result = await db.query("SELECT a FROM t")
    assert len(result.errors) == 11
    assert result.errors[-1] == "and 40 more"
    await db.aclose()


@pytest.mark.parametrize("after", [0, 100])
async def test_a_failing_table_is_named(after: int) -> None:
    def broken(wanted: Constraints) -> Iterator[Row]:
        for number in range(after):
            yield (number,)
        raise OSError(5, "Input/output error", "/dev/disk")

    db = database(Recorder("disks", [("n", "count")], broken))
    with pytest.raises(SqlError, match=r"^table disks: \[Errno 5\] Input/output error: '/dev/disk'$"):
        await db.query("SELECT * FROM disks")
    await db.aclose()


async def test_a_tables_own_error_keeps_its_words() -> None:
    def refused(wanted: Constraints) -> Iterator[Row]:
        raise LimitError("too many files")

    db = database(Recorder("t", [("n", "count")], refused))
    with pytest.raises(LimitError, match=r"^too many files$"):
        await db.query("SELECT * FROM t")
    await db.aclose()


async def test_added_columns_are_hidden_from_a_stock_package() -> None:
    table = Recorder(
        "t",
        [("pid", "count"), ("exe", "text"), ("name", "text")],
        lambda wanted: [(1, "/bin/x", wanted.parameter("which"))],
        [Parameter("which", "text", "a parameter")],
        added=["exe"],
    )
    db = database(table)
    assert (await db.query("SELECT * FROM t('w')", profile=Profile.STOCK)).rows == [(1, "w")]
    assert (await db.query("SELECT * FROM t('w')", profile=Profile.FULL)).rows == [(1, "/bin/x", "w")]
    named = await db.query("SELECT exe, pid, _which FROM t WHERE _which = 'v'", profile=Profile.STOCK)
    assert named.rows == [("/bin/x", 1, "v")]
    await db.aclose()


class Slow:
    """A table whose scan takes a while."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()

    def __call__(self, wanted: Constraints) -> Iterator[Row]:
        with self.lock:
            self.count += 1
            number = self.count
        for index in range(20):
            time.sleep(0.002)
            yield (number, index)


async def test_statements_of_one_tick_share_a_scan() -> None:
    import asyncio

    slow = Slow()
    db = database(Recorder("t", [("scan", "count"), ("n", "count")], slow))
    statements = ["SELECT scan, n FROM t"] * 3 + ["SELECT n, scan + 0 FROM t WHERE n > 3"]
    results = await asyncio.gather(*(db.query(sql) for sql in statements))
    assert slow.count == 1
    assert [len(result.rows) for result in results] == [20, 20, 20, 16]
    await asyncio.sleep(db.scans.max_age_seconds * 2)
    assert (await db.query("SELECT max(scan), max(n) FROM t")).rows == [(2, 19)]
    await asyncio.sleep(db.scans.max_age_seconds * 3)
    assert not db.scans.expire(), "nothing is kept after its moment"
    await db.aclose()


async def test_a_scan_is_not_shared_with_constraints_or_further_columns() -> None:
    table = process_table()
    db = database(table)
    await db.query("SELECT name FROM processes")
    await db.query("SELECT name FROM processes WHERE pid = 1")
    assert len(table.scans) == 2
    await db.query("SELECT name, startup FROM processes")
    assert len(table.scans) == 3
    await db.query("SELECT startup FROM processes")
    assert len(table.scans) == 3
    await db.aclose()


async def test_a_failed_scan_is_not_shared() -> None:
    import asyncio

    attempts = []

    def fails_once(wanted: Constraints) -> Iterator[Row]:
        attempts.append(1)
        time.sleep(0.02)
        if len(attempts) == 1:
            raise OSError("busy")
        yield (1,)

    db = database(Recorder("t", [("n", "count")], fails_once))
    results = await asyncio.gather(*(db.query("SELECT n FROM t") for _ in range(2)), return_exceptions=True)
    assert sum(isinstance(result, ZeekAgentError) for result in results) == 1
    assert len(attempts) == 2
    await db.aclose()


async def test_local_statements_see_the_current_state() -> None:
    table = process_table()
    db = database(table)
    for _ in range(2):
        await db.query("SELECT * FROM processes", lane=Lane.LOCAL)
    assert len(table.scans) == 2
    await db.aclose()
