"""The stored result of a query: its digest, its limits, and how rows are hashed.

Two rows are the same when their packed forms are, so `0`, `0.0`, `False`, `""` and NULL are five different cells. The
digest of a result is the sum of its rows' hashes, modulo 2¹²⁸, with their number: it does not depend on their order.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from zeek_agent.errors import ZeekAgentError
from zeek_agent.schema import Value

RowCells: TypeAlias = tuple[Value, ...]
ColumnTypes: TypeAlias = tuple[tuple[str, str], ...]
"""Names and types of a result's columns. A result with other ones starts over."""

Count = Annotated[int, Meta(ge=0, le=2**53)]

HASH_BYTES: Final = 16
HASH_MODULUS: Final = 1 << (8 * HASH_BYTES)
KEY_BYTES: Final = 32
QUERY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Maximum size of one query's stored result."""
ROW_OVERHEAD: Final = 32
"""Bytes that a stored row takes in addition to its packed cells."""
ROWS_MAX: Final = 2**31 - 1
UNREAD_BYTES_MAX: Final = 8 * 1024 * 1024
"""Maximum size of the packed paths of unread files; the rest is dropped, so that more rows are kept, never fewer."""

pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder().decode
_unpack_columns: Final = msgspec.msgpack.Decoder(ColumnTypes).decode
_unpack_unread: Final = msgspec.msgpack.Decoder(frozenset[str]).decode


class ResultStateError(ZeekAgentError):
    """The stored result of a query cannot be read, changed or saved."""


class OverBudgetError(ResultStateError):
    """A result does not fit into the budget for stored results."""


class StaleDeltaError(ResultStateError):
    """A delta does not belong to the stored result, which has changed or was lost: the query starts over."""


class InvalidDeltaError(ResultStateError):
    """A delta file is malformed, as a compromised worker may write it."""


class DamagedResultError(ResultStateError):
    """A stored result is not the one that its digest describes."""


class UnavailableError(ResultStateError):
    """The file of stored results cannot be used at the moment, for example because the disk is full."""


class ResultState(Struct, frozen=True, array_like=True):
    """The stored result of one query, without its rows and unread paths."""

    query: Count
    """Number of the query in the file, never reused."""
    columns: ColumnTypes
    total: bytes
    """Sum of the rows' hashes."""
    rows: Count
    row_bytes: Count
    """Size of the distinct rows, overhead included."""
    extra_bytes: Count
    """Size of the columns and of the unread paths."""
    sequence: bytes
    """Hash of the rows in the order of the result that was stored last; empty when rows that it lacked were kept."""

    @property
    def digest(self) -> bytes:
        return digest(int.from_bytes(self.total), self.rows)

    @property
    def stored_bytes(self) -> int:
        return self.row_bytes + self.extra_bytes


class Basis(Struct, frozen=True, array_like=True):
    """What the process that compares a new result with the stored one needs to know."""

    uri: str
    """The file of stored results, to be opened read-only; another one after the file was replaced."""
    hash_key: bytes
    state: ResultState | None
    """None where nothing is stored yet."""
    bytes_max: Count
    """Maximum size of this query's stored result."""


def digest(total: int, rows: int) -> bytes:
    """The digest of a result by the sum of its rows' hashes and their number."""
    return total.to_bytes(HASH_BYTES) + rows.to_bytes(8)


def row_hasher(hash_key: bytes) -> hashlib.blake2b:
    """Copied for each row, which is faster than to begin with the key."""
    return hashlib.blake2b(key=hash_key, digest_size=HASH_BYTES)


def sequence_hasher(hash_key: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(key=hash_key, digest_size=HASH_BYTES, person=b"sequence")


def unpack_row(packed: bytes) -> RowCells:
    """The cells of a stored row. Raises DamagedResultError."""
    try:
        cells = _unpack(packed)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedResultError(f"a stored row cannot be decoded: {error}") from error
    if not isinstance(cells, list):
        raise DamagedResultError("a stored row is not a list of cells")
    return tuple([_frozen(cell) if type(cell) is list else cell for cell in cells])


def _frozen(cell: Value) -> Value:
    return tuple(map(_frozen, cell)) if isinstance(cell, list) else cell


def unpack_columns(packed: bytes) -> ColumnTypes:
    """Raises DamagedResultError."""
    try:
        return _unpack_columns(packed)
    except msgspec.DecodeError as error:
        raise DamagedResultError(f"stored columns cannot be decoded: {error}") from error


def pack_unread(paths: Iterable[str]) -> bytes:
    """Paths of files that were not read, packed; as many as `UNREAD_BYTES_MAX` suffices for."""
    kept, left = [], UNREAD_BYTES_MAX - 5
    for path in sorted(paths):
        left -= len(path.encode(errors="surrogatepass")) + 5
        if left < 0:
            break
        kept.append(path)
    return pack(kept)


def unpack_unread(packed: bytes) -> frozenset[str]:
    """Raises DamagedResultError."""
    try:
        return _unpack_unread(packed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedResultError(f"stored paths cannot be decoded: {error}") from error


def may_be_unread(unread: frozenset[str], newly_unread: bool, all_paths: bool) -> Callable[[Sequence[Value]], bool]:
    """A predicate: whether a row may be missing only because a file was not read, wholly or in part.

    `unread` are the paths of such files, and of directories. A row with one of these paths, or with a path below one,
    is missing for that; a row without any path as long as some file is `newly_unread`. If not `all_paths` are known,
    any row may be.
    """

    def predicate(row: Sequence[Value]) -> bool:
        if not all_paths:
            return True
        paths = [cell for cell in row if isinstance(cell, str) and cell.startswith("/")]
        return any(_is_among(path, unread) for path in paths) if paths else newly_unread

    return predicate


def _is_among(path: str, paths: frozenset[str]) -> bool:
    while path not in paths:
        above = posixpath.dirname(path)
        if above == path:
            return False
        path = above
    return True
