"""osquery's tables about itself, as this agent answers them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import pytest
from osquery_rows import selected

from zeek_agent.config.sections import AccessSettings
from zeek_agent.contract import NoAgent
from zeek_agent.errors import AccessDeniedError
from zeek_agent.schema import Row
from zeek_agent.table import LookupTable, Table
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.agent import zeek_agent_config, zeek_agent_queries, zeek_agent_sources


def of(table: Table, **values: Any) -> Row:
    return tuple(values.get(column.name) for column in table.columns)


class Agent(NoAgent):
    """One with queries, sources and settings."""

    def queries(self) -> Iterable[Row]:
        query = {"sql": "SELECT 1", "runs": 3, "last_run": 1_700_000_000.7, "last_duration": 0.25, "cpu": 0.0126}
        return [
            of(zeek_agent_queries, id="scheduled", schedule=0.05, **query),
            of(zeek_agent_queries, id="resting", schedule=60.0, resting_until=time.time() + 60, sql="SELECT 2", runs=0),
            of(zeek_agent_queries, id="rested", schedule=61.0, resting_until=time.time() - 60, sql="SELECT 3", runs=0),
            of(zeek_agent_queries, id="once", schedule=None, **query),
        ]

    def sources(self) -> Iterable[Row]:
        return [
            of(zeek_agent_sources, source="processes", backend="ebpf", active=True, received=7),
            of(zeek_agent_sources, source="processes", backend="audit", active=False),
            of(zeek_agent_sources, source="agent", backend="x", active=True, received=0),
        ]

    def config(self) -> Iterable[Row]:
        return [
            of(zeek_agent_config, name="limits.rows", value="5", origin="flag", default_value="100000"),
            of(zeek_agent_config, name="access.mask", value="true", origin="default", default_value="true"),
            of(zeek_agent_config, name="agent.id"),
        ]


def test_the_agent_describes_itself() -> None:
    (row,) = selected("SELECT * FROM osquery_info")
    (computer,) = selected("SELECT uuid FROM system_info")
    assert (row["pid"], row["uuid"], row["instance_id"]) == (os.getpid(), computer["uuid"], NoAgent.instance)
    assert abs(time.time() - NoAgent().uptime() - row["start_time"]) < 60
    assert (row["config_valid"], row["extensions"], row["watcher"], row["platform_mask"]) == (1, "inactive", -1, 9)
    assert (row["build_platform"], row["build_distro"], row["config_hash"]) == ("linux", "", "")
    assert selected("SELECT version_compare(version, '5.0.0') AS newer FROM osquery_info") == [{"newer": 1}]
    (again,) = selected("SELECT * FROM osquery_osquery_info")
    assert again["pid"] == row["pid"]


def test_scheduled_queries_are_those_of_the_agent() -> None:
    rows = selected("SELECT * FROM osquery_schedule", agent=Agent())
    unknown = {
        *("output_size", "wall_time", "wall_time_ms", "last_user_time", "system_time", "last_system_time"),
        *("average_memory", "last_memory"),
    }
    assert {name for name, value in rows[0].items() if value is None} == unknown
    assert {name: value for name, value in rows[0].items() if name not in unknown} == {
        "name": "scheduled",
        "query": "SELECT 1",
        "interval": 1,
        "executions": 3,
        "last_executed": 1_700_000_000,
        "denylisted": 0,
        "last_wall_time_ms": 250,
        "user_time": 13,
    }
    assert [(row["name"], row["interval"], row["denylisted"], row["last_executed"]) for row in rows[1:]] == [
        ("resting", 60, 1, 0),
        ("rested", 61, 0, 0),
    ]


def test_event_sources_are_publishers_and_event_tables_subscribers() -> None:
    rows = selected("SELECT name, publisher, type, events, active FROM osquery_events", agent=Agent())
    assert [tuple(row.values()) for row in rows] == [
        ("processes.ebpf", "processes.ebpf", "publisher", 7, 1),
        ("processes_events", "processes.ebpf", "subscriber", 7, 1),
        ("processes.audit", "processes.audit", "publisher", 0, 0),
        ("agent.x", "agent.x", "publisher", 0, 1),
    ]


def test_flags_are_the_agents_settings() -> None:
    rows = selected("SELECT * FROM osquery_flags WHERE name LIKE 'limits.%'", agent=Agent())
    assert rows == [
        {
            "name": "limits.rows",
            "type": "string",
            "description": "",
            "default_value": "100000",
            "value": "5",
            "shell_only": 0,
        }
    ]
    kinds = selected("SELECT type FROM osquery_flags WHERE name <> 'limits.rows'", agent=Agent())
    assert [row["type"] for row in kinds] == ["bool", None]


def test_the_registry_has_all_tables_of_osquery() -> None:
    rows = selected("SELECT * FROM osquery_registry")
    tables = {table.osquery_name for table in builtin_tables() if isinstance(table, LookupTable)}
    assert {row["name"] for row in rows} == tables
    assert {(row["registry"], row["owner_uuid"], row["internal"], row["active"]) for row in rows} == {
        ("table", 0, 0, 1)
    }


def test_packs_and_extensions_are_empty() -> None:
    assert selected("SELECT * FROM osquery_packs") == []
    assert selected("SELECT * FROM osquery_extensions") == []


@pytest.mark.parametrize(
    ("table", "shows", "column"),
    [
        ("osquery_flags", "zeek_agent_config", "value"),
        ("osquery_schedule", "zeek_agent_queries", "sql"),
        ("osquery_events", "zeek_agent_sources", "received"),
    ],
)
def test_rules_for_the_agents_tables_hold_for_those_of_osquery_with_their_rows(
    table: str, shows: str, column: str
) -> None:
    for sql in (f"SELECT * FROM {table}", f"SELECT count(*) FROM osquery_{table}"):
        with pytest.raises(AccessDeniedError, match=rf"{shows}, .* may not be queried \(access\.tables_deny"):
            selected(sql, agent=Agent(), access=AccessSettings(tables_deny=(shows,)))
        with pytest.raises(AccessDeniedError, match=rf"{shows}\.{column}, .* \(access\.columns_deny"):
            selected(sql, agent=Agent(), access=AccessSettings(columns_deny=(f"{shows}.{column}",)))
    others = AccessSettings(tables_deny=("zeek_agent_log",), columns_deny=("zeek_agent_sources.last_error",))
    assert selected(f"SELECT * FROM {table}", agent=Agent(), access=others) != []
