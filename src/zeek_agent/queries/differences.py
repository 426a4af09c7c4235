"""Differences between two results as multisets of whole rows, and the form in which a result is kept on disk."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from zeek_agent.schema import Value

RowCells: TypeAlias = tuple[Value, ...]
ColumnTypes: TypeAlias = tuple[tuple[str, str], ...]
"""Names and types of a result's columns."""

_FORMAT = 3
_FORMAT_WITHOUT_UNREAD = 2
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_unpacked_old = msgspec.msgpack.Decoder(tuple[int, ColumnTypes, dict[bytes, int]]).decode
_unpacked = msgspec.msgpack.Decoder(tuple[int, ColumnTypes, dict[bytes, int], frozenset[str]]).decode


class ResultSnapshot:
    """A result as a multiset of rows. Two rows are equal when all their cells are, types included.

    Rows are kept encoded, which takes a quarter of the memory; a result may have tens of thousands of them.
    """

    __slots__ = ("_rows", "columns", "unread")

    def __init__(self, columns: ColumnTypes, rows: Iterable[RowCells], unread: Iterable[str] = ()) -> None:
        self.columns = columns
        self._rows = Counter(map(_encode, rows))
        self.unread = frozenset(unread)
        """Paths of files whose rows were already missing in the first result."""

    def all_rows(self) -> list[RowCells]:
        """All rows, repeated as often as they occur."""
        return _decoded_rows(self._rows)

    def removed_rows(self, later: ResultSnapshot) -> list[RowCells]:
        """Rows of this snapshot that `later` lacks, repeated as often as they are missing."""
        return _decoded_rows(self._rows - later._rows)

    def added_rows(self, later: ResultSnapshot) -> list[RowCells]:
        """Rows of `later` that this snapshot lacks, repeated as often as they are new."""
        return _decoded_rows(later._rows - self._rows)

    def keep_unread(self, earlier: ResultSnapshot, is_unread: Callable[[RowCells], bool]) -> None:
        """Take over rows of an earlier snapshot that are missing only because their file could not be read."""
        for row, times in (earlier._rows - self._rows).items():
            if is_unread(_decoded_cells(_decode(row))):
                self._rows[row] += times

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultSnapshot) and self.columns == other.columns and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def pack(self) -> bytes:
        """The snapshot as bytes for `unpack`."""
        return zlib.compress(_encode((_FORMAT, self.columns, self._rows, self.unread)), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> ResultSnapshot:
        """The snapshot that `pack` of this or an earlier release returned. Raises ValueError for anything else."""
        try:
            content = zlib.decompress(packed)
            try:
                version, columns, rows, unread = _unpacked(content)
            except msgspec.ValidationError:
                version, columns, rows = _unpacked_old(content)
                unread = frozenset()
        except (zlib.error, msgspec.DecodeError) as error:
            raise ValueError(f"not a snapshot: {error}") from error
        if version not in (_FORMAT, _FORMAT_WITHOUT_UNREAD):
            raise ValueError(f"snapshot of format {version}")
        snapshot = cls(columns, (), unread)
        snapshot._rows.update(rows)
        return snapshot


def _decoded_rows(rows: Counter[bytes]) -> list[RowCells]:
    return [cells for row, times in rows.items() for cells in [_decoded_cells(_decode(row))] * times]


def _decoded_cells(row: Sequence[Value]) -> RowCells:
    return tuple(_hashable(cell) for cell in row)


def _hashable(cell: Value) -> Value:
    return tuple(_hashable(part) for part in cell) if isinstance(cell, list) else cell
