"""What is reported when the kernel's queue was full: a gap, and what comparing directories finds."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from waiting import until_sync
from watching import TABLE, Watching, directories_of, launcher, short_queue, stopped_watcher, watching

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.tables.events import TABLES

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "watched"
    for name in ("kept", "moved", "removed", "leaving", "replaced", "program"):
        (directory / name).mkdir(parents=True)
        (directory / name / "below").mkdir()
        (directory / name / "file").write_text("1")
        (directory / name / "gone").touch()
    return directory


@pytest.fixture
def recording(place: Path) -> Iterator[Watching]:
    """A recording whose queue is short."""
    with short_queue():
        active = watching(place)
        recording = active.__enter__()
    yield recording
    active.__exit__(None, None, None)


def fill_queue(place: Path) -> None:
    for number in range(300):
        (place / f"{number}").touch()


def found(recording: Watching) -> set[tuple[str, str]]:
    return {(row["action"], row["path"]) for row in recording.files(found=True)}


def test_all_that_changed_while_the_queue_was_full_is_found(recording: Watching, place: Path, tmp_path: Path) -> None:
    with stopped_watcher():
        fill_queue(place)
        (place / "kept" / "gone").unlink()
        (place / "kept" / "new").write_text("12")
        (place / "kept" / "file").chmod(0o600)
        (place / "moved" / "file").write_text("123")
        (place / "moved").rename(place / "elsewhere")
        shutil.rmtree(place / "removed")
        (place / "leaving").rename(tmp_path / "outside")
        shutil.rmtree(place / "replaced")
        (place / "replaced").mkdir()
        (place / "replaced" / "other").touch()
    recording.expect(TABLE, found=True, path=str(place / "kept" / "new"))
    recording.expect(TABLE, found=True, path=str(place / "elsewhere" / "file"))
    wanted = {
        ("deleted", "kept/gone"),
        ("created", "kept/new"),
        ("attributes", "kept/file"),
        ("written", "elsewhere/file"),
        ("deleted", "moved"),
        ("created", "elsewhere"),
        ("deleted", "removed"),
        ("deleted", "removed/file"),
        ("deleted", "removed/below"),
        ("deleted", "leaving"),
        ("created", "replaced"),
        ("created", "replaced/other"),
    }
    missing = {(action, str(place / path)) for action, path in wanted}
    until_sync(lambda: missing <= found(recording))
    (row,) = recording.files(found=True, path=str(place / "kept" / "new"))
    assert (row["type"], row["size"], row["pid"]) == ("file", 2, None)
    assert not [path for _, path in found(recording) if path.endswith("program/file")]


@pytest.mark.long
def test_directories_are_watched_where_they_are_after_a_loss(recording: Watching, place: Path, tmp_path: Path) -> None:
    with stopped_watcher():
        fill_queue(place)
        (place / "moved").rename(place / "elsewhere")
        (place / "leaving").rename(tmp_path / "outside")
        shutil.rmtree(place / "replaced")
        (place / "replaced" / "deep").mkdir(parents=True)
    recording.expect(TABLE, found=True, action="created", path=str(place / "replaced" / "deep"))
    until_sync(lambda: directories_of(recording) == 11)
    (tmp_path / "outside" / "unseen").touch()
    (tmp_path / "outside" / "below" / "unseen").touch()
    for path in (place / "elsewhere" / "below" / "seen", place / "replaced" / "deep" / "seen"):
        path.touch()
        assert not recording.expect_file("created", path)["found"]
    assert not [row for row in recording.files() if (row["path"] or "").endswith("unseen")]


@pytest.mark.long
def test_events_are_read_while_directories_are_compared(recording: Watching, place: Path) -> None:
    with stopped_watcher():
        fill_queue(place)
    until_sync(lambda: (recording.source.update_counters(), recording.source.counters.lost["overrun"])[1])
    for number in range(400):
        (place / "kept" / f"later{number}").touch()
        time.sleep(0.0005)
    recording.expect(TABLE, found=True, path=str(place / "299"))
    recording.expect_file("created", place / "kept" / "later399")
    for number in range(400):
        rows = recording.files(action="created", path=str(place / "kept" / f"later{number}"))
        assert [row["pid"] for row in rows] == [os.getpid()]


@pytest.fixture
def supervisor(tmp_path: Path, place: Path) -> Iterator[Supervisor]:
    """A supervisor of file events whose queue is short."""
    settings = SourceSettings(
        ignore_self=False,
        processes="snapshots",
        **dict.fromkeys(("sockets", "translations", "system_logs", "dns", "logins"), "off"),
        files_watch=(str(place),),
        files_window=0.1,
    )
    watchers = launcher(settings)
    store = EventStore(tmp_path / "events.db", TABLES)
    supervisor = Supervisor(settings, store, choose=partial(candidates, watchers=watchers), interval_seconds=0.05)
    with short_queue():
        supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        store.close()
        watchers.close()


@pytest.mark.long
def test_the_gap_of_a_loss_begins_when_events_may_have_been_lost_and_not_when_that_is_noticed(
    supervisor: Supervisor, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps: list[tuple[str, float, float, str]] = []
    monkeypatch.setattr(supervisor._store, "record_gap", lambda *gap: gaps.append(gap))
    with stopped_watcher():
        begun = time.time()
        fill_queue(place)
        (place / "kept" / "file").write_text("lost")
        ended = time.time()
        time.sleep(1.0)  # the agent notices the loss only after this time
    until_sync(lambda: gaps)
    ((kind, since, until, cause),) = gaps
    assert (kind, cause) == ("files", "overrun")
    assert since <= begun < ended <= until


def test_what_happened_just_before_the_end_is_recorded_with_its_process(place: Path) -> None:
    with watching(place, window=30.0) as recording:
        (place / "last").write_text("x")
        recording.source.stop()
        (row,) = recording.files(action="written", path=str(place / "last"))
    assert row["pid"] == os.getpid()
