"""Attributes by statx(2) are those of lstat(2), and the mount is that of mountinfo."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from zeek_agent.host.files.statx import FileStatus, entry_types, status_at, status_of
from zeek_agent.host.linux.mounts import mounts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="statx(2) is Linux's")

_HERE = -100  # AT_FDCWD


def walked(*roots: str) -> Iterator[str]:
    """Paths of all kinds, a bounded number from each place."""
    for root in roots:
        yield root
        below = (f"{path}/{name}" for path, directories, files in os.walk(root) for name in [*directories, *files])
        yield from islice(below, 2_000)


def agrees(status: FileStatus, expected: os.stat_result) -> bool:
    return (
        (status.mode, status.links, status.uid, status.gid, status.inode, status.size)
        == (
            expected.st_mode,
            expected.st_nlink,
            expected.st_uid,
            expected.st_gid,
            expected.st_ino,
            expected.st_size,
        )
        and status.device == expected.st_dev
        and (status.mtime_seconds, status.mtime_nanoseconds) == divmod(expected.st_mtime_ns, 10**9)
        and status.is_directory == stat.S_ISDIR(expected.st_mode)
        and status.is_link == stat.S_ISLNK(expected.st_mode)
    )


def test_attributes_are_those_of_lstat(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"x" * 255, "grün".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    os.utime(tmp_path / "grün", ns=(0, -1_500_000_000))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "hard").hardlink_to(tmp_path / "grün")
    (tmp_path / "dangling").symlink_to("nowhere")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    compared = 0
    for path in walked(str(tmp_path), "/etc", "/usr/bin", "/dev", "/sys/class", "/proc/sys/kernel"):
        try:
            expected, status = os.lstat(path), status_at(_HERE, path)
        except FileNotFoundError:
            continue  # it has gone meanwhile
        if expected == os.lstat(path):
            assert agrees(status, expected), path
            compared += 1
    assert compared > 1_000


def test_a_descriptor_of_a_mere_place_has_the_same_attributes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "link", tmp_path / "fifo", Path("/etc/passwd"), Path("/dev/null")):
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            assert status_of(descriptor) == status_at(_HERE, str(path))
            assert agrees(status_of(descriptor), path.lstat())
        finally:
            os.close(descriptor)


def test_names_are_relative_to_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        assert status_at(descriptor, "file").size == len("content")
        assert status_at(descriptor, ".").inode == tmp_path.stat().st_ino
    finally:
        os.close(descriptor)


def test_the_mount_is_that_of_mountinfo() -> None:
    uppermost = {mount.mount_point: mount for mount in mounts()}
    for place in ("/", "/proc", "/sys", "/dev"):
        if place in uppermost:
            assert status_at(_HERE, place).mount == uppermost[place].id
    assert status_at(_HERE, "/proc/version").mount == uppermost["/proc"].id


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("nowhere", errno.ENOENT),
        ("file/below", errno.ENOTDIR),
        ("x" * 256, errno.ENAMETOOLONG),
        ("loop/x", errno.ELOOP),
    ],
)
def test_failures_are_those_of_the_kernel(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        status_at(_HERE, f"{tmp_path}/{name}")
    assert caught.value.errno == number
    with pytest.raises(OSError, match="Bad file descriptor"):
        status_of(1 << 20)


def test_threads_do_not_share_the_buffer(tmp_path: Path) -> None:
    for size in range(8):
        (tmp_path / str(size)).write_bytes(b"x" * size)
    wrong = []

    def look(size: int) -> None:
        wrong.extend(found for _ in range(2_000) if (found := status_at(_HERE, f"{tmp_path}/{size}").size) != size)

    threads = [threading.Thread(target=look, args=(size,)) for size in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_directory_entries_have_types(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert entry_types(descriptor) == []
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to("nowhere")
        (tmp_path / "file").touch()
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert sorted(entry_types(descriptor)) == [4, 8, 10]
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        entry_types(1 << 20)
