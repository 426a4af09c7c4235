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

_FORMAT = 2
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_unpacked = msgspec.msgpack.Decoder(tuple[int, Columns, dict[bytes, int]]).decode


class Snapshot:
    """A result as a multiset of rows. Two rows are the same when all their cells are, types included.

    Rows are held encoded: a quarter of the memory, which counts where a result has ten thousands of them.
    """

    __slots__ = ("_rows", "columns")

    def __init__(self, columns: Columns, rows: Iterable[Cells]) -> None:
        self.columns = columns
        self._rows = Counter(map(_encode, rows))

    def all(self) -> list[Cells]:
        """All rows, each as often as it is there."""
        return _cells_of(self._rows)

    def gone(self, later: Snapshot) -> list[Cells]:
        """Rows of this snapshot that `later` has no more, each as often as it is missing."""
        return _cells_of(self._rows - later._rows)

    def new(self, later: Snapshot) -> list[Cells]:
        """Rows of `later` that this snapshot has not, each as often as it is new."""
        return _cells_of(later._rows - self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self.columns == other.columns and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def pack(self) -> bytes:
        """The snapshot as bytes for `unpack`."""
        return zlib.compress(_encode((_FORMAT, self.columns, self._rows)), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> Snapshot:
        """The snapshot that `pack` wrote. Raises ValueError when the bytes are not one."""
        try:
            version, columns, rows = _unpacked(zlib.decompress(packed))
        except (zlib.error, msgspec.DecodeError) as error:
            raise ValueError(f"not a snapshot: {error}") from error
        if version != _FORMAT:
            raise ValueError(f"snapshot of format {version}")
        snapshot = cls(columns, ())
        snapshot._rows.update(rows)
        return snapshot


def _cells_of(rows: Counter[bytes]) -> list[Cells]:
    return [cells for row, times in rows.items() for cells in [_cells(_decode(row))] * times]


def _cells(row: Sequence[Value]) -> Cells:
    return tuple(_frozen(cell) for cell in row)


def _frozen(cell: Value) -> Value:
    return tuple(_frozen(part) for part in cell) if isinstance(cell, list) else cell
