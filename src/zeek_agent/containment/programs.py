"""The executable files that a declared program consists of: itself, its interpreter and the dynamic loader."""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from zeek_agent.containment.protections import LockdownError

_INTERPRETERS_MAX: Final = 4
_LINE_BYTES: Final = 256
_ELF64: Final = struct.Struct("<32xQ14xHH")
"""Of the header: offset, size and number of program headers."""
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQ")
_PT_INTERP: Final = 3


def executables(program: str) -> list[str]:
    """The files that the kernel opens to execute this program.

    Raises LockdownError for a file that somebody other than root could replace, and OSError.
    """
    found: list[str] = []
    following: str | None = program
    while following is not None:
        if len(found) == _INTERPRETERS_MAX:
            raise LockdownError(f"{program} has too many interpreters")
        path = os.path.realpath(following)
        _require_roots(path)
        found.append(path)
        following = _interpreter(path)
    return found


def _require_roots(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise LockdownError(f"{path} is not a regular file")
    while True:
        status = os.stat(path)  # noqa: PTH116
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise LockdownError(
                f"{path} belongs to uid {status.st_uid} with mode {status.st_mode & 0o7777:04o}, so "
                "somebody other than root could replace the program"
            )
        if path == "/":
            return
        path = os.path.dirname(path)  # noqa: PTH120


def _interpreter(path: str) -> str | None:
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(_LINE_BYTES)
        if head.startswith(b"#!"):
            return os.fsdecode(head[2:].split(b"\n", 1)[0].split()[0])
        if not head.startswith(b"\x7fELF\x02\x01"):
            raise LockdownError(f"{path} is neither a script nor a 64-bit ELF executable")
        offset, size, count = _ELF64.unpack_from(head)
        file.seek(offset)
        headers = file.read(size * count)
        for at in range(0, len(headers), size):
            kind, _, position, _, _, length = _PROGRAM_HEADER.unpack_from(headers, at)
            if kind == _PT_INTERP:
                file.seek(position)
                return os.fsdecode(file.read(length).rstrip(b"\0"))
    return None
