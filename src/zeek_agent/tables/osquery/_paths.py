"""The constraints of a statement on paths, and the files that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.path_lookup import NamedFile, PathQuery, named_files
from zeek_agent.host.files.sql_patterns import SqlPattern
from zeek_agent.schema import Column
from zeek_agent.table import Constraints
from zeek_agent.text import to_bytes

PATTERNS = (
    "`LIKE` patterns are resolved as by osquery: `%` stays within one directory, `%%` at the end crosses directories, "
    "`_` is literal, and case counts."
)
NAMESPACE_COLUMNS = (
    Column("pid_with_namespace", "int", "always null: the agent does not enter containers", hidden=True),
    Column("mount_namespace_id", "text", "always null: the agent does not enter containers", hidden=True),
)


def open_gate(wanted: Constraints) -> Gate:
    return Gate(wanted.context.access, wanted.context.reads, wanted.check)


def wanted_files(wanted: Constraints, gate: Gate) -> Iterator[NamedFile]:
    """The files that the statement's constraints on `path`, `directory` and `filename` name."""
    return named_files(gate, _query(wanted), wanted.check)


def _query(wanted: Constraints) -> PathQuery:
    return PathQuery(
        _texts(wanted, "path"),
        _texts(wanted, "directory"),
        _texts(wanted, "filename"),
        tuple(_patterns(wanted, "path")),
        tuple(_patterns(wanted, "directory")),
    )


def _texts(wanted: Constraints, column: str) -> frozenset[str] | None:
    values = wanted.equal(column)
    return None if values is None else frozenset(_from_sql(str(value)) for value in values)


def _patterns(wanted: Constraints, column: str) -> Iterator[SqlPattern]:
    """The patterns on a column. One that cannot be resolved names no files, as in osquery, and is counted.

    Unless other constraints name files, that is: the pattern then only restricts them.
    """
    given = [bound for bound in wanted.bounds if bound.column == column and bound.operator in ("LIKE", "GLOB")]
    for bound in given:
        text = _from_sql(str(bound.value))
        try:
            yield SqlPattern.parse(text, glob=bound.operator == "GLOB")
        except RefusedError as error:
            if len(given) == 1 and not wanted.equalities.keys() & {"path", "directory"}:
                wanted.context.reads.leave_out(error.omission, text, str(error))


def _from_sql(text: str) -> str:
    """A text of the statement in the form of `os.fsdecode`."""
    return text if text.isascii() else os.fsdecode(to_bytes(text))
