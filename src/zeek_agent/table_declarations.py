"""Declarations of tables as plain data, for other processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Parameter
from zeek_agent.table import Table


def declare(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """Tables as plain data."""
    return [
        {
            "name": table.name,
            "summary": table.summary,
            "description": table.description,
            "columns": [
                [column.name, column.type, column.summary, column.added, column.hidden, column.collation]
                for column in table.columns
            ],
            "parameters": [
                [parameter.name, parameter.type, parameter.summary, parameter.default, parameter.required]
                for parameter in table.parameters
            ],
            "examples": table.examples,
            "platforms": table.platforms,
            "kind": table.kind,
            "alias": table.alias,
            "privileges": asdict(table.privileges),
            "osquery_name": table.osquery_name,
        }
        for table in tables
    ]


def declared(data: Iterable[dict[str, Any]]) -> list[Table]:
    """The tables that `declare` described; they have declarations only, no rows."""
    return [
        Table(
            one["name"],
            one["summary"],
            description=one["description"],
            columns=[Column(*column) for column in one["columns"]],
            parameters=[Parameter(*parameter) for parameter in one["parameters"]],
            examples=one["examples"],
            platforms=one["platforms"],
            kind=one["kind"],
            alias=one["alias"],
            privileges=_privileges(**one.get("privileges", {})),
            osquery_name=one.get("osquery_name"),
        )
        for one in data
    ]


def _privileges(unix_sockets: Iterable[str] = (), programs: Iterable[str] = (), **flags: bool) -> Privileges:
    return Privileges(tuple(unix_sockets), tuple(programs), **flags)
