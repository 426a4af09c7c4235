"""Mounted file systems with their options and free space, from /proc/1/mounts (proc(5)) and statvfs(3)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.reads import Omission

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


class MountedFileSystem(NamedTuple):
    """A line of the file; texts are in the form of `os.fsdecode`."""

    device: str
    path: str
    kind: str
    options: str


class Space(NamedTuple):
    """Size and use of a file system; sizes are in blocks of `block_size` bytes."""

    block_size: int = 0
    blocks: int = 0
    blocks_free: int = 0
    blocks_available: int = 0
    """Those free for users other than root."""
    inodes: int = 0
    inodes_free: int = 0


def mounted_file_systems(proc: str = "/proc") -> Iterator[MountedFileSystem]:
    """The file systems that process 1 sees, in the order in which they were mounted; if it is hidden, our own.

    A service has mounts of its own, which are read-only or only for its protection.
    """
    try:
        text = Path(proc, "1/mounts").read_bytes()
    except OSError:
        text = Path(proc, "self/mounts").read_bytes()
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) >= 4:
            yield MountedFileSystem(*(os.fsdecode(_unescaped(field)) for field in fields[:4]))


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), text)


def space_of(gate: Gate, mounted: MountedFileSystem) -> Space:
    """The space of a file system; nothing if this process does not see it, or if it may hang, which is counted."""
    try:
        handle = gate.walk(gate.root, mounted.path)
        if (handle.mount.mount_point, handle.mount.kind) != (mounted.path, mounted.kind):
            return Space()
        found = os.statvfs(handle.descriptor)
    except RefusedError as error:
        gate.reads.leave_out(error.omission, mounted.path, str(error))
        return Space()
    except FileNotFoundError:
        return Space()  # unmounted meanwhile
    except OSError as error:
        gate.reads.leave_out(Omission.SKIPPED, mounted.path, error.strerror or str(error))
        return Space()
    return Space(found.f_bsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)


def real_device(gate: Gate, device: str) -> str:
    """The path of a device with all links resolved; anything else unchanged."""
    if not device.startswith("/dev/"):
        return device
    try:
        return gate.walk(gate.root, device).path
    except (OSError, RefusedError):
        return device
