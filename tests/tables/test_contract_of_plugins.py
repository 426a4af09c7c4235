"""The checks that tests of plug-ins use find what breaks a table's contract."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from zeek_agent import contract
from zeek_agent.schema import Column, Parameter, Row, Value, ZeekType
from zeek_agent.table import Constraints, Table
from zeek_agent.tables import builtin_tables


def made(rows: Iterable[Row], **changes: object) -> Table:
    table = Table(
        **{  # type: ignore[arg-type]
            "name": "made",
            "summary": "made for a test",
            "description": "Made for a test.",
            "columns": [Column("size", "count", "a size"), Column("tags", "set[text]", "tags")],
            "examples": ["SELECT size FROM made"],
            **changes,
        }
    )

    @table.snapshot
    def snapshot(wanted: Constraints) -> Iterable[Row]:
        return rows

    return table


def test_a_sound_table_has_no_problems() -> None:
    assert contract.problems(made([(1, ["a", "b"]), (None, None)])) == []


@pytest.mark.parametrize("name", ["network_interfaces", "zeek_agent_tables", "system_logs_events"])
def test_the_agents_tables_have_none(name: str) -> None:
    (table,) = [table for table in builtin_tables() if table.name == name]
    assert contract.problems(table) == []


def test_arguments_of_parameters_are_passed() -> None:
    (table,) = [table for table in builtin_tables() if table.name == "files_lines"]
    assert contract.problems(table, ["/etc/hosts"]) == []
    assert contract.rows(table, "/etc/hosts")[0]["path"] == "/etc/hosts"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"summary": "Made for a test."}, "the summary has to begin with a small letter"),
        ({"description": "Made for a test"}, "the description has to end with a full stop"),
        ({"examples": []}, "there is no example"),
        ({"examples": ["SELECT * FROM other"]}, "an example is about another table: SELECT * FROM other"),
        ({"examples": ["SELECT absent FROM made"]}, "the example 'SELECT absent FROM made' fails: no such column"),
        ({"columns": [Column("size", "count", ""), Column("tags", "set[text]", "t")]}, "size: the summary has to be"),
        (
            {"parameters": [Parameter("p", "text", "p", "")], "columns": [Column("size", "count", "s")]},
            "too many values",
        ),
    ],
)
def test_what_is_wrong_with_a_declaration_is_named(changes: dict[str, object], problem: str) -> None:
    assert [text for text in contract.problems(made([(1, ["a"])], **changes)) if problem in text]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ((-1, []), "size: -1 is not a count"),
        ((True, []), "size: True is not a count"),
        ((1, ["a", "a"]), "tags: ['a', 'a'] is not a set[text]"),
        ((1, "ab"), "tags: 'ab' is not a set[text]"),
        ((1, ["\udcff"]), r"tags: ['\udcff'] is not a set[text]"),
        ((1,), "a row has too few or too many values"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row: tuple[Value, ...], problem: str) -> None:
    assert [text for text in contract.problems(made([row])) if problem in text]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("port", (80, "tcp"), (80, "quic")),
        ("address", "2001:db8::1", "2001:DB8::1"),
        ("real", 1.0, float("nan")),
        ("time", 1.0, 1e18),
        ("blob", b"", ""),
        ("record", {"a": 1}, {1: 1}),
        ("vector[int]", [1, 1], 1),
    ],
)
def test_cells_fit_their_types(kind: str, good: object, bad: object) -> None:
    assert contract.fits(ZeekType.parse(kind), good)
    assert not contract.fits(ZeekType.parse(kind), bad)
