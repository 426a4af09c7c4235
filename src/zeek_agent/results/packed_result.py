"""A result, packed: in memory while it is small, else in a file. Its rows can be gone through again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from zeek_agent.results.delta import read_at, write_at
from zeek_agent.results.state import OverBudgetError, RowCells, pack, sequence_hasher

BUFFER_BYTES: Final = 8 * 1024 * 1024
"""Size, with `_OBJECT_BYTES` a row, from which on a result is kept in a file."""
_OBJECT_BYTES: Final = 48
_BATCH_ROWS_MAX: Final = 1_000
_BATCH_ROWS_FIRST: Final = 32
_BATCH_BYTES: Final = 1_048_576
_LENGTH_BITS: Final = 28
_ROW_BYTES_MAX: Final = 1 << _LENGTH_BITS
_split: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class PackedResult:
    """The packed rows of a result. A row's place is its number in memory, its offset and length in the file.

    The file begins with the rows; what is appended to it by `append` comes after those of a result that is in it.
    """

    def __init__(self, descriptor: int, hash_key: bytes) -> None:
        self.rows = 0
        self.end = 0
        """Length of the file."""
        self._descriptor = descriptor
        self._hasher = sequence_hasher(hash_key)
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._batches: list[tuple[int, int]] = []
        """Of a result in the file: length and rows of each batch."""

    @property
    def in_memory(self) -> bool:
        return not self._batches

    @property
    def sequence(self) -> bytes:
        """Hash of all rows in their order."""
        return self._hasher.digest()

    def extend(self, rows: Iterable[RowCells]) -> None:
        """Add rows, batch by batch; a batch of large rows is a small one."""
        rows = iter(rows)
        size = _BATCH_ROWS_FIRST
        while batch := list(map(pack, islice(rows, size))):
            length = self.add(batch)
            size = max(1, min(_BATCH_ROWS_MAX, _BATCH_BYTES * len(batch) // (length + 1)))

    def add(self, batch: list[bytes]) -> int:
        """Add packed rows; their size."""
        joined = b"".join(batch)
        self._hasher.update(joined)
        self.rows += len(batch)
        if self.in_memory:
            self._buffered += batch
            self._buffered_bytes += len(joined) + _OBJECT_BYTES * len(batch)
            if self._buffered_bytes > BUFFER_BYTES:
                self._move_to_file()
        else:
            self._write(joined, len(batch))
        return len(joined)

    def batches(self) -> Iterator[tuple[list[bytes], Iterable[int]]]:
        """The rows in their order, with their places."""
        if self.in_memory:
            yield self._buffered, range(self.rows)
            return
        offset = 0
        for length, number in self._batches:
            header = b"\xdd" + number.to_bytes(4)
            batch = list(map(bytes, _split(header + read_at(self._descriptor, length, offset))))
            places = []
            for row in batch:
                places.append(offset << _LENGTH_BITS | len(row))
                offset += len(row)
            yield batch, places

    def row(self, place: int) -> bytes:
        """The row at a place."""
        if self.in_memory:
            return self._buffered[place]
        offset, length = _extent(place)
        return read_at(self._descriptor, length, offset)

    def append(self, place: int) -> tuple[int, int]:
        """The row's offset and length in the file, to which it is written if it is in memory only."""
        if not self.in_memory:
            return _extent(place)
        offset, row = self.end, self._buffered[place]
        self.end = write_at(self._descriptor, row, offset)
        return offset, len(row)

    def _move_to_file(self) -> None:
        buffered, self._buffered = self._buffered, []
        for first in range(0, len(buffered), _BATCH_ROWS_MAX):
            batch = buffered[first : first + _BATCH_ROWS_MAX]
            self._write(b"".join(batch), len(batch))

    def _write(self, joined: bytes, rows: int) -> None:
        if len(joined) >= _ROW_BYTES_MAX:
            raise OverBudgetError(f"rows of {len(joined)} bytes are too large to be compared")
        self.end = write_at(self._descriptor, joined, self.end)
        self._batches.append((len(joined), rows))


def _extent(place: int) -> tuple[int, int]:
    return place >> _LENGTH_BITS, place & (_ROW_BYTES_MAX - 1)
