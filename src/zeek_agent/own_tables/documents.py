"""Objects in the output of commands and in lines of files: JSON, JSON lines, CSV, TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from zeek_agent.own_tables.cells import Notes
from zeek_agent.own_tables.declarations import Format, OwnColumn, Source
from zeek_agent.text import clipped, from_bytes

_T = TypeVar("_T")

FIELD_CHARACTERS_MAX: Final = 1 << 20
"""Longest field of CSV."""
ROWS_BETWEEN_CHECKS: Final = 500
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class DocumentError(ValueError):
    """The text is not in the declared format."""


def decode_json(raw: bytes) -> Any:
    """The value. Bytes that are not UTF-8 become text as in `zeek_agent.text`. Raises DocumentError."""
    try:
        return msgspec.json.decode(raw if raw.isascii() else from_bytes(raw).encode())
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise DocumentError(str(error)) from None


def value_at(value: Any, source: Source) -> Any:
    """The value at a key, or at a path of keys and positions; None if there is none."""
    for step in (source,) if isinstance(source, str | int) else source:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def source_of(column: OwnColumn) -> Source:
    """Where the column's value is in an object."""
    return column.name if column.source is None else column.source


def objects(
    output: bytes, form: Format, rows: Sequence[str | int], notes: Notes, check: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """The objects of a command's output. `rows` is the path of their array. Raises DocumentError."""
    if form == "json":
        found: Iterator[Any] = _checked(_of_document(output, rows, notes), check)
    elif form == "json_lines":
        found = _of_lines(output, notes, check)
    else:
        found = _of_separated(output, "," if form == "csv" else "\t", notes, check)
    for value in found:
        if isinstance(value, dict):
            yield value
        else:
            notes.add("rows left out that are not JSON objects", clipped(repr(value)[:200]))


def _checked(items: Iterable[_T], check: Callable[[], None]) -> Iterator[_T]:
    """The items, also those that are left out later, with a check before the first one and every few of them."""
    for number, item in enumerate(items):
        if number % ROWS_BETWEEN_CHECKS == 0:
            check()
        yield item


def _of_document(output: bytes, rows: Sequence[str | int], notes: Notes) -> Iterator[Any]:
    if not output.strip():
        return
    try:
        document = decode_json(output.removeprefix(BYTE_ORDER_MARK))
    except DocumentError as error:
        raise DocumentError(f"the output is not JSON: {error}") from None
    if rows:
        document = value_at(document, rows)
        if document is None:
            notes.add(f"outputs without anything at {'.'.join(map(str, rows))}")
            return
    if isinstance(document, dict):
        yield document
    elif isinstance(document, list):
        yield from document
    else:
        raise DocumentError("the output is neither a JSON object nor an array of them")


def _of_lines(output: bytes, notes: Notes, check: Callable[[], None]) -> Iterator[Any]:
    for line in _checked(output.removeprefix(BYTE_ORDER_MARK).splitlines(), check):
        if not line.strip():
            continue
        try:
            yield decode_json(line)
        except DocumentError as error:
            notes.add("lines left out that are not JSON", f"{clipped(from_bytes(line), 40)} ({error})")


def _of_separated(output: bytes, separator: str, notes: Notes, check: Callable[[], None]) -> Iterator[Any]:
    csv.field_size_limit(FIELD_CHARACTERS_MAX)
    text = from_bytes(output.removeprefix(BYTE_ORDER_MARK))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = _checked(reader, check)
        header = next(filter(None, lines), None)
        if header is None:
            return
        names = [name.strip() for name in header]
        if len(set(names)) < len(names):
            raise DocumentError("a name is in the header twice")
        for fields in lines:
            if not fields:
                continue
            if len(fields) != len(names):
                notes.add(f"lines left out that do not have {len(names)} fields", separator.join(fields)[:200])
                continue
            yield dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise DocumentError(f"line {reader.line_num} of the output: {error}") from None
