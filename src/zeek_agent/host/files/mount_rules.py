"""Rules on mounts: the path gate enters those of the agent's namespace whose file systems cannot hang."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.access import admits_filesystem
from zeek_agent.access_defaults import LOCAL_FILE_SYSTEMS
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.linux.mounts import Mount, Mounts, MountTable
from zeek_agent.text import from_os

STACKED: Final = frozenset({"aufs", "ecryptfs", "overlay"})
"""File systems on top of others, with which they hang."""
_STACK_DEPTH: Final = 3
"""One more than the kernel allows on top of each other."""
_BLOCK_DEVICES: Final = "/sys/dev/block"
_LOOP_MAJORS: Final = frozenset({"7", "259"})
"""Major numbers of loop devices and of partitions, of theirs and others."""
_NS_GET_USERNS: Final = 0xB701
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)


def hazard(mount: Mount, admitted: tuple[str, ...], *, on_hazard: bool = False) -> str | None:
    """Why a file system must not be entered; None if it cannot hang or the configuration admits it."""
    if admits_filesystem(admitted, mount.kind, from_os(mount.mount_point)):
        return None
    admits = "which may hang (access.filesystems_allow permits it)"
    if mount.kind not in LOCAL_FILE_SYSTEMS:
        return f"on a {mount.kind} file system, {admits}"
    return f"on a file system of type {mount.kind} that may be on top of another one, {admits}" if on_hazard else None


class Hazards(NamedTuple):
    """The mounts that must not be entered."""

    mounts: Mapping[int, str]
    """The reason, by the mount's number."""
    causes: Mapping[str, str]
    """The reason, by mount point. Not even an `O_PATH` descriptor is opened there: while the kernel audits system
    calls, a lookup also requests the file's capabilities from FUSE (`audit_copy_inode`), and waits for the answer."""
    directories: frozenset[str]
    """The directories that contain these mount points."""


@lru_cache(maxsize=8)
def hazards_among(mounted: Mounts, admitted: tuple[str, ...]) -> Hazards:
    """The hazards among the mounts; at each mount point the topmost mount counts.

    The root directory's mount is not a hazard: the agent runs from it.
    """
    found = Hazards({}, {}, frozenset())
    for _ in range(_STACK_DEPTH):
        mounts: dict[int, str] = {}
        causes: dict[str, str] = {}
        for mount in mounted.by_id.values():
            below = (*mount.layers, *backing_file(mount.device)) if found.causes else ()
            on_hazard = any(lies_on(path, found, mounted) for path in below)
            cause = hazard(mount, admitted, on_hazard=on_hazard)
            causes.pop(mount.mount_point, None)
            if cause is not None and mount.mount_point != "/":
                mounts[mount.id] = causes[mount.mount_point] = cause
        if causes == found.causes:
            break
        found = Hazards(mounts, causes, frozenset(map(posixpath.dirname, causes)))
    return found


def lowest_parent(number: int, mounted: Mounts) -> int:
    """The mount on which a mount, or the lowest of the stack that it is on top of, is mounted."""
    mount = mounted.by_id[number]
    while (below := mounted.by_id.get(mount.parent)) is not None and below.mount_point == mount.mount_point != "/":
        mount = below
    return mount.parent


def backing_file(device: str) -> tuple[str, ...]:
    """The file behind a loop device or its partition; empty for any other device.

    Desktops let users set up and mount their own, even with a file on a FUSE mount, for which the kernel then waits.
    """
    if device.partition(":")[0] not in _LOOP_MAJORS:
        return ()
    for way in ("loop", "../loop"):
        with suppress(OSError):  # not a loop device, or detached meanwhile
            text = Path(_BLOCK_DEVICES, device, way, "backing_file").read_bytes().removesuffix(b"\n")
            return (os.fsdecode(text).removesuffix(" (deleted)"),)
    return ()


def lies_on(path: str, hazards: Hazards, mounted: Mounts) -> bool:
    """Whether the nearest mount above a path is a hazard."""
    while path not in mounted.mount_points and path not in ("/", ""):
        path = posixpath.dirname(path)
    return path in hazards.causes


def only_root_mounts_for(process: PathHandle) -> bool:
    """Whether only root can mount in a process's mount namespace, because the agent's user namespace owns it."""
    import fcntl

    try:
        namespace = os.open("ns/mnt", os.O_RDONLY | _CLOEXEC, dir_fd=process.descriptor)
        try:
            owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
        finally:
            os.close(namespace)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(owner), Path("/proc/self/ns/user").stat())
    finally:
        os.close(owner)


@lru_cache(maxsize=1)
def own_mounts() -> MountTable:
    """The mount table of this process."""
    return MountTable()
