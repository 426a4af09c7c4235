"""The agent's tables of osquery have osquery's columns (`linux_tables.json`: its table specifications for Linux)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zeek_agent.contract import problems
from zeek_agent.table import EventView, LookupTable, Table
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.osquery import TABLES
from zeek_agent.tables.osquery._declaration import OWN_NAMES

SPECIFIED: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("linux_tables.json").read_text())
TYPES = {
    "BIGINT": "int",
    "DATETIME": "text",
    "DOUBLE": "real",
    "INTEGER": "int",
    "TEXT": "text",
    "UNSIGNED_BIGINT": "count",
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.osquery_name)
def test_columns_have_the_names_types_and_order_of_osquery(table: Table) -> None:
    assert table.osquery_name is not None
    specified = {name: flags.split() for name, flags in SPECIFIED[table.osquery_name].items()}
    types = {name: TYPES[flags[0]] for name, flags in specified.items()}
    shown = [name for name, flags in specified.items() if "hidden" not in flags]
    assert all(not column.added for column in table.columns)
    if isinstance(table, EventView):  # no column of a view can be hidden: some follow the others, some are left out
        assert [column.name for column in table.columns][: len(shown)] == shown
        assert {column.name: column.type for column in table.columns}.items() <= types.items()
        return
    assert isinstance(table, LookupTable)
    assert {column.name: column.type for column in table.columns} == types
    assert [column.name for column in table.columns if not column.hidden] == shown
    assert table.required == {name for name, flags in specified.items() if "required" in flags}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.osquery_name)
def test_declarations_rows_and_examples_are_sound(table: Table) -> None:
    assert problems(table) == []


def test_only_names_that_the_agent_has_are_not_plain() -> None:
    own = {table.name for table in builtin_tables("linux") if table not in TABLES}
    assert {table.name for table in TABLES}.isdisjoint(own)
    for table in TABLES:
        assert table.name == (
            f"osquery_{table.osquery_name}" if table.osquery_name in OWN_NAMES else table.osquery_name
        )
