"""What changed between two results, as multisets of whole rows, and how a result is kept on disk for that."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from zeek_agent.schema import Value

Cells: TypeAlias = tuple[Value, ...]
Columns: TypeAlias = tuple[tuple[str, str], ...]
"""Names and types of a result's columns."""

_FORMAT = 1


class Snapshot:
    """A result as a multiset of rows. Two rows are the same when all their cells are, types included."""

    __slots__ = ("columns", "rows")

    def __init__(self, columns: Columns, rows: Iterable[Cells]) -> None:
        self.columns = columns
        self.rows = Counter(rows)

    def gone(self, later: Snapshot) -> list[Cells]:
        """Rows of this snapshot that `later` has no more, each as often as it is missing."""
        return list((self.rows - later.rows).elements())

    def new(self, later: Snapshot) -> list[Cells]:
        """Rows of `later` that this snapshot has not, each as often as it is new."""
        return list((later.rows - self.rows).elements())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self.columns == other.columns and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]

    def pack(self) -> bytes:
        """The snapshot as bytes for `unpack`."""
        rows = [(list(row), times) for row, times in self.rows.items()]
        return zlib.compress(msgspec.msgpack.encode([_FORMAT, self.columns, rows]), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> Snapshot:
        """The snapshot that `pack` wrote. Raises ValueError when the bytes are not one."""
        try:
            version, columns, rows = msgspec.msgpack.decode(zlib.decompress(packed))
            if version != _FORMAT:
                raise ValueError(f"snapshot of format {version}")
            snapshot = cls(tuple((name, type_) for name, type_ in columns), ())
            snapshot.rows = Counter({_cells(row): times for row, times in rows})
        except (zlib.error, msgspec.DecodeError, TypeError) as error:
            raise ValueError(f"not a snapshot: {error}") from error
        return snapshot


def _cells(row: Sequence[Value]) -> Cells:
    return tuple(_frozen(cell) for cell in row)


def _frozen(cell: Value) -> Value:
    return tuple(_frozen(part) for part in cell) if isinstance(cell, list) else cell
