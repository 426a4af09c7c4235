"""The files of a program that a table declares: checked by object, so that a changed name leads nowhere else.

A program is opened once, component by component, and everything on the way has to belong to root and be writable by
nobody else.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from zeek_agent.errors import ZeekAgentError

_INTERPRETERS_MAX: Final = 4
_LINE_BYTES: Final = 256
_ELF64: Final = struct.Struct("<32xQ14xHH")
"""Of the header: offset, size and number of program headers."""
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQ")
_PT_INTERP: Final = 3


class ProgramError(ZeekAgentError):
    """A program may not be executed, or failed."""


def open_program(program: str) -> int:
    """An O_PATH descriptor of the program, which root owns and nobody else can write or replace.

    Raises ProgramError, and OSError if there is no such file.
    """
    path = os.path.realpath(program)
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require_roots("/", descriptor)
        at = ""
        for name in path.split("/")[1:]:
            at = f"{at}/{name}"
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
            _require_roots(at, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ProgramError(f"{path} is not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


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


def _require_roots(path: str, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISLNK(status.st_mode):
        raise ProgramError(f"{path} was replaced by a symbolic link")
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ProgramError(
            f"{path} belongs to uid {status.st_uid} with mode {status.st_mode & 0o7777:04o}, so "
            "somebody other than root could replace the program"
        )


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
