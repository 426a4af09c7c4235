"""Differences to a stored result are those of multisets held in memory, whatever is between two results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_results import BUDGET, COLUMNS, Delta, omitted, run

from zeek_agent.host.files.reads import Omissions
from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.results import comparison, packed_result
from zeek_agent.results.comparison import Reporting, RowChange
from zeek_agent.results.state import may_be_unread
from zeek_agent.results.store import ResultStore

OTHER_COLUMNS = (("name", "text"), ("pid", "int"))
SIMILAR = (None, 0, "", b"", 0.0, -0.0, 1, True, 1.0, "1", False, (), ("1",), (1,), ((),), (("a", 1), ("b", None)))
"""Cells that are easily taken for one another, with sets, vectors and records."""
PATHS = ("/etc/a", "/etc/b", "/srv", "/srv/deep/down", "/srvx", "name")

cells = (
    st.sampled_from(SIMILAR)
    | st.sampled_from(PATHS)
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
)
results = st.lists(st.tuples(cells, st.sampled_from(SIMILAR)), max_size=8)
files = st.builds(
    lambda paths, all_paths: omitted(*paths, all_paths=all_paths),
    st.sets(st.sampled_from(("/etc/a", "/etc/b", "/srv")), max_size=2),
    st.booleans(),
)


@dataclass
class Run:
    """One run of a query: its result, and what happens before."""

    rows: list[tuple[Any, ...]]
    files: Omissions
    columns: Any
    restarts: bool
    delivered: bool
    """Whether the recipient acknowledges."""


runs = st.lists(
    st.builds(
        Run,
        results,
        files,
        st.sampled_from((COLUMNS, COLUMNS, COLUMNS, OTHER_COLUMNS)),
        st.booleans(),
        st.sampled_from((True, True, True, False)),
    ),
    max_size=6,
)


@dataclass
class Remembered:
    """What an installed query does with complete results in memory."""

    reporting: Reporting
    whole_first: bool
    snapshot: ResultSnapshot | None = None
    reported: bool = False
    pending: ResultSnapshot | None = field(default=None)

    def run(self, one: Run) -> list[tuple[RowChange | None, Any]] | None:
        """The changes to report; None if the run ends without a report."""
        now = ResultSnapshot(one.columns, one.rows, one.files.unread)
        before = self.snapshot if self.snapshot and self.snapshot.columns == now.columns else None
        everything = self.whole_first and not self.reported
        if before is not None and not everything:
            newly = not one.files.unread <= before.unread
            if one.files.unread:
                now.keep_unread(before, may_be_unread(one.files.unread, newly, one.files.all_paths))
            now.unread = one.files.unread & before.unread
        if before == now and self.reported:
            self.pending = self.snapshot
            return None
        self.pending = now
        if everything:
            return [(None, row) for row in now.all_rows()]
        if before is None:
            return []
        gone = [(RowChange.GONE, row) for row in before.removed_rows(now)]
        new = [(RowChange.NEW, row) for row in before.added_rows(now)]
        return new if self.reporting is Reporting.NEW else gone + new

    def acknowledged(self) -> None:
        self.snapshot, self.reported = self.pending, True


@pytest.fixture(autouse=True, params=["in memory", "in a file, in many ranges"])
def scale(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small results take the paths of large ones, too."""
    if request.param != "in memory":
        monkeypatch.setattr(packed_result, "BUFFER_BYTES", 100)
        monkeypatch.setattr(packed_result, "_BATCH_ROWS_MAX", 2)
        monkeypatch.setattr(comparison, "_RANGE_ROWS", 1)
        monkeypatch.setattr(comparison, "_FETCHED_ROWS", 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    opened = ResultStore(tmp_path / "results.db", BUDGET)
    yield opened
    opened.close()


def exactly(changes: list[tuple[RowChange | None, Any]]) -> tuple[list[RowChange | None], Counter[str]]:
    """Kinds of changes in their order, and each row with its types."""
    return [change for change, _ in changes], Counter(map(repr, changes))


@pytest.mark.parametrize(
    ("reporting", "whole_first"),
    [(Reporting.CHANGES, False), (Reporting.CHANGES, True), (Reporting.NEW, False)],
    ids=["differences", "snapshot plus differences", "events"],
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=runs)
def test_reports_equal_those_of_results_in_memory(
    reporting: Reporting, whole_first: bool, life: list[Run], store: ResultStore
) -> None:
    store.forget("query")
    memory, stored_reported = Remembered(reporting, whole_first), False
    for one in life:
        if one.restarts:
            memory.reported = stored_reported = False
        expected = memory.run(one)
        now = Reporting.ALL if whole_first and not stored_reported else reporting
        with Delta(store) as delta:
            changes = delta.compare(one.rows, one.columns, reporting=now, reported=stored_reported, files=one.files)
            assert exactly(changes) == exactly(expected or [])
            if expected is None:
                assert delta.length == 0
            if one.delivered:
                memory.acknowledged()
                delta.apply()
                stored_reported = True


def test_cells_that_differ_in_type_only_are_different(store: ResultStore) -> None:
    for cell in SIMILAR:
        run(store, [("a", cell)])
        for other in SIMILAR:
            with Delta(store) as delta:
                same = repr(cell) == repr(other)
                assert len(delta.compare([("a", other)])) == (0 if same else 2), (cell, other)


def test_gone_rows_come_first_and_new_ones_in_the_order_of_the_result(store: ResultStore) -> None:
    run(store, [("old", number) for number in range(20)])
    changes = run(store, [("new", number) for number in range(20, 0, -1)])
    assert [change for change, _ in changes] == [RowChange.GONE] * 20 + [RowChange.NEW] * 20
    assert [row for change, row in changes if change is RowChange.NEW] == [("new", n) for n in range(20, 0, -1)]


def test_a_whole_result_keeps_its_order(store: ResultStore) -> None:
    rows = [("a", number % 3) for number in range(20)]
    assert run(store, rows, reporting=Reporting.ALL, reported=False) == [(None, row) for row in rows]


def test_another_order_of_rows_is_no_change(store: ResultStore) -> None:
    rows = [("a", number % 7) for number in range(20)]
    run(store, rows)
    with Delta(store) as delta:
        assert delta.compare(reversed(rows)) == []
        assert delta.length == 0


def test_an_unchanged_result_does_not_touch_the_stored_one(store: ResultStore) -> None:
    """Its digest is enough: a reader that cannot be opened is not missed."""
    rows = [("a", number) for number in range(20)]
    run(store, rows)

    def unavailable() -> Any:
        raise AssertionError("the stored result is read")

    with Delta(store) as delta:
        difference = comparison.compare(
            delta.basis, COLUMNS, rows, delta.descriptor,
            reporting=Reporting.CHANGES, reported=True, omissions=Omissions, reader=unavailable,
        )  # fmt: skip
        assert difference.delta_bytes == 0
