"""Follows a text file that grows and that is rotated, as logs are, without missing or repeating a line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

_PIECE: Final = 65_536
_ROTATED: Final = re.compile(r"[.-]\d[\d.T-]*")


class Position(NamedTuple):
    """A position between two lines: the file's inode and the bytes before it."""

    inode: int
    offset: int


BEGINNING: Final = Position(0, 0)
"""Before the first line of the file that has the name."""


class Tail:
    """The lines of the file `path` after a position, or after its present end when none is given.

    When the file has been given another name by rotation (`.1`, `-20260131`), its rest is read, then what followed it
    up to the one that has the name now. A file that became shorter is read from its beginning. Links are not followed
    and nothing but regular files is read, since others than root may write to the directory.
    """

    def __init__(self, path: Path, position: Position | None = None) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        if position is None:
            found = regular(path)
            position = Position(found.st_ino, found.st_size) if found else BEGINNING
        self.position = position

    def is_known(self) -> bool:
        """Whether the file of the position exists, under its name or that of a rotated file."""
        return any(inode == self.position.inode for _, inode in self._family())

    def lines(self) -> Iterator[bytes]:
        """The complete lines that are new; `position` is always after the one that was given last.

        Of a line that is longer than 64 KiB, that much is given. Raises OSError; FileNotFoundError when the file was
        renamed at this very moment, so that it is found the next time.
        """
        if self._file is None and not self._open():
            return
        yield from self._read()
        while self._advance():
            yield from self._read()

    def close(self) -> None:
        """Let go of the file; `lines` finds it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> Iterator[bytes]:
        file = self._file
        assert file is not None
        inode, offset = self.position
        if os.fstat(file.fileno()).st_size < offset:
            offset = 0
        file.seek(offset)
        while line := file.readline(_PIECE):
            piece, length = line, len(line)
            while not piece.endswith(b"\n"):
                piece = file.readline(_PIECE)
                if not piece:
                    return
                length += len(piece)
            offset += length
            self.position = Position(inode, offset)
            yield line.removesuffix(b"\n")

    def _open(self) -> bool:
        """Open the file at the position, wherever rotation has moved it, else the one that has the name now."""
        family = self._family()
        known = [path for path, inode in family if inode == self.position.inode]
        if known:
            self._file = _opened(known[0], self.position.inode)
        elif family and family[-1][0] == self.path:
            self._begin(*family[-1])
        return self._file is not None

    def _begin(self, path: Path, inode: int) -> None:
        self.close()
        self._file = _opened(path, inode)
        self.position = Position(inode, 0)

    def _advance(self) -> bool:
        """Go over to the next file once the present one has lost the name and that one holds something."""
        found = regular(self.path)
        if found is None or found.st_ino == self.position.inode or not found.st_size:
            return False
        family = self._family()
        inodes = [inode for _, inode in family]
        following = inodes.index(self.position.inode) + 1 if self.position.inode in inodes else len(family) - 1
        self._begin(*family[following])
        return True

    def _family(self) -> list[tuple[Path, int]]:
        """The file and those that had its name before, with their inodes, in the order in which they were written."""
        found = []
        for path in self.path.parent.iterdir():
            suffix = path.name.removeprefix(self.path.name)
            if path.name.startswith(self.path.name) and (not suffix or _ROTATED.fullmatch(suffix)):
                status = regular(path)
                if status is not None:
                    found.append((path == self.path, status.st_mtime_ns, path, status.st_ino))
        return [(path, inode) for _, _, path, inode in sorted(found)]


def regular(path: Path) -> os.stat_result | None:
    """The file's status; None when it is not there or no regular file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _opened(path: Path, inode: int) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if os.fstat(file.fileno()).st_ino != inode:
        file.close()
        raise FileNotFoundError(f"{path} has been renamed")
    return file
