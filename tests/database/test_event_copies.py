"""Event tables as copies: the same rows as from the store itself, read with few copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from sql import Recorder, events

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.database import event_copies
from zeek_agent.database.event_copies import NARROW_COPIES_MAX
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Row
from zeek_agent.table import Table, TableContext

STARTS = events(
    "starts_events",
    [
        ("time", "time"),
        ("pid", "count"),
        ("name", "text"),
        ("load", "real"),
        ("key", "blob"),
        ("groups", "set[count]"),
        ("addr", "address"),
    ],
    added=("addr",),
)
ENDS = events("ends_events", [("time", "time"), ("pid", "count"), ("code", "int")])
PROCESSES = Recorder(
    "processes",
    [("pid", "count"), ("name", "text"), ("since", "time"), ("label", "text")],
    [(pid, f"p{pid}", float(pid * 10), f"0{pid}") for pid in range(0, 40, 3)],
)
SECONDS = 100
Open = Callable[..., SqlConnection]


def starts(first: int, number: int) -> list[Row]:
    return [
        (
            float(n),
            None if n % 11 == 0 else n % 17,
            f"p{n % 5}" if n % 7 else "0",
            n / 4,
            bytes([n % 3]),
            {n % 2, 5},
            f"10.0.0.{n % 9}",
        )
        for n in range(first, first + number)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    opened = EventStore(tmp_path / "events.db", [STARTS, ENDS], EventSettings())
    opened.append("starts_events", starts(0, 300))
    opened.append("ends_events", [(float(n) + 0.5, n % 13, n - 20) for n in range(150)])
    assert opened.flush(10)
    yield opened
    opened.close()


@pytest.fixture
def connect(store: EventStore) -> Iterator[Open]:
    opened: list[SqlConnection] = []

    def connection(*, copies: bool = True, profile: Profile = Profile.FULL, **limits: int) -> SqlConnection:
        tables: list[Table] = [STARTS, ENDS, PROCESSES.table]
        context = TableContext(agent=None, access=AccessPolicy())  # type: ignore[arg-type]  # no table here asks for it
        settings = LimitSettings(time=SECONDS, **limits)  # type: ignore[arg-type]
        arguments = {"context": context, "limits": settings, "scans": SharedScans(), "store": store}
        opened.append(SqlConnection(Catalog.of(1, tables), profile, copies=copies, **arguments))  # type: ignore[arg-type]
        return opened[-1]

    yield connection
    for one in opened:
        one.close()


def run(connection: SqlConnection, sql: str, window: dict[str, tuple[int, int]] | None = None) -> list[Row]:
    limits = LimitSettings(time=SECONDS)
    started = Run(limits)
    started.start(apsw.memory_used() + limits.memory_bytes)
    return connection.query(sql, started, window).rows


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables of which copies were made, in order."""
    made: list[str] = []
    make = event_copies.EventCopies._make

    def counting(self: event_copies.EventCopies, table: Table, *arguments: object) -> event_copies.EventCopy:
        made.append(table.name)
        return make(self, table, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(event_copies.EventCopies, "_make", counting)
    return made


STATEMENTS = [
    "SELECT * FROM starts_events",
    "SELECT *, seq FROM starts_events WHERE pid = 3",
    "SELECT p.name, s.time, s.groups FROM processes AS p JOIN starts_events AS s ON s.pid = p.pid",
    "SELECT p.name, s.time FROM starts_events AS s JOIN processes AS p USING (pid) WHERE s.time > p.since",
    "SELECT p.pid, s.time FROM processes AS p LEFT JOIN starts_events AS s ON s.pid = p.pid AND s.load < 20",
    "SELECT p.pid, s.time FROM starts_events AS s RIGHT JOIN processes AS p ON s.pid = p.pid",
    "SELECT p.pid, s.seq FROM processes AS p FULL JOIN starts_events AS s ON s.pid = p.pid AND s.seq % 2",
    "SELECT pid FROM processes WHERE pid IN (SELECT pid FROM starts_events WHERE time > 100 AND name LIKE 'p%')",
    "SELECT pid FROM starts_events WHERE pid IN (SELECT pid FROM processes WHERE name = 'p3' OR since > 50)",
    "SELECT pid FROM processes WHERE pid NOT IN (SELECT pid FROM starts_events WHERE pid IS NOT NULL)",
    "SELECT pid, (SELECT count(*) FROM starts_events AS s WHERE s.pid = p.pid) FROM processes AS p",
    "SELECT pid, (SELECT max(time) FROM starts_events AS s WHERE s.pid = p.pid AND time < since) FROM processes AS p",
    "SELECT pid FROM processes AS p WHERE EXISTS (SELECT 1 FROM starts_events AS s WHERE s.name = p.name)",
    "SELECT time, pid FROM starts_events UNION SELECT since, pid FROM processes",
    "SELECT pid FROM starts_events EXCEPT SELECT pid FROM processes",
    "SELECT pid FROM starts_events WHERE pid = 2 UNION ALL SELECT pid FROM starts_events WHERE pid = 5 "
    "UNION ALL SELECT pid FROM processes UNION ALL SELECT pid FROM starts_events WHERE pid = abs(-7)",
    "SELECT p.name, count(*), min(time), sum(load) FROM processes AS p JOIN starts_events AS s USING (pid) GROUP BY 1",
    "SELECT pid, row_number() OVER (PARTITION BY pid ORDER BY time) FROM starts_events WHERE pid IN "
    "(SELECT pid FROM processes)",
    "SELECT a.seq, b.seq FROM starts_events AS a JOIN starts_events AS b ON b.pid = a.pid AND b.seq > a.seq, "
    "(SELECT count(*) FROM processes) WHERE a.time < 90",
    "SELECT s.seq, e.seq, p.pid FROM starts_events AS s JOIN ends_events AS e ON e.pid = s.pid AND e.time >= s.time "
    "JOIN processes AS p ON p.pid = s.pid",
    "SELECT s.seq FROM starts_events AS s, processes AS p WHERE s.pid = p.pid OR s.name = p.name",
    "SELECT s.seq FROM starts_events AS s, processes AS p WHERE s.pid = p.label",
    "SELECT s.seq FROM starts_events AS s, processes AS p WHERE s.name = p.pid",
    "SELECT s.seq FROM starts_events AS s, processes AS p WHERE s.pid = '3' AND s.name > p.name",
    "SELECT s.seq FROM starts_events AS s WHERE pid = 3.0 AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE pid > 'a' OR pid < x'00' AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE name < 3 AND name = 0 AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE key = x'01' AND key >= 'a' AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE key IN (x'01', x'02', NULL) AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE pid IN (1, '2', NULL, 3.0) AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE pid = NULL AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE pid IS NULL AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE name = 'P1' COLLATE NOCASE AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE load BETWEEN 3 AND 4.5 AND (SELECT count(*) FROM processes)",
    "SELECT s.seq FROM starts_events AS s WHERE seq BETWEEN 100 AND 104 AND (SELECT count(*) FROM processes)",
    "SELECT count(*) FROM starts_events AS s, starts_events_history AS h, (SELECT count(*) FROM processes) "
    "WHERE h.pid = s.pid",
    "WITH RECURSIVE chain(seq) AS (SELECT 1 UNION SELECT s.seq FROM chain JOIN starts_events AS s ON s.pid = chain.seq "
    "JOIN processes AS p USING (pid)) SELECT seq FROM chain",
]


@pytest.mark.long(kept=10)
@pytest.mark.parametrize(
    "window", [None, {"starts_events": (120, 180)}, {"starts_events": (7, 7), "ends_events": (3, 90)}]
)
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("sql", STATEMENTS)
def test_rows_are_those_of_the_store(
    connect: Open, sql: str, profile: Profile, window: dict[str, tuple[int, int]] | None
) -> None:
    expected = run(connect(copies=False, profile=profile), sql, window)
    found = run(connect(profile=profile), sql, window)
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert expected or window or "= NULL" in sql or "'a'" in sql


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("table", ["starts_events", "processes"])
def test_nothing_is_among_no_values(connect: Open, table: str, profile: Profile, copies: bool) -> None:
    connection = connect(profile=profile, copies=copies)
    among = f"SELECT count(*) FROM {table} WHERE pid {{}} IN (SELECT pid FROM processes WHERE name = '{{}}')"
    every = run(connection, f"SELECT count(*) FROM {table} WHERE pid NOT NULL")
    for _ in range(2):
        assert run(connection, among.format("", "none")) == [(0,)]
        assert run(connection, f"{among.format('NOT', 'none')} AND pid NOT NULL") == every
        assert run(connection, among.format("", "p9")) != [(0,)]
    sql = f"SELECT count(*) FROM processes AS p JOIN {table} AS t ON t.pid IN (SELECT pid FROM processes AS q WHERE "
    assert run(connection, f"{sql} p.pid = 9 AND q.pid = 9)") == run(connection, among.format("", "p9"))


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("profile", Profile)
def test_texts_are_compared_with_the_numbers_of_a_subquery_as_numbers(
    connect: Open, store: EventStore, profile: Profile, copies: bool
) -> None:
    store.append("starts_events", [(1.0, 1, "0003.0", None, None, set(), None)])
    assert store.flush(10)
    connection = connect(profile=profile, copies=copies)
    sql = "SELECT s.name FROM starts_events AS s WHERE s.name IN (SELECT pid FROM processes WHERE pid > 0)"
    assert run(connection, sql) == [("0003.0",)]
    sql = "SELECT p.pid FROM processes AS p JOIN starts_events AS s ON s.name IN (SELECT pid FROM processes WHERE {})"
    assert run(connection, sql.format("pid = p.pid AND pid = 3")) == [(3,)]


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("profile", Profile)
def test_a_window_does_not_apply_to_the_history_read_by_the_same_statement(
    connect: Open, profile: Profile, copies: bool
) -> None:
    connection = connect(profile=profile, copies=copies)
    sql = "SELECT count(h.seq), count(w.seq) FROM {} AS h FULL JOIN {} AS w ON h.seq = -w.seq"
    history, windowed = "starts_events_history", "starts_events"
    window = {"starts_events": (10, 30)}
    assert run(connection, sql.format(history, windowed), window) == [(300, 20)]
    assert run(connection, sql.format(windowed, history), window) == [(20, 300)]


def test_columns_have_the_types_that_they_have_in_the_store(connect: Open) -> None:
    sql = "SELECT s.*, p.since FROM starts_events AS s JOIN processes AS p USING (pid)"
    for profile in Profile:
        kinds = [
            connect(copies=copies, profile=profile).compile(sql, Run(LimitSettings())).columns
            for copies in (True, False)
        ]
        assert kinds[0] == kinds[1]
        assert len(kinds[0]) == (7 if profile is Profile.STOCK else 9)


@pytest.mark.parametrize(
    ("sql", "copies"),
    [
        ("SELECT p.pid, s.time FROM processes AS p JOIN starts_events AS s ON s.pid = p.pid", NARROW_COPIES_MAX + 1),
        (
            "SELECT (SELECT count(*) FROM starts_events AS s WHERE s.pid = p.pid) FROM processes AS p",
            NARROW_COPIES_MAX + 1,
        ),
        ("SELECT p.pid, s.time FROM processes AS p CROSS JOIN starts_events AS s", 1),
        ("SELECT a.pid FROM starts_events AS a, starts_events AS b, processes WHERE a.load + b.load = 7", 1),
        ("SELECT s.pid FROM processes AS p CROSS JOIN starts_events AS s ON s.load > 70 AND s.name LIKE p.name", 1),
    ],
)
def test_a_table_that_is_read_repeatedly_is_copied_a_few_times(
    connect: Open, copied: list[str], sql: str, copies: int
) -> None:
    run(connect(), sql)
    assert copied == ["starts_events"] * copies


def test_the_store_is_not_attached_to_the_connection_that_runs_statements(connect: Open) -> None:
    connection = connect()
    run(connection, "SELECT count(*) FROM starts_events, processes")
    connection._connection.authorizer = None
    names = [name for _, name, _ in connection._connection.execute("PRAGMA database_list")]
    assert set(names) <= {"main", "temp"}


def test_nothing_is_kept_after_a_statement(connect: Open, store: EventStore, copied: list[str]) -> None:
    connection = connect()
    sql = "SELECT count(*) FROM starts_events WHERE EXISTS (SELECT * FROM processes)"
    assert run(connection, sql) == [(300,)]
    before = apsw.memory_used()
    store.append("starts_events", starts(300, 50))
    assert store.flush(10)
    assert run(connection, sql) == [(350,)]
    assert copied == ["starts_events"] * 2
    assert apsw.memory_used() - before < 100_000


def test_reading_in_slices_finds_each_row_once(
    connect: Open, store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_copies, "SLICE_ROWS", 7)
    writer = apsw.Connection(str(tmp_path / "events.db"))
    writer.set_busy_timeout(10_000)
    writer.execute("DELETE FROM starts_events WHERE seq BETWEEN 40 AND 190 OR seq IN (1, 2, 300)")
    writer.close()
    sql = "SELECT seq FROM starts_events WHERE EXISTS (SELECT * FROM processes)"
    assert run(connect(), sql) == [(seq,) for seq in (*range(3, 40), *range(191, 300))]


def test_an_index_counts_towards_the_limit(connect: Open, store: EventStore) -> None:
    store.append("starts_events", [(1.0, n, "x" * 300, 1.0, b"", set(), f"{n:0>200}") for n in range(5_000)])
    assert store.flush(10)
    connection = connect(memory_bytes=5_600_000)
    lookups = "SELECT count(*) FROM processes AS p CROSS JOIN starts_events AS s ON s.{} = p.label AND length(s.name)"
    assert run(connection, "SELECT count(s.name), count(s.addr) FROM starts_events AS s, processes WHERE 0") == [(0, 0)]
    with pytest.raises(LimitError, match=r"starts_events: .* 2800000 bytes \(1/2 of limits.memory_bytes\)"):
        run(connection, lookups.format("addr"))
    assert run(connection, "SELECT count(*) FROM starts_events, processes WHERE starts_events.pid = 4000") == [(14,)]


def test_tables_of_the_store_itself_stay_out_of_reach(connect: Open) -> None:
    for name in ("_gaps", "_store", "_delivered"):
        with pytest.raises(AccessDeniedError, match=f"table {name} may not be read"):
            run(connect(), f"SELECT * FROM {name}")


def test_a_store_whose_file_is_being_replaced_is_waited_for(
    connect: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, path, aside = connect(), tmp_path / "events.db", tmp_path / "aside"
    path.rename(aside)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            aside.rename(path)

    monkeypatch.setattr(event_copies.time, "sleep", sleep)
    assert run(connection, "SELECT count(*) FROM starts_events WHERE EXISTS (SELECT * FROM processes)") == [(300,)]
    assert len(waits) == 3
    path.rename(aside)
    clock = iter([time.monotonic(), time.monotonic() + 60])
    monkeypatch.setattr(event_copies.time, "monotonic", lambda: next(clock))
    with pytest.raises(SqlError, match="unable to open database"):
        run(connection, "SELECT count(*) FROM starts_events WHERE EXISTS (SELECT * FROM processes)")
    aside.rename(path)
