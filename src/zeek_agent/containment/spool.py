"""The spool of one run: a file without a name, written by the worker, read by the agent.

The agent reads with pread(2) and never maps the file, since a worker could truncate it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from zeek_agent.containment.channel import ChannelError

DISK_BYTES_MIN: Final = 16 << 20
"""With less room than this on the disk, spools are in memory: events that wait there because the disk is full can still
be queried and sent."""


def create(directory: Path | None) -> int:
    """A descriptor of a new file: on the disk of the directory where that is possible, else in memory."""
    if directory is not None:
        try:
            disk = os.statvfs(directory)
            if disk.f_bavail * disk.f_frsize >= DISK_BYTES_MIN:
                return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (
                errno.EOPNOTSUPP,
                errno.ENOSPC,
                errno.EROFS,
                errno.EACCES,
                errno.EISDIR,
                errno.ENOENT,
            ):
                raise
    return os.memfd_create("zeek-agent-spool", os.MFD_CLOEXEC)


def read(spool: int, offset: int, length: int) -> bytes:
    """Exactly so many bytes. Raises ChannelError when the worker's word was wrong."""
    content = os.pread(spool, length, offset)
    if len(content) != length:
        raise ChannelError(f"the spool ends before byte {offset + length}")
    return content
