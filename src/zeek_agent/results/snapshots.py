"""The packed snapshots that earlier versions kept in the event store become stored results, once."""

from __future__ import annotations

import logging
import tempfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from zeek_agent.events.reading import read_rows
from zeek_agent.host.files.reads import Omissions
from zeek_agent.results.comparison import Reporting, compare_packed
from zeek_agent.results.delta import check_list
from zeek_agent.results.packed_result import PackedResult
from zeek_agent.results.reader import ResultReader
from zeek_agent.results.state import ColumnTypes, InvalidDeltaError, ResultStateError

if TYPE_CHECKING:
    from pathlib import Path

    from zeek_agent.events.store import EventStore
    from zeek_agent.results.store import ResultStore

log = logging.getLogger(__name__)

_FORMAT: Final = 3
_FORMAT_WITHOUT_UNREAD: Final = 2
_INFLATED_BYTES: Final = 65_536
_BATCH_ROWS: Final = 1_000
_BATCH_BYTES: Final = 1_048_576
_ROW_TIMES_MAX: Final = 100_000_000


def take_snapshots(results: ResultStore, events: EventStore, directory: Path | None = None) -> int:
    """Take over the snapshots in the event store, and clear them there. Returns the number of those taken over.

    To be called at the start, before queries are installed. Each key that has a result already keeps it. A snapshot
    that cannot be read or is over the budget is dropped: its query starts over, which is logged. Everything is on the
    disk before it is cleared, so that after a crash it is done again, and it is not done again after that. `directory`
    is where a temporary file is made. Raises ResultStateError, apsw.Error or OSError, when nothing was cleared.
    """
    kept = dict(read_rows(events.uri, "SELECT key, time FROM _delivered WHERE snapshot IS NOT NULL"))
    taken: dict[str, float] = {}
    if not results.took_snapshots:
        for key, used in kept.items():
            delivered = events.delivered(key)
            if delivered is None or delivered.snapshot is None or results.state(key) is not None:
                continue
            try:
                take_snapshot(results, key, delivered.snapshot, directory)
            except (ResultStateError, ValueError) as error:
                log.warning("the last result of a query cannot be taken over: it starts over: %s", error)
            else:
                taken[key] = used
        results.take_snapshots(taken)
    if not results.in_memory:
        for key in kept:
            if (delivered := events.delivered(key)) is not None:
                events.acknowledge(key, delivered.seqs, None, delivered.under_way, owner=delivered.owner)
    return len(taken)


def take_snapshot(results: ResultStore, key: str, packed: bytes, directory: Path | None = None) -> None:
    """Store one snapshot as the result of a query. Raises ValueError if it is not one, ResultStateError."""
    basis = results.basis(key)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        snapshot = _Snapshot(packed)
        result = PackedResult(file.fileno(), basis.hash_key)
        for batch in snapshot.batches():
            result.add(batch)
        difference = compare_packed(
            basis,
            snapshot.columns,
            result,
            file.fileno(),
            reporting=Reporting.CHANGES,
            reported=False,
            omitted=Omissions(unread=snapshot.unread),
            reader=lambda: ResultReader(basis.uri),
        )
        expected = basis.state.digest if basis.state else None
        results.apply(key, file.fileno(), difference.delta_bytes, expected)


class _Snapshot:
    """A packed snapshot, read as a stream: inflated, it may be many times as large.

    It is a zlib-compressed MessagePack array: format, columns, a map from packed rows to counts, and, in the present
    format, the paths of unread files. `unread` is set once `batches` has ended. Raises ValueError.
    """

    def __init__(self, packed: bytes) -> None:
        self.columns: ColumnTypes = ()
        self.unread = frozenset[str]()
        self._inflater = zlib.decompressobj()
        self._packed = packed
        self._buffer = b""
        self._at = 0
        parts = self._length(0x90, 0x0F, b"\xdc", b"\xdd")
        version = self._bytes(1)[0]
        if (version, parts) not in ((_FORMAT, 4), (_FORMAT_WITHOUT_UNREAD, 3)):
            raise ValueError(f"not a snapshot, or one of format {version}")
        self._has_unread = version == _FORMAT
        self.columns = self._decoded_columns()

    def batches(self) -> Iterator[list[bytes]]:
        """The packed rows, repeated as often as in the result."""
        batch: list[bytes] = []
        size = 0
        for _ in range(self._length(0x80, 0x0F, b"\xde", b"\xdf")):
            row, times = self._blob(), self._number()
            try:
                check_list(row, len(self.columns), len(self.columns))
            except InvalidDeltaError as error:
                raise ValueError("a snapshot with a row that cannot be decoded") from error
            if times > _ROW_TIMES_MAX:
                raise ValueError(f"a snapshot with the same row {times} times")
            for _ in range(times):
                batch.append(row)
                size += len(row)
                if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch
        if self._has_unread:
            number = self._length(0x90, 0x0F, b"\xdc", b"\xdd")
            self.unread = frozenset(self._text() for _ in range(number))

    def _decoded_columns(self) -> ColumnTypes:
        number = self._length(0x90, 0x0F, b"\xdc", b"\xdd")
        columns = []
        for _ in range(number):
            if self._length(0x90, 0x0F, b"\xdc", b"\xdd") != 2:
                raise ValueError("not a snapshot: a column has a name and a type")
            columns.append((self._text(), self._text()))
        return tuple(columns)

    def _bytes(self, number: int) -> bytes:
        while len(self._buffer) - self._at < number:
            try:
                more = self._inflater.decompress(self._packed, _INFLATED_BYTES)
            except zlib.error as error:
                raise ValueError(f"not a snapshot: {error}") from error
            self._packed = self._inflater.unconsumed_tail
            if not more:
                raise ValueError("not a snapshot: it ends too early")
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        self._at += number
        return self._buffer[self._at - number : self._at]

    def _length(self, fixed: int, mask: int, *longer: bytes) -> int:
        """The length of an array, map, text or blob, by the first byte of its short form and those of longer ones."""
        first = self._bytes(1)
        if mask and first[0] & ~mask & 0xFF == fixed:
            return first[0] & mask
        if first not in longer:
            raise ValueError("not a snapshot: another type of value was expected")
        size = 4 >> (len(longer) - 1 - longer.index(first))
        return int.from_bytes(self._bytes(size))

    def _text(self) -> str:
        return self._bytes(self._length(0xA0, 0x1F, b"\xd9", b"\xda", b"\xdb")).decode()

    def _blob(self) -> bytes:
        return self._bytes(self._length(0, 0, b"\xc4", b"\xc5", b"\xc6"))

    def _number(self) -> int:
        first = self._bytes(1)
        if first[0] < 0x80:
            return first[0]
        if not b"\xcc" <= first <= b"\xcf":
            raise ValueError("not a snapshot: a number was expected")
        return int.from_bytes(self._bytes(1 << (first[0] - 0xCC)))
