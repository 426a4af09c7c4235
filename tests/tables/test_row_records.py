"""Records that become rows of a table as they are have its columns, by name and in order."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from msgspec import Struct

from zeek_agent.config.declarations import SettingStatus
from zeek_agent.containment.pool import WorkerStatus
from zeek_agent.events.event_file import Gap
from zeek_agent.logbook import LogLine
from zeek_agent.queries.installed import QueryStatus
from zeek_agent.recording.dns.dns_event import DnsEvent
from zeek_agent.recording.files.file_event import FileEvent
from zeek_agent.recording.logins.login_event import LoginEvent
from zeek_agent.recording.processes.process_event import ProcessEvent
from zeek_agent.recording.sockets.socket_event import SocketEvent
from zeek_agent.recording.status import SourceStatus
from zeek_agent.recording.system_log.log_entry import SystemLogEntry
from zeek_agent.table import Table
from zeek_agent.tables import builtin_tables
from zeek_agent.zeek.lasting_connection import ConnectionStatus

TABLES = {table.name: table for table in builtin_tables("linux")}
RECORDS = {
    "processes_events": ProcessEvent,
    "sockets_events": SocketEvent,
    "dns_events": DnsEvent,
    "files_events": FileEvent,
    "logins_events": LoginEvent,
    "system_logs_events": SystemLogEntry,
    "zeek_agent_sources": SourceStatus,
    "zeek_agent_queries": QueryStatus,
    "zeek_agent_workers": WorkerStatus,
    "zeek_agent_connections": ConnectionStatus,
    "zeek_agent_gaps": Gap,
    "zeek_agent_log": LogLine,
    "zeek_agent_config": SettingStatus,
}
OTHER_NAMES = {
    "zeek_agent_gaps": {"begin": "from", "end": "until"},
    "zeek_agent_workers": {"worker_class": "class"},
}
"""Columns whose names Python does not take for a field, or that read badly as one."""
PYTHON_TYPES = {
    "count": {int},
    "int": {int},
    "bool": {bool},
    "time": {float},
    "interval": {float},
    "text": {str},
    "address": {str},
    "vector[text]": {list, str},  # the latter is JSON, as the event store holds it
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_columns_of_its_table(name: str) -> None:
    columns = [column.name for column in _recorded(TABLES[name])]
    renamed = OTHER_NAMES.get(name, {})
    assert [renamed.get(field, field) for field in _fields(RECORDS[name])] == columns


@pytest.mark.parametrize("name", RECORDS)
def test_the_fields_of_a_record_have_the_types_of_the_columns(name: str) -> None:
    hints = get_type_hints(RECORDS[name])
    for column, hint in zip(_recorded(TABLES[name]), hints.values(), strict=True):
        assert _types(hint) <= PYTHON_TYPES[str(column.type)], column.name


def test_every_event_table_has_a_record() -> None:
    assert {name for name, table in TABLES.items() if table.kind == "events" and not table.alias} <= RECORDS.keys()


def _recorded(table: Table) -> Any:
    return table.recorded if table.kind == "events" else table.columns


def _fields(record: Any) -> tuple[str, ...]:
    """The names of the fields, of a struct or of a named tuple."""
    return record.__struct_fields__ if issubclass(record, Struct) else record._fields


def _types(hint: Any) -> set[type]:
    """The classes that a field may have besides None."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return {one for member in get_args(hint) for one in _types(member)}
    if origin is Literal:
        return {type(value) for value in get_args(hint)}
    return set() if hint is type(None) else {origin or hint}
