"""File events where users of the host, or their programs, try to exhaust or evade the watch."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import mounting
import pytest
from waiting import until_sync
from watching import (
    TABLE,
    directories_of,
    problem_of,
    proportional_kb,
    stopped_watcher,
    watching,
    watching_processes,
)

from zeek_agent.recording.files.fanotify_groups import FanotifyGroups
from zeek_agent.recording.files.mount_table import MountTable
from zeek_agent.recording.files.watched_directories import WatchedDirectories

pytestmark = pytest.mark.root
USER = 65534


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "watched"
    directory.mkdir()
    return directory


def test_a_replaced_directory_above_the_watched_one_is_noticed(tmp_path: Path) -> None:
    place = tmp_path / "app" / "conf" / "watched"
    new, old = tmp_path / "new", tmp_path / "old"
    place.mkdir(parents=True)
    (new / "conf" / "watched" / "below").mkdir(parents=True)
    with watching(place) as recording:
        (tmp_path / "app").rename(old)
        new.rename(tmp_path / "app")
        until_sync(lambda: directories_of(recording) == 2)
        (old / "conf" / "watched" / "unseen").touch()
        (place / "below" / "seen").touch()
        recording.expect_file("created", place / "below" / "seen")
        assert not [row for row in recording.files() if row["path"].endswith("unseen")]


@pytest.mark.long
def test_a_link_to_the_watched_directory_is_followed_where_it_leads_now(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    link, other = tmp_path / "current", tmp_path / "other"
    link.symlink_to("first")
    with watching(link) as recording:
        (tmp_path / "first" / "before").touch()
        recording.expect_file("created", tmp_path / "first" / "before")
        other.symlink_to("second")
        other.rename(link)

        def seen() -> bool:
            (tmp_path / "second" / "after").touch()
            return bool(recording.files(action="attributes", path=str(tmp_path / "second" / "after")))

        until_sync(seen)
        (tmp_path / "first" / "after").touch()
        assert directories_of(recording) == 1
        assert not recording.files(path=str(tmp_path / "first" / "after"))


def test_links_of_users_lead_nowhere(tmp_path: Path) -> None:
    home, target = tmp_path / "home", tmp_path / "target"
    home.mkdir()
    target.mkdir()
    (home / "watched").symlink_to(target)
    os.chown(home / "watched", USER, USER, follow_symlinks=False)
    with watching(home / "watched", home / "other") as recording:
        assert directories_of(recording) == 0
        (home / "other").mkdir()
        recording.expect_file("created", home / "other")


@pytest.mark.long
def test_links_that_lead_in_circles_or_multiply_end(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for number in range(30):
        (tmp_path / f"l{number}").symlink_to(f"l{number + 1}/../l{number + 1}")
    (tmp_path / "watched").mkdir()
    with watching(tmp_path / "circle", tmp_path / "l0", tmp_path / "watched") as recording:
        assert directories_of(recording) == 1


@pytest.mark.long
def test_a_pattern_of_something_else_than_a_directory_is_reported(place: Path) -> None:
    (place / "file").touch()
    with watching(place / "file") as recording:
        until_sync(lambda: "is not a directory" in problem_of(recording))


@pytest.mark.long
def test_directories_are_watched_however_deep_they_are(place: Path) -> None:
    deep = place.joinpath(*["d"] * 150)
    with watching(place) as recording:
        deep.mkdir(parents=True)
        until_sync(lambda: directories_of(recording) == 151)
        (deep / "file").touch()
        recording.expect_file("created", deep / "file")


@pytest.mark.long
def test_directories_with_paths_that_are_too_long_to_be_opened_are_reported(place: Path) -> None:
    name, depth = "d" * 200, 25
    with watching(place) as recording:
        above = os.open(place, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=above)
            below = os.open(name, os.O_RDONLY, dir_fd=above)
            os.close(above)
            above = below
        os.close(above)
        until_sync(lambda: "File name too long" in problem_of(recording))
        status = recording.source._status
        assert status is not None
        assert status.unwatched > 0


@pytest.mark.long
def test_users_cannot_take_the_last_quarter_of_the_watched_directories(place: Path) -> None:
    theirs, roots = place / "a-theirs", place / "b-roots"
    for directory in (theirs, roots):
        directory.mkdir()
    with watching(place, directories=40) as recording:
        for number in range(60):
            (theirs / f"{number}").mkdir()
            os.chown(theirs / f"{number}", USER, USER)
        os.chown(theirs, USER, USER)
        (theirs / "one").mkdir()
        recording.expect(TABLE, action="created", path=str(theirs / "one"))
    with watching(place, directories=40) as recording:
        assert "three quarters of 40" in problem_of(recording)
        (roots / "new").mkdir()
        recording.expect_file("created", roots / "new")
        (roots / "new" / "file").touch()
        recording.expect_file("created", roots / "new" / "file")


@pytest.mark.long
def test_a_directory_with_very_many_entries_is_read_in_little_memory(place: Path) -> None:
    mounting.mount("test", place, "tmpfs")
    try:
        for number in range(60_000):
            os.close(os.open(place / f"{number:040}", os.O_CREAT | os.O_WRONLY))
        groups = FanotifyGroups.opened()
        mounts = MountTable({b"tmpfs"})
        problems: list[str] = []
        directories = WatchedDirectories(
            groups,
            patterns=[os.fsencode(place)],
            unexecuted=[],
            directories_max=100,
            mounts=mounts,
            report=problems.append,
        )
        directories.read_mounts()
        tracemalloc.start()
        directories.mark_below(os.fsencode(place))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        groups.close()
    finally:
        mounting.unmount(place)
    assert peak < 4 << 20
    assert problems == []


@pytest.mark.soak
def test_a_user_who_creates_very_many_files_does_not_exhaust_the_watching_process(place: Path) -> None:
    mounting.mount("test", place, "tmpfs")
    try:
        with watching(place) as recording:
            watcher = recording.watcher
            for number in range(60_000):
                os.close(os.open(place / f"{number:060}", os.O_CREAT | os.O_WRONLY))
            (place / "last").touch()
            until_sync(lambda: recording.files(path=str(place / "last")), seconds=90)
            assert watching_processes()[1] == watcher
            assert proportional_kb(watcher) < 16 * 1024
    finally:
        mounting.unmount(place)


@pytest.mark.long
def test_many_executables_at_once_all_have_their_hash(place: Path) -> None:
    contents = {f"program{number}": b"#!/bin/sh\n" + b"#" * number for number in range(300)}
    with watching(place) as recording:
        with stopped_watcher():
            for name, content in contents.items():
                (place / name).write_bytes(content)
                (place / name).chmod(0o755)
        recording.expect(TABLE, 300, action="attributes")
        found = {Path(row["path"]).name: row["sha256"] for row in recording.files(action="attributes")}
    assert found == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_a_file_that_left_the_watch_has_no_hash_if_its_former_path_is_denied(place: Path, tmp_path: Path) -> None:
    with watching(place, may_read=lambda path: not path.endswith("denied")) as recording:
        for name in ("denied", "allowed"):
            (place / name).write_text("#!/bin/sh\n")
            (place / name).chmod(0o755)
            (place / name).rename(tmp_path / name)
            row = recording.expect(TABLE, action="renamed", old_path=str(place / name))[0]
            assert row["sha256"] is None
        (tmp_path / "denied").rename(place / "other")
        assert recording.expect_file("renamed", place / "other")["sha256"] is not None
        (place / "other").rename(place / "denied")
        assert recording.expect_file("renamed", place / "denied")["sha256"] is None
        (place / "denied").rename(place / "again")
        assert recording.expect_file("renamed", place / "again")["sha256"] is None
