"""What is recorded when the process that watches files ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import apsw
import pytest
from waiting import until_sync
from watching import launcher, watching_processes

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.recording.files import fanotify_files
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.tables.events import TABLES

pytestmark = pytest.mark.root


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    place = tmp_path / "watched"
    place.mkdir()
    settings = SourceSettings(
        ignore_self=False,
        processes="snapshots",
        sockets="off",
        translations="off",
        system_logs="off",
        files_watch=(str(place),),
        files_window=0.1,
    )
    watchers = launcher(settings)
    store = EventStore(tmp_path / "events.db", TABLES)
    supervisor = Supervisor(settings, store, choose=partial(candidates, watchers=watchers), interval_seconds=0.05)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        store.close()
        watchers.close()


def active(supervisor: Supervisor) -> bool:
    return any(status.source == "files" and status.active for status in supervisor.status())


def test_a_killed_watcher_is_a_gap_and_its_changes_are_found_by_the_next_one(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = supervisor._store
    place = tmp_path / "watched"
    gaps: list[tuple[str, float, float, str]] = []
    monkeypatch.setattr(store, "record_gap", lambda *gap: gaps.append(gap))
    assert active(supervisor)
    os.kill(watching_processes()[1], signal.SIGKILL)
    until_sync(lambda: not active(supervisor))
    (place / "meanwhile").write_text("x")
    changed = (place / "meanwhile").stat().st_mtime
    until_sync(lambda: active(supervisor))
    until_sync(lambda: gaps)
    ((kind, since, until, reason),) = gaps
    assert (kind, reason) == ("files", "no source was active")
    assert since <= changed <= until
    (source,) = [one.active for one in supervisor._recorders if one.kind == "files"]
    assert isinstance(source, fanotify_files.FanotifyFiles)
    assert source.retry_seconds == 2.0  # and longer each time
    until_sync(lambda: [row for row in rows(store) if row[:3] == (str(place / "meanwhile"), "written", True)])


def rows(store: EventStore) -> list[tuple[str, str, bool]]:
    store.flush()
    with closing(apsw.Connection(store.uri, flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READONLY)) as connection:
        found = list(connection.execute("SELECT path, action, found FROM files_events"))
    return [(str(path), str(action), bool(flag)) for path, action, flag in found]
