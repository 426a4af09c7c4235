"""The agent's tables in osquery: registered as an extension, read as osquery reads them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from osquery.extensions import Extension
from osqueryd import Bridged, Osqueryd, WireProtocol, usual_tables
from sql import Recorder, events
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport

from zeek_agent.config.sections import LimitSettings
from zeek_agent.events.store import EventStore
from zeek_agent.osquery.export import NAME, ColumnConstraints, OsqueryConstraint, QueryContext, chosen, statement
from zeek_agent.schema import Column, Parameter, Row
from zeek_agent.table import Constraints, Table

PROCESSES = [
    (1, "init", 0.5, True, ("a", "b")),
    (2, None, 1795489155.25, False, ()),
    (2**63 + 5, "raw\uefff ü", 2.0, None, ("x",)),
]
COLUMNS = [("pid", "count"), ("name", "text"), ("startup", "time"), ("is_root", "bool"), ("groups", "set[text]")]


def listing() -> Recorder:
    def rows(wanted: Constraints) -> Iterable[Row]:
        return [(letter,) for letter in str(wanted.parameter("pattern"))]

    return Recorder("listing", [("letter", "text")], rows, [Parameter("pattern", "text", "what to list")])


class Caller:
    """Calls an extension as osquery does: at its own socket, with the constraints of a statement."""

    def __init__(self, osquery: Osqueryd) -> None:
        (self.uuid,) = osquery.registered
        transport = TSocket(unix_socket=f"{osquery.path}.{self.uuid}")
        self.transport = TBufferedTransport(transport)
        self.client = Extension.Client(WireProtocol(self.transport))
        self.transport.open()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def call(self, table: str, used: Sequence[str] | None = None, **given: Any) -> Any:
        constraints = [
            {"name": name, "list": [{"op": op, "expr": value} for op, value in pairs], "affinity": "TEXT"}
            for name, pairs in given.items()
        ]
        context: dict[str, Any] = {"constraints": constraints}
        if used is not None:
            context["colsUsed"] = used
        return self.client.call("table", table, {"action": "generate", "context": json.dumps(context)})

    def rows(self, table: str, used: Sequence[str] | None = None, **given: Any) -> list[dict[str, str]]:
        response = self.call(table, used, **given)
        assert response.status.code == 0, response.status.message
        rows: list[dict[str, str]] = response.response
        return rows


@pytest.fixture
def osquery(tmp_path: Path) -> Iterator[Osqueryd]:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as running:
        yield running


@pytest.fixture
def processes() -> Recorder:
    return Recorder("processes", COLUMNS, PROCESSES)


@pytest.fixture
async def bridged(osquery: Osqueryd, processes: Recorder) -> AsyncIterator[Bridged]:
    tables = [processes, listing(), Recorder("secret", [("a", "text")], [])]
    async with Bridged(osquery, tables, export=("processes", "listing")) as running:
        yield running


async def rows(osquery: Osqueryd, table: str, used: Sequence[str] | None = None, **given: Any) -> list[dict[str, str]]:
    with Caller(osquery) as caller:
        return await asyncio.to_thread(caller.rows, table, used, **given)


async def test_the_chosen_tables_are_registered_with_their_columns(bridged: Bridged, osquery: Osqueryd) -> None:
    ((info, registry),) = osquery.registered.values()
    assert info.name == NAME
    assert registry["table"].keys() == {"zeek_processes", "zeek_listing"}
    assert registry["table"]["zeek_processes"] == [
        {"id": "column", "name": "pid", "type": "UNSIGNED BIGINT", "op": "1"},
        {"id": "column", "name": "name", "type": "TEXT", "op": "1"},
        {"id": "column", "name": "startup", "type": "DOUBLE", "op": "1"},
        {"id": "column", "name": "is_root", "type": "BIGINT", "op": "1"},
        {"id": "column", "name": "groups", "type": "TEXT", "op": "1"},
    ]
    assert registry["table"]["zeek_listing"][1] == {"id": "column", "name": "_pattern", "type": "TEXT", "op": "18"}
    assert bridged.source("export")["active"]


async def test_rows_are_texts_and_null_is_left_out(bridged: Bridged, osquery: Osqueryd) -> None:
    assert await rows(osquery, "zeek_processes") == [
        {"pid": "1", "name": "init", "startup": "0.5", "is_root": "1", "groups": '["a","b"]'},
        {"pid": "2", "startup": "1795489155.25", "is_root": "0", "groups": "[]"},
        {"pid": str(2**63 + 5), "name": "raw\uefff ü", "startup": "2.0", "groups": '["x"]'},
    ]
    assert bridged.source("export")["received"] == 3


async def test_constraints_and_columns_reach_the_table(
    bridged: Bridged, osquery: Osqueryd, processes: Recorder
) -> None:
    assert await rows(osquery, "zeek_processes", ["name"], pid=[(2, "1")]) == [{"name": "init"}]
    assert processes.equalities[-1] == {"pid": {1}}
    assert processes.scans[-1].columns == {"name", "pid"}
    found = await rows(osquery, "zeek_processes", ["pid"], pid=[(2, "1"), (2, "2")])
    assert [row["pid"] for row in found] == ["1", "2"]
    assert await rows(osquery, "zeek_processes", ["pid"], startup=[(4, "100")]) == [{"pid": "2"}]
    assert await rows(osquery, "zeek_listing", ["letter"], _pattern=[(2, "it's")]) == [
        {"letter": letter} for letter in "it's"
    ]


async def test_one_more_call_for_the_same_is_answered_from_memory(
    bridged: Bridged, osquery: Osqueryd, processes: Recorder
) -> None:
    for _ in range(20):
        await rows(osquery, "zeek_processes", ["name"])
    assert len(processes.scans) == 1


async def test_failures_are_reported_in_the_status(bridged: Bridged, osquery: Osqueryd) -> None:
    with Caller(osquery) as caller:
        for table, complaint in (
            ("zeek_listing", "parameter _pattern is required"),
            ("zeek_secret", "there is no table zeek_secret here"),
        ):
            status = (await asyncio.to_thread(caller.call, table)).status
            assert status.code == 1
            assert complaint in status.message
        for request in ({"action": "insert"}, {}, {"action": "generate", "context": "no JSON"}):
            assert (await asyncio.to_thread(caller.client.call, "table", "zeek_processes", request)).status.code == 1
        assert (await asyncio.to_thread(caller.client.call, "logger", "x", {})).status.code == 1
        columns = await asyncio.to_thread(caller.client.call, "table", "zeek_listing", {"action": "columns"})
        assert columns.response[0]["name"] == "letter"
        assert (await asyncio.to_thread(caller.client.ping)).code == 0
    assert bridged.source("export")["last_error"] is not None


async def test_more_rows_than_allowed_are_an_error(osquery: Osqueryd) -> None:
    numbers = Recorder("numbers", [("n", "count")], [(n,) for n in range(101)])
    async with Bridged(osquery, [numbers], export=("*",), rows=100):
        with Caller(osquery) as caller:
            status = (await asyncio.to_thread(caller.call, "zeek_numbers")).status
            assert "more than 100 rows" in status.message
            assert len(await asyncio.to_thread(caller.rows, "zeek_numbers", None, n=[(16, "50")])) == 50


async def test_a_slow_table_does_not_hold_osquery_up(osquery: Osqueryd) -> None:
    def rows(wanted: Constraints) -> Iterable[Row]:
        while True:
            wanted.check()
            yield from ()

    endless = Recorder("endless", [("n", "count")], rows)
    async with Bridged(osquery, [endless], export=("*",), time=0.3, limits=LimitSettings(time=5.0)):
        with Caller(osquery) as caller:
            status = (await asyncio.to_thread(caller.call, "zeek_endless")).status
    assert "no answer within 0.3 s" in status.message


async def test_event_tables_are_read_from_the_store(osquery: Osqueryd, tmp_path: Path) -> None:
    table = events("processes_events", [("time", "time"), ("name", "text")])
    store = EventStore(tmp_path / "events.db", [table])
    try:
        store.append("processes_events", [(float(n), f"p{n}") for n in range(10)])
        store.flush()
        async with Bridged(osquery, [table], store=store, export=("*",)):
            found = await rows(osquery, "zeek_processes_events", ["name"], time=[(4, "7")])
            assert [row["name"] for row in found] == ["p8", "p9"]
    finally:
        store.close()


async def test_our_tables_are_not_imported_from_osquery(bridged: Bridged, osquery: Osqueryd) -> None:
    await bridged.bridge.refresh()
    assert not [name for name in bridged.db.tables if "zeek_" in name]


async def test_registers_again_after_a_restart_and_leaves_in_good_order(osquery: Osqueryd, processes: Recorder) -> None:
    async with Bridged(osquery, [processes], export=("*",)) as bridged:
        (first,) = osquery.registered
        osquery.stop()
        await bridged.bridge.refresh()
        assert not bridged.source("export")["active"]
        osquery.start()
        await asyncio.sleep(1.1)
        await bridged.bridge.refresh()
        (second,) = osquery.registered
        assert second != first
        assert len(await rows(osquery, "zeek_processes")) == 3
        assert not Path(f"{osquery.path}.{first}").exists()
        assert oct(Path(f"{osquery.path}.{second}").stat().st_mode & 0o777) == "0o600"
        osquery.registered.clear()
        await bridged.bridge.refresh()
        assert len(osquery.registered) == 1
    assert osquery.registered == {}
    assert list(osquery.path.parent.glob("osquery.em.*")) == []


async def test_a_registration_that_is_refused_is_tried_again(osquery: Osqueryd, processes: Recorder) -> None:
    class Info:
        name = NAME

    osquery.registered[7] = (Info(), {})
    async with Bridged(osquery, [processes], export=("*",)) as bridged:
        assert "Duplicate extension" in bridged.source("export")["last_error"]
        assert "deb_packages" in bridged.db.tables
        del osquery.registered[7]
        await bridged.bridge.refresh()
        assert bridged.source("export")["active"]


async def test_no_call_leads_to_a_question_to_osquery(bridged: Bridged, osquery: Osqueryd) -> None:
    osquery.statements.clear()
    await rows(osquery, "zeek_processes")
    assert osquery.statements == []


async def test_garbage_at_the_extensions_socket_does_no_harm(bridged: Bridged, osquery: Osqueryd) -> None:
    (uuid,) = osquery.registered
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x80\x01\x00\x01\x7f\xff\xff\xff", b"\0" * 64):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{osquery.path}.{uuid}")
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            assert await asyncio.to_thread(connection.recv, 100) == b""
    assert len(await rows(osquery, "zeek_processes")) == 3


def test_tables_that_begin_with_the_prefix_keep_their_name() -> None:
    tables = [Table(name, "", description="", columns=[]) for name in ("zeek_agent", "users", "files")]
    assert chosen(tables, ("zeek_*", "u*")).keys() == {"zeek_agent", "zeek_users"}


@pytest.mark.parametrize(
    ("constraints", "where"),
    [
        ({}, ""),
        ({"n": [(2, "5")]}, " WHERE `n` IN (5)"),
        ({"n": [(2, "5"), (2, "6.5")]}, " WHERE `n` IN (5, 6.5)"),
        ({"t": [(2, "a'b")]}, " WHERE `t` IN ('a''b')"),
        ({"n": [(32, "5")], "t": [(2, "x")]}, " WHERE `n` >= 5 AND `t` IN ('x')"),
        ({"n": [(4, "5"), (16, "9")]}, ""),
        ({"n": [(2, "five")]}, ""),
        ({"t": [(4, "x")]}, ""),
        ({"t": [(65, "x%")]}, ""),
        ({"t": [(2, "a\0b")]}, ""),
        ({"unknown": [(2, "5")]}, ""),
        ({"t": []}, ""),
    ],
)
def test_only_constraints_that_cannot_lose_rows_are_passed_on(
    constraints: dict[str, list[tuple[int, str]]], where: str
) -> None:
    table = Table("t", "", description="", columns=[Column("n", "count", ""), Column("t", "text", "")])
    given = [
        ColumnConstraints(name, [OsqueryConstraint(*pair) for pair in pairs]) for name, pairs in constraints.items()
    ]
    assert statement(table, QueryContext(given, ["n"]), 10) == f"SELECT `n` FROM `t`{where} LIMIT 11"
