"""How far a table was recorded before: what a source that can look back goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeek_agent.config.sections import EventSettings
from zeek_agent.events.recording_position import RecordingPosition
from zeek_agent.events.store import EventStore
from zeek_agent.recording.system_log.log_entry import SYSTEM_LOGS_EVENTS, SystemLogEntry
from zeek_agent.tables.system_logs import TABLES

DAY = 86_400.0
END = 10 * DAY
"""When the first run ended."""


def position(path: Path, now: float) -> RecordingPosition:
    store = EventStore(path, TABLES, EventSettings(retention_age=DAY), clock=lambda: now)
    try:
        return store.recording_position(SYSTEM_LOGS_EVENTS)
    finally:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def record(path: Path, *times: float) -> None:
    store = EventStore(path, TABLES, EventSettings(retention_age=100 * DAY), clock=lambda: END)
    rows = [SystemLogEntry(time, None, None, "message", cursor=f"at {time}") for time in times]
    store.append(SYSTEM_LOGS_EVENTS, rows)
    store.close()


def test_at_the_first_start_there_is_no_position(path: Path) -> None:
    assert position(path, END) == RecordingPosition()


def test_the_position_is_that_of_the_last_row(path: Path) -> None:
    record(path, END - 20, END - 5)
    assert position(path, END + 60) == RecordingPosition(f"at {END - 5}", END - 5, [f"at {END - 5}"])


def test_a_last_row_that_is_too_old_does_not_count(path: Path) -> None:
    record(path, END - 5)
    assert position(path, END + 3 * DAY) == RecordingPosition(None, END + 2 * DAY)


def test_without_rows_recording_ended_shortly_before_the_end_of_the_last_run(path: Path) -> None:
    record(path)
    until = position(path, END + 60).until
    assert until is not None
    assert END - 60 < until < END


def test_without_rows_the_position_is_not_older_than_the_retention(path: Path) -> None:
    record(path)
    assert position(path, END + 3 * DAY) == RecordingPosition(None, END + 2 * DAY)
