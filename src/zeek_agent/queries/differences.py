"""What changed between two results, as multisets of whole rows, and how a result is kept on disk for that."""

from __future__ import annotations

import posixpath
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
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
    """A result as a multiset of rows. Two rows are the same when all their cells are, types included.

    Rows are held encoded: a quarter of the memory, which counts where a result has ten thousands of them.
    """

    __slots__ = ("_rows", "columns", "unread")

    def __init__(self, columns: ColumnTypes, rows: Iterable[RowCells], unread: Iterable[str] = ()) -> None:
        self.columns = columns
        self._rows = Counter(map(_encode, rows))
        self.unread = frozenset(unread)
        """Paths of files whose rows were already missing in the first result."""

    def all(self) -> list[RowCells]:
        """All rows, each as often as it is there."""
        return _cells_of(self._rows)

    def gone(self, later: ResultSnapshot) -> list[RowCells]:
        """Rows of this snapshot that `later` has no more, each as often as it is missing."""
        return _cells_of(self._rows - later._rows)

    def new(self, later: ResultSnapshot) -> list[RowCells]:
        """Rows of `later` that this snapshot has not, each as often as it is new."""
        return _cells_of(later._rows - self._rows)

    def hold(self, earlier: ResultSnapshot, is_unread: Callable[[RowCells], bool]) -> None:
        """Take over the rows of an earlier snapshot that are missing only since their file could not be read."""
        for row, times in (earlier._rows - self._rows).items():
            if is_unread(_cells(_decode(row))):
                self._rows[row] += times

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultSnapshot) and self.columns == other.columns and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def pack(self) -> bytes:
        """The snapshot as bytes for `unpack`."""
        return zlib.compress(_encode((_FORMAT, self.columns, self._rows, self.unread)), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> ResultSnapshot:
        """The snapshot that `pack` wrote, also that of an earlier release. Raises ValueError when it is not one."""
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


def unread_rows(unread: Collection[str], newly_unread: bool, all_paths: bool) -> Callable[[RowCells], bool]:
    """A predicate: whether a row may be missing only because a file was not read, wholly or in part.

    `unread` are the paths of such files, and of directories. A row with one of them, or with a path below it, is
    missing for that; a row without any path as long as some file is `newly_unread`. Where `all_paths` is false any row
    may be.
    """
    paths = frozenset(unread)

    def is_unread(row: RowCells) -> bool:
        if not all_paths:
            return True
        mentioned = [cell for cell in row if isinstance(cell, str) and cell.startswith("/")]
        return any(_is_among(path, paths) for path in mentioned) if mentioned else newly_unread

    return is_unread


def _is_among(path: str, paths: frozenset[str]) -> bool:
    while path not in paths:
        above = posixpath.dirname(path)
        if above == path:
            return False
        path = above
    return True


def _cells_of(rows: Counter[bytes]) -> list[RowCells]:
    return [cells for row, times in rows.items() for cells in [_cells(_decode(row))] * times]


def _cells(row: Sequence[Value]) -> RowCells:
    return tuple(_frozen(cell) for cell in row)


def _frozen(cell: Value) -> Value:
    return tuple(_frozen(part) for part in cell) if isinstance(cell, list) else cell
