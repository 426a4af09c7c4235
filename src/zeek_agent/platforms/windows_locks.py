"""Locks on Windows: a locked byte far behind the end of a file, so that others can still read who the holder is."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from zeek_agent.file_lock import FileLock, LockHeldError
from zeek_agent.platforms.winapi import files

LOCKED_AT: Final = 1 << 30
"""Offset of the locked byte."""
DIRECTORY_LOCK: Final = "lock"
"""The file that is locked for a directory."""

_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)


def acquire_lock(path: Path, holder: int | None = None) -> FileLock:
    """Lock the file at `path`, which is created if it does not exist. Raises LockHeldError and OSError."""
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        if not files.lock(descriptor, LOCKED_AT):
            raise LockHeldError(path, _holder(descriptor))
        _sign(descriptor, os.getpid() if holder is None else holder)
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock. False if the file does not exist. Raises OSError."""
    try:
        descriptor = os.open(path, _FLAGS & ~os.O_CREAT)
    except FileNotFoundError:
        return False
    try:
        return not files.lock(descriptor, LOCKED_AT)  # closing the file releases it
    finally:
        os.close(descriptor)


def lock_directory(directory: Path) -> FileLock:
    """Lock a directory by a file in it. Raises BlockingIOError when another process holds the lock, and OSError."""
    try:
        return acquire_lock(directory / DIRECTORY_LOCK)
    except LockHeldError as error:
        raise BlockingIOError(str(error)) from None


def _sign(descriptor: int, holder: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b"%d %d\n" % (holder, int(time.time())))


def _holder(descriptor: int) -> str:
    """` (pid 123, since 2026-01-01 12:00:00 UTC)`, or empty until the holder has written it."""
    with suppress(ValueError, OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        pid, since = os.read(descriptor, 64).split()
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(int(since)))
        return f" (pid {int(pid)}, since {at})"
    return ""
