"""Follows a growing and rotated text file, such as a log, without missing or repeating a line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

_LINE_BYTES_MAX: Final = 65_536
"""Longer lines are truncated, as for messages of the journal."""
_ROTATED: Final = re.compile(r"[.-]\d[\d.T-]*")


class FilePosition(NamedTuple):
    """A position between two lines: the file's inode and the bytes before it."""

    inode: int
    offset: int


BEGINNING: Final = FilePosition(0, 0)
"""Before the first line of the file that has the name at present."""


class FileTail:
    """The lines of the file `path` after a position, or after its present end when none is given.

    If the file was renamed by rotation (`.1`, `-20260131`), its rest is read, then the files that followed, up to the
    one that has the name now. A file that was truncated, as copytruncate of logrotate(8) does, is read from its
    beginning, after the rest of its copy. Links are not followed, and only regular files are read, because users other
    than root may write to the directory.
    """

    def __init__(self, path: Path, position: FilePosition | None = None) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        if position is None:
            found = regular_file_status(path)
            position = FilePosition(found.st_ino, _end_of_lines(path, found)) if found else BEGINNING
        self.position = position

    def is_known(self) -> bool:
        """Whether the file of the position exists, under its name or a rotated file's."""
        return any(inode == self.position.inode for _, inode in rotated_files(self.path))

    def lines(self) -> Iterator[bytes]:
        """New complete lines; `position` is always after the last one returned.

        Lines are truncated to 64 KiB. Raises OSError; FileNotFoundError if the file was renamed at this very moment, in
        which case the next call finds it.
        """
        if self._file is None and not self._open():
            return
        yield from self._read()
        while self._advance():
            yield from self._read()

    def close(self) -> None:
        """Close the file; `lines` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> Iterator[bytes]:
        file = self._file
        assert file is not None
        inode, offset = self.position
        if not _continues(file, offset):
            yield from self._rest_of_copy()
            offset = 0
            self.position = FilePosition(inode, offset)
        file.seek(offset)
        while line := file.readline(_LINE_BYTES_MAX):
            piece, length = line, len(line)
            while not piece.endswith(b"\n"):
                piece = file.readline(_LINE_BYTES_MAX)
                if not piece:
                    return
                length += len(piece)
            offset += length
            self.position = FilePosition(inode, offset)
            yield line.removesuffix(b"\n")

    def _rest_of_copy(self) -> Iterator[bytes]:
        """What was written to the file after the position before it was truncated, if its copy is there."""
        copies = [one for one in rotated_files(self.path) if one[0] != self.path]
        if not copies:
            return
        copy = FileTail(copies[-1][0], FilePosition(copies[-1][1], self.position.offset))
        with _opened(*copies[-1]) as file:
            if _continues(file, self.position.offset):
                copy._file = file
                for line in copy._read():
                    self.position = copy.position
                    yield line

    def _open(self) -> bool:
        """Open the file of the position, wherever rotation has moved it, or else the one that has the name now."""
        family = rotated_files(self.path)
        known = [path for path, inode in family if inode == self.position.inode]
        if known:
            self._file = _opened(known[0], self.position.inode)
        elif family and family[-1][0] == self.path:
            self._begin(*family[-1])
        return self._file is not None

    def _begin(self, path: Path, inode: int) -> None:
        self.close()
        self._file = _opened(path, inode)
        self.position = FilePosition(inode, 0)

    def _advance(self) -> bool:
        """Switch to the next file once this one has been renamed and the next is not empty."""
        found = regular_file_status(self.path)
        if found is None or found.st_ino == self.position.inode or not found.st_size:
            return False
        family = rotated_files(self.path)
        inodes = [inode for _, inode in family]
        following = inodes.index(self.position.inode) + 1 if self.position.inode in inodes else len(family) - 1
        self._begin(*family[following])
        return True


def rotated_files(path: Path) -> list[tuple[Path, int]]:
    """The file and its rotated predecessors, with their inodes, in the order in which they were written."""
    found = []
    for one in path.parent.iterdir():
        suffix = one.name.removeprefix(path.name)
        if one.name.startswith(path.name) and (not suffix or _ROTATED.fullmatch(suffix)):
            status = regular_file_status(one)
            if status is not None:
                found.append((one == path, status.st_mtime_ns, one, status.st_ino))
    return [(one, inode) for _, _, one, inode in sorted(found)]


def regular_file_status(path: Path) -> os.stat_result | None:
    """The file's status; None if it does not exist or is not a regular file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _end_of_lines(path: Path, status: os.stat_result) -> int:
    """The position after the last complete line."""
    try:
        with _opened(path, status.st_ino) as file:
            end = status.st_size
            while end:
                begin = max(end - _LINE_BYTES_MAX, 0)
                file.seek(begin)
                newline = file.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    return begin + newline + 1
                end = begin
    except OSError:  # it is reported when lines are read
        return status.st_size
    return 0


def _continues(file: BinaryIO, offset: int) -> bool:
    """Whether a line ends at this position, so that the file may be the one that was read until there."""
    if not offset:
        return True
    file.seek(offset - 1)
    return file.read(1) == b"\n"


def _opened(path: Path, inode: int) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if os.fstat(file.fileno()).st_ino != inode:
        file.close()
        raise FileNotFoundError(f"{path} has been renamed")
    return file
