"""Temporary directories that last as long as this process, in memory where possible."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from zeek_agent.locks import lock_directory

_PREFIX: Final = "zeek-agent-events-"
_IN_MEMORY: Final = Path("/dev/shm")


class ScratchDirectory:
    """A private directory, removed by `close` or, after a crash, by the next agent that creates one."""

    def __init__(self) -> None:
        """Raises OSError when no temporary directory is writable."""
        base = _base()
        for left in base.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path: Final = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._lock = lock_directory(self.path)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _base() -> Path:
    """A file system in memory, or else the system's temporary directory."""
    return _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _remove_if_left(directory: Path) -> None:
    """Remove a crashed agent's directory. Anybody can have created the name: the parent is world-writable."""
    if sys.platform == "win32":  # there are no locks to distinguish it from a running agent's
        return
    try:
        if directory.lstat().st_uid != os.geteuid():
            return
        lock = lock_directory(directory)
    except OSError:  # in use, not a directory, or removed meanwhile
        return
    shutil.rmtree(directory, ignore_errors=True)
    lock.close()
