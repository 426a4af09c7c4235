"""The oracle of the simulated fleet, its fake event store, and the Zeek stand-in: what later tests rely on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from simulated_fleet import oracle
from simulated_fleet.fake_host import TABLE, FakeStore, Recording, check_sum
from simulated_fleet.oracle import Recorded
from simulated_fleet.simulator import Phase
from simulated_fleet.stand_in import HEAD, Streams, Verdict

from zeek_agent.zeek.protocol import Batch


def log(path: Path, rows: Sequence[tuple[str, str, int, int]]) -> Path:
    lines = [f"2.0\t{agent}\t{store}\t{number}\t{check}\t1.5\n" for agent, store, number, check in rows]
    path.write_bytes(HEAD + "".join(lines).encode())
    return path


def row(agent: str, store: str, number: int) -> tuple[str, str, int, int]:
    return agent, store, number, check_sum(store, number)


STORES = [Recorded("H1", "S1", 1, 3), Recorded("H2", "S2", 1, 2)]
ALL = [row("H1", "S1", 1), row("H1", "S1", 2), row("H1", "S1", 3), row("H2", "S2", 1), row("H2", "S2", 2)]


def test_rows_that_are_all_there_are_found_once_each_in_any_order_and_any_log(tmp_path: Path) -> None:
    logs = [log(tmp_path / "1", ALL[3:]), log(tmp_path / "2", ALL[:3])]
    found = oracle.compare(STORES, logs)
    assert found.is_exactly_once
    assert (found.recorded, found.once) == (5, 5)
    assert list(found.latencies) == [0.5] * 5


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (ALL[1:], {"missing": 1}),
        (ALL[:3], {"missing": 2}),
        ([*ALL, ALL[2]], {"repeated": 1}),
        ([*ALL, ALL[2], ALL[2]], {"repeated": 1}),
        ([*ALL, row("H1", "S1", 4)], {"unknown": 1}),
        ([*ALL, row("H1", "S1", 0)], {"unknown": 1}),
        ([*ALL, row("H3", "S3", 1)], {"unknown": 1}),
        ([*ALL[1:], row("H2", "S1", 1)], {"unknown": 1, "missing": 1}),
        ([*ALL[1:], ("H1", "S1", 1, 77)], {"unknown": 1, "missing": 1}),
    ],
    ids=["first", "a store", "twice", "thrice", "beyond", "zero", "no host", "other host", "altered"],
)
def test_what_is_missing_repeated_or_made_up_is_found(
    tmp_path: Path, rows: list[tuple[str, str, int, int]], what: dict[str, int]
) -> None:
    found = oracle.compare(STORES, [log(tmp_path / "1", rows)])
    assert not found.is_exactly_once
    counted = {name: getattr(found, name) for name in ("missing", "repeated", "unknown")}
    assert {name: number for name, number in counted.items() if number} == what
    assert found.examples


def test_repeated_rows_are_at_least_once_and_nothing_recorded_is_neither(tmp_path: Path) -> None:
    assert oracle.compare(STORES, [log(tmp_path / "1", [*ALL, ALL[0]])]).is_at_least_once
    nothing = oracle.compare([], [log(tmp_path / "1", [])])
    assert not nothing.is_exactly_once
    assert not nothing.is_at_least_once


@pytest.mark.parametrize(("lost", "missing", "expired"), [(2, 0, 2), (1, 2, 0), (0, 2, 0)])
def test_rows_that_retention_removed_are_missing_unless_the_agent_counted_them(
    tmp_path: Path, lost: int, missing: int, expired: int
) -> None:
    found = oracle.compare([Recorded("H1", "S1", 3, 3, lost)], [log(tmp_path / "1", ALL[2:3])])
    assert (found.missing, found.expired) == (missing, expired)


def test_a_line_whose_writer_was_killed_does_not_count(tmp_path: Path) -> None:
    file = log(tmp_path / "1", ALL)
    file.write_bytes(file.read_bytes()[:-1])
    assert oracle.compare(STORES, [file]).missing == 1


def test_a_fake_store_has_as_many_rows_as_its_formula_says() -> None:
    now = time.time()
    recording = Recording(phases=[Phase(now - 100, now - 90, 2.0)], bursts=[(now - 50, 7), (now + 50, 9)])
    store = FakeStore("S1", recording, 0.5)
    assert store.last_seq(TABLE) == 27
    assert store.first_seq(TABLE) == 1
    store.retention_seconds = 95.0
    assert store.last_seq(TABLE) == 27
    assert 10 <= store.first_seq(TABLE) <= 12
    store.clock_offset = 60.0
    assert store.last_seq(TABLE) == 36


def test_a_host_that_was_away_recorded_alone_and_keeps_what_it_had() -> None:
    now = time.time()
    store = FakeStore("S1", Recording(phases=[Phase(now - 10, now + 1000, 10.0)]), 0.0)
    before = store.last_seq(TABLE)
    store.clock_offset = 3_600.0
    store.record_alone(0.1, now, now + 3_600.0)
    assert before + 360 <= store.last_seq(TABLE) <= before + 361


def test_a_killed_host_forgets_only_what_its_store_had_not_written() -> None:
    store = FakeStore("S1", Recording(), 0.0)
    store.acknowledge("query", {TABLE: 5}, None)
    store.flush()
    store.acknowledge("query", {TABLE: 9}, None)
    saved = store.delivered("query")
    assert saved is not None
    assert saved.seqs == {TABLE: 9}
    store.crash()
    saved = store.delivered("query")
    assert saved is not None
    assert saved.seqs == {TABLE: 5}


def batch(low: int, high: int, index: int = 0, *, last: bool = True, store: str = "S1", stream: str = "Q1") -> Batch:
    return Batch(store, stream, low, high, index=index, last=last)


def test_the_stand_in_handles_each_batch_once_as_the_package_does() -> None:
    """The batches of zeek/testing/framework/batches.zeek, in its order."""
    handle, known, early = Verdict.HANDLE, Verdict.KNOWN, Verdict.EARLY
    streams = Streams()
    for one, verdict in [
        (batch(0, 10, last=False), handle),
        (batch(0, 10, last=False), known),
        (batch(0, 10, 1), handle),
        (batch(0, 10, 1), known),
        (batch(10, 20), handle),
        (batch(0, 10), known),
        (batch(20, 30, last=False), handle),
        (batch(20, 40), handle),
        (batch(0, 10, store="S2"), handle),
        (batch(30, 40, stream="Q2"), handle),
        (batch(60, 70, 1), early),
        (batch(40, 50), handle),
        (batch(60, 70, last=False), handle),
        (batch(60, 70, 1), handle),
    ]:
        assert streams.judge("H1", one) is verdict, one
