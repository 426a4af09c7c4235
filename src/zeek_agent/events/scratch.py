"""Temporary directories that last as long as this process, in memory where possible."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from zeek_agent import platforms

_PREFIX: Final = "zeek-agent-events-"


class ScratchDirectory:
    """A private directory, removed by `close` or, after a crash, by the next agent that creates one."""

    def __init__(self, base: Path | None = None) -> None:
        """`base` is where it is made. Raises OSError when no temporary directory is writable."""
        base = _base() if base is None else base
        for left in base.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path: Final = platforms.HERE.make_temporary_directory(_PREFIX, base)
        self._lock = platforms.HERE.lock_directory(self.path)

    def close(self) -> None:
        self._lock.close()  # before, because Windows removes no open file
        shutil.rmtree(self.path, ignore_errors=True)


def _base() -> Path:
    """A file system in memory, or else the system's temporary directory."""
    in_memory = platforms.HERE.memory_directory
    usable = in_memory is not None and os.access(in_memory, os.W_OK | os.X_OK)
    return in_memory if in_memory is not None and usable else Path(tempfile.gettempdir())


def _remove_if_left(directory: Path) -> None:
    """Remove a crashed agent's directory. Anybody can have created the name: the parent is world-writable."""
    try:
        if not platforms.HERE.is_own(directory.lstat()):
            return
        lock = platforms.HERE.lock_directory(directory)
    except OSError:  # in use, not a directory, or removed meanwhile
        return
    lock.close()
    shutil.rmtree(directory, ignore_errors=True)
