"""The delta file, which takes a stored result to the next one.

A worker writes it, the main process applies it once the recipient has the rows. Its parts, one after the other:

    rows        packed rows; more than those that are new when the result was too large to hold in memory
    additions   32 bytes each: hash of the row, its place among the rows, its length, how many more there are
    removals    20 bytes each: hash of the row, how many fewer there are
    unread      packed paths of the files that were not read
    trailer     `Trailer`, packed
    end         8 bytes: length of the trailer, magic number

Additions and removals are in the order of their hashes, each hash once. Integers are big-endian. The worker may be
compromised, so a reader believes nothing: each part is copied before it is checked, since the writer can still change
the file, and a row counts only under its own hash.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from zeek_agent.results.state import (
    HASH_BYTES,
    ROW_OVERHEAD,
    ROWS_MAX,
    UNREAD_BYTES_MAX,
    ColumnTypes,
    Count,
    InvalidDeltaError,
    pack,
    row_hasher,
)

ADDITION: Final = struct.Struct(">16sQII")
REMOVAL: Final = struct.Struct(">16sI")
_END: Final = struct.Struct(">II")
_MAGIC: Final = 0x5A_41_44_31
_VERSION: Final = 1
_TRAILER_BYTES_MAX: Final = 1_048_576
_COLUMNS_MAX: Final = 32_767
_UNREAD_MAX: Final = 100_000
_CHUNK_RECORDS: Final = 2_048
_READ_AT_ONCE: Final = 1_048_576


class Trailer(Struct, frozen=True, array_like=True):
    """The next stored result, and the sizes of the delta's parts."""

    version: int
    replaces: bool
    """Whether the stored rows are all dropped first, because the columns have changed or nothing is stored."""
    columns: ColumnTypes
    total: bytes
    rows: Count
    row_bytes: Count
    sequence: bytes
    rows_end: Count
    additions: Count
    removals: Count
    unread_bytes: Count


class Addition(NamedTuple):
    """A row that the stored result lacks, or has fewer times."""

    hash: bytes
    row: bytes
    times: int


class Removal(NamedTuple):
    """A row that the stored result has too many times."""

    hash: bytes
    times: int


_decode_trailer: Final = msgspec.msgpack.Decoder(Trailer).decode
_decode_list: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def _seek_and_write(descriptor: int, content: memoryview, offset: int) -> int:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, content)


def _seek_and_read(descriptor: int, length: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)


# Windows lacks pread and pwrite. There, no other process has the file, and no other thread uses it.
_write: Final[Callable[[int, memoryview, int], int]] = getattr(os, "pwrite", _seek_and_write)
_read: Final[Callable[[int, int, int], bytes]] = getattr(os, "pread", _seek_and_read)


def write_at(descriptor: int, content: bytes | bytearray, offset: int) -> int:
    """Write all of it; the offset behind it. Raises OSError, also when the file may not become as long."""
    left = memoryview(content)
    while left:
        written = _write(descriptor, left, offset)
        offset += written
        left = left[written:]
    return offset


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Read exactly so many bytes. Raises InvalidDeltaError when the file ends before, OSError."""
    parts = []
    while length:
        part = _read(descriptor, length, offset)
        if not part:
            raise InvalidDeltaError("a delta file is shorter than it says")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def finish(
    descriptor: int,
    *,
    replaces: bool,
    columns: ColumnTypes,
    total: bytes,
    rows: int,
    row_bytes: int,
    sequence: bytes,
    rows_end: int,
    additions: bytes | bytearray,
    removals: bytes | bytearray,
    unread: bytes,
) -> int:
    """Write what follows the rows; the length of the file."""
    trailer = Trailer(
        version=_VERSION,
        replaces=replaces,
        columns=columns,
        total=total,
        rows=rows,
        row_bytes=row_bytes,
        sequence=sequence,
        rows_end=rows_end,
        additions=len(additions) // ADDITION.size,
        removals=len(removals) // REMOVAL.size,
        unread_bytes=len(unread),
    )
    end = write_at(descriptor, additions, rows_end)
    end = write_at(descriptor, removals, end)
    end = write_at(descriptor, unread, end)
    packed = pack(trailer)
    return write_at(descriptor, packed + _END.pack(len(packed), _MAGIC), end)


class DeltaFile:
    """A delta to be read, of which nothing but the trailer has been. Raises InvalidDeltaError, OSError."""

    def __init__(self, descriptor: int, length: int) -> None:
        self._descriptor = descriptor
        if length < _END.size:
            raise InvalidDeltaError(f"a delta file of {length} bytes is too short")
        trailer_bytes, magic = _END.unpack(read_at(descriptor, _END.size, length - _END.size))
        begin = length - _END.size - trailer_bytes
        if magic != _MAGIC or trailer_bytes > _TRAILER_BYTES_MAX or begin < 0:
            raise InvalidDeltaError("a delta file has an invalid end")
        self.trailer: Final = _checked(read_at(descriptor, trailer_bytes, begin))
        trailer = self.trailer
        self._additions = trailer.rows_end
        self._removals = self._additions + trailer.additions * ADDITION.size
        self._unread = self._removals + trailer.removals * REMOVAL.size
        if self._unread + trailer.unread_bytes != begin:
            raise InvalidDeltaError("the parts of a delta file do not add up to its length")

    def unread(self) -> bytes:
        """The packed paths of unread files."""
        packed = read_at(self._descriptor, self.trailer.unread_bytes, self._unread)
        check_list(packed, 0, _UNREAD_MAX)
        return packed

    def removals(self) -> Iterator[Removal]:
        before = b""
        for hash_, times in self._records(REMOVAL, self._removals, self.trailer.removals):
            if hash_ <= before or not 0 < times <= ROWS_MAX:
                raise InvalidDeltaError("a delta file has an invalid removal")
            before = hash_
            yield Removal(hash_, times)

    def additions(self, hash_key: bytes, bytes_max: int) -> Iterator[Addition]:
        """The rows to add, whose size, overhead included, is at most `bytes_max`."""
        hasher, columns = row_hasher(hash_key), len(self.trailer.columns)
        rows = _Rows(self._descriptor, self.trailer.rows_end)
        before = b""
        for hash_, place, length, times in self._records(ADDITION, self._additions, self.trailer.additions):
            bytes_max -= length + ROW_OVERHEAD
            if bytes_max < 0:
                raise InvalidDeltaError("a delta file has more rows than it says")
            if hash_ <= before or not 0 < times <= ROWS_MAX:
                raise InvalidDeltaError("a delta file has an invalid addition")
            row = rows.read(place, length)
            check_list(row, columns, columns)
            of_row = hasher.copy()
            of_row.update(row)
            if of_row.digest() != hash_:
                raise InvalidDeltaError("a delta file has a row under another hash than its own")
            before = hash_
            yield Addition(hash_, row, times)

    def _records(self, record: struct.Struct, offset: int, count: int) -> Iterator[Any]:
        for first in range(0, count, _CHUNK_RECORDS):
            length = min(_CHUNK_RECORDS, count - first) * record.size
            yield from record.iter_unpack(read_at(self._descriptor, length, offset + first * record.size))


class _Rows:
    """Rows by place and length, of a part that is read at once if it is small."""

    def __init__(self, descriptor: int, end: int) -> None:
        self._descriptor = descriptor
        self._end = end
        self._all = read_at(descriptor, end, 0) if end <= _READ_AT_ONCE else None

    def read(self, place: int, length: int) -> bytes:
        if place + length > self._end:
            raise InvalidDeltaError("a delta file has a row outside its part")
        if self._all is not None:
            return self._all[place : place + length]
        return read_at(self._descriptor, length, place)


def _checked(packed: bytes) -> Trailer:
    try:
        trailer = _decode_trailer(packed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidDeltaError(f"the trailer of a delta file cannot be decoded: {error}") from error
    if trailer.version != _VERSION:
        raise InvalidDeltaError(f"a delta file has version {trailer.version}")
    if (
        len(trailer.total) != HASH_BYTES
        or len(trailer.sequence) not in (0, HASH_BYTES)
        or len(trailer.columns) > _COLUMNS_MAX
        or trailer.rows > ROWS_MAX
        or trailer.unread_bytes > UNREAD_BYTES_MAX
    ):
        raise InvalidDeltaError("the trailer of a delta file has invalid values")
    return trailer


def check_list(packed: bytes, least: int, most: int) -> None:
    """Check that these bytes are one MessagePack array, valid throughout. Raises InvalidDeltaError.

    Its length is checked before it is decoded, which needs memory for each member.
    """
    first = packed[:1]
    if b"\x90" <= first <= b"\x9f":
        members = first[0] & 0x0F
    elif first in (b"\xdc", b"\xdd"):
        size = 2 if first == b"\xdc" else 4
        members = int.from_bytes(packed[1 : 1 + size])
    else:
        raise InvalidDeltaError("a delta file has a list that is not one")
    if not least <= members <= most:
        raise InvalidDeltaError(f"a delta file has a list of {members} members, expected {least} to {most}")
    try:
        _decode_list(packed)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidDeltaError(f"a delta file has an invalid list: {error}") from error
