"""Files by the device of their file system and their inode, as the kernel identifies the executable of a process.

stat(2) reports other devices for btrfs and overlays. A file there is identified by its mount's device in mountinfo.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zeek_agent.host.files.statx import FOLLOW_WITHOUT_SYNC, memory_mount, status_at
from zeek_agent.host.linux.mounts import OWN_MOUNTINFO

if TYPE_CHECKING:
    from zeek_agent.host.files.statx import FileStatus


class FileObject(NamedTuple):
    """A file, whatever its name. `device` is encoded as by makedev(3)."""

    device: int
    inode: int


def file_object(path: str) -> FileObject | None:
    """The file at this path in the agent's mount namespace; None if there is none or its device is unknown."""
    try:
        status = status_at(_WORKING_DIRECTORY, path, FOLLOW_WITHOUT_SYNC)
        device = stated_device(status)
        if device is None:
            device = device_of_mount(status.mount, Path(OWN_MOUNTINFO).read_bytes())
    except OSError:
        return None
    return None if device is None else FileObject(device, status.inode)


def stated_device(status: FileStatus) -> int | None:
    """The device of a file's file system if stat(2) reports it; None for file systems without a block device."""
    return status.device if status.device_major or is_in_memory(status) else None


def device_of_mount(mount: int, mountinfo: bytes) -> int | None:
    """The device of the file system of a mount with this number; None if it is not in this mount namespace."""
    line = re.search(rb"^%d \d+ (\d+):(\d+) " % mount, mountinfo, re.MULTILINE)
    return None if line is None else os.makedev(int(line[1]), int(line[2]))


def is_in_memory(status: FileStatus) -> bool:
    """Whether this is a file of memfd_create(2), which is in no mount namespace."""
    return (status.mount, status.device) == memory_mount()


def mount_namespace(pid: int | str) -> int | None:
    """The inode number of a process's mount namespace; None if the process is gone or not accessible."""
    try:
        return int(os.readlink(f"/proc/{pid}/ns/mnt")[5:-1])  # noqa: PTH115  as in procfs
    except OSError:
        return None


_WORKING_DIRECTORY = -100
"""AT_FDCWD."""
