"""The files of an open directory of logs: those that the agent's user or root owns, by name.

Where the system can, they are looked up in the directory that was opened, whatever its path has become since; no
symbolic link is followed. Windows has no such functions, and the path counts.
"""

# ruff: noqa: PTH208
# Works on descriptors of directories, which pathlib does not support.

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeek_agent import ownership, platforms

_BY_DESCRIPTOR: Final = os.listdir in os.supports_fd and os.unlink in os.supports_dir_fd
_FLAGS: Final = ownership.open_flags("NOFOLLOW", "NONBLOCK", "CLOEXEC", "BINARY", "NOINHERIT")
_SHARING_VIOLATION: Final = 32


@dataclass(frozen=True, slots=True)
class LogFolder:
    """An open directory. All methods raise OSError."""

    path: Path
    descriptor: int | None

    def names(self) -> list[str]:
        return os.listdir(self.path if self.descriptor is None else self.descriptor)

    def own_status(self, name: str) -> os.stat_result | None:
        """The attributes of a regular file of the agent's user or root; None for anything else."""
        try:
            status = os.stat(self._at(name), dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if is_own(status) else None

    def is_at(self, name: str, status: os.stat_result) -> bool:
        """Whether the name is still that of the file with these attributes."""
        found = self.own_status(name)
        return found is not None and os.path.samestat(found, status)

    def exists(self, name: str) -> bool:
        try:
            os.stat(self._at(name), dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str) -> int:
        """A descriptor that reads a file."""
        return os.open(self._at(name), os.O_RDONLY | _FLAGS, dir_fd=self.descriptor)

    def create(self, name: str) -> int:
        """A descriptor that writes a new file, for the agent's user only."""
        return os.open(self._at(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        os.unlink(self._at(name), dir_fd=self.descriptor)

    def rename(self, name: str, new: str) -> None:
        """Rename a file, which replaces one that has the new name."""
        os.replace(self._at(name), self._at(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def sync(self) -> None:
        """Have the names on the disk; on Windows, the file system's journal has them in order."""
        if self.descriptor is not None:
            os.fsync(self.descriptor)

    def system_bytes(self) -> int:
        """Size of the file system."""
        return platforms.HERE.file_system_bytes(self.path if self.descriptor is None else self.descriptor)

    def _at(self, name: str) -> str:
        return name if self.descriptor is not None else str(self.path / name)


@contextmanager
def opened(directory: Path) -> Iterator[LogFolder]:
    """Raises UntrustedError for another user's link to the directory, and OSError."""
    descriptor = ownership.open_directory(directory) if _BY_DESCRIPTOR else None
    try:
        yield LogFolder(directory, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_own(status: os.stat_result) -> bool:
    """Whether these are the attributes of a regular file of the agent's user or root."""
    return stat.S_ISREG(status.st_mode) and ownership.is_trusted(status.st_uid)


def is_in_use(error: OSError) -> bool:
    """Whether a file cannot be renamed or removed now because another program has it open, as Windows has it."""
    return getattr(error, "winerror", None) == _SHARING_VIOLATION
