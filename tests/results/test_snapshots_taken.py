"""Snapshots in the event store of an earlier version become stored results, once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_results import BUDGET, COLUMNS, omitted, run

from zeek_agent.events.store import EventStore
from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.results.comparison import RowChange
from zeek_agent.results.snapshots import take_snapshot, take_snapshots
from zeek_agent.results.store import ResultStore
from zeek_agent.tables import builtin_tables

EVENT_TABLES = [table for table in builtin_tables("linux") if table.kind == "events"]
ROWS: list[tuple[Any, ...]] = [("a", 1), ("a", 1), ("b", None), (None, True), ((("c", 1.5),), b"\xff")]


@pytest.fixture
def events(tmp_path: Path) -> Iterator[EventStore]:
    store = EventStore(tmp_path / "events.db", EVENT_TABLES, clock=lambda: 1_000_000.0)
    yield store
    store.close()


@pytest.fixture
def results(tmp_path: Path) -> Iterator[ResultStore]:
    store = ResultStore(tmp_path / "results.db", BUDGET, clock=lambda: 2_000_000.0)
    yield store
    store.close()


def test_a_query_goes_on_from_the_snapshot_that_an_earlier_version_kept(
    events: EventStore, results: ResultStore
) -> None:
    events.acknowledge("query", {}, ResultSnapshot(COLUMNS, ROWS).pack())
    events.acknowledge("events", {"processes_events": 7}, None, {"processes_events": 9})
    events.flush()
    assert take_snapshots(results, events) == 1
    assert run(results, [*ROWS[1:], ("new", 2)], reported=False) == [
        (RowChange.GONE, ("a", 1)),
        (RowChange.NEW, ("new", 2)),
    ]
    events.flush()
    query, other = events.delivered("query"), events.delivered("events")
    assert query is not None
    assert query.snapshot is None
    assert other is not None
    assert (other.seqs, other.under_way) == ({"processes_events": 7}, {"processes_events": 9})


def test_unread_files_of_a_snapshot_are_taken_over(events: EventStore, results: ResultStore) -> None:
    """A row of a file that was not readable at first either is not kept: it is gone."""
    events.acknowledge("query", {}, ResultSnapshot(COLUMNS, [("name", 1)], unread=["/etc/a"]).pack())
    events.flush()
    take_snapshots(results, events)
    assert run(results, [], files=omitted("/etc/a"), reported=False) == [(RowChange.GONE, ("name", 1))]


def test_a_snapshot_of_the_release_before_is_taken_over(results: ResultStore) -> None:
    counted = {msgspec.msgpack.encode(("a", 1)): 2}
    take_snapshot(results, "query", zlib.compress(msgspec.msgpack.encode((2, COLUMNS, counted)), 1))
    assert run(results, [("a", 1)], reported=False) == [(RowChange.GONE, ("a", 1))]


def test_snapshots_are_taken_over_once(events: EventStore, results: ResultStore) -> None:
    """One that comes back, as from a copy of the event store, is older than the results."""
    events.acknowledge("query", {}, ResultSnapshot(COLUMNS, ROWS).pack())
    events.flush()
    take_snapshots(results, events)
    results.forget("query")
    events.acknowledge("query", {}, ResultSnapshot(COLUMNS, ROWS).pack())
    events.flush()
    assert take_snapshots(results, events) == 0
    assert results.digest("query") is None


def test_a_snapshot_expires_a_month_after_its_last_use(events: EventStore, results: ResultStore) -> None:
    events.acknowledge("query", {}, ResultSnapshot(COLUMNS, ROWS).pack())
    events.flush()
    take_snapshots(results, events)
    results._clock = lambda: 1_000_000.0 + 30 * 86_400.0 + 1
    results.expire(())
    assert results.digest("query") is None


def test_others_are_taken_over_when_one_cannot_be(
    events: EventStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events.acknowledge("damaged", {}, b"\0a packed snapshot\xff")
    events.acknowledge("large", {}, ResultSnapshot(COLUMNS, [("x" * 50, n) for n in range(1_000)]).pack())
    events.acknowledge("query", {}, ResultSnapshot(COLUMNS, ROWS).pack())
    events.flush()
    results = ResultStore(tmp_path / "results.db", 20_000)
    assert take_snapshots(results, events) == 1
    assert results.digest("query") is not None
    assert caplog.text.count("it starts over") == 2
    assert "limits.state_bytes" in caplog.text
    results.close()


def test_without_a_disk_for_results_the_event_store_keeps_its_snapshots(events: EventStore) -> None:
    packed = ResultSnapshot(COLUMNS, ROWS).pack()
    events.acknowledge("query", {}, packed)
    events.flush()
    results = ResultStore(None, BUDGET)
    assert take_snapshots(results, events) == 1
    delivered = events.delivered("query")
    assert delivered is not None
    assert delivered.snapshot == packed
    results.close()


def test_a_large_snapshot_is_taken_over_row_for_row(results: ResultStore) -> None:
    rows = [("name" * (number % 40), number) for number in range(70_000)]
    columns = tuple((f"column {number} {'x' * 300}", "text") for number in range(20))
    paths = [f"/etc/{number}" for number in range(70_000)]
    rows = [(*row, *[None] * 18) for row in rows]
    take_snapshot(results, "query", ResultSnapshot(columns, rows, unread=paths).pack())
    assert run(results, rows, columns, reported=False) == []
    assert results.usage().queries["query"].rows == 70_000


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=64), compressed=st.booleans())
def test_other_bytes_are_refused_with_one_kind_of_error(noise: bytes, compressed: bool, results: ResultStore) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        take_snapshot(results, "query", zlib.compress(noise) if compressed else noise)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_snapshot_is_refused_or_is_a_result(at: int, byte: int, results: ResultStore) -> None:
    """Nothing else is raised, whether its rows are held in memory or not."""
    content = bytearray(zlib.decompress(ResultSnapshot(COLUMNS, ROWS, ["/etc/a"]).pack()))
    content[at % len(content)] = byte
    results.forget("query")
    try:
        take_snapshot(results, "query", zlib.compress(content))
    except ValueError:
        assert results.digest("query") is None
    else:
        assert results.check("query")


def test_a_large_damaged_snapshot_is_refused(results: ResultStore) -> None:
    """Its rows are in a file when the damaged one is found."""
    counted = {**{msgspec.msgpack.encode(("a" * 500, number)): 1 for number in range(30_000)}, b"\x92\xc1": 1}
    packed = zlib.compress(msgspec.msgpack.encode((3, COLUMNS, counted, ())), 1)
    with pytest.raises(ValueError, match="snapshot"):
        take_snapshot(results, "query", packed)
