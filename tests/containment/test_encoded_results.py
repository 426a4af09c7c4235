"""Results that worker processes encode are those that the same statement gives in one process, in every encoding."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from recipients import NobodysAgent
from workers import contained

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.containment import channel, messages
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.encoded_result import EncodedResult
from zeek_agent.database.database import Database, Result
from zeek_agent.database.encodings import (
    BatchesEncoding,
    ControlEncoding,
    Encoding,
    EventsEncoding,
    FrameBatch,
    RowsEncoding,
)
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.queries.subscriptions import Change
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables
from zeek_agent.worker import result_writer, serve
from zeek_agent.worker.result_writer import ResultWriter, frames

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

ENCODINGS: tuple[Encoding, ...] = (
    RowsEncoding(),
    ControlEncoding(),
    EventsEncoding("topic", "Event::name", "H1", 1.5, "q", None, 3, 200),
    BatchesEncoding("topic", "H1", 1.5, "q", "cookie", 3, 200, "store", "stream", 0, 7),
)
TYPES = [
    "",
    ":int",
    ":count",
    ":real",
    ":bool",
    ":text",
    ":blob",
    ":port",
    ":set[text]",
    ":record",
    ":time",
    ":address",
]
MANY = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n)"


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def in_workers(run: Run[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainedDatabase]:
    manager = contained(tmp_path_factory.mktemp("state"), limits=LimitSettings(time=60.0, cpu=100.0))
    yield run(manager.__aenter__())
    run(manager.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def in_process() -> Iterator[Database]:
    context = TableContext(NobodysAgent(), AccessPolicy(AccessSettings(), ()))
    database = Database(builtin_tables(), context, LimitSettings(time=60.0))
    yield database
    database.close()


def literal(value: object) -> str:
    """SQL for a value; text that has a NUL is built from its parts."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, float):
        return {"inf": "9e999", "-inf": "-9e999", "nan": "NULL"}.get(repr(value), repr(value))
    if isinstance(value, int):
        return str(value) if value > -(1 << 63) else "(-9223372036854775807 - 1)"
    parts = str(value).replace("'", "''").split("\0")
    return "(" + " || char(0) || ".join(f"'{part}'" for part in parts) + ")"


cells = (
    st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(
        ['["b","a"]', '{"port":80,"proto":"tcp"}', '{"k":[1,null]}', "192.0.2.1", "fe80::1", 0, 1, b"\xff\xfe"]
    )
)


@st.composite
def statements(draw: st.DrawFn) -> str:
    width = draw(st.integers(1, 5))
    kinds = draw(st.lists(st.sampled_from(TYPES), min_size=width, max_size=width))
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), max_size=7))
    selected = ", ".join(f'v.column{index + 1} AS "c{index}{kind}"' for index, kind in enumerate(kinds))
    values = ", ".join(f"({', '.join(map(literal, row))})" for row in rows) or f"({', '.join(['NULL'] * width)})"
    number = draw(st.sampled_from([1, 1, 1, 2, 900]))
    return f"SELECT {selected} FROM {MANY.format(number)} AS m, (VALUES {values}) AS v {'' if rows else 'WHERE 0'}"


async def read(database: ContainedDatabase, sql: str, encoding: Encoding, change: Change | None) -> tuple[Any, ...]:
    encoded = await database.encoded(sql, encoding, change=None if change is None else change.value)
    try:
        parts = [part async for part in encoded.batches()]
        return encoded.columns, encoded.errors, encoded.size_bytes, encoded.row_count, parts
    finally:
        encoded.close()


def outcome(work: Callable[[], T]) -> T | tuple[type, str]:
    try:
        return work()
    except SqlError as error:
        return type(error), str(error)


def compare(
    run: Run[Any], in_workers: ContainedDatabase, in_process: Database, sql: str, change: Change | None
) -> None:
    expected = outcome(lambda: run(in_process.query(sql)))
    assert outcome(lambda: run(in_workers.query(sql))) == expected
    if not isinstance(expected, Result):
        return
    for encoding in ENCODINGS:
        columns, errors, size, count, parts = run(read(in_workers, sql, encoding, change))
        assert (columns, errors, size) == (expected.columns, expected.errors, expected.size_bytes)
        assert count == len(expected.rows) == sum(part.rows for part in parts)
        wanted = list(frames(expected.columns, ((change, row) for row in expected.rows), encoding))
        assert [part.frames for part in parts] == [part.frames for part in wanted]


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(statements(), st.sampled_from([None, Change.ADD, Change.DELETE]))
@example("SELECT 1 WHERE 0", None)
@example("SELECT pid FROM processes WHERE pid = -1", Change.ADD)
@example("SELECT CAST(x'ed a0 80' AS TEXT)".replace(" a0 80", "a080"), None)
@example("SELECT CAST(x'edb2ff' AS TEXT) AS t FROM (SELECT 1)", None)
@example('SELECT \'1\' AS "n:int", 2 AS "n:int"', None)
def test_random_statements_give_the_same_result(
    run: Run[Any], in_workers: ContainedDatabase, in_process: Database, sql: str, change: Change | None
) -> None:
    compare(run, in_workers, in_process, sql, change)


@pytest.mark.long(kept=2)
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + ", ".join(f"{number} AS {'n' * 80}{number}" for number in range(1000)),
        "SELECT printf('%.*c', 4194304, 'a')",
        f"SELECT i, printf('%.*c', 1400, 'b') AS h FROM {MANY.format(4000)}",
        f'SELECT i AS "n:count", CASE WHEN i % 3 THEN \'x\' ELSE i - 5 END AS "m:count" FROM {MANY.format(20_000)}',
        f"SELECT CASE i WHEN 20000 THEN 'late' ELSE i END AS v, printf('%.*c', 400, 'b') FROM {MANY.format(20_000)}",
        f"SELECT i, CAST(printf('%.*c', 1000000, 'z') AS BLOB) AS z FROM {MANY.format(7)}",
        "SELECT char(0) || 'x' || char(0), CAST(x'00' AS TEXT), x'000000'",
    ],
    ids=["1,000 columns", "4 MB", "beyond memory", "misfits", "late type", "large rows", "NUL"],
)
def test_large_and_odd_results_are_the_same(
    run: Run[Any], in_workers: ContainedDatabase, in_process: Database, sql: str
) -> None:
    compare(run, in_workers, in_process, sql, Change.ADD)


def test_the_row_limit_is_exact(run: Run[Any], tmp_path: Path) -> None:
    async def count(rows: int) -> int:
        async with contained(tmp_path, limits=LimitSettings(rows=5_000)) as database:
            return len((await database.query(f"SELECT i FROM {MANY.format(rows)}")).rows)

    assert run(count(5_000)) == 5_000
    with pytest.raises(LimitError, match=r"limits\.rows"):
        run(count(5_001))


def test_names_that_do_not_fit_a_message_are_a_clear_error(run: Run[Any], in_workers: ContainedDatabase) -> None:
    sql = f'WITH t AS (SELECT 1 AS "{"n" * 90_000}") SELECT * FROM t AS a, t AS b'
    with pytest.raises(LimitError, match="names of the result's columns"):
        run(in_workers.query(sql))
    assert run(in_workers.query("SELECT 1")).rows == [(1,)]


@pytest.fixture
def spool() -> Iterator[int]:
    file = os.memfd_create("spool")
    yield file
    os.close(file)


def test_a_row_whose_encoding_is_too_long_is_a_clear_error(spool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FRAME_BYTES_MAX", 100)
    batches = [FrameBatch([b"x" * 100], 1), FrameBatch([b"x" * 101], 1)]
    written = serve._write(1, ResultWriter(spool), iter(batches))
    assert next(written).rows == 1
    with pytest.raises(LimitError, match="a row takes 101 bytes when encoded"):
        next(written)


def test_a_batch_of_many_frames_is_described_in_several_messages(spool: int) -> None:
    """`zeek.batch_rows` may be large, and the lengths of a batch's frames have to fit a message."""
    frames = [b"%d" % number for number in range(150_000)]
    written = list(serve._write(1, ResultWriter(spool), iter([FrameBatch(frames, len(frames))])))
    head = messages.Head(1, [], len(frames), 1, [], None)
    result = EncodedResult(os.dup(spool), head, LimitSettings(), lambda: None)
    for part in written:
        assert len(messages.encode(part)) < channel.INLINE_BYTES
        result.add(part)
    result.finish()

    async def read_all() -> list[bytes]:
        return [frame async for batch in result.batches() for frame in batch.frames]

    assert asyncio.run(read_all()) == frames
    result.close()


def test_memory_that_is_exhausted_ends_the_statement_alone(run: Run[Any], in_workers: ContainedDatabase) -> None:
    """Whether Python notices or a library crashes."""
    sql = "SELECT " + ", ".join(["replace(printf('%.*c', 800000, 'a'), 'a', char(1))"] * 30)
    with pytest.raises(SqlError, match=r"more memory|was lost|more than"):
        run(read(in_workers, sql, ControlEncoding(), None))
    assert run(in_workers.query("SELECT 1")).rows == [(1,)]


def test_more_omitted_files_than_fit_a_message_are_reported(run: Run[Any], tmp_path: Path) -> None:
    place = tmp_path / ("d" * 200)
    place.mkdir()
    for number in range(2_000):
        (place / f"{number}.{'f' * 100}").touch()

    async def omitted() -> Any:
        async with contained(tmp_path / "state") as database:
            return (await database.query(f"SELECT * FROM files_lines('{place}/*')")).files

    (tmp_path / "state").mkdir()
    files = run(omitted())
    assert files.refused == len(files.unread) == 2_000


@pytest.mark.long
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers() | st.text(max_size=9), min_size=2, max_size=2), max_size=40), st.integers(0, 60))
def test_blocks_in_the_spool_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: list[list[Any]], held: int) -> None:
    """Rows that are written and read back are those that stay in memory, wherever the blocks end."""
    import msgspec

    from zeek_agent.database.results import Heading, RowErrors

    rows = [[cell if isinstance(cell, str) else cell % (1 << 62) for cell in row] for row in rows]
    results = []
    for most in (held, 1 << 30):
        monkeypatch.setattr(result_writer, "HELD_BYTES", most)
        monkeypatch.setattr(result_writer, "BLOCK_ROWS", 3)
        errors = RowErrors()
        file = os.memfd_create("spool")
        try:
            writer = ResultWriter(file)
            add = writer.begin()
            for row in rows:
                add(tuple(row), msgspec.msgpack.encode(row))
            columns = writer.settle([Heading("a", None, None), Heading("b", None, None)], errors)
            results.append((columns, list(writer.rows(None)), errors.texts()))
        finally:
            os.close(file)
    assert results[0] == results[1]
