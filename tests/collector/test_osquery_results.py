"""Results in osquery's format, decorations, counters, and agents without dialects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from scripted_agent import SETTINGS, agent_of, collecting
from waiting import until

from zeek_agent.collector import pack
from zeek_agent.collector.decorations import (
    AGENTS_MAX,
    COUNTERS_MAX,
    VALUE_CHARACTERS_MAX,
    VALUES_BYTES_MAX,
    Decorations,
    ResultCounters,
)
from zeek_agent.collector.log_formats import Field, JsonFormat, ResultNames, make_format
from zeek_agent.collector.pack import Decorator
from zeek_agent.queries.subscriptions import Change, Query
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import Context, InstallQuery, ResultRow

LEADING = (Field("t", "time"), Field("hid", "string"), Field("host", "string"))
CHANGE = Field("change", "string")


def result(names: ResultNames, fields: Sequence[Field], *values: Any) -> dict[str, Any]:
    change = (CHANGE,) if names.has_change else ()
    line = make_format("osquery", "p", (*LEADING, *change, *fields), names).line((1795944978.9, "H1", 'a"b', *values))
    assert line.endswith(b"}\n")
    document: dict[str, Any] = json.loads(line)
    return document


def test_a_row_is_an_event_of_osquery() -> None:
    names = ResultNames("pack_p_q", ("a", "b c"), ("site",), has_change=True, is_snapshot=False)
    fields = (Field("a", "int"), Field("b_c", "string"), Field("decoration_site", "string"))
    assert result(names, fields, "gone", -7, None, "x", 3) == {
        "name": "pack_p_q",
        "hostIdentifier": 'a"b',
        "calendarTime": "Sun Nov 29 09:36:18 2026 UTC",
        "unixTime": 1795944978,
        "epoch": 0,
        "counter": 3,
        "numerics": False,
        "decorations": {"zeek_agent_id": "H1", "site": "x"},
        "columns": {"a": "-7", "b c": ""},
        "action": "removed",
    }


@pytest.mark.parametrize(
    ("has_change", "is_snapshot", "values", "action"),
    [
        (True, False, [None], "added"),
        (True, False, ["new"], "added"),
        (True, False, ["gone"], "removed"),
        (False, True, [], "snapshot"),
        (False, False, [], "added"),
    ],
)
def test_actions(has_change: bool, is_snapshot: bool, values: list[str | None], action: str) -> None:
    names = ResultNames("q", ("a",), (), has_change, is_snapshot)
    assert result(names, (Field("a", "int"),), *values, 1, 0)["action"] == action


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("bool", True, "1"),
        ("bool", False, "0"),
        ("double", 0.5, "0.5"),
        ("count", 2**64 - 1, "18446744073709551615"),
        ("addr", "fd00::1", "fd00::1"),
        ("port", (80, "tcp"), "80"),
        ("time", 1795944978.25, "1795944978.25"),
        ("set[string]", ("a", 'b"'), '["a","b\\""]'),
        ("string", "\x1b[2J", "\\x1b[2J"),
    ],
)
def test_all_values_are_strings(kind: str, value: Any, text: str) -> None:
    names = ResultNames("q", ("a",), (), has_change=False, is_snapshot=False)
    assert result(names, (Field("a", kind),), value, 0)["columns"] == {"a": text}


def test_logs_without_results_are_json() -> None:
    assert isinstance(make_format("osquery", "reporter", LEADING), JsonFormat)


def decorators(*names: str) -> list[Decorator]:
    return [Decorator(f"D::{name}", (name,), Query("SELECT 1", f"D::{name}")) for name in names]


def row(agent: str, event: str, *texts: str | None, change: Change | None = None, time: float = 1.0) -> ResultRow:
    cells = [broker_json.Nothing() if text is None else broker_json.String(text) for text in texts]
    return ResultRow(event, Context(agent, time, change=change), broker_json.Vector(list(cells)))


def test_decorations_are_the_last_rows_of_each_agent() -> None:
    decorations = Decorations(decorators("a", "b"))
    assert decorations.values("H1") == (None, None)
    decorations.row(row("H1", "D::b", "one"))
    decorations.row(row("H1", "D::a", "two"))
    decorations.row(row("H2", "D::a", "three"))
    assert (decorations.values("H1"), decorations.values("H2")) == (("two", "one"), ("three", None))


@pytest.mark.parametrize("changes", [(Change.DELETE, Change.ADD), (Change.ADD, Change.DELETE)])
def test_a_changed_row_replaces_the_one_before_in_whichever_order(changes: tuple[Change, Change]) -> None:
    decorations = Decorations(decorators("a"))
    decorations.row(row("H1", "D::a", "old"))
    for change in changes:
        decorations.row(row("H1", "D::a", "new" if change is Change.ADD else "old", change=change))
    assert decorations.values("H1") == ("new",)
    decorations.row(row("H1", "D::a", "new", change=Change.DELETE))
    assert decorations.values("H1") == (None,)


def test_decorations_are_bounded() -> None:
    names = [f"n{number}" for number in range(40)]
    decorations = Decorations([Decorator("D::all", tuple(names), Query("", "D::all"))])
    decorations.row(row("H0", "D::all", *("x" * 1_000 for _ in names)))
    values = decorations.values("H0")
    assert len(values[0] or "") <= VALUE_CHARACTERS_MAX
    assert sum(len(text or "") for text in values) <= VALUES_BYTES_MAX
    assert values[-1] is None
    for number in range(1, AGENTS_MAX + 1):
        decorations.row(row(f"H{number}", "D::all", *("y" for _ in names)))
    assert decorations.values("H0")[0] is None
    assert decorations.values("H1")[0] == "y"


def test_a_row_of_a_decorator_with_another_type_is_refused() -> None:
    decorations = Decorations(decorators("a"))
    with pytest.raises(ProtocolError, match="a is a count, not a string"):
        decorations.row(ResultRow("D::a", Context("H1", 1.0), broker_json.Vector([broker_json.Count(1)])))


def test_counters_count_results_since_the_last_full_one() -> None:
    counters = ResultCounters()

    def of(time: float, *, full: bool) -> int:
        return counters.of(row("H1", "e", time=time), "log", full=full)

    assert [of(1, full=True), of(1, full=True), of(2, full=False), of(2, full=False), of(3, full=False)] == [
        0,
        0,
        1,
        1,
        2,
    ]
    assert [of(4, full=True), of(5, full=False)] == [0, 1]
    assert counters.of(row("H2", "e"), "log", full=False) == 1
    for number in range(COUNTERS_MAX):
        counters.of(row("H3", "e"), str(number), full=True)
    assert of(6, full=False) == 1


PACK = """
dialect = "osquery"
[logs.clock]
fields = [{ name = "hour", type = "int" }]
removed = false
[[queries]]
log = "clock"
sql = "SELECT hour FROM time"
subscription = "SnapshotPlusDifferences"
[[queries]]
log = "clock"
sql = "SELECT pid FROM processes"
dialect = "agent"
[[decorators]]
sql = "SELECT 'x' AS \\"site:text\\""
names = ["site"]
"""


async def test_a_collector_writes_osquerys_results(tmp_path: Path) -> None:
    settings = replace(SETTINGS, format="osquery")
    loaded = pack.parse(PACK, "test")
    async with collecting(tmp_path, settings=settings, given=loaded) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello(features=broker_json.set_of([broker_json.string(protocol.DIALECTS)]))
        events = [await agent.event() for _ in range(4)]
        installs = [event.query for event in events if isinstance(event, InstallQuery)]
        assert [(query.event, query.dialect) for query in installs] == [
            ("Collector::decorations_0", "osquery"),
            ("Collector::clock", "osquery"),
            ("Collector::clock", None),
        ]
        await agent.result(broker_json.string("here"), event="Collector::decorations_0", change=None)
        for change, hour in ((None, 8), (Change.DELETE, 8), (Change.ADD, 9)):
            await agent.result(broker_json.integer(hour), event="Collector::clock", change=change)
        log = tmp_path / "clock.log"
        await until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(line["action"], line["counter"], line["columns"]) for line in lines] == [
            ("added", 0, {"hour": "8"}),
            ("added", lines[1]["counter"], {"hour": "9"}),
        ]
        assert lines[1]["counter"] > 0
        assert lines[0]["decorations"] == {"zeek_agent_id": "HAbc", "site": "here"}


async def test_an_agent_without_dialects_gets_only_the_other_queries_and_is_reported_once(tmp_path: Path) -> None:
    async with collecting(tmp_path, given=pack.parse(PACK, "test")) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello()
        events = [await agent.event() for _ in range(2)]
        assert [event.query.sql for event in events if isinstance(event, InstallQuery)] == ["SELECT pid FROM processes"]
        reports = [text for _, text in collector.stats.recent_errors]
        assert reports == ["agent HAbc does not support dialects, and does not get the queries in that of osquery"]
