"""Directories for files that live as long as this process, in memory where the system offers that."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

_PREFIX: Final = "zeek-agent-events-"
_IN_MEMORY: Final = Path("/dev/shm")


class Scratch:
    """A directory of our own that `close` removes, and, after a crash, the next one that is made."""

    def __init__(self) -> None:
        """Raises OSError when no place for temporary files can be written."""
        base = _base()
        for left in base.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path: Final = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._lock = _locked(self.path)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _base() -> Path:
    """A file system in memory, else the system's place for temporary files."""
    return _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _locked(directory: Path) -> int | None:
    """A descriptor that locks the directory; None where the system has no such locks.

    No other user can hold the lock, because no other user can open the directory.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(directory: Path) -> None:
    """Remove the directory that a crashed agent left. Anything can have the name: its parent is world-writable."""
    try:
        if sys.platform != "win32" and directory.lstat().st_uid != os.geteuid():
            return
        descriptor = _locked(directory)
    except OSError:  # in use, not a directory, or gone meanwhile
        return
    if descriptor is not None:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)
