"""Files that declare own tables: read and checked as a whole, and only if nobody but root can have written them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import apsw
import msgspec

from zeek_agent.errors import UsageError
from zeek_agent.events.references import ARGV
from zeek_agent.host.files.ignored_lines import ignoring
from zeek_agent.host.program_files import UntrustedFileError, open_roots_file
from zeek_agent.own_tables.declarations import (
    KINDS,
    OUTPUT_BYTES_MAX,
    RESERVED_COLUMNS,
    CommandTable,
    FileTable,
    FollowedTable,
    OwnColumn,
    OwnTable,
)
from zeek_agent.own_tables.snapshots import NUMBER, PATH, table
from zeek_agent.schema import ZeekType
from zeek_agent.text import clipped

FILE_BYTES_MAX: Final = 1 << 20
TABLES_MAX: Final = 200
COLUMNS_MAX: Final = 200
FOLLOWED_MAX: Final = 32
"""Each followed file has a thread."""
NAME_CHARACTERS_MAX: Final = 64
SUMMARY_CHARACTERS_MAX: Final = 300
DESCRIPTION_CHARACTERS_MAX: Final = 4_000
ARGUMENTS_MAX: Final = 100
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED: Final = ("zeek_agent", "sqlite_", "osquery_", "pragma_")
_KEYWORDS: Final = frozenset(apsw.keywords)


def load(paths: Sequence[str], taken: Collection[str] = (), kinds: Collection[str] = ()) -> tuple[OwnTable, ...]:
    """The tables that the files declare, in order.

    `taken` are names that other tables have, and `kinds` those of kinds of events. Raises UsageError for the first
    problem, with the file, the table and the reason: then no table of any file is valid.
    """
    found: dict[str, tuple[str, OwnTable]] = {}
    for path in paths:
        for declared in _declared(path):
            place = f"{path}: table {declared.name}"
            if declared.name in taken:
                raise UsageError(f"{place}: the agent has a table of that name already")
            if declared.name in found:
                raise UsageError(f"{place}: it is also declared in {found[declared.name][0]}")
            found[declared.name] = path, declared
    declared_tables = [declared for _, declared in found.values()]
    _check_together(declared_tables, {name: path for name, (path, _) in found.items()}, kinds)
    return tuple(declared_tables)


def _check_together(tables: Sequence[OwnTable], paths: Mapping[str, str], kinds: Collection[str]) -> None:
    """Check what concerns several tables. Raises UsageError."""
    if len(tables) > TABLES_MAX:
        raise UsageError(f"tables.files: more than {TABLES_MAX} tables are declared")
    followed = [one for one in tables if isinstance(one, FollowedTable)]
    if len(followed) > FOLLOWED_MAX:
        raise UsageError(f"tables.files: more than {FOLLOWED_MAX} tables follow a file")
    seen: dict[str, str] = {}
    for one in followed:
        place = f"{paths[one.name]}: table {one.name}"
        if one.kind in kinds:
            raise UsageError(f"{place}: the agent has events of the kind {one.kind} already")
        if one.kind in seen:
            raise UsageError(f"{place}: {seen[one.kind]} has events of the kind {one.kind}, too")
        seen[one.kind] = one.name
        if f"{one.name}_history" in paths:
            raise UsageError(f"{place}: {one.name}_history is a name of this table, and of another one")


def read(path: str) -> bytes:
    """The content of a file that only root can have written. Raises UsageError."""
    if not hasattr(os, "O_PATH"):
        raise UsageError(f"{path}: own tables need Linux")
    try:
        place = open_roots_file(path)
        try:
            with open(f"/proc/self/fd/{place}", "rb") as file:  # noqa: PTH123 - of the file that was checked
                content = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(place)
    except UntrustedFileError as error:
        raise UsageError(f"{path}: cannot be trusted: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > FILE_BYTES_MAX:
        raise UsageError(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    return content


def _declared(path: str) -> Iterator[OwnTable]:
    try:
        document = tomllib.loads(read(path).decode())
    except RecursionError:
        raise UsageError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{path}: not valid TOML: {clipped(str(error))}") from error
    for key in document:
        if key != "tables":
            raise UsageError(f"{path}: unknown key {clipped(key)!r}; tables are declared by [tables.NAME]")
    sections = document.get("tables", {})
    if not isinstance(sections, dict):
        raise UsageError(f"{path}: tables are declared by [tables.NAME]")
    for name, section in sections.items():
        try:
            yield _checked(name, section)
        except ValueError as error:
            raise UsageError(f"{path}: table {clipped(name)!r}: {error}") from error


def _checked(name: str, section: object) -> OwnTable:
    """The table in a section. Raises ValueError."""
    _check_name(name)
    if name.startswith(_RESERVED) or name.endswith("_history"):
        raise ValueError(f"names may neither begin with {', '.join(_RESERVED)} nor end with _history")
    if name.upper() in _KEYWORDS:
        raise ValueError("the name is a keyword of SQL")
    if not isinstance(section, dict):
        raise ValueError("expected a section")
    kinds = [key for key in KINDS if key in section]
    if len(kinds) != 1:
        raise ValueError(f"exactly one of the keys {', '.join(KINDS)} is needed")
    if "name" in section or "type" in section:
        raise ValueError("unknown key; the name is that of the section")
    try:
        declared = msgspec.convert({**section, "name": name}, KINDS[kinds[0]])
    except msgspec.ValidationError as error:
        raise ValueError(_explained(str(error))) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_texts(declared)
    _check_columns(declared)
    _CHECKS[kinds[0]](declared)
    table(declared)
    return declared  # type: ignore[no-any-return]


def _explained(message: str) -> str:
    """msgspec's message, with the place in terms of the file."""
    unknown = re.search(r"unknown field `([^`]*)`", message)
    place = re.search(r" - at `\$\.?([^`]*)`", message)
    where = f" (at {place[1]})" if place and place[1] else ""
    if unknown:
        return f"unknown key {clipped(unknown[1])!r}{where}"
    if missing := re.search(r"missing required field `([^`]*)`", message):
        return f"the key {missing[1]} is missing{where}"
    message = re.sub(r" - at `[^`]*`", "", message)
    return f"{clipped(message)}{where}"


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None or len(name) > NAME_CHARACTERS_MAX:
        raise ValueError(
            f"{clipped(name)!r} is not a name: a letter, then letters, digits and underscores, all in small letters, "
            f"at most {NAME_CHARACTERS_MAX}"
        )


def _check_texts(declared: OwnTable) -> None:
    _check_line("summary", declared.summary)
    if len(declared.description) > DESCRIPTION_CHARACTERS_MAX or not _is_printable(declared.description):
        raise ValueError(f"description: expected up to {DESCRIPTION_CHARACTERS_MAX} printable characters")
    for example in declared.examples:
        if not _is_printable(example) or declared.name not in example:
            raise ValueError("examples: expected statements on this table")


def _is_printable(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def _check_line(key: str, text: str) -> None:
    if not 0 < len(text) <= SUMMARY_CHARACTERS_MAX or not text.isprintable():
        raise ValueError(f"{key}: expected a line of up to {SUMMARY_CHARACTERS_MAX} printable characters")


def _check_columns(declared: OwnTable) -> None:
    if not 0 < len(declared.columns) <= COLUMNS_MAX:
        raise ValueError(f"columns: expected 1 to {COLUMNS_MAX} of them")
    names: set[str] = set()
    for column in declared.columns:
        try:
            _check_column(declared, column)
            if column.name in names:
                raise ValueError("it is declared twice")
        except ValueError as error:
            raise ValueError(f"column {clipped(column.name)!r}: {error}") from None
        names.add(column.name)


def _check_column(declared: OwnTable, column: OwnColumn) -> None:
    _check_name(column.name)
    ZeekType.parse(column.type)
    _check_line("summary", column.summary)
    if column.unit != "s" and column.type not in ("time", "interval"):
        raise ValueError("unit: only for the types time and interval")
    source = column.source
    if isinstance(declared, FileTable):
        is_field = isinstance(source, int) and 0 <= source <= COLUMNS_MAX
        if source is not None and not is_field and source not in (PATH, NUMBER):
            raise ValueError(
                f"source: expected the number of a field up to {COLUMNS_MAX} (0: the line), {PATH!r} or {NUMBER!r}"
            )
    elif isinstance(source, int) or (source is not None and not source):
        raise ValueError("source: expected a key, or an array of keys and positions")
    if isinstance(declared, CommandTable) and declared.format in ("csv", "tsv") and isinstance(source, list | tuple):
        raise ValueError("source: expected a name of the header")
    if isinstance(declared, FollowedTable):
        if column.name in RESERVED_COLUMNS:
            raise ValueError("event tables have a column of that name already")
        if column.name == "time" and column.type != "time":
            raise ValueError("in an event table, the column time is of type time")
        if column.name == ARGV and ZeekType.parse(column.type).element is None:
            raise ValueError(f"in an event table, the column {ARGV} is a vector or a set")


def _check_command(declared: CommandTable) -> None:
    if not 0 < len(declared.command) <= ARGUMENTS_MAX:
        raise ValueError(f"command: expected a program and up to {ARGUMENTS_MAX - 1} arguments")
    if any("\0" in argument for argument in declared.command):
        raise ValueError("command: an argument contains a NUL")
    try:
        declared.privileges()
    except ValueError as error:
        raise ValueError(f"command: {error}") from None
    if declared.timeout is not None and not 0 < declared.timeout <= 3_600:
        raise ValueError("timeout: expected more than 0 and up to 3600 seconds")
    if not 0 < declared.output_bytes <= OUTPUT_BYTES_MAX:
        raise ValueError(f"output_bytes: expected up to {OUTPUT_BYTES_MAX}")
    if declared.rows and declared.format != "json":
        raise ValueError("rows: only for the format json")


def _check_files(declared: FileTable) -> None:
    _check_path("files", declared.files)
    try:
        ignoring(declared.ignore)
    except ValueError as error:
        raise ValueError(f"ignore: {error}") from None


def _check_followed(declared: FollowedTable) -> None:
    _check_path("follow", declared.follow)
    if declared.follow.endswith("/"):
        raise ValueError("follow: expected the path of a file")


def _check_path(key: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{key}: expected an absolute path without `..` and NUL")


_CHECKS: Final[Mapping[str, Callable[[Any], None]]] = {
    "command": _check_command,
    "files": _check_files,
    "follow": _check_followed,
}
