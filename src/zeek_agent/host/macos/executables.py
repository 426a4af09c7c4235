"""Files by their file system and inode, as Endpoint Security identifies the executable of a process."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_DEVICE: Final = 0xFFFF_FFFF
"""A device has 32 bits; Python and eslogger may show it with a sign."""


def executable_file(path: str) -> tuple[int, int] | None:
    """Device and inode of the file that is at this path now, as `exe_device` and `exe_inode`; None if there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev & _DEVICE, status.st_ino
