"""Positions in followed files: stored with the rows before them, and taken along by whatever replaces the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeek_agent.config.sections import EventSettings
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column
from zeek_agent.table import Table

JOBS = Table(
    "jobs_events",
    "jobs",
    description="Jobs.",
    columns=[Column("time", "time", "when"), Column("job", "text", "which")],
    kind="events",
)


def opened(path: Path, **settings: int) -> EventStore:
    return EventStore(path / "events.db", [JOBS], EventSettings(**settings))


def test_the_last_position_is_there_after_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.position("jobs_events") is None
    store.append("jobs_events", [(1.0, "a")], "1")
    store.append("jobs_events", [(2.0, "b")], "2")
    store.append("jobs_events", [], "3")
    assert store.position("jobs_events") == "3"
    store.close()
    store = opened(tmp_path)
    assert store.position("jobs_events") == "3"
    assert store.position("other_events") is None
    store.close()


def test_a_position_is_not_ahead_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails leaves neither."""
    store = opened(tmp_path)
    store.append("jobs_events", [(1.0, "a")], "1")
    assert store.position("jobs_events") == "1"

    def fail(*_: object) -> None:
        raise OSError("the disk failed")

    with monkeypatch.context() as patched:
        patched.setattr(store._file, "_move_gap_ends", fail)
        patched.setattr(store, "_replace_file", lambda error: False)
        store.append("jobs_events", [(2.0, "b")], "2")
        store.flush()
    assert store.position("jobs_events") == "1"
    assert read_rows(store.uri, "SELECT job FROM jobs_events") == [("a",)]
    assert store.counters["jobs_events"].lost["store"] == 1
    store.close()


def test_rows_for_which_there_is_no_room_are_lost_and_not_read_again(tmp_path: Path) -> None:
    store = opened(tmp_path, queue_rows=2)
    with store._changed:
        store.append("jobs_events", [(float(number), "x") for number in range(5)], "5")
    assert store.position("jobs_events") == "5"
    assert store.counters["jobs_events"].lost["store"] == 3
    store.close()


def test_a_store_that_replaces_another_takes_its_positions_along(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append("jobs_events", [(1.0, "a")], "1")
    store.flush()
    uri = store.uri
    with store._changed:
        store._fall_back_to_memory(OSError("the disk failed"))
    assert store.uri != uri
    assert store.position("jobs_events") == "1"
    store.append("jobs_events", [(2.0, "b")], "2")
    store.close()
    store = opened(tmp_path)
    assert store.position("jobs_events") == "2"
    store.close()
