"""File events where file systems come and go, hang, or consist of subvolumes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mounting
import pytest
from children import exit_code, fork
from mounting import SilentFuse, in_mount_namespace, needs_fuse
from waiting import until_sync
from watching import TABLE, Watching, directories_of, stopped_watcher, watching

from zeek_agent.recording.files import fanotify
from zeek_agent.recording.files.mount_table import MountTable

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "watched"
    directory.mkdir()
    return directory


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """An empty directory in the watched one, whatever is mounted there at the end."""
    directory = place / "mounted"
    directory.mkdir()
    yield directory
    while os.path.ismount(directory):
        mounting.unmount(directory)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A btrfs file system."""
    if shutil.which("mkfs.btrfs") is None or "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs btrfs")
    image, directory = tmp_path / "image", tmp_path / "btrfs"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(120 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, directory], check=False).returncode:
        pytest.skip("needs loop devices")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def is_recorded(file: Path, recording: Watching) -> bool:
    """Whether a file that is written to has been recorded with this process."""
    file.write_text("x")
    return bool(recording.files(path=str(file), action="written", pid=os.getpid()))


def subvolume(*arguments: str | Path) -> None:
    subprocess.run(["btrfs", "subvolume", *arguments], check=True, capture_output=True)


def test_the_source_of_a_bind_mount_is_watched_only_while_it_is_mounted(
    place: Path, mounted: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    with watching(place) as recording:
        mounting.bind(source, mounted)
        until_sync(lambda: directories_of(recording) == 4)
        (source / "below" / "during").touch()
        recording.expect_file("created", mounted / "below" / "during")
        mounting.unmount(mounted)
        until_sync(lambda: directories_of(recording) == 2)
        (source / "below" / "after").touch()
        (mounted / "last").touch()
        recording.expect_file("created", mounted / "last")
        assert not [row for row in recording.files() if row["path"].endswith("after")]


@pytest.mark.long
def test_files_that_are_on_a_mount_before_it_is_watched_are_found(place: Path, mounted: Path) -> None:
    with watching(place) as recording:
        with stopped_watcher():
            mounting.mount("test", mounted, "tmpfs")
            (mounted / "early").write_text("x")
        row = recording.expect_file("written", mounted / "early")
        assert (row["found"], row["pid"], row["size"]) == (True, None, 1)


@pytest.mark.long
def test_a_second_mount_at_the_same_place_is_watched_and_the_first_one_again_after_it(
    place: Path, mounted: Path
) -> None:
    with watching(place) as recording:
        for count in (3, 4):
            mounting.mount("test", mounted, "tmpfs")
            until_sync(lambda count=count: directories_of(recording) == count)
            (mounted / f"file{count}").touch()
            recording.expect_file("created", mounted / f"file{count}")
        for count in (3, 2):
            mounting.unmount(mounted)
            until_sync(lambda count=count: directories_of(recording) == count)
            (mounted / f"again{count}").touch()
            recording.expect_file("created", mounted / f"again{count}")


def test_a_directory_that_a_mount_covered_is_watched_when_the_mount_is_gone(place: Path, mounted: Path) -> None:
    (mounted / "below").mkdir()
    mounting.mount("test", mounted, "tmpfs")
    with watching(place) as recording:
        mounting.unmount(mounted)
        until_sync(lambda: directories_of(recording) == 3)
        (mounted / "below" / "file").touch()
        recording.expect_file("created", mounted / "below" / "file")


@pytest.mark.long
def test_changes_below_a_mount_over_the_watched_directory_are_still_seen(place: Path) -> None:
    (place / "below").mkdir()
    inside = os.open(place / "below", os.O_RDONLY)
    with watching(place) as recording:
        mounting.mount("test", place, "tmpfs")
        try:
            until_sync(lambda: directories_of(recording) == 3)
            os.close(os.open("hidden", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
            recording.expect_file("created", place / "below" / "hidden")
            (place / "file").touch()
            recording.expect_file("created", place / "file")
        finally:
            mounting.unmount(place)
            os.close(inside)


@pytest.mark.long
def test_subvolumes_of_btrfs_are_watched(btrfs: Path) -> None:
    place = btrfs / "watched"
    place.mkdir()
    for name in ("first", "second"):
        subvolume("create", place / name)
        (place / name / "below").mkdir()
    with watching(place) as recording:
        assert directories_of(recording) == 5
        (place / "first" / "below" / "file").write_text("x")
        assert recording.expect_file("written", place / "first" / "below" / "file")["size"] == 1
        (place / "second" / "file").touch()
        recording.expect_file("created", place / "second" / "file")
        subvolume("create", place / "third")
        until_sync(lambda: directories_of(recording) == 6)
        (place / "third" / "file").touch()
        recording.expect_file("created", place / "third" / "file")
        subvolume("delete", place / "first")
        recording.expect_file("deleted", place / "first")
        until_sync(lambda: directories_of(recording) == 4)


def test_a_whole_file_system_is_watched_again_when_it_is_mounted_again(mounted: Path) -> None:
    with watching("/nonexistent", filesystems=[mounted]) as recording:
        for turn in range(2):
            mounting.mount("test", mounted, "tmpfs")

            until_sync(lambda turn=turn: is_recorded(mounted / f"file{turn}", recording))
            mounting.unmount(mounted)


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("is_whole", [False, True], ids=["its directories", "as a whole"])
def test_a_file_system_is_watched_that_took_the_place_and_the_ids_of_one_before(
    is_whole: bool, place: Path, mounted: Path
) -> None:
    mounting.mount("test", mounted, "tmpfs")
    before = mounting.mount_line(mounted)
    with watching("/nonexistent" if is_whole else place, filesystems=[mounted] * is_whole) as recording:
        (mounted / "first").touch()
        recording.expect_file("created", mounted / "first")
        with stopped_watcher():
            mounting.unmount(mounted)
            for _ in range(100):
                mounting.mount("test", mounted, "tmpfs")
                if mounting.mount_line(mounted) == before:
                    break
                mounting.unmount(mounted)
            else:
                pytest.skip("the kernel does not use the ids of a mount again")
        until_sync(lambda: is_recorded(mounted / "second", recording))


def test_a_covered_mount_cannot_be_reached(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        "2 1 8:2 / /home rw - xfs /dev/sda2 rw",
        "3 2 0:3 / /home/user/covered rw - tmpfs tmpfs rw",
        r"4 2 0:4 / /home/user rw - fuse.hung\040one hung rw",
        "5 1 0:5 / /over rw - tmpfs first rw",
        "6 5 0:6 / /over rw - tmpfs second rw",
        "7 5 0:7 / /over/below rw - tmpfs hidden rw",
        r"8 6 0:8 / /over/a\040b\134 rw - tmpfs shown rw",
    ]
    table.write_text("\n".join(lines) + "\n")
    mounts = MountTable({b"ext4", b"xfs", b"tmpfs"}, str(table))
    assert mounts.read() == []
    assert sorted((each.number, each.place, each.is_admitted) for each in mounts) == [
        (1, b"/", True),
        (2, b"/home", True),
        (4, b"/home/user", False),
        (6, b"/over", True),
        (8, b"/over/a b\\", True),
    ]
    around = {
        path: mount.number if (mount := mounts.around(path)) else None
        for path in (b"/etc", b"/home/user/covered/x", b"/over/below/x", b"/home", b"/homes")
    }
    assert around == {b"/etc": 1, b"/home/user/covered/x": 4, b"/over/below/x": 6, b"/home": 2, b"/homes": 1}
    assert mounts.has_device(b"0:7")
    assert mounts.of_device(b"0:7") is None
    table.write_text("\n".join(lines[:5]) + "\n")
    assert [mount.number for mount in mounts.read()] == [6, 7, 8]


def test_hundreds_of_mounts_upon_each_other_are_read(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    lines = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw"]
    lines += [f"{number + 1} {number} 0:9 / /over rw - fuse hung rw" for number in range(1, 3_000)]
    table.write_text("\n".join(lines) + "\n")
    mounts = MountTable({b"ext4"}, str(table))
    mounts.read()
    assert [mount.number for mount in mounts] == [1, 3_000]


@pytest.mark.long
@needs_fuse
def test_a_file_system_that_hangs_is_neither_entered_nor_asked(tmp_path: Path) -> None:
    place = tmp_path / "watched"
    (place / "below").mkdir(parents=True)
    fuse = SilentFuse()

    def scene() -> list[str]:
        mounting.mount("test", tmp_path, "tmpfs")
        (place / "below").mkdir(parents=True)
        with watching(place) as recording:
            with stopped_watcher():
                (place / "below").rmdir()
                (place / "below").mkdir()
                fuse.mount(place / "below")
                (place / "file").touch()
            recording.expect_file("created", place / "file")
        with watching(place, since=1.0) as recording:  # compares everything
            recording.expect(TABLE, path=str(place / "file"), found=True)
            (place / "later").touch()
            recording.expect_file("created", place / "later")
        return [row["path"] for row in recording.files()]

    assert not [path for path in in_mount_namespace(scene, fuse=fuse) if "/below/" in path]
    assert fuse.requests == []


@needs_fuse
@pytest.mark.soak  # a silent file system has made other tests on the host wait
def test_what_is_mounted_since_the_mounts_were_read_is_not_asked(tmp_path: Path) -> None:
    fuse = SilentFuse()
    (tmp_path / "entry").mkdir()

    def scene() -> tuple[int | None, int]:
        opened = os.open(tmp_path, os.O_RDONLY)
        before = os.open(tmp_path / "entry", os.O_PATH)
        fuse.mount(tmp_path / "entry")
        try:
            fanotify.status_below(opened, b"entry")
        except OSError as error:
            number = error.errno
        covering = os.open(tmp_path / "entry", os.O_PATH)
        return number, fanotify.mount_id(covering) - fanotify.mount_id(before)

    number, difference = in_mount_namespace(scene, fuse=fuse)
    assert number == errno.EXDEV
    assert difference != 0
    assert fuse.requests == []


@pytest.mark.long
def test_an_overlay_in_another_mount_namespace_shows_the_process_of_the_container(place: Path, tmp_path: Path) -> None:
    lower, work, merged = tmp_path / "lower", tmp_path / "work", tmp_path / "merged"
    for each in (lower, work, merged):
        each.mkdir()
    (lower / "given").write_text("1")

    def container() -> None:
        mounting.unshare(mounting.CLONE_NEWNS)
        mounting.mount("none", "/", flags=mounting.MS_REC | mounting.MS_PRIVATE)
        options = f"lowerdir={lower},upperdir={place},workdir={work}"
        mounting.mount("overlay", merged, "overlay", data=options)
        (merged / "new").write_text("x")
        (merged / "given").rename(merged / "moved")

    with watching(place) as recording:
        pid = fork(container)
        assert exit_code(pid) == 0
        assert recording.expect_file("created", place / "new")["pid"] == pid
        assert {row["pid"] for row in recording.expect(TABLE, path=str(place / "moved"))} == {pid}
