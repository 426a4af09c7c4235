"""Rows of a table with privileges, from the helper process that reads it to the worker that runs the statement.

The rows are in a spool, as chunks: four bytes with the length, and a msgpack array of rows. The reader trusts neither
the lengths nor the content. Values are as the table yields them; the reading worker checks them like any table's.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec

from zeek_agent.config.sections import LimitSettings
from zeek_agent.containment import channel, messages
from zeek_agent.containment.messages import TableArguments
from zeek_agent.database.cells import storable
from zeek_agent.database.results import RowErrors
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.host.files.reads import FileReads
from zeek_agent.schema import Row
from zeek_agent.table import Constraints, Table, TableContext

CHUNK_ROWS: Final = 64
ARGUMENTS_BYTES_MAX: Final = channel.INLINE_BYTES - 4_096
"""Longest packed arguments, which leaves room for the rest of the message."""
_LENGTH: Final = struct.Struct("=I")
_decode_rows: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


def packed_arguments(table: str, wanted: Constraints) -> bytes:
    """What the statement asks of the table, as msgpack. Raises LimitError if its parameters are too long.

    A table need not use equalities, so those that are too long are left out.
    """
    columns = sorted(wanted.columns)
    equalities = {name: list(values) for name, values in wanted.equalities.items()}
    for equal in (equalities, {}):
        packed = messages.encode(TableArguments(dict(wanted.parameters), equal, columns))
        if len(packed) <= ARGUMENTS_BYTES_MAX:
            return packed
    raise LimitError(f"table {table}: its parameters take more than {ARGUMENTS_BYTES_MAX} bytes")


def write_rows(
    spool: int,
    table: Table,
    arguments: TableArguments,
    context: TableContext,
    *,
    limits: LimitSettings,
    seconds: float,
) -> tuple[int, list[str]]:
    """Write the table's rows: their size in bytes, and errors about omitted ones. Raises SqlError."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > deadline:
            raise LimitError(f"the statement took longer than {limits.time:g} s (limits.time), in table {table.name}")

    reads = FileReads(limits)
    errors = RowErrors()
    wanted = Constraints(
        context=TableContext(context.agent, context.access, reads),
        parameters=arguments.parameters,
        equalities={name: frozenset(values) for name, values in arguments.equalities.items()},
        columns=frozenset(arguments.columns),
        check=check,
        report=errors.add,
    )
    try:
        size_bytes = _write(spool, table, wanted, limits, errors)
    except (SqlError, MemoryError):
        raise
    except Exception as error:
        raise SqlError(f"table {table.name}: {str(error) or type(error).__name__}") from error
    if omitted := reads.omissions():
        errors.add(f"table {table.name}: {omitted.summary()}")
    return size_bytes, list(errors.texts())


def read_rows(spool: int, size_bytes: int) -> Iterator[Row]:
    """The rows in a spool, which is closed at the end. Raises SqlError if they are not what a helper writes."""
    with os.fdopen(spool, "rb", buffering=0) as file:
        offset = 0
        while offset < size_bytes:
            (length,) = _LENGTH.unpack(_read(file.fileno(), offset, _LENGTH.size))
            offset += _LENGTH.size
            if length > size_bytes - offset:
                raise SqlError("the rows of a helper process are damaged: a chunk is longer than the spool")
            try:
                rows = _decode_rows(_read(file.fileno(), offset, length))
            except msgspec.DecodeError as error:
                raise SqlError(f"the rows of a helper process are damaged: {error}") from error
            offset += length
            yield from map(tuple, rows)


def _write(spool: int, table: Table, wanted: Constraints, limits: LimitSettings, errors: RowErrors) -> int:
    rows, name = table.rows(wanted), table.name
    size_bytes = count = 0
    while chunk := list(islice(rows, CHUNK_ROWS)):
        wanted.check()
        count += len(chunk)
        if count > limits.rows:
            raise LimitError(f"table {name} has more than {limits.rows} rows (limits.rows)")
        packed = _packed(chunk, name, errors)
        size_bytes += _LENGTH.size + len(packed)
        if size_bytes > limits.result_bytes:
            raise LimitError(
                f"the rows of table {name} are larger than {limits.result_bytes} bytes (limits.result_bytes)"
            )
        _write_all(spool, _LENGTH.pack(len(packed)) + packed)
    wanted.check()
    return size_bytes


def _packed(chunk: list[Row], name: str, errors: RowErrors) -> bytes:
    """The rows as msgpack, without those that have a value of no SQL type."""
    try:
        return messages.encode(chunk)
    except (TypeError, ValueError, OverflowError):
        packable = []
        for row in chunk:
            try:
                plain = [storable(value) if isinstance(value, str) else value for value in row]
                messages.encode(plain)
            except (TypeError, ValueError, OverflowError) as error:
                errors.add(f"table {name}: row omitted: {error}")
            else:
                packable.append(plain)
        return messages.encode(packable)


def _write_all(spool: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(spool, left) :]


def _read(spool: int, offset: int, length: int) -> bytes:
    content = os.pread(spool, length, offset)
    if len(content) != length:
        raise SqlError("the rows of a helper process are damaged: its spool ends early")
    return content
