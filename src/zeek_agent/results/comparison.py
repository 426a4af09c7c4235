"""The differences between a new result and the stored one, found in a worker process.

Memory does not grow with the stored result. With the new one it grows by 24 bytes per row, a hash and a place, and with
the differences: one range of hashes is compared at a time.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from zeek_agent.results.delta import ADDITION, REMOVAL, finish
from zeek_agent.results.packed_result import PackedResult
from zeek_agent.results.state import (
    HASH_BYTES,
    HASH_MODULUS,
    ROW_OVERHEAD,
    ROWS_MAX,
    Basis,
    ColumnTypes,
    DamagedResultError,
    OverBudgetError,
    ResultState,
    RowCells,
    digest,
    may_be_unread,
    pack,
    pack_unread,
    row_hasher,
    unpack_row,
)

if TYPE_CHECKING:
    from zeek_agent.host.files.reads import Omissions
    from zeek_agent.results.reader import ResultReader

_T = TypeVar("_T")

_RANGE_ROWS: Final = 16_384
_RANGES_MAX: Final = 256
_FETCHED_ROWS: Final = 256
_FETCHED_BYTES: Final = 1_048_576


class Reporting(StrEnum):
    """Which rows the recipient gets."""

    CHANGES = "changes"
    """Rows that are gone, then new ones; none where nothing is stored yet."""
    NEW = "new"
    """New rows only."""
    ALL = "all"
    """The whole result."""


class RowChange(StrEnum):
    """Change of a row since the stored result."""

    GONE = "gone"
    NEW = "new"


class Comparison(Struct, frozen=True):
    """What a result is compared with, and what is reported of it.

    `reported` is whether the recipient has had a report already, so that nothing is due when nothing has changed.
    """

    basis: Basis
    reporting: Reporting
    reported: bool


@dataclass(slots=True)
class Difference:
    """What to report, and the delta to apply once the recipient has it."""

    delta_bytes: int
    """Length of the delta file; 0 if the stored result stays as it is and there is no delta."""
    digest: bytes
    """Of the result after the delta."""
    rows: int
    """Number of its rows."""
    stored_bytes: int
    """Its size in the file of stored results."""
    changes: Callable[[], Iterator[tuple[RowChange | None, RowCells]]] = field(repr=False)
    """The rows to report, in order; None for those of a whole result. They are decoded one by one."""


@dataclass(slots=True)
class _Gone:
    """Surplus rows of the stored result: packed `Removal` records, and the lengths of the rows."""

    records: bytearray = field(default_factory=bytearray)
    lengths: array[int] = field(default_factory=lambda: array("I"))


@dataclass(slots=True)
class _New:
    """Surplus rows of the new result: packed `Addition` records, and the places of the rows."""

    records: bytearray = field(default_factory=bytearray)
    places: array[int] = field(default_factory=lambda: array("Q"))
    times: dict[int, int] = field(default_factory=dict)
    """By place, the count of a row that is new more than once."""


@dataclass(slots=True)
class _Range:
    """Hashes of a result's rows that begin with the same bits, joined, and the places of these rows."""

    hashes: bytearray = field(default_factory=bytearray)
    places: array[int] = field(default_factory=lambda: array("Q"))


@dataclass(frozen=True, slots=True)
class _Multiset:
    """Distinct hashes, and the counts of those that occur more than once."""

    distinct: Set[bytes]
    more: Mapping[bytes, int]

    @classmethod
    def of(cls, hashes: list[bytes]) -> _Multiset:
        distinct = frozenset(hashes)
        if len(distinct) == len(hashes):
            return cls(distinct, {})
        return cls(distinct, {hash_: times for hash_, times in Counter(hashes).items() if times > 1})

    @property
    def rows(self) -> int:
        return len(self.distinct) + sum(self.more.values()) - len(self.more)

    @property
    def total(self) -> int:
        more = sum(int.from_bytes(hash_) * (times - 1) for hash_, times in self.more.items())
        return sum(map(int.from_bytes, self.distinct)) + more

    def times(self, hash_: bytes) -> int:
        return self.more.get(hash_, 1) if hash_ in self.distinct else 0

    def __sub__(self, other: _Multiset) -> dict[bytes, int]:
        """The surplus of each hash over another multiset, sorted by hash."""
        fewer = {hash_ for hash_, times in self.more.items() if times > other.times(hash_)}
        return {
            hash_: self.times(hash_) - other.times(hash_) for hash_ in sorted((self.distinct - other.distinct) | fewer)
        }


def compare(
    basis: Basis,
    columns: ColumnTypes,
    rows: Iterable[RowCells],
    descriptor: int,
    *,
    reporting: Reporting,
    reported: bool,
    omissions: Callable[[], Omissions],
    reader: Callable[[], ResultReader],
) -> Difference:
    """Compare the rows of a result with the stored ones, and write the delta file.

    `descriptor` is an empty file, open for reading and writing. `reported` is whether this query's recipient has had a
    report already, so that nothing is to be done when nothing has changed. `omissions` is called after the last row;
    rows of files that became unreadable are kept. `reader` opens the stored results; it is called only when
    they are needed. Raises ResultStateError, OSError, and what `rows` raises.
    """
    packed = PackedResult(descriptor, basis.hash_key)
    packed.extend(rows)
    return compare_packed(
        basis, columns, packed, descriptor, reporting=reporting, reported=reported, omitted=omissions(), reader=reader
    )


def compare_packed(
    basis: Basis,
    columns: ColumnTypes,
    packed: PackedResult,
    descriptor: int,
    *,
    reporting: Reporting,
    reported: bool,
    omitted: Omissions,
    reader: Callable[[], ResultReader],
) -> Difference:
    """The same for rows that are packed."""
    state = basis.state if basis.state is not None and basis.state.columns == columns else None
    comparison = _Comparison(basis, state, columns, packed, reader)
    return comparison.run(descriptor, reporting, reported, omitted)


class _Comparison:
    """One comparison: `state` is what the result is compared with, None if there is nothing."""

    def __init__(
        self,
        basis: Basis,
        state: ResultState | None,
        columns: ColumnTypes,
        packed: PackedResult,
        reader: Callable[[], ResultReader],
    ) -> None:
        self._basis = basis
        self._state = state
        self._columns = columns
        self._packed = packed
        self._reader = reader
        self._gone = _Gone()
        self._new = _New()
        self._total = int.from_bytes(state.total) if state else 0
        self._rows = state.rows if state else 0
        self._row_bytes = state.row_bytes if state else 0
        self._held = 0
        """Rows that the result lacks and that are kept."""

    def run(self, descriptor: int, reporting: Reporting, reported: bool, omitted: Omissions) -> Difference:
        state = self._state
        before = frozenset[str]()
        if state is not None and reporting is not Reporting.ALL:
            if omitted.unread or not reported:
                before = self._reader().unread(state.query)
            unread = omitted.unread & before
        else:
            unread = omitted.unread
        if state is None or self._packed.sequence != state.sequence:
            is_unread = None
            if omitted.unread and state is not None and reporting is not Reporting.ALL:
                newly = not omitted.unread <= before
                is_unread = may_be_unread(omitted.unread, newly, omitted.all_paths)
            self._compare(is_unread)
        return self._outcome(descriptor, reporting, reported, unread)

    # Comparing

    def _compare(self, is_unread: Callable[[RowCells], bool] | None) -> None:
        state = self._state
        number = _number_of_ranges(max(self._packed.rows, state.rows if state else 0))
        ranges, total = self._hashed(number)
        if state is not None and state.rows == self._packed.rows and int.from_bytes(state.total) == total:
            return  # only their order has changed
        stored_total = stored_rows = 0
        for index, (hashes, places) in enumerate(ranges):
            new, old = _Multiset.of(hashes), self._stored_range(index, number)
            stored_total += old.total
            stored_rows += old.rows
            self._note_gone(new, old, is_unread)
            self._note_new(new, old, hashes, places)
        if state is not None and digest(stored_total % HASH_MODULUS, stored_rows) != state.digest:
            raise DamagedResultError("the stored result is not the one that its digest describes")

    def _hashed(self, number: int) -> tuple[Iterable[tuple[list[bytes], Sequence[int]]], int]:
        """The hashes of all rows and their places, by range, and the sum of the hashes."""
        all_hashes: list[bytes] = []
        all_places = array("Q")
        ranges = [_Range() for _ in range(number)]
        shift = 8 - (number - 1).bit_length()
        copy = row_hasher(self._basis.hash_key).copy
        total = 0
        for batch, places in self._packed.batches():
            hashes = []
            for row in batch:
                hasher = copy()
                hasher.update(row)
                hashes.append(hasher.digest())
            total += sum(map(int.from_bytes, hashes))
            if number == 1:
                all_hashes += hashes
                all_places.extend(places)
                continue
            for hash_, place in zip(hashes, places, strict=True):
                one = ranges[hash_[0] >> shift]
                one.hashes += hash_
                one.places.append(place)
        return [(all_hashes, all_places)] if number == 1 else _used_up(ranges), total % HASH_MODULUS

    def _stored_range(self, index: int, number: int) -> _Multiset:
        if self._state is None:
            return _Multiset(frozenset(), {})
        step = 256 // number
        high = bytes([(index + 1) * step]) if index + 1 < number else None
        joined, more = self._reader().hashes(self._state.query, bytes([index * step]), high)
        return _Multiset(frozenset(_split(joined)), more)

    def _note_gone(self, new: _Multiset, old: _Multiset, is_unread: Callable[[RowCells], bool] | None) -> None:
        if not (gone := old - new):
            return
        assert self._state is not None
        hashes = list(gone)
        lengths = dict(zip(hashes, self._reader().lengths(self._state.query, hashes), strict=True))
        kept = self._kept(hashes, lengths, is_unread) if is_unread else frozenset()
        for hash_, times in gone.items():
            if hash_ in kept:
                self._held += times
                continue
            self._gone.records += REMOVAL.pack(hash_, times)
            self._gone.lengths.append(lengths[hash_])
            self._total -= int.from_bytes(hash_) * times
            self._rows -= times
            if times == old.times(hash_):
                self._row_bytes -= lengths[hash_] + ROW_OVERHEAD

    def _kept(
        self, hashes: list[bytes], lengths: dict[bytes, int], is_unread: Callable[[RowCells], bool]
    ) -> frozenset[bytes]:
        """The hashes of rows that may be missing only because their file was not read."""
        kept = set()
        for part in _parts(hashes, [lengths[hash_] for hash_ in hashes]):
            for hash_, row in zip(part, self._stored_rows(part), strict=True):
                if is_unread(unpack_row(row)):
                    kept.add(hash_)
        return frozenset(kept)

    def _note_new(self, new: _Multiset, old: _Multiset, hashes: list[bytes], places: Sequence[int]) -> None:
        if not (more := new - old):
            return
        entries = zip(reversed(hashes), reversed(places), strict=True)
        first = {hash_: place for hash_, place in entries if hash_ in more}
        for hash_, times in more.items():
            place = first[hash_]
            offset, length = self._packed.append(place)
            self._new.records += ADDITION.pack(hash_, offset, length, times)
            self._new.places.append(place)
            if times > 1:
                self._new.times[place] = times
            self._total += int.from_bytes(hash_) * times
            self._rows += times
            if hash_ not in old.distinct:
                self._row_bytes += length + ROW_OVERHEAD

    def _stored_rows(self, hashes: Sequence[bytes]) -> list[bytes]:
        assert self._state is not None
        return self._reader().packed_rows(self._state.query, hashes, self._basis.hash_key)

    # What follows from it

    def _outcome(self, descriptor: int, reporting: Reporting, reported: bool, unread: frozenset[str]) -> Difference:
        state = self._state
        is_same = state is not None and not self._gone.records and not self._new.records
        if is_same and state is not None:
            if reported:
                return Difference(0, state.digest, state.rows, state.stored_bytes, _nothing)
            if unread == self._reader().unread(state.query):
                return Difference(0, state.digest, state.rows, state.stored_bytes, self._changes(reporting))
        packed_unread = pack_unread(unread)
        size = self._row_bytes + len(pack(self._columns)) + len(packed_unread)
        if size > self._basis.bytes_max:
            raise OverBudgetError(
                f"its result takes {size} bytes to store, more than the {self._basis.bytes_max} left for it: select "
                "fewer rows or columns, or raise limits.state_bytes"
            )
        if self._rows > ROWS_MAX:
            raise OverBudgetError(f"its result has {self._rows} rows, too many to be compared")
        sequence = self._packed.sequence if not self._held else b""
        if is_same and state is not None:
            sequence = state.sequence
        length = finish(
            descriptor,
            replaces=state is None,
            columns=self._columns,
            total=(self._total % HASH_MODULUS).to_bytes(HASH_BYTES),
            rows=self._rows,
            row_bytes=self._row_bytes,
            sequence=sequence,
            rows_end=self._packed.end,
            additions=self._new.records,
            removals=self._gone.records,
            unread=packed_unread,
        )
        self._new.records = bytearray()  # in the file now
        new = digest(self._total % HASH_MODULUS, self._rows)
        return Difference(length, new, self._rows, size, self._changes(reporting))

    def _changes(self, reporting: Reporting) -> Callable[[], Iterator[tuple[RowChange | None, RowCells]]]:
        if reporting is Reporting.ALL:
            return self._all_rows
        if self._state is None:
            return _nothing
        return self._new_rows if reporting is Reporting.NEW else self._gone_and_new_rows

    def _all_rows(self) -> Iterator[tuple[RowChange | None, RowCells]]:
        for batch, _ in self._packed.batches():
            for row in batch:
                yield None, unpack_row(row)

    def _gone_and_new_rows(self) -> Iterator[tuple[RowChange | None, RowCells]]:
        records = self._gone.records
        for part in _parts(range(len(self._gone.lengths)), self._gone.lengths):
            gone = list(REMOVAL.iter_unpack(records[part[0] * REMOVAL.size : (part[-1] + 1) * REMOVAL.size]))
            for (_, times), row in zip(gone, self._stored_rows([hash_ for hash_, _ in gone]), strict=True):
                cells = unpack_row(row)
                for _ in range(times):
                    yield RowChange.GONE, cells
        yield from self._new_rows()

    def _new_rows(self) -> Iterator[tuple[RowChange | None, RowCells]]:
        for place in sorted(self._new.places):
            cells = unpack_row(self._packed.row(place))
            for _ in range(self._new.times.get(place, 1)):
                yield RowChange.NEW, cells


def _used_up(ranges: list[_Range]) -> Iterator[tuple[list[bytes], Sequence[int]]]:
    """The ranges in order; each is released after use."""
    ranges.reverse()
    while ranges:
        one = ranges.pop()
        yield _split(bytes(one.hashes)), one.places


def _split(joined: bytes) -> list[bytes]:
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]


def _nothing() -> Iterator[tuple[RowChange | None, RowCells]]:
    return iter(())


def _number_of_ranges(rows: int) -> int:
    """A power of two, so that the hashes of a range begin with the same bits."""
    wanted = -(-rows // _RANGE_ROWS)
    return min(_RANGES_MAX, 1 << max(0, wanted - 1).bit_length())


def _parts(items: Sequence[_T], lengths: Sequence[int]) -> Iterator[Sequence[_T]]:
    """The items in parts whose rows fit into memory together."""
    first = size = 0
    for index, length in enumerate(lengths):
        size += length
        if index + 1 - first == _FETCHED_ROWS or size >= _FETCHED_BYTES:
            yield items[first : index + 1]
            first, size = index + 1, 0
    if first < len(items):
        yield items[first:]
