"""Files that only root can have put where they are: checked by object, so that a changed name leads nowhere else.

Such a file, as the program of a table, is opened once, component by component, and everything on the way has to belong
to root and be writable by nobody else.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from zeek_agent.errors import ZeekAgentError

_INTERPRETERS_MAX: Final = 4
_LINE_BYTES: Final = 256
_ELF64: Final = struct.Struct("<32xQ14xHH")
"""Of the header: offset, size and number of program headers."""
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQ")
_PT_INTERP: Final = 3
_PLACE: Final = getattr(os, "O_PATH", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_LINKS_MAX: Final = 40
"""Symbolic links on the path to a file, as many as Linux follows."""


class ProgramError(ZeekAgentError):
    """A program may not be executed, or failed; `said` is what it wrote to its standard error, `outcome` the rest."""

    def __init__(self, outcome: str, said: str = "") -> None:
        super().__init__(f"{outcome}: {said}" if said else outcome)
        self.outcome = outcome


class UntrustedFileError(ZeekAgentError):
    """Somebody other than root could write or replace a file; the message names the file or directory."""


def open_program(program: str) -> int:
    """An O_PATH descriptor of the program, which root owns and nobody else can write or replace.

    Raises ProgramError, and OSError if there is no such file.
    """
    try:
        return open_roots_file(program)
    except UntrustedFileError as error:
        raise ProgramError(f"{error}, so somebody other than root could replace the program") from error


def open_roots_file(path: str) -> int:
    """An O_PATH descriptor of a regular file that root owns and nobody else can write or replace.

    The same holds for each directory on the way, that of each symbolic link included, and a link must be root's.
    Raises UntrustedFileError with the first that is not so, and OSError if there is no such file.
    """
    if not path.startswith("/") or "\0" in path:
        raise UntrustedFileError(f"{path!r} is not an absolute path")
    walk = _Walk(_root())
    try:
        walk.follow(path)
        if not stat.S_ISREG(os.fstat(walk.descriptor).st_mode):
            raise UntrustedFileError(f"{walk.at} is not a regular file")
    except OSError as error:
        walk.close()
        error.filename = path
        raise
    except BaseException:
        walk.close()
        raise
    return walk.descriptor


@dataclass(slots=True)
class _Walk:
    """A walk from the root directory, of which every step is checked."""

    descriptor: int
    at: str = "/"

    def follow(self, path: str) -> None:
        left, links = _names(path), 0
        while left:
            target = self._step(left.pop())
            if target is None:
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                self._stand(_root(), "/")
            left += _names(target)

    def close(self) -> None:
        os.close(self.descriptor)

    def _step(self, name: str) -> str | None:
        """Go on to that name; the target if it is a symbolic link, which is not followed yet."""
        inner = os.open(name, _PLACE, dir_fd=self.descriptor)
        at = (self.at.rpartition("/")[0] or "/") if name == ".." else f"{self.at.rstrip('/')}/{name}"
        try:
            status = os.fstat(inner)
            _require_roots(at, status)
            target = os.readlink("", dir_fd=inner) if stat.S_ISLNK(status.st_mode) else None
        except BaseException:
            os.close(inner)
            raise
        if target is None:
            self._stand(inner, at)
        else:
            os.close(inner)
        return target

    def _stand(self, descriptor: int, at: str) -> None:
        os.close(self.descriptor)
        self.descriptor, self.at = descriptor, at


def _root() -> int:
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require_roots("/", os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _names(path: str) -> list[str]:
    """The components of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


@contextmanager
def executables(program: str) -> Iterator[dict[str, int]]:
    """The files that the kernel opens to execute this program: itself, its interpreter and the dynamic loader.

    Their O_PATH descriptors by path. Raises ProgramError for a file that somebody other than root could replace, and
    OSError.
    """
    with ExitStack() as opened:
        found: dict[str, int] = {}
        following: str | None = program
        while following is not None:
            if len(found) == _INTERPRETERS_MAX:
                raise ProgramError(f"{program} has too many interpreters")
            descriptor = open_program(following)
            opened.callback(os.close, descriptor)
            found[os.path.realpath(following)] = descriptor
            following = _interpreter(following, descriptor)
        yield found


def _require_roots(path: str, status: os.stat_result) -> None:
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)
    if status.st_uid != 0 or writable:
        raise UntrustedFileError(f"{path} belongs to uid {status.st_uid} with mode {status.st_mode & 0o7777:04o}")


def _interpreter(path: str, descriptor: int) -> str | None:
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123
        head = file.read(_LINE_BYTES)
        if head.startswith(b"#!"):
            return os.fsdecode(head[2:].split(b"\n", 1)[0].split()[0])
        if not head.startswith(b"\x7fELF\x02\x01"):
            raise ProgramError(f"{path} is neither a script nor a 64-bit ELF executable")
        offset, size, count = _ELF64.unpack_from(head)
        file.seek(offset)
        headers = file.read(size * count)
        for at in range(0, len(headers), size):
            kind, _, position, _, _, length = _PROGRAM_HEADER.unpack_from(headers, at)
            if kind == _PT_INTERP:
                file.seek(position)
                return os.fsdecode(file.read(length).rstrip(b"\0"))
    return None
