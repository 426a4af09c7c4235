"""The rules on files: which paths, hard links and contents a query may read.

The rules apply to all names of a file: the path as written, the path it has when all links are resolved, and each path
that it has through the agent's other mounts of the same file system. A proc, sys or device file system counts as
mounted at its usual place. Files with several hard links are also compared with the literal denied paths by device and
inode.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from stat import S_ISLNK
from typing import Final, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from zeek_agent.access import AccessPolicy, Contents, ShownFiles
from zeek_agent.host.files.mount_rules import STACKED
from zeek_agent.host.files.path_handle import PathHandle, belongs_there, readable_by_all
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.host.linux.mounts import Mount, Mounts
from zeek_agent.text import from_os

_USUAL_MOUNT_POINTS: Final = {
    "proc": "/proc",
    "sysfs": "/sys",
    "devtmpfs": "/dev",
    "debugfs": "/sys/kernel/debug",
    "pstore": "/sys/fs/pstore",
    "tracefs": "/sys/kernel/tracing",
}
_CASELESS: Final = frozenset({"exfat", "hfs", "hfsplus", "msdos", "ntfs3", "vfat"})
"""File systems whose names are case-insensitive."""
_LOW_BITS: Final = (1 << 32) - 1
_LINKS_KEPT_SECONDS: Final = 10.0
"""How long the targets of links in rules are remembered; resolving them for each statement would be expensive."""
_links_in_rules: WeakKeyDictionary[AccessPolicy, tuple[float, list[tuple[str, str]]]] = WeakKeyDictionary()


_KERNEL_MOUNT_POINTS: Final = ("/dev/", "/proc/", "/sys/")
"""Mount points at which rules mean the kernel's file systems, not directories of those names in another root."""


class RefusedError(Exception):
    """A rule forbids a file or directory; the message is the cause, without its name."""

    def __init__(self, cause: str, omission: Omission = Omission.REFUSED) -> None:
        super().__init__(cause)
        self.omission = omission


Listed: TypeAlias = "tuple[str, FileStatus | RefusedError | OSError]"
"""A name in a directory with its attributes, or the error of reading them."""


class Walker(Protocol):
    """The part of a gate that the rules use."""

    root: PathHandle
    mounts: Mounts

    def walk(self, start: PathHandle, path: str) -> PathHandle: ...

    def entry_status(self, directory: PathHandle, name: str) -> FileStatus: ...

    def entries(self, directory: PathHandle, check: Callable[[], None]) -> Iterator[list[os.DirEntry[str]]]: ...

    def statuses(self, directory: PathHandle, names: Iterable[str], links: Collection[str]) -> Iterator[Listed]: ...


class FileRules:
    """The rules for the files of one statement. Contents that are only reported are counted in `reads`.

    `shown` are the files of the table that reads them. The walker is an argument, because a reference to it would be a
    cycle that keeps its descriptors open.
    """

    def __init__(self, access: AccessPolicy, reads: FileReads, shown: ShownFiles | None = None) -> None:
        self._access = access
        self._reads = reads
        self._shown = shown
        self._denied_objects: frozenset[tuple[int, int]] | None = None

    def demand_readable(self, walker: Walker, handle: PathHandle, written: str, *, added_only: bool = False) -> None:
        """Raises RefusedError when a file may not even be hashed.

        With `added_only`, and for files of a table that was permitted, the default patterns of `paths_deny` do not
        apply.
        """
        mount, status = handle.mount, handle.status
        inside = handle.path_in_file_system()
        shown = self._shown
        added_only = added_only or (shown is not None and shown.permitted and from_os(handle.path) in shown)
        self.demand_allowed(walker, mount, written, handle.path, inside, added_only=added_only)
        if status.links != 1:
            self.demand_no_denied_object(walker, status, mount)

    def demand_allowed(
        self, walker: Walker, mount: Mount, written: str, path: str, inside: str, *, added_only: bool = False
    ) -> None:
        access = self._access
        denies = access.denies_by_added_rule if added_only else access.denies
        if mount.kind in _CASELESS and not added_only:
            denies = access.denies_in_any_case
        if any(denies(name) for name in self._all_names(walker, mount, written, path, inside)):
            raise RefusedError("denied by access.paths_deny, or one of the agent's own files")
        if not access.allows(from_os(written)) or not access.allows(from_os(path)):
            raise RefusedError("not in access.paths_allow")

    def _all_names(self, walker: Walker, mount: Mount, written: str, path: str, inside: str) -> set[str]:
        """Every path of a file, for the rules."""
        names = {written, path, *self._layer_names(mount, inside)}
        if not inside.startswith(_KERNEL_MOUNT_POINTS):
            names.add(inside)
        usual = _USUAL_MOUNT_POINTS.get(mount.kind)
        if usual is not None:
            names.add(usual + inside)
        for other in walker.mounts.by_device.get(mount.device, ()):
            root = other.root.rstrip("/")
            if inside == other.root or inside.startswith(f"{root}/"):
                names.add(other.mount_point.rstrip("/") + inside[len(root) :])
        for denied, real in self._denied_by_links(walker):
            names |= {denied + name[len(real) :] for name in names if name == real or name.startswith(f"{real}/")}
        if mount.kind in _CASELESS:  # these also ignore trailing dots and spaces of a name
            names |= {re.sub(r"[. ]+(?=/|\Z)", "", name) or "/" for name in names}
            names |= {name.lower() for name in names}
        return {from_os(name) for name in names}

    def _layer_names(self, mount: Mount, inside: str) -> list[str]:
        """The paths that a file of an overlay may have in the directories of its layers."""
        if not mount.layers or mount.mount_point == "/":
            return []
        return [layer.rstrip("/") + inside for layer in mount.layers]

    def _denied_by_links(self, walker: Walker) -> Sequence[tuple[str, str]]:
        """Rules of `paths_deny` that use root's links: the path as written, and the resolved path."""
        found = _links_in_rules.get(self._access)
        now = time.monotonic()
        if found is None or now > found[0]:
            named = [(handle, self._path_by_links(walker, handle)) for handle in self._access.denied_places]
            found = now + _LINKS_KEPT_SECONDS, [(handle, real) for handle, real in named if real is not None]
            _links_in_rules[self._access] = found
        return found[1]

    def _path_by_links(self, walker: Walker, path: str) -> str | None:
        """The target of a path with root's links; None without links, or with a user's, which could hide anything."""
        handle, linked = walker.root, False
        try:
            for name in path.split("/")[1:]:
                status = walker.entry_status(handle, name)
                if S_ISLNK(status.mode):
                    linked = True
                    if status.uid != 0:
                        return None
                handle = walker.walk(handle, name)
        except (OSError, RefusedError):
            return None  # missing, or not accessible
        return handle.path if linked and handle.parent is not None else None

    def demand_no_denied_object(self, walker: Walker, status: FileStatus, mount: Mount) -> None:
        denied = (status.device, status.inode) in self._denied_ids(walker)
        if mount.kind in STACKED and not denied:
            # Its device differs from that of the file below; its inode number differs in the high bits at most.
            denied = any((status.inode ^ inode) & _LOW_BITS == 0 for _, inode in self._denied_ids(walker))
        if denied:
            raise RefusedError("a hard link to a file denied by access.paths_deny, or to one of the agent's own")

    def _denied_ids(self, walker: Walker) -> frozenset[tuple[int, int]]:
        """Device and inode of the literal denied paths and of the agent's own files, determined once per statement."""
        if self._denied_objects is None:
            found: set[tuple[int, int]] = set()
            for path in (*self._access.literals, *self._access.protected):
                try:
                    handle = walker.walk(walker.root, path)
                    found.add((handle.status.device, handle.status.inode))
                    if handle.status.is_directory and path in self._access.protected:
                        found.update(self._ids_in(walker, handle))
                except (OSError, RefusedError):
                    continue  # missing, or not accessible: no hard link of it can be opened either
            self._denied_objects = frozenset(found)
        return self._denied_objects

    def _ids_in(self, walker: Walker, directory: PathHandle) -> Iterator[tuple[int, int]]:
        for entries in walker.entries(directory, lambda: None):
            for _, status in walker.statuses(directory, [entry.name for entry in entries], ()):
                if isinstance(status, FileStatus):
                    yield status.device, status.inode

    def demand_contents(self, handle: PathHandle, written: str) -> bool:
        """Raises RefusedError when the contents may not be read. Returns whether private keys in it are masked."""
        usual = _USUAL_MOUNT_POINTS.get(handle.mount.kind)
        name = from_os(usual + handle.path_in_file_system() if usual is not None else handle.path)
        listed = self._access.contents(name, self._shown)
        if listed is Contents.CONFIGURED:
            return False
        cause = content_refusal(listed, readable_by_all=readable_by_all(handle), belongs_there=belongs_there(handle))
        if cause is not None:
            if not self._access.reports_only:
                raise RefusedError(cause)
            self._reads.leave_out(Omission.REPORTED, written, cause)
        return True


def content_refusal(listed: Contents, *, readable_by_all: bool, belongs_there: bool) -> str | None:
    """Why the contents of a file that no setting admits may not be read; None when they may."""
    if listed is Contents.UNLISTED:
        return "contents are not on the list (access.files_allow extends it)"
    if readable_by_all or (listed is Contents.PRIVATE and belongs_there):
        return None
    return "contents are not readable by every local user (access.files_allow permits them)"
