"""A file that grows and is rotated: each line once, whatever happens to it between two readings and across restarts."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from zeek_agent.recording.followed.followed_file import (
    CHUNK_BYTES,
    LINE_BYTES_MAX,
    FollowedFile,
    Position,
    position_from,
)

LINES = [f"line {number}".encode() for number in range(100)]


class Followed:
    """A file and its reader; `restart` makes another one at the stored position."""

    def __init__(self, path: Path, *, at_end: bool = False) -> None:
        self.path = path
        self.long = 0
        self.missed: list[str] = []
        self.reader = self._made(None)
        self.reader.begin(at_end=at_end)

    def _made(self, position: Position | None) -> FollowedFile:
        return FollowedFile(self.path, position, too_long=self._count, missed=self.missed.append, settle_seconds=0.0)

    def _count(self) -> None:
        self.long += 1

    def read(self) -> list[bytes]:
        return list(self.reader.lines())

    def restart(self) -> None:
        stored = self.reader.position.stored()
        self.reader.close()
        self.reader = self._made(position_from(stored))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def append(path: Path, *lines: bytes, end: bytes = b"\n") -> None:
    with path.open("ab") as file:
        file.write(b"".join(line + end for line in lines))


def copytruncate(path: Path, copy: str) -> None:
    shutil.copyfile(path, path.with_name(copy))
    os.truncate(path, 0)


def test_new_lines_come_once_and_incomplete_ones_when_they_are_complete(path: Path) -> None:
    append(path, b"old")
    followed = Followed(path, at_end=True)
    assert followed.read() == []
    append(path, b"a", b"b")
    append(path, b"c", end=b"")
    assert followed.read() == [b"a", b"b"]
    assert followed.read() == []
    followed.restart()
    append(path, b"d")
    assert followed.read() == [b"cd"]


def test_following_begins_after_the_last_complete_line(path: Path) -> None:
    append(path, b"old")
    append(path, b"begun", end=b"")
    followed = Followed(path, at_end=True)
    append(path, b"!")
    assert followed.read() == [b"begun!"]


def test_a_file_that_comes_later_is_read_from_its_beginning(path: Path) -> None:
    followed = Followed(path, at_end=True)
    assert followed.read() == []
    followed.restart()
    append(path, b"a")
    assert followed.read() == [b"a"]
    assert followed.missed == []


def test_lines_that_are_too_long_are_counted_and_skipped(path: Path) -> None:
    followed = Followed(path)
    append(path, b"x" * LINE_BYTES_MAX, b"y" * (LINE_BYTES_MAX + 1), b"a")
    append(path, b"z" * (3 << 20), end=b"")
    assert followed.read() == [b"x" * LINE_BYTES_MAX, b"a"]
    assert followed.long == 1
    append(path, b"z" * (1 << 20), b"b")
    assert followed.read() == [b"b"]
    assert followed.long == 2
    followed.restart()
    append(path, b"c")
    assert followed.read() == [b"c"]


def test_an_endless_line_takes_no_memory_and_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(path)
    append(path, b"z" * (8 << 20), end=b"")
    assert followed.read() == []
    read = 0
    pread = os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        nonlocal read
        content = pread(file, size, offset)
        read += len(content)
        return content

    monkeypatch.setattr(os, "pread", counted)
    assert followed.read() == []
    assert read < 10_000
    assert len(followed.reader._partial) <= LINE_BYTES_MAX + 1


def test_a_hole_of_terabytes_is_read_in_parts(path: Path) -> None:
    followed = Followed(path)
    append(path, b"a")
    os.truncate(path, 1 << 42)
    assert list(followed.reader.lines(1 << 20)) == [b"a"]
    assert list(followed.reader.lines(1 << 20)) == []
    assert followed.reader._read_to == 2 << 20
    assert followed.reader.position.offset == 2


def test_a_backlog_is_read_in_parts(path: Path) -> None:
    followed = Followed(path)
    append(path, *(b"x" * 1_000 for _ in range(2_000)))
    parts = [len(list(followed.reader.lines(500_000))) for _ in range(6)]
    assert sum(parts) == 2_000
    assert len([part for part in parts if part]) > 3


def test_rotation_by_rename_loses_and_repeats_nothing(path: Path) -> None:
    followed = Followed(path)
    append(path, b"1", b"2")
    assert followed.read() == [b"1", b"2"]
    append(path, b"3")
    path.rename(path.with_name("jobs.jsonl.1"))
    append(path.with_name("jobs.jsonl.1"), b"4")
    append(path, b"5")
    assert followed.read() == [b"3", b"4", b"5"]
    assert followed.missed == []


def test_a_renamed_file_is_read_until_its_writer_has_left_it(path: Path) -> None:
    followed = Followed(path)
    followed.reader._settle_seconds = 1_000.0
    append(path, b"1")
    path.rename(path.with_name("jobs.jsonl.1"))
    append(path, b"3")
    assert followed.read() == [b"1"]
    append(path.with_name("jobs.jsonl.1"), b"2")
    assert followed.read() == [b"2"]
    followed.reader._settle_seconds = 0.0
    assert followed.read() == [b"3"]


def test_the_last_line_of_a_rotated_file_needs_no_end(path: Path) -> None:
    followed = Followed(path)
    append(path, b"1")
    append(path, b"2", end=b"")
    path.rename(path.with_name("jobs.jsonl.1"))
    append(path, b"3")
    assert followed.read() == [b"1", b"2", b"3"]


@pytest.mark.parametrize("names", [("jobs.jsonl.2", "jobs.jsonl.1"), ("jobs-20260101.jsonl", "jobs-20260102.jsonl")])
def test_several_rotations_during_a_restart_are_caught_up(path: Path, names: tuple[str, str]) -> None:
    followed = Followed(path)
    append(path, b"1", b"2")
    assert followed.read() == [b"1", b"2"]
    append(path, b"3")
    path.rename(path.with_name(names[0]))
    append(path, b"4")
    path.rename(path.with_name(names[1]))
    append(path, b"5")
    followed.restart()
    assert followed.read() == [b"3", b"4", b"5"]
    assert followed.missed == []


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("after", [1, 50])
def test_a_copied_and_emptied_file_loses_and_repeats_nothing(path: Path, restarts: bool, after: int) -> None:
    """Also if it has grown beyond the former position again."""
    followed = Followed(path)
    append(path, *LINES[:3])
    assert followed.read() == LINES[:3]
    append(path, *LINES[3:6])
    copytruncate(path, "jobs.jsonl.1")
    append(path, *LINES[6 : 6 + after])
    if restarts:
        followed.restart()
    assert followed.read() == LINES[3 : 6 + after]
    assert followed.missed == []


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_file_that_is_emptied_and_filled_while_it_is_read_is_read_from_its_beginning(
    path: Path, is_copied: bool
) -> None:
    old = [f"old {number:06}".encode() for number in range(2 * CHUNK_BYTES // 11)]
    new = [f"new {number:06}".encode() for number in range(4 * CHUNK_BYTES // 11)]
    append(path, *old)
    followed = Followed(path)
    lines = followed.reader.lines()
    read = [next(lines)]
    copytruncate(path, "jobs.jsonl.1" if is_copied else "unrelated")
    append(path, *new)
    read += lines
    if is_copied:
        assert read + followed.read() == old + new
        assert followed.missed == []
    else:
        assert len(read) < len(old)
        assert followed.read() == new
        assert followed.missed == ["jobs.jsonl was emptied, and its former content was not copied"]


def test_a_file_that_is_emptied_without_a_copy_leaves_a_gap(path: Path) -> None:
    followed = Followed(path)
    append(path, b"1", b"2")
    assert followed.read() == [b"1", b"2"]
    path.write_bytes(b"")
    append(path, b"3")
    assert followed.read() == [b"3"]
    assert followed.missed == ["jobs.jsonl was emptied, and its former content was not copied"]


def test_another_file_with_the_inode_of_a_deleted_one_is_read_whole(path: Path) -> None:
    followed = Followed(path)
    append(path, b"1", b"2")
    assert followed.read() == [b"1", b"2"]
    stored = position_from(followed.reader.position.stored())
    assert stored is not None
    path.write_bytes(b"other\nfile\n")  # the same inode
    followed.reader.close()
    followed.reader = followed._made(stored)
    assert followed.read() == [b"other", b"file"]
    assert followed.missed == ["jobs.jsonl has been rotated, and the file that was read last is gone"]


def test_what_follows_a_file_that_is_gone_is_read_with_a_gap(path: Path) -> None:
    followed = Followed(path)
    append(path.with_name("jobs.jsonl.9"), b"long ago")
    os.utime(path.with_name("jobs.jsonl.9"), (1, 1))
    append(path, b"1")
    assert followed.read() == [b"1"]
    followed.reader.close()
    path.unlink()
    append(path, b"2")
    path.rename(path.with_name("jobs.jsonl.1"))
    append(path, b"3")
    followed.restart()
    assert followed.read() == [b"2", b"3"]
    assert len(followed.missed) == 1


@pytest.mark.root
@pytest.mark.parametrize("restarts", [False, True])
def test_others_cannot_add_rotated_files_where_anybody_can_make_files(path: Path, restarts: bool) -> None:
    path.parent.chmod(0o1777)
    append(path, b"1")
    followed = Followed(path)
    assert followed.read() == [b"1"]
    append(path, b"2")
    path.rename(path.with_name("jobs.jsonl.1"))
    forged = path.with_name("jobs.jsonl-20991231")
    append(forged, b"forged")
    os.chown(forged, 4711, 4711)
    append(path, b"3")
    if restarts:
        followed.restart()
    assert followed.read() + followed.read() == [b"2", b"3"]
    assert followed.missed == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), os.mkdir])
def test_only_regular_files_are_read(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(OSError, match=r"symbolic link|not a regular file|such device"):
        Followed(path)


@pytest.mark.root
def test_another_users_link_to_the_directory_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/var/log")
    os.chown(link, 1, 1, follow_symlinks=False)
    with pytest.raises(OSError, match="may be another user's"):
        Followed(link / "jobs.jsonl")


@pytest.mark.root
def test_another_users_file_is_not_read_by_a_hard_link(tmp_path: Path) -> None:
    secret, place = tmp_path / "secret", tmp_path / "place"
    append(secret, b"secret")
    place.mkdir()
    path = place / "jobs.jsonl"
    path.hardlink_to(secret)
    assert Followed(path).read() == [b"secret"]
    place.chmod(0o1777)
    with pytest.raises(OSError, match="has another hard link"):
        Followed(path)
    place.chmod(0o755)
    os.chown(place, 1, 1)
    with pytest.raises(OSError, match="has another hard link"):
        Followed(path)
    os.chown(secret, 1, 1)
    assert Followed(path).read() == [b"secret"]


@pytest.mark.parametrize("stored", ["", "x", "[]", '["a", 1]', "[" * 10_000, "{}"])
def test_a_position_of_another_kind_is_none(stored: str) -> None:
    assert position_from(stored) is None


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_line_comes_once_and_in_order(path: Path, seed: int) -> None:
    """Writing, rotation of both kinds, reading and restarts in any order."""
    chance = random.Random(seed)
    followed = Followed(path)
    written, found, rotated = 0, [], 0
    for _ in range(200):
        what = chance.choice(["write", "write", "write", "read", "rename", "copy", "restart"])
        if what == "write":
            number = chance.randrange(1, 60)
            append(path, *(b"%d" % one for one in range(written, written + number)))
            written += number
        elif what == "read":
            found += followed.read()
        elif what == "restart":
            followed.restart()
        elif path.exists() and path.stat().st_size:
            rotated += 1
            name = f"jobs.jsonl-{20260000 + rotated}"
            if what == "rename":
                path.rename(path.with_name(name))
            else:
                copytruncate(path, name)
    found += followed.read()
    append(path, b"end")
    found += followed.read()
    assert found == [*(b"%d" % one for one in range(written)), b"end"]
    assert followed.missed == []
