"""The lines of a file that grows and is rotated, each exactly once, also across restarts.

A position has the file's inode, the bytes before it, and a digest of the last of them. The digest tells a file that was
emptied and written again (`copytruncate`), or that got the inode of a deleted one, from the file that was read, and
finds the copy that rotation has made of it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from zeek_agent import ownership

LINE_BYTES_MAX: Final = 65_536
"""Longer lines are not recorded, but counted."""
CHUNK_BYTES: Final = 262_144
READ_BYTES: Final = 32 << 20
MARKED_BYTES: Final = 256
"""The digest of a position is of so many bytes before it: at least a time stamp."""
SETTLE_SECONDS: Final = 2.0
"""A renamed file is read until nothing was added to it for so long: its writer may have it open."""
FAMILY_MAX: Final = 200
"""Rotated files that are compared with a position."""
_CLOCK_TICK_SECONDS: Final = 0.02
"""The kernel takes the times of files from a clock that lags behind by up to a tick."""
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_ROTATED: Final = r"[.-]\d[\dT_.-]*"


class Position(Struct, frozen=True, array_like=True):
    """A position between two lines. `mark` is empty at a file's beginning; `time` is when it was last current.

    An `inode` of 0 means that there was no file at that time.
    """

    inode: int
    offset: int
    mark: str = ""
    time: float = 0.0
    path: str = ""
    """The followed path: a position is not valid for another one."""

    def stored(self) -> str:
        return msgspec.json.encode(self).decode()


def position_from(stored: str) -> Position | None:
    """The stored position; None if this version cannot read it."""
    try:
        return msgspec.json.decode(stored, type=Position)
    except (msgspec.DecodeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class _Member:
    """The file or one that rotation has renamed or copied; they sort in the order in which they were written."""

    name: str
    status: os.stat_result
    is_current: bool

    @property
    def order(self) -> tuple[bool, int, int, str]:
        number = re.search(r"\.(\d{1,6})(?:\.|$)", self.name)  # of two with the same time `.1` is the newer one
        return self.is_current, self.status.st_mtime_ns, -int(number[1]) if number else 0, self.name


class FollowedFile:
    """The lines of `path` after a position.

    Links to the file are not followed, nor those of other users to its directory; only regular files are read.
    `too_long` is called for each line that is not returned because of its length, `missed` with the reason if lines may
    be missing because the file of the position is gone.
    """

    def __init__(
        self,
        path: Path,
        position: Position | None,
        *,
        too_long: Callable[[], None] = lambda: None,
        missed: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._path = path
        self._too_long = too_long
        self._missed = missed
        self._clock = clock
        self._settle_seconds = settle_seconds
        stem, extension = re.escape(path.stem), re.escape(path.suffix)
        self._rotated = re.compile(rf"{stem}(?:{extension}{_ROTATED}|{_ROTATED}{extension})")
        self._resumed = position or Position(0, 0, "", clock(), str(path))
        self._file: int | None = None
        self._inode = 0
        self._offset = 0
        """After the last line that was returned or counted."""
        self._before = b""
        """The last bytes before `_offset`."""
        self._read_to = 0
        self._recent = b""
        """The last bytes before `_read_to`."""
        self._left = 0
        """Bytes that may still be read by this call."""
        self._partial = b""
        """The beginning of the line at `_offset`, as far as it was read and is not too long."""

    @property
    def position(self) -> Position:
        """After the last line that was returned."""
        if self._file is None:
            return self._resumed
        return Position(self._inode, self._offset, _mark(self._before), self._clock(), str(self._path))

    def begin(self, *, at_end: bool) -> None:
        """Follow the file as it is now, from its end or its beginning on, because it was never followed before.

        Raises OSError.
        """
        self._resumed = Position(0, 0, "", self._clock(), str(self._path))
        with self._directory() as directory:
            opened = _opened(directory, self._path.name)
        if opened is not None:
            self._use(*opened, _last_line_end(opened[0]) if at_end else 0)

    def lines(self, bytes_max: int = READ_BYTES) -> Iterator[bytes]:
        """New complete lines, without their ends; `position` is always after the last one. Raises OSError.

        About so many bytes are read, and the next call continues: a line, or a hole in the file, can be endless. Call
        `close` if not all lines are taken.
        """
        self._left = bytes_max
        with self._directory() as directory:
            if self._file is None and not self._resume(directory):
                return
            while True:
                if self._was_rewritten():
                    self._continue_in_copy(directory)
                if not (yield from self._appended()) or self._left <= 0:
                    return
                following = self._following(directory)
                if following is None:
                    return
                yield from self._incomplete()
                opened = _opened(directory, following.name)
                if opened is None or opened[1].st_ino != following.status.st_ino:
                    if opened is not None:
                        os.close(opened[0])
                    return  # renamed at this moment: the next call finds it
                self._use(*opened)

    def close(self) -> None:
        """Close the file; `lines` opens it again."""
        if self._file is not None:
            self._resumed = self.position
            os.close(self._file)
            self._file = None

    @contextmanager
    def _directory(self) -> Iterator[int]:
        directory = ownership.open_directory(self._path.parent)
        try:
            yield directory
        finally:
            os.close(directory)

    # The open file

    def _use(self, file: int, status: os.stat_result, offset: int = 0) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._inode = file, status.st_ino
        self._seek(offset)

    def _seek(self, offset: int) -> None:
        assert self._file is not None
        self._offset = self._read_to = offset
        self._before = self._recent = _bytes_before(self._file, offset)
        self._partial = b""

    def _appended(self) -> Generator[bytes, None, bool]:
        """The complete lines of the open file after `_offset`. False if it was rewritten meanwhile.

        What was read last is read again with each chunk, because the file can be emptied and filled between two.
        """
        assert self._file is not None
        while self._left > 0:
            before = len(self._recent)
            read = os.pread(self._file, before + CHUNK_BYTES, self._read_to - before)
            if not read.startswith(self._recent):
                return False
            if not (chunk := read[before:]):
                break
            self._left -= len(chunk)
            begin = 0
            while (end := chunk.find(b"\n", begin)) >= 0:
                length = self._read_to + end - self._offset
                line, self._partial = self._partial + chunk[begin:end], b""
                begin = end + 1
                self._offset = self._read_to + begin
                self._before = (self._recent + chunk[max(0, begin - MARKED_BYTES) : begin])[-MARKED_BYTES:]
                if length > LINE_BYTES_MAX:
                    self._too_long()
                else:
                    yield line
            self._partial = (self._partial + chunk[begin:])[: LINE_BYTES_MAX + 1]
            self._recent = (self._recent + chunk[-MARKED_BYTES:])[-MARKED_BYTES:]
            self._read_to += len(chunk)
        return True

    def _incomplete(self) -> Iterator[bytes]:
        """The last line of a file that does not grow any more, without an end."""
        if self._read_to == self._offset:
            return
        length, line = self._read_to - self._offset, self._partial
        self._offset, self._before, self._partial = self._read_to, self._recent, b""
        if length > LINE_BYTES_MAX:
            self._too_long()
        else:
            yield line

    def _was_rewritten(self) -> bool:
        """Whether the lines that were read are not in the file any more."""
        assert self._file is not None
        if _bytes_before(self._file, self._read_to) == self._recent:
            return False
        if _bytes_before(self._file, self._offset) != self._before:
            return True
        self._seek(self._offset)  # only what is read of an incomplete line was replaced
        return False

    # Rotation

    def _continue_in_copy(self, directory: int) -> None:
        """Go on in the copy that rotation has made before it emptied the file; without one, at the file's beginning."""
        position = self.position
        if not self._open_matching(directory, position, self._family(directory)):
            self._missed(f"{self._path.name} was emptied, and its former content was not copied")
            self._seek(0)

    def _resume(self, directory: int) -> bool:
        """Open the file of the position, wherever rotation has moved it, or else what was written since."""
        position = self._resumed
        family = self._family(directory)
        if position.inode and self._open_matching(directory, position, family):
            return True
        since = position.time - _CLOCK_TICK_SECONDS
        later = [one for one in family if one.is_current or one.status.st_mtime > since]
        opened = _opened(directory, later[0].name if later else self._path.name)
        if opened is None:
            return False
        if position.inode:
            self._missed(f"{self._path.name} has been rotated, and the file that was read last is gone")
        self._use(*opened)
        return True

    def _open_matching(self, directory: int, position: Position, family: list[_Member]) -> bool:
        """Open the file that has what was read before the position: the file of that inode if possible."""
        for one in sorted(family, key=lambda one: one.status.st_ino != position.inode):
            is_same = one.status.st_ino == position.inode
            if one.status.st_size < position.offset or (position.offset == 0 and not is_same):
                continue
            opened = _opened(directory, one.name)
            if opened is None:
                continue
            if _mark(_bytes_before(opened[0], position.offset)) == position.mark:
                self._use(*opened, position.offset)
                return True
            os.close(opened[0])
        return False

    def _following(self, directory: int) -> _Member | None:
        """The file after this one, once this one has been renamed, does not grow any more, and the next has lines."""
        assert self._file is not None
        current = _status(directory, self._path.name)
        own = os.fstat(self._file)
        if current is None or current.st_ino == self._inode or not current.st_size:
            return None
        if 0 <= self._clock() - own.st_mtime < self._settle_seconds or own.st_size > self._read_to:
            return None
        family = self._family(directory)
        ours = next((one for one in family if one.status.st_ino == self._inode), None)
        if ours is None:
            later = [one for one in family if one.is_current or one.status.st_mtime_ns > own.st_mtime_ns]
        else:
            later = [one for one in family if one.order > ours.order]
        return later[0] if later else None

    def _family(self, directory: int) -> list[_Member]:
        """The file and its rotated predecessors, in the order in which they were written; the newest ones."""
        found = []
        owners = self._owners(directory)
        for name in os.listdir(directory):
            if name == self._path.name or self._rotated.fullmatch(name):
                status = _status(directory, name)
                is_current = name == self._path.name
                if status is not None and (is_current or owners is None or status.st_uid in owners):
                    found.append(_Member(name, status, is_current))
        return sorted(found, key=lambda one: one.order)[-FAMILY_MAX:]

    def _owners(self, directory: int) -> frozenset[int] | None:
        """Whose files with names of rotated ones are that; None if nobody else can make some in the directory."""
        place = os.fstat(directory)
        if not place.st_mode & _WRITABLE_BY_OTHERS:
            return None
        file = _status(directory, self._path.name) if self._file is None else os.fstat(self._file)
        return frozenset({0, place.st_uid} if file is None else {0, place.st_uid, file.st_uid})


def _status(directory: int, name: str) -> os.stat_result | None:
    """The status of a regular file; None for anything else."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _opened(directory: int, name: str) -> tuple[int, os.stat_result] | None:
    """A descriptor of the regular file, and its status; None if it does not exist. Raises OSError."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, f"{name} is a symbolic link, which is not followed") from None
        raise
    status = os.fstat(file)
    try:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{name} is not a regular file")
        if status.st_nlink > 1 and _may_be_others(status, os.fstat(directory)):
            raise OSError(errno.EPERM, f"{name} has another hard link, which its directory's users could have made")
    except OSError:
        os.close(file)
        raise
    return file, status


def _may_be_others(file: os.stat_result, directory: os.stat_result) -> bool:
    """Whether somebody who may write to the directory could have linked another user's file there."""
    return bool(directory.st_mode & _WRITABLE_BY_OTHERS) or directory.st_uid not in (0, file.st_uid)


def _bytes_before(file: int, offset: int) -> bytes:
    begin = max(0, offset - MARKED_BYTES)
    return os.pread(file, offset - begin, begin)


def _last_line_end(file: int) -> int:
    """The offset after the last complete line, or the end of a file whose last line is long."""
    size = os.fstat(file).st_size
    begin = max(0, size - LINE_BYTES_MAX)
    at = os.pread(file, size - begin, begin).rfind(b"\n")
    return begin + at + 1 if at >= 0 or begin == 0 else size


def _mark(content: bytes) -> str:
    return blake2b(content, digest_size=12).hexdigest() if content else ""
