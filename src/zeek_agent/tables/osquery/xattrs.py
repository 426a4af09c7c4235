"""Extended attributes of files."""

from __future__ import annotations

import os
from collections.abc import Iterator

from zeek_agent.host.files.extended_attributes import ExtendedAttribute, extended_attributes
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.path_lookup import NamedFile
from zeek_agent.host.files.sql_patterns import leave_out
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import PATTERNS, open_gate, wanted_files
from zeek_agent.text import from_os

xattrs = osquery_table(
    "extended_attributes",
    "extended attributes of files",
    description=(
        "One row per extended attribute of the regular files and directories that the statement names, by `path` or, "
        f"for the entries of a directory, by `directory`. {PATTERNS} Symbolic links are followed. The access rules are "
        "those of hashes: denied files are omitted and counted in `zeek_agent_queries`."
    ),
    columns=[
        Column("path", "text", "path as the statement gives it"),
        Column("directory", "text", "the path without its last component"),
        Column("key", "text", "name of the attribute, such as `security.capability`"),
        Column("value", "text", "its value: text that ends with a zero byte, file capabilities, or else base64"),
        Column("base64", "int", "1 if the value is in base64, also if it is empty; otherwise 0"),
    ],
    required=("path", "directory"),
    examples=[
        "SELECT key, value FROM extended_attributes WHERE path = '/usr/bin/ping'",
        "SELECT path, value FROM extended_attributes WHERE directory = '/usr/bin' AND key = 'security.capability'",
    ],
    opens_files=True,
)


@xattrs.snapshot
def attributes(wanted: Constraints) -> Iterator[Row]:
    gate = open_gate(wanted)
    for each in wanted_files(wanted, gate):
        wanted.check()
        for key, value, is_base64 in _attributes(gate, each):
            yield from_os(each.path), from_os(each.directory), key, value, int(is_base64)


def _attributes(gate: Gate, each: NamedFile) -> list[ExtendedAttribute]:
    try:
        if not isinstance(each.found, FileStatus):
            raise each.found
        handle = gate.walk(each.parent, each.entry)
        descriptor = gate.open_attributes(handle, each.path)
        if descriptor is None:
            return []
        try:
            return list(extended_attributes(descriptor))
        finally:
            os.close(descriptor)
    except (OSError, RefusedError) as error:
        leave_out(gate, each.path, error)
        return []


TABLES = (xattrs,)
