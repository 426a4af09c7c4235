"""Files: their attributes, their lines, and the columns of their lines."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from zeek_agent.errors import SqlError
from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import Match, listing, matching, open_gate
from zeek_agent.host.files.ignored_lines import ignoring
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.schema import Column, Parameter, Row, Value
from zeek_agent.table import Constraints, Table
from zeek_agent.text import from_bytes, from_os, to_bytes

COLUMNS_MAX: Final = 1_000
"""Columns that one statement may request from `files_columns`; bounds the size of a row."""
_EVERYWHERE = ("linux", "darwin", "win32")
PATTERN = Parameter(
    "pattern",
    "text",
    "path with wildcards as in glob(3): `*`, `?` and `[…]` stay within one path component, and a component `**` is any "
    "number of directories",
)

files_list = Table(
    "files_list",
    "files that match a pattern, with their attributes",
    description=(
        "One row per matching path. Symbolic links are followed; for broken links and those of proc(5), the attributes "
        "are those of the link itself. Hidden files match only patterns that contain the dot. For a file system that "
        "could hang, only the mount point is listed, without attributes."
    ),
    columns=[
        Column("path", "text", "full path"),
        Column("type", "text", "`file`, `dir`, `block`, `char`, `fifo`, `socket` or `other`"),
        Column("uid", "count", "owner's user id"),
        Column("gid", "count", "owner's group id"),
        Column("mode", "text", "permissions in octal, such as `644`"),
        Column("mtime", "time", "last modification of the contents"),
        Column("size", "count", "size in bytes"),
    ],
    parameters=[PATTERN],
    examples=["SELECT path, mode, size, mtime FROM files_list('/etc/*')"],
    platforms=_EVERYWHERE,
)

files_lines = Table(
    "files_lines",
    "lines of files that match a pattern",
    description=(
        "One row per line of each matching regular file. Files that are unreadable, denied or too large are omitted or "
        "truncated, and counted in `zeek_agent_queries`; see [security](security.md#contents). Lines of private keys "
        "read `***`. In SQL, `content` is [text](sql.md#text-and-bytes)."
    ),
    columns=[
        Column("path", "text", "full path of the file"),
        Column("number", "count", "line number, from 1"),
        Column("content", "blob", "the line without leading and trailing whitespace"),
    ],
    parameters=[PATTERN],
    examples=["SELECT path, number, content FROM files_lines('/etc/hosts')"],
    platforms=_EVERYWHERE,
)

files_columns = Table(
    "files_columns",
    "columns extracted from lines of files that match a pattern",
    description=(
        "One row per line of each matching regular file, split into columns. Lines that match `_ignore` are omitted. "
        "The access rules and limits are those of `files_lines`."
    ),
    columns=[
        Column("path", "text", "full path of the file"),
        Column("number", "count", "number of the line among those that are not ignored, from 1"),
        Column(
            "columns",
            "record",
            "extracted columns: `$1` is `c1` (`c1:int` for type int); null if missing",
        ),
    ],
    parameters=[
        PATTERN,
        Parameter(
            "columns",
            "text",
            "columns to extract: `$N:type`, comma-separated; `$0` is the line; types: blob, count, int, real or text",
        ),
        Parameter("separator", "text", "separator between columns; empty: any whitespace", default="", required=False),
        Parameter(
            "ignore",
            "text",
            "extended regular expression for lines to ignore",
            default=r"^[ \t]*([#;]|$)",
            required=False,
        ),
    ],
    examples=[
        "SELECT path, number, columns FROM files_columns('/etc/passwd', '$1:text,$3:count', ':')",
        "SELECT columns ->> 'c1' AS address FROM files_columns('/etc/hosts', '$1:text,$2:text')",
    ],
    platforms=_EVERYWHERE,
)

_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@files_list.snapshot
def listed(wanted: Constraints) -> Iterator[Row]:
    reads = wanted.context.reads
    for path, found in listing(_gate(wanted), asked_pattern(wanted), wanted.check):
        if isinstance(found, FileStatus):
            kind, permissions = _type_and_permissions(found.mode)
            yield from_os(path), kind, found.uid, found.gid, permissions, found.mtime, found.size
        elif isinstance(found, RefusedError):
            reads.leave_out(found.omission, path, str(found))
            yield from_os(path), "dir", None, None, None, None, None
        else:
            reads.leave_out(Omission.SKIPPED, path, found.strerror or str(found))


@lru_cache(maxsize=1024)
def _type_and_permissions(mode: int) -> tuple[str, str]:
    return _TYPES.get(stat.S_IFMT(mode), "other"), f"{stat.S_IMODE(mode):o}"


@files_lines.snapshot
def numbered(wanted: Constraints) -> Iterator[Row]:
    for match in matched(wanted):
        name = from_os(match.path)
        for number, line in enumerate(lines(match, wanted.context.reads, wanted.check), 1):
            yield name, number, line.strip()


@files_columns.snapshot
def split(wanted: Constraints) -> Iterator[Row]:
    extract = _extractor(str(wanted.parameter("columns")), str(wanted.parameter("separator")))
    ignored = _ignorer(str(wanted.parameter("ignore")))
    for match in matched(wanted):
        name = from_os(match.path)
        number = 0
        for line in lines(match, wanted.context.reads, wanted.check):
            if not ignored(line):
                number += 1
                yield name, number, extract(line)


def matched(wanted: Constraints, pattern: str | None = None) -> Iterator[Match]:
    """The paths that match a pattern, by default the statement's.

    An invalid pattern is an error of the statement, not an empty result.
    """
    explain = pattern is None
    searched = asked_pattern(wanted) if pattern is None else pattern
    for match in matching(_gate(wanted), searched, wanted.check, explain=explain):
        wanted.check()
        yield match


def _gate(wanted: Constraints) -> Gate | PortableGate:
    return open_gate(wanted.context.access, wanted.context.reads, wanted.check)


def asked_pattern(wanted: Constraints) -> str:
    """The statement's pattern in the form of `os.fsdecode`. Raises SqlError for a NUL."""
    pattern = str(wanted.parameter("pattern"))
    if "\0" in pattern:
        raise SqlError("files: the pattern contains a NUL, which no path can contain")
    return os.fsdecode(to_bytes(pattern))


def _whole(text: bytes) -> int | None:
    """A number that fits 64 bits."""
    if re.fullmatch(rb"[+-]?[0-9]{1,20}", text) is None:
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def _natural(text: bytes) -> int | None:
    number = _whole(text)
    return number if number is not None and number >= 0 else None


def _real(text: bytes) -> float | None:
    """A finite number, without Python's extensions (`1_000`, `nan`)."""
    try:
        number = float(text) if b"_" not in text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_CONVERSIONS: Final[dict[str, Callable[[bytes], Value]]] = {
    "blob": from_bytes,  # a record travels as JSON text, which holds bytes in this form
    "count": _natural,
    "int": _whole,
    "real": _real,
    "text": from_bytes,
}


@lru_cache(maxsize=64)
def _extractor(columns: str, separator: str) -> Callable[[bytes], dict[str, Value]]:
    """A function that turns a line into a record. Raises SqlError unless `columns` has the form `$1:text,$2:count`."""
    wanted: list[tuple[str, int, Callable[[bytes], Value]]] = []
    names: set[str] = set()
    parts = columns.split(",", COLUMNS_MAX)
    if len(parts) > COLUMNS_MAX:
        raise SqlError(f"files_columns: more than {COLUMNS_MAX} columns")
    for part in parts:
        found = re.fullmatch(r"\s*\$(\d{1,6})\s*:\s*(\w+)\s*", part)
        if found is None or found[2] not in _CONVERSIONS:
            raise SqlError(
                f"files_columns: {part.strip()!r} is not a column; write $NUMBER:TYPE with one of the types "
                f"{', '.join(_CONVERSIONS)}"
            )
        # If a value does not determine its Zeek type, the field's name does, like the alias of an expression.
        name = f"c{int(found[1])}" + (":int" if found[2] == "int" else "")
        while name in names:
            name += "_"
        names.add(name)
        wanted.append((name, int(found[1]), _CONVERSIONS[found[2]]))
    split_at = to_bytes(separator) or None

    def extract(line: bytes) -> dict[str, Value]:
        line = line.strip()
        cells = [line, *(cell.strip() for cell in line.split(split_at))]
        return {name: convert(cells[at]) if at < len(cells) else None for name, at, convert in wanted}

    return extract


def _ignorer(pattern: str) -> Callable[[bytes], bool]:
    """A predicate for lines to omit. Raises SqlError if the pattern is not a regular expression."""
    try:
        return ignoring(pattern)
    except ValueError as error:
        raise SqlError(f"files_columns: {error}") from error


TABLES = (files_list, files_lines, files_columns)
