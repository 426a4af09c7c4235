"""Differences are those of multisets of whole rows, and a snapshot survives the disk unchanged."""

from __future__ import annotations

import random
import zlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.results.state import may_be_unread

COLUMNS = (("name", "text"), ("pid", "count"))

cells = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
rows = st.lists(st.tuples(cells, cells), max_size=12)


def test_a_row_that_occurs_twice_and_then_once_is_removed_once() -> None:
    before = ResultSnapshot(COLUMNS, [("a", 1), ("a", 1), ("b", 2)])
    now = ResultSnapshot(COLUMNS, [("a", 1), ("c", 3)])
    assert sorted(before.removed_rows(now)) == [("a", 1), ("b", 2)]
    assert before.added_rows(now) == [("c", 3)]


@given(rows, rows)
def test_old_rows_minus_removed_plus_added_are_the_new_rows(old: list[tuple], new: list[tuple]) -> None:
    before, now = ResultSnapshot(COLUMNS, old), ResultSnapshot(COLUMNS, new)
    gone, added = before.removed_rows(now), before.added_rows(now)
    exactly = [Counter(map(repr, some)) for some in (old, gone, added, new)]
    assert exactly[0] - exactly[1] + exactly[2] == exactly[3]
    assert not exactly[1] & exactly[2]


@given(rows, st.randoms())
def test_the_order_of_rows_is_not_a_difference(some: list[tuple], shuffler: random.Random) -> None:
    shuffled = list(some)
    shuffler.shuffle(shuffled)
    assert ResultSnapshot(COLUMNS, some) == ResultSnapshot(COLUMNS, shuffled)


@given(rows)
def test_a_snapshot_is_restored_from_disk_unchanged(some: list[tuple]) -> None:
    snapshot = ResultSnapshot(COLUMNS, some)
    assert ResultSnapshot.unpack(snapshot.pack()) == snapshot


def test_a_snapshot_of_the_release_before_is_read() -> None:
    counted = Counter({msgspec.msgpack.encode(("a", 1)): 2})
    packed = zlib.compress(msgspec.msgpack.encode((2, COLUMNS, counted)), 1)
    assert ResultSnapshot.unpack(packed) == ResultSnapshot(COLUMNS, [("a", 1), ("a", 1)])


def test_unread_paths_are_restored_from_disk() -> None:
    snapshot = ResultSnapshot(COLUMNS, [("a", 1)], unread=["/etc/shadow"])
    assert ResultSnapshot.unpack(snapshot.pack()).unread == {"/etc/shadow"}


@pytest.mark.parametrize(
    ("row", "newly_unread", "held"),
    [
        (("/etc/a", 1), False, True),
        (("/etc/b", 1), True, False),
        (("/srv/deep/down", 1), False, True),
        (("/srvx/down", 1), True, False),
        (("name", 1), True, True),
        (("name", 1), False, False),
    ],
)
def test_a_row_is_held_for_its_path_or_while_some_file_is_newly_unread(
    row: tuple[str, int], newly_unread: bool, held: bool
) -> None:
    is_unread = may_be_unread(frozenset({"/etc/a", "/srv"}), newly_unread=newly_unread, all_paths=True)
    assert is_unread(row) is held
    assert may_be_unread(frozenset({"/etc/a"}), newly_unread=False, all_paths=False)(row)


@given(st.binary(max_size=64))
def test_other_bytes_are_refused_with_one_kind_of_error(noise: bytes) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        ResultSnapshot.unpack(noise)
