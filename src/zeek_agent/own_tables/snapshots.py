"""Own tables as tables: their declarations, and the functions that yield their rows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from zeek_agent.errors import SqlError
from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.globbing import matching, open_gate
from zeek_agent.host.files.ignored_lines import ignoring
from zeek_agent.host.program_files import ProgramError
from zeek_agent.host.programs import run_program
from zeek_agent.own_tables.cells import Cells, Notes
from zeek_agent.own_tables.declarations import (
    TIME,
    CommandTable,
    FileTable,
    FollowedTable,
    OwnColumn,
    OwnTable,
)
from zeek_agent.own_tables.documents import DocumentError, objects, source_of, value_at
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.text import from_bytes, from_os, to_bytes

PATH: Final = "path"
NUMBER: Final = "number"
"""Sources of columns of file tables besides fields: the file's path, and the number of the line."""


def tables(declared: Iterable[OwnTable]) -> list[Table]:
    """The tables. Those from files and commands yield their rows; event tables are recorded."""
    return [table(one) for one in declared]


def table(declared: OwnTable) -> Table:
    """The table of a declaration that was checked."""
    columns = [Column(column.name, column.type, column.summary) for column in declared.columns]
    if isinstance(declared, FollowedTable) and TIME.name not in {column.name for column in columns}:
        columns.insert(0, TIME)
    made = Table(
        declared.name,
        declared.summary,
        description=declared.description or _described(declared),
        columns=columns,
        examples=declared.examples or (f"SELECT * FROM {declared.name}",),
        kind="events" if isinstance(declared, FollowedTable) else "snapshot",
        privileges=declared.privileges() if isinstance(declared, CommandTable) else Privileges(),
        is_operators=True,
        opens_files=isinstance(declared, FileTable),
    )
    if isinstance(declared, CommandTable):
        made.snapshot(lambda wanted: command_rows(declared, wanted))
    elif isinstance(declared, FileTable):
        made.snapshot(lambda wanted: file_rows(declared, wanted))
    return made


def _described(declared: OwnTable) -> str:
    if isinstance(declared, CommandTable):
        return f"One row per object in the output of {declared.command[0]}. Declared by the operator of this host."
    if isinstance(declared, FileTable):
        return f"One row per line of {declared.files}. Declared by the operator of this host."
    return f"One row per line that is appended to {declared.follow}. Declared by the operator of this host."


def command_rows(declared: CommandTable, wanted: Constraints) -> Iterator[Row]:
    """The rows in the output of the command, which runs when the first one is requested. Raises SqlError."""
    program, *arguments = declared.command
    cells, notes = _cells(declared, wanted)
    try:
        output = run_program(
            program,
            arguments,
            check=_timed(program, declared.timeout, wanted.check),
            output_bytes_max=declared.output_bytes,
        )
        for found in objects(output, declared.format, declared.rows, notes, wanted.check):
            yield cells.row(_of_object(found, separated=declared.format in ("csv", "tsv")))
    except ProgramError as error:
        raise SqlError(f"table {declared.name}: {error if notes.shows_examples else error.outcome}") from error
    except DocumentError as error:
        raise SqlError(f"table {declared.name}: {error}") from error
    except OSError as error:
        raise SqlError(f"table {declared.name}: cannot execute {program}: {error.strerror or error}") from error
    _report(declared.name, notes, wanted)


def _cells(declared: OwnTable, wanted: Constraints) -> tuple[Cells, Notes]:
    """What makes rows and notes. Notes have no examples if the configuration denies a column of the table."""
    withheld = wanted.context.access.withheld([column.name for column in declared.columns], declared.name)
    notes = Notes(examples=not withheld)
    return Cells(declared.columns, notes, wanted.columns - withheld), notes


def _timed(program: str, seconds: float | None, check: Callable[[], None]) -> Callable[[], None]:
    """A check of the table's own time, too."""
    if seconds is None:
        return check
    deadline = time.monotonic() + seconds

    def timed() -> None:
        check()
        if time.monotonic() > deadline:
            raise ProgramError(f"{program} took longer than {seconds:g} s (timeout)")

    return timed


def _of_object(found: dict[str, Any], *, separated: bool) -> Callable[[int, OwnColumn], Any]:
    def value_of(_: int, column: OwnColumn) -> Any:
        value = value_at(found, source_of(column))
        return None if separated and value == "" and column.type != "text" else value

    return value_of


def file_rows(declared: FileTable, wanted: Constraints) -> Iterator[Row]:
    """The rows of the lines of files that the access rules permit to be read. Raises SqlError."""
    reads = wanted.context.reads
    cells, notes = _cells(declared, wanted)
    separator = to_bytes(declared.separator) or None
    is_ignored = ignoring(declared.ignore)
    gate = open_gate(wanted.context.access, reads, wanted.check)
    for match in matching(gate, os.fsdecode(to_bytes(declared.files)), wanted.check, explain=True):
        wanted.check()
        path, number = from_os(match.path), 0
        for line in lines(match, reads, wanted.check):
            if not is_ignored(line):
                number += 1
                yield cells.row(_of_fields(path, number, line.strip(), separator))
    _report(declared.name, notes, wanted)


def _of_fields(path: str, number: int, line: bytes, separator: bytes | None) -> Callable[[int, OwnColumn], Any]:
    fields = [line, *(field.strip() for field in line.split(separator))]

    def value_of(index: int, column: OwnColumn) -> Any:
        source = index + 1 if column.source is None else column.source
        if not isinstance(source, int):
            return path if source == PATH else number
        if source >= len(fields) or (not fields[source] and column.type != "text"):
            return None
        return from_bytes(fields[source])

    return value_of


def _report(name: str, notes: Notes, wanted: Constraints) -> None:
    for text in notes.texts():
        wanted.report(f"table {name}: {text}")
