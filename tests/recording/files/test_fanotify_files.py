"""File events of real processes, by a real watching process."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mounting
import pytest
from children import exit_code, fork
from waiting import until_sync
from watching import TABLE, Watching, shown, status_of, watching, watching_processes

from zeek_agent.recording.source import Source

pytestmark = pytest.mark.root
QUEUE_EVENTS_MAX = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "watched"
    directory.mkdir()
    return directory


@pytest.fixture
def recording(place: Path) -> Iterator[Watching]:
    with watching(place) as active:
        yield active


@pytest.fixture
def tmpfs(place: Path) -> Iterator[Path]:
    """A mount below the watched directory, which is there before it is watched."""
    mounted = place / "mounted"
    mounted.mkdir()
    mounting.mount("test", mounted, "tmpfs")
    yield mounted
    if os.path.ismount(mounted):
        mounting.unmount(mounted)


def test_each_action_is_a_row_with_its_process(recording: Watching, place: Path) -> None:
    file, moved = place / "file", place / "moved"

    def act() -> None:
        file.write_text("content")
        file.chmod(0o600)
        file.rename(moved)
        moved.unlink()

    pid = fork(act)
    assert exit_code(pid) == 0
    recording.expect_file("deleted", moved)
    rows = recording.files()
    assert [(row["action"], row["path"], row["old_path"]) for row in rows] == [
        ("created", str(file), None),
        ("written", str(file), None),
        ("attributes", str(file), None),
        ("renamed", str(moved), str(file)),
        ("deleted", str(moved), None),
    ]
    (started,) = recording.events("processes_events", pid=pid, state="started")
    assert {row["pid"] for row in rows} == {pid}
    assert {row["entity_id"] for row in rows} == {started["entity_id"]}
    assert {row["process"] for row in rows} == {started["name"]}
    assert not any(row["found"] for row in rows)


@pytest.mark.long
def test_attributes_are_those_of_the_file_itself(recording: Watching, place: Path) -> None:
    file = place / "file"
    file.write_text("12345")
    file.chmod(0o640)
    row = recording.expect_file("attributes", file)
    status = file.stat()
    assert (row["inode"], row["device"], row["size"], row["permissions"], row["type"]) == (
        status.st_ino,
        status.st_dev,
        5,
        "640",
        "file",
    )
    place.chmod(0o711)
    row = recording.expect_file("attributes", place)
    assert (row["type"], row["permissions"], row["size"]) == ("dir", "711", None)


def test_repeated_changes_within_a_window_are_one_row_per_process(recording: Watching, place: Path) -> None:
    file = place / "file"
    file.touch()
    recording.expect_file("written", file)

    def append() -> None:
        for _ in range(50):
            with file.open("a") as opened:
                opened.write("x")

    pids = [fork(append), fork(append)]
    assert [exit_code(pid) for pid in pids] == [0, 0]
    for pid in pids:
        recording.expect(TABLE, pid=pid, action="written")
    rows = [row for row in recording.files(action="written") if row["pid"] in pids]
    assert len(rows) <= 4  # two processes, whose appends may lie in two windows
    assert sum(row["count"] for row in rows) <= 100  # the kernel merges what is not read yet


@pytest.mark.long
def test_a_rename_over_a_file_is_one_row_and_hard_links_are_created_and_deleted(
    recording: Watching, place: Path
) -> None:
    old, new, link = place / "old", place / "new", place / "link"
    old.write_text("old")
    new.write_text("new")
    new.rename(old)
    os.link(old, link)
    link.unlink()
    recording.expect_file("deleted", link)
    recording.expect_file("renamed", old, old_path=str(new))
    recording.expect_file("created", link)
    assert [row["path"] for row in recording.files(action="deleted")] == [str(link)]
    assert recording.files(action="attributes") == []


def test_renames_across_the_boundary_have_the_watched_path_only(
    recording: Watching, place: Path, tmp_path: Path
) -> None:
    inside, outside = place / "inside", tmp_path / "outside"
    inside.mkdir()
    recording.expect_file("created", inside)
    inside.rename(outside)
    (outside / "unseen").touch()
    outside.rename(inside)
    recording.expect_file("renamed", inside)
    (inside / "seen").touch()
    recording.expect_file("created", inside / "seen")
    assert [(row["path"], row["old_path"]) for row in recording.files(action="renamed")] == [
        (None, str(inside)),
        (str(inside), None),
    ]
    assert all(row["found"] for row in recording.files(path=str(inside / "unseen")))


def test_files_in_new_and_renamed_directories_have_their_paths(recording: Watching, place: Path) -> None:
    first, second = place / "first", place / "second"
    (first / "a" / "b").mkdir(parents=True)
    (first / "a" / "b" / "file").touch()
    recording.expect_file("created", first / "a" / "b" / "file")
    first.rename(second)
    (second / "a" / "b" / "other").touch()
    recording.expect_file("created", second / "a" / "b" / "other")


@pytest.mark.long
def test_files_that_are_in_a_new_directory_before_it_is_watched_are_found(recording: Watching, place: Path) -> None:
    (watcher,) = watching_processes()[1:]
    os.kill(watcher, signal.SIGSTOP)
    try:
        (place / "a" / "b").mkdir(parents=True)
        (place / "a" / "b" / "file").touch()
    finally:
        os.kill(watcher, signal.SIGCONT)
    row = recording.expect_file("created", place / "a" / "b" / "file")
    assert row["found"]
    assert (row["pid"], row["entity_id"]) == (None, None)


@pytest.mark.long
def test_files_that_change_in_a_directory_that_came_from_elsewhere_are_found(
    recording: Watching, place: Path, tmp_path: Path
) -> None:
    outside, inside = tmp_path / "outside", place / "inside"
    outside.mkdir()
    (outside / "older").touch()
    (outside / "changed").touch()
    os.utime(outside, (0, 0))
    (watcher,) = watching_processes()[1:]
    until_sync(lambda: time.time() - (outside / "changed").stat().st_ctime > 1)
    os.kill(watcher, signal.SIGSTOP)
    try:
        outside.rename(inside)
        (inside / "changed").write_text("x")
    finally:
        os.kill(watcher, signal.SIGCONT)
    assert recording.expect_file("written", inside / "changed")["found"]
    assert not recording.files(path=str(inside / "older"))


@pytest.mark.long
def test_deletions_in_a_removed_tree_have_their_paths(recording: Watching, place: Path) -> None:
    tree = place / "tree"
    files = [tree / "a" / "b" / f"file{number}" for number in range(20)]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.touch()
    recording.expect_file("created", files[-1])
    shutil.rmtree(tree)
    recording.expect_file("deleted", tree)
    deleted = {row["path"] for row in recording.files(action="deleted")}
    assert deleted == {str(each) for each in (*files, files[0].parent, tree / "a", tree)}


NAMES = [b"new\nline", b"\xff\xfe\x80", b"tab\t\x1b[31m", b"x" * 255, b" (deleted)", "\xfcn\xef\ue0ef".encode()]


@pytest.mark.long
def test_names_are_kept_byte_by_byte(recording: Watching, place: Path) -> None:
    paths = [os.fsencode(place) + b"/" + name for name in NAMES]
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        Path(os.fsdecode(path[:-1] + b"d")).mkdir()
    directories = [os.fsencode(each) for each in place.iterdir() if each.is_dir()]
    for path in [*paths, *directories]:
        recording.expect_file("created", path)
    below = [directory + b"/" + name for directory in directories for name in NAMES]
    for path in below:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    for path in below:
        assert not recording.expect_file("created", path)["found"]


def test_new_executables_have_their_hash_unless_rules_deny_it(place: Path) -> None:
    program = Path("/bin/true").read_bytes()
    with watching(place, may_read=lambda path: not path.endswith("denied")) as recording:
        for name in ("program", "denied"):
            (place / name).write_bytes(program)
            (place / name).chmod(0o755)
        subprocess.run([place / "program"], check=True)
        (place / "data").write_bytes(program)
        assert recording.expect_file("attributes", place / "program")["sha256"] == hashlib.sha256(program).hexdigest()
        assert recording.expect_file("attributes", place / "denied")["sha256"] is None
        assert recording.expect_file("written", place / "data")["sha256"] is None
        executed = recording.expect_file("executed", place / "program")
        (started,) = recording.events("processes_events", pid=executed["pid"], exe=str(place / "program"))[:1]
        assert executed["entity_id"] == started["entity_id"]


@pytest.mark.long
def test_directories_that_a_pattern_matches_later_are_watched(place: Path) -> None:
    (place / "alice").mkdir()
    with watching(f"{place}/*/.ssh") as recording:
        for user in ("alice", "bob"):
            (place / user / ".ssh").mkdir(parents=True)
            recording.expect_file("created", place / user / ".ssh")
            (place / user / "unwatched").touch()
            (place / user / ".ssh" / "authorized_keys").touch()
            recording.expect_file("created", place / user / ".ssh" / "authorized_keys")
        assert not [row for row in recording.files() if row["path"].endswith("unwatched")]


def test_directories_can_be_left_out(place: Path) -> None:
    (place / "noise" / "deep").mkdir(parents=True)
    with watching(place, f"!{place}/noise") as recording:
        (place / "noise" / "deep" / "file").touch()
        (place / "noise" / "file").touch()
        (place / "file").touch()
        recording.expect_file("created", place / "file")
        assert {row["path"] for row in recording.files()} == {str(place / "file")}


@pytest.mark.long
def test_more_directories_than_allowed_are_reported(place: Path) -> None:
    for number in range(5):
        (place / str(number)).mkdir()
    with watching(place, directories=3) as recording:
        source = recording.sources[1]
        until_sync(lambda: (source.update_counters(), source.counters.last_error)[1])
        assert "more than 3 directories" in str(source.counters.last_error)


@pytest.mark.long
def test_a_tmpfs_is_watched_while_it_is_mounted(recording: Watching, place: Path) -> None:
    mounted = place / "mounted"
    mounted.mkdir()
    recording.expect_file("created", mounted)
    for turn in range(2):
        mounting.mount("test", mounted, "tmpfs")
        try:
            source = recording.sources[1]
            until_sync(lambda source=source: directories_of(source) == 3)
            (mounted / f"file{turn}").touch()
            recording.expect_file("created", mounted / f"file{turn}")
        finally:
            subprocess.run(["umount", mounted], check=True)  # nothing keeps it busy
        until_sync(lambda source=source: directories_of(source) == 2)


def directories_of(source: Source) -> int:
    status = source._status  # type: ignore[attr-defined]
    return -1 if status is None else status.directories


def test_an_overlay_shows_writes_and_deletions_in_its_layers(place: Path, tmp_path: Path) -> None:
    lower, upper, work, merged = tmp_path / "lower", place / "upper", tmp_path / "work", tmp_path / "merged"
    for each in (lower, upper, work, merged):
        each.mkdir()
    (lower / "removed").touch()
    (lower / "appended").write_text("1")
    mounting.mount("overlay", merged, "overlay", data=f"lowerdir={lower},upperdir={upper},workdir={work}")
    try:
        with watching(place) as recording:

            def act() -> None:
                (merged / "new").write_text("x")
                (merged / "removed").unlink()
                with (merged / "appended").open("a") as opened:
                    opened.write("2")

            pid = fork(act)
            assert exit_code(pid) == 0
            assert recording.expect_file("created", upper / "new")["pid"] == pid
            assert recording.expect_file("deleted", upper / "removed")["pid"] == pid
            assert recording.expect(TABLE, path=str(upper / "appended"))[0]["pid"] == pid
    finally:
        mounting.unmount(merged)


@pytest.mark.long
def test_a_whole_file_system_is_watched_where_configured(tmpfs: Path) -> None:
    with watching("/nonexistent", filesystems=[tmpfs]) as recording:
        (tmpfs / "a" / "b").mkdir(parents=True)
        (tmpfs / "a" / "b" / "file").touch()
        row = recording.expect_file("created", tmpfs / "a" / "b" / "file")
        assert row["pid"] == os.getpid()
        shutil.rmtree(tmpfs / "a")
        recording.expect_file("deleted", tmpfs / "a" / "b" / "file")


@pytest.mark.long
@pytest.mark.parametrize("processes", [100, pytest.param(1_000, marks=pytest.mark.soak)])
def test_every_operation_of_short_lived_processes_has_its_process(
    recording: Watching, place: Path, processes: int
) -> None:
    wanted: dict[int, set[tuple[str, str | None, str | None]]] = {}
    for number in range(processes):

        def act(number: int = number) -> None:
            for operation in operations(place, number):
                operation()

        pid = fork(act)
        wanted[pid] = expected(place, number)
        assert exit_code(pid) == 0
    last = list(wanted)[-1]
    recording.expect(TABLE, 4, pid=last, action="deleted")
    rows = recording.files()
    found: dict[int | None, set[tuple[str, str | None, str | None]]] = defaultdict(set)
    for row in rows:
        found[row["pid"]].add((row["action"], row["path"], row["old_path"]))
    missing = {pid: wanted[pid] - found[pid] for pid in wanted if wanted[pid] - found[pid]}
    lost = sum(map(len, missing.values()))
    assert lost <= processes * 20 // 100, missing
    assert all(found[pid] <= wanted[pid] for pid in wanted)
    entities = {row["pid"]: row["entity_id"] for row in recording.events("processes_events", state="started")}
    wrong = [row for row in rows if row["pid"] in wanted and row["entity_id"] != entities[row["pid"]]]
    assert wrong == []
    assert recording.sources[1].counters.lost.total() == 0


def operations(directory: Path, number: int) -> Iterator[Callable[[], object]]:
    """20 operations: 4 files are created, changed, renamed, written and deleted."""
    for letter in "abcd":
        file, moved = directory / f"{number}{letter}", directory / f"{number}{letter}.moved"
        yield file.touch
        yield partial(file.chmod, 0o600)
        yield partial(file.rename, moved)
        yield partial(moved.write_text, "x")
        yield moved.unlink


def expected(directory: Path, number: int) -> set[tuple[str, str | None, str | None]]:
    rows: set[tuple[str, str | None, str | None]] = set()
    for letter in "abcd":
        file, moved = str(directory / f"{number}{letter}"), str(directory / f"{number}{letter}.moved")
        rows |= {
            ("created", file, None),
            ("written", file, None),
            ("attributes", file, None),
            ("renamed", moved, file),
            ("written", moved, None),
            ("deleted", moved, None),
        }
    return rows


@pytest.mark.soak
def test_an_overflow_is_counted_and_what_it_hid_is_found(tmpfs: Path) -> None:
    (tmpfs / "deleted").touch()
    (tmpfs / "changed").touch()
    count = QUEUE_EVENTS_MAX + 500
    with watching(tmpfs) as recording:
        (watcher,) = watching_processes()[1:]
        os.kill(watcher, signal.SIGSTOP)
        try:
            for number in range(count):
                (tmpfs / f"{number}").touch()
            (tmpfs / "directory").mkdir()
            (tmpfs / "directory" / "within").touch()
            (tmpfs / "deleted").unlink()
            (tmpfs / "changed").write_text("x")
        finally:
            os.kill(watcher, signal.SIGCONT)
        source = recording.sources[1]
        until_sync(lambda: (source.update_counters(), source.counters.lost["overrun"])[1], seconds=30)
        assert recording.expect(TABLE, action="deleted", path=str(tmpfs / "deleted"))[0]["found"]
        recording.expect_file("written", tmpfs / "changed", found=True)
        recording.expect_file("created", tmpfs / "directory", found=True)
        recording.expect_file("created", tmpfs / "directory" / "within", found=True)
        source.update_counters()
        assert source.counters.lost["overrun"] == 1
        created = {row["path"] for row in recording.files(action="created")}
        assert {str(tmpfs / f"{number}") for number in range(count)} <= created
        (tmpfs / "directory" / "later").touch()
        assert not recording.expect_file("created", tmpfs / "directory" / "later")["found"]


def test_the_watching_process_has_the_privileges_that_it_needs_only(place: Path, tmpfs: Path) -> None:
    assert shown(place) == str(place)
    with watching(place):
        launcher, watcher = watching_processes()
        status = status_of(watcher)
        assert (int(status["CapEff"], 16), int(status["CapPrm"], 16)) == (1 << 2, 1 << 2)  # CAP_DAC_READ_SEARCH
        assert status["Uid"].split()[0] != "0"
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert int(status_of(launcher)["CapEff"], 16) == 1 << 21 | 1 << 2 | 1 << 6 | 1 << 7 | 1 << 8
        assert status_of(launcher)["NoNewPrivs"] == "1"
    until_sync(lambda: watching_processes() == [])
    with watching(place, filesystems=[tmpfs]):
        assert int(status_of(watching_processes()[1])["CapEff"], 16) == 1 << 21 | 1 << 2


@pytest.mark.long
def test_the_watching_process_and_its_launcher_take_at_most_16_mb(place: Path) -> None:
    for number in range(3_000):
        (place / str(number % 50) / f"a-directory-{number}").mkdir(parents=True)
    with watching(place) as recording:
        (place / "0" / "file").touch()
        recording.expect_file("created", place / "0" / "file")
        pids = watching_processes()
        assert len(pids) == 2
        assert sum(map(proportional_kb, pids)) <= 16 * 1024


def proportional_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
