"""Delivery state has limits of its own: no query can displace events or the state of another query."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from zeek_agent.config.sections import EventSettings
from zeek_agent.events import delivery_states
from zeek_agent.events.delivery_states import Delivered
from zeek_agent.events.event_file import EventFile, WriteBatch
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column
from zeek_agent.table import Table

THINGS = Table(
    "things_events",
    "things that happen",
    description="For tests.",
    columns=[Column("time", "time", "a value"), Column("text", "text", "a value")],
    kind="events",
)
NOW = 1_790_000_000.0
MEGABYTE = 2**20


def opened(path: Path, *, bytes_max: int = 4 * MEGABYTE, state_bytes: int = 8 * MEGABYTE) -> EventFile:
    return EventFile(path, [THINGS], bytes_max, NOW, state_bytes=state_bytes)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[EventFile]:
    file = opened(tmp_path / "events.db")
    yield file
    file.close(NOW, clean=True)


def test_sixty_differences_queries_with_two_megabytes_each_displace_no_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EventSettings(retention_bytes=16 * MEGABYTE)
    store = EventStore(tmp_path / "events.db", [THINGS], settings, lambda: NOW, state_bytes=32 * MEGABYTE)
    store.append("things_events", [(NOW, f"{n} {'x' * 200}") for n in range(5_000)])
    store.flush()
    for query in range(60):
        store.acknowledge(f"query {query}", {}, os.urandom(2 * MEGABYTE))
        assert store.flush()
    store.append("things_events", [(NOW, "after it")])
    assert store.flush()
    store.append("things_events", [(NOW, "and once more")])
    assert store.flush()
    assert store.first_seq("things_events") == 1
    assert store.counters["things_events"].evicted == 0
    assert store.gaps() == []
    assert store.states_refused > 40
    assert store.delivery_states()["bytes"] <= 32 * MEGABYTE
    assert "limits.state_bytes: 33554432" in caplog.text
    store.close()
    again = EventStore(tmp_path / "events.db", [THINGS], settings, lambda: NOW, state_bytes=32 * MEGABYTE)
    kept = [again.delivered(f"query {query}") for query in range(60)]
    assert all(kept)
    assert 10 <= sum(one is not None and one.snapshot is not None for one in kept) <= 16
    assert again.first_seq("things_events") == 1
    again.close()


def test_a_state_that_is_replaced_leaves_its_room(file: EventFile) -> None:
    for _ in range(10):
        for key in ("a", "b"):
            file.write(WriteBatch(delivered={key: Delivered({}, os.urandom(3 * MEGABYTE))}), NOW)
            assert file.states_refused == []
    assert file.states == 2


def test_a_refused_snapshot_replaces_the_one_before_and_spares_the_positions(file: EventFile) -> None:
    file.write(WriteBatch(delivered={"a": Delivered({}, os.urandom(5 * MEGABYTE))}), NOW)
    file.write(WriteBatch(delivered={"b": Delivered({"things_events": 7}, os.urandom(5 * MEGABYTE))}), NOW)
    assert file.states_refused == ["b"]
    stored = dict(file._connection.execute("SELECT key, snapshot IS NULL FROM _delivered"))
    assert stored == {"a": 0, "b": 1}
    assert json.loads(str(file._connection.execute("SELECT seqs FROM _delivered WHERE key = 'b'").get)) == {
        "things_events": 7
    }


def test_the_number_of_states_is_bounded_and_known_queries_still_progress(
    file: EventFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_states, "STATES_MAX", 100)
    file.write(WriteBatch(delivered={str(n): Delivered({"things_events": 1}) for n in range(150)}), NOW)
    assert (file.states, len(file.states_refused)) == (100, 50)
    file.write(WriteBatch(delivered={"7": Delivered({"things_events": 2}), "149": Delivered({})}), NOW)
    assert (file.states, file.states_refused) == (100, ["149"])
    file.expire(NOW + 31 * 86_400, 1e9)
    assert (file.states, file.states_bytes) == (0, 0)


@pytest.mark.long(kept=2)
@pytest.mark.parametrize("size", [0, 100, 480, 900, 1_100, 4_000, 5_000, 20_000, 1_000_000])
def test_the_estimated_size_is_about_the_real_one(tmp_path: Path, size: int) -> None:
    file = opened(tmp_path / "events.db", state_bytes=2**30)
    number = 2_000 if size <= 20_000 else 20
    for first in range(0, number, 100):
        keys = [f"{n * 7_919 % number:064}" for n in range(first, min(first + 100, number))]
        states = {key: Delivered({"things_events": 1}, b"x" * size) for key in keys}
        file.write(WriteBatch(delivered=states), NOW)
    pages = file._connection.execute("SELECT sum(pgsize) FROM dbstat WHERE name = '_delivered'").get
    assert isinstance(pages, int)
    assert 0.6 < file.states_bytes / pages < 1.6
    file.close(NOW, clean=True)


def test_a_transaction_that_fails_leaves_the_figures(file: EventFile) -> None:
    file.write(WriteBatch(delivered={"a": Delivered({}, b"x" * 10_000)}), NOW)
    before = (file.states, file.states_bytes)
    file._connection.execute("CREATE TRIGGER refuse BEFORE UPDATE ON _store BEGIN SELECT raise(ABORT, 'no'); END")
    with pytest.raises(apsw.ConstraintError):
        file.write(WriteBatch(delivered={"b": Delivered({}, b"x" * 10_000)}), NOW)
    assert (file.states, file.states_bytes) == before
    file._connection.execute("DROP TRIGGER refuse")
    file._states.recount()
    assert (file.states, file.states_bytes) == before


def test_states_too_large_for_the_next_file_stay_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = opened(tmp_path / "old.db")
    for key, size in (("large", 5 * MEGABYTE), ("small", 10)):
        old.write(WriteBatch(delivered={key: Delivered({}, b"x" * size)}), NOW)
    new = opened(tmp_path / "new.db", state_bytes=MEGABYTE)
    new.adopt(old.uri, old.last_seq, 1_000)
    assert list(new._connection.execute("SELECT key FROM _delivered")) == [("small",)]
    assert "the delivery states of 1 queries are too large" in caplog.text
    for file in (old, new):
        file.close(NOW, clean=True)


def save(file: EventFile, owner: str, queries: range, size: int) -> None:
    for query in queries:
        state = Delivered({"things_events": 1}, os.urandom(size) if size else None, owner=owner)
        file.write(WriteBatch(delivered={f"{owner} {query}": state}), NOW + query)


def snapshots(file: EventFile, owner: str) -> int:
    sql = "SELECT count(snapshot) FROM _delivered WHERE owner = ?"
    return int(read_rows(file.uri, sql, (owner,))[0][0])


def test_a_recipient_within_its_share_of_the_bytes_is_never_refused(file: EventFile) -> None:
    save(file, "greedy", range(10), MEGABYTE)
    assert 6 <= snapshots(file, "greedy") <= 8
    for query in range(3):
        save(file, "modest", range(query, query + 1), MEGABYTE)
        assert file.states_refused == []
    assert snapshots(file, "modest") == 3
    assert snapshots(file, "greedy") >= 3
    save(file, "greedy", range(10, 12), MEGABYTE)
    assert file.states_refused == ["greedy 11"]
    assert snapshots(file, "modest") == 3
    assert file.states_bytes <= 8 * MEGABYTE
    file._states.recount()
    assert file.states_bytes <= 8 * MEGABYTE


def test_a_recipient_within_its_share_of_the_states_is_never_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_states, "STATES_MAX", 100)
    file = opened(tmp_path / "events.db")
    save(file, "greedy", range(150), 0)
    assert (file.states, file.states_refused) == (100, ["greedy 149"])
    save(file, "modest", range(60), 0)
    assert (file.states, file.states_refused) == (100, ["modest 59"])
    sql = "SELECT owner, count(*), min(time) FROM _delivered GROUP BY owner ORDER BY owner"
    assert read_rows(file.uri, sql) == [("greedy", 50, NOW + 50), ("modest", 50, NOW)]
    file.close(NOW, clean=True)
    file = opened(tmp_path / "events.db")
    save(file, "third", range(40), 0)
    counts = dict(read_rows(file.uri, "SELECT owner, count(*) FROM _delivered GROUP BY owner"))
    assert counts["third"] == 33
    assert min(counts.values()) == 33
    file.close(NOW, clean=True)
