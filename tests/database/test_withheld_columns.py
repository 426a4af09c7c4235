"""Columns that the configuration denies: unset in every row, by whatever statement, and no help in finding a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from osqueryd import Bridged, Osqueryd, usual_tables
from sql import Recorder, events

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, EventSettings, LimitSettings
from zeek_agent.database.results import Result
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Parameter
from zeek_agent.table import TableContext

SECRET = "sudo -u bob cat /srv/plan"
LOGINS = events("logins_events", [("time", "time"), ("user", "text"), ("command", "text"), ("uid", "count")])
PROCESSES = Recorder(
    "processes",
    [("pid", "count"), ("cmdline", "text"), ("since", "time")],
    [(1, "init", 1.0), (2, SECRET, 2.0)],
    parameters=[Parameter("depth", "count", "a parameter", default=1)],
)
Ask = Callable[..., Result]


@pytest.fixture(params=["views", "copies", "stock"])
def ask(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ask]:
    """Runs a statement with columns denied, in each of the ways in which statements read events."""
    store = EventStore(tmp_path / "events.db", [LOGINS], EventSettings())
    store.append("logins_events", [(1.0, "eve", "true", 7), (2.0, "eve", SECRET, 8)])
    assert store.flush(10)
    opened: list[SqlConnection] = []
    profile = Profile.STOCK if request.param == "stock" else Profile.FULL

    def answer(sql: str, *denied: str) -> Result:
        access = AccessPolicy(AccessSettings(columns_deny=denied))
        context = TableContext(agent=None, access=access)  # type: ignore[arg-type]  # no table here asks for it
        limits, catalog = LimitSettings(), Catalog.of(1, [LOGINS, PROCESSES.table])
        connection = SqlConnection(
            catalog,
            profile,
            context=context,
            limits=limits,
            scans=SharedScans(),
            store=store,
            copies=request.param == "copies",
        )
        opened.append(connection)
        run = Run(limits)
        run.start(apsw.memory_used() + limits.memory_bytes)
        return connection.query(sql, run)

    yield answer
    for one in opened:
        one.close()
    store.close()


@pytest.mark.long(kept=10)
@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT command FROM logins_events", [(None,), (None,)]),
        ("SELECT user, uid, command FROM logins_events_history", [("eve", 7, None), ("eve", 8, None)]),
        ("SELECT DISTINCT typeof(command), length(command), hex(command) FROM logins_events", [("null", None, "")]),
        (f"SELECT uid FROM logins_events WHERE command = '{SECRET}'", []),
        ("SELECT uid FROM logins_events WHERE command LIKE 'sudo%' OR command > 'a'", []),
        ("SELECT uid FROM logins_events WHERE command IS NOT NULL", []),
        (f"SELECT uid FROM (SELECT '{SECRET}' AS command) JOIN logins_events USING (command)", []),
        (f"SELECT uid FROM logins_events NATURAL JOIN (SELECT '{SECRET}' AS command)", []),
        ("SELECT max(command), count(command), group_concat(command) FROM logins_events", [(None, 0, None)]),
        ("SELECT count(*) FROM logins_events GROUP BY command", [(2,)]),
        ("SELECT uid FROM logins_events ORDER BY command DESC, uid", [(7,), (8,)]),
        ("WITH w AS (SELECT * FROM logins_events) SELECT command FROM w", [(None,), (None,)]),
        ("SELECT (SELECT max(command) FROM logins_events)", [(None,)]),
        ("SELECT l.uid FROM logins_events l JOIN processes p ON p.cmdline = l.command", []),
        ("SELECT pid, cmdline FROM processes", [(1, None), (2, None)]),
        ("SELECT pid, cmdline FROM processes(3)", [(1, None), (2, None)]),
        (f"SELECT pid FROM processes WHERE cmdline = '{SECRET}'", []),
        (f"SELECT pid FROM processes WHERE cmdline IN ('{SECRET}', 'init')", []),
        (f"SELECT a.pid FROM processes a JOIN processes b USING (cmdline) WHERE b.cmdline = '{SECRET}'", []),
        (f"SELECT pid FROM processes WHERE cmdline = '{SECRET}' OR pid = 1", [(1,)]),
        ("SELECT b.pid, b.cmdline FROM processes a, processes b WHERE a.pid = b.pid", [(1, None), (2, None)]),
        ("SELECT cmdline FROM processes a RIGHT JOIN processes b USING (cmdline)", [(None,), (None,)]),
    ],
)
def test_a_denied_column_is_unset_in_every_statement(ask: Ask, sql: str, rows: list[tuple[object, ...]]) -> None:
    found = ask(sql, "logins_events.command", "*.cmdline")
    assert found.rows == rows
    assert found.errors == ()


def test_other_columns_stay(ask: Ask) -> None:
    assert ask("SELECT pid, cmdline FROM processes").rows == [(1, "init"), (2, SECRET)]
    sql = "SELECT cmdline, command FROM processes, logins_events WHERE uid = 8 AND pid = 2"
    assert ask(sql, "processes.since").rows == [(SECRET, SECRET)]


def test_an_unset_column_of_a_table_keeps_its_name_and_type(ask: Ask) -> None:
    columns = ask("SELECT p.since, p.pid FROM processes AS p", "processes.since").columns
    assert [(column.name, str(column.type)) for column in columns] == [("since", "time"), ("pid", "count")]


def test_the_table_is_not_asked_for_a_denied_column(ask: Ask) -> None:
    PROCESSES.scans.clear()
    ask(f"SELECT pid, cmdline FROM processes WHERE cmdline = '{SECRET}'", "processes.cmdline")
    [scan] = PROCESSES.scans
    assert scan.columns == {"pid"}
    assert not scan.equalities


@pytest.mark.parametrize("rule", ["logins_events_history.command", "logins_events.command", "logins_*.c*", "*.command"])
@pytest.mark.parametrize("name", ["logins_events", "logins_events_history"])
def test_a_rule_for_one_name_of_a_table_holds_for_all(ask: Ask, rule: str, name: str) -> None:
    assert ask(f"SELECT command FROM {name} WHERE uid = 8", rule).rows == [(None,)]


def test_the_sequence_number_stays_because_deliveries_are_counted_by_it(ask: Ask) -> None:
    assert ask("SELECT time, user, command, uid, seq FROM logins_events", "logins_events.*").rows == [
        (None, None, None, None, 1),
        (None, None, None, None, 2),
    ]


@pytest.mark.parametrize("rule", ["osquery_users.description", "users.description"])
async def test_a_column_of_osquery_is_neither_returned_nor_passed_on(tmp_path: Path, rule: str) -> None:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as osquery:
        async with Bridged(osquery, [], access=AccessSettings(columns_deny=(rule,))) as bridged:
            osquery.statements.clear()
            for name in ("users", "osquery_users"):
                [row] = await bridged.rows(f"SELECT username, description FROM {name} WHERE uid = 0")
                assert row == ("root", None)
                assert await bridged.rows(f"SELECT uid FROM {name} WHERE description = 'root' LIMIT 1") == []
            assert osquery.statements
            for asked in osquery.statements:
                assert "description" not in asked
                assert asked.endswith(" LIMIT 200001")  # osquery.rows, not the statement's
