"""The path gate: opens a path that a query names, or refuses it.

A path is walked one component at a time. Each is opened with `O_PATH | O_NOFOLLOW`, which neither reads nor follows
anything, and its mount is checked before anything below it is touched, because a FUSE or network file system can hang
its callers so that not even SIGKILL ends them. Even `O_PATH` looks up what is mounted, and while system calls are
audited that hangs too, so no mount is crossed before its mount point is known to be harmless. Links are resolved by
their text. The magic links of proc(5), whose text is not their target, are therefore never followed, except `exe`,
whose target may be hashed.

`file_rules` decides what may be read. Checks are on the open descriptor, so exchanging a link or directory meanwhile
has no effect.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum, auto
from io import FileIO
from itertools import islice
from pathlib import Path
from stat import S_ISLNK
from typing import Final, NamedTuple

from zeek_agent.access import AccessPolicy, ShownFiles
from zeek_agent.host.files.file_rules import FileRules, Listed, RefusedError
from zeek_agent.host.files.mount_rules import (
    STACKED,
    hazard,
    hazards_among,
    lies_on,
    lowest_parent,
    only_root_mounts_for,
    own_mounts,
)
from zeek_agent.host.files.path_handle import PathHandle, joined, user_of, users_can_rename
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import (
    FileStatus,
    entry_types,
    memory_mount,
    open_on_mount,
    status_at,
    status_of,
    status_on_mount,
)
from zeek_agent.host.linux.mounts import Mount, parse_mountinfo
from zeek_agent.host.linux.procfs import living_thread

DEPTH_MAX: Final = 100
"""Directories on the path to a file, each of which keeps a descriptor open during the walk."""
LINKS_MAX: Final = 40
"""Links on the path to a file, as in the kernel (path_resolution(7))."""
DIRECTORIES_KEPT: Final = 32
"""Directories that one statement keeps open, because links and patterns return to the same few."""
DESCRIPTORS_KEPT: Final = 256
"""Total descriptors of these and the directories above them, because users choose how deep their links lead."""
_CACHED_CHAIN_LINKS: Final = 2
"""Consecutive links that are resolved from cached directories: as many as Debian's alternatives have."""
_ENTRIES_PER_READ: Final = 256
"""Directory entries between checks of the statement's limits."""
_LOOKUPS_PER_REFRESH: Final = 8
"""Lookups between checks for changed mounts; each check is a system call."""
_SPECIAL_NAMES: Final = frozenset({"", ".", ".."})
_O_PATH: Final = getattr(os, "O_PATH", 0)
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_PATH_FLAGS: Final = _O_PATH | getattr(os, "O_NOFOLLOW", 0) | _CLOEXEC
_READ_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | _CLOEXEC
_ORDINARY_PROC_LINKS: Final = frozenset({"self", "thread-self", "mounts", "net"})
_PROCESS: Final = re.compile(r"/\d+(?:/task/\d+)?")
_LOGS: Final = "/var/log/"


class Purpose(Enum):
    """Purpose of opening a file."""

    CONTENTS = auto()
    HASH = auto()
    PROPERTIES = auto()
    """Of a private key, which do not reveal it."""


class OpenedFile(NamedTuple):
    """A regular file, open for reading. With `masks_keys`, private keys in it are masked line by line; otherwise a file
    that begins with one is refused as a whole. `user` is the user who controls how many files are there."""

    file: FileIO
    masks_keys: bool
    user: int = 0
    is_log: bool = False


class Gate:
    """Walks and opens paths for one statement, in one thread. Omissions are counted in `reads`.

    `check` is called at each link, because users choose the length of their chains of links. `shown` are the files of
    the table that reads them.
    """

    def __init__(
        self,
        access: AccessPolicy,
        reads: FileReads,
        check: Callable[[], None] = lambda: None,
        shown: ShownFiles | None = None,
    ) -> None:
        self._access = access
        self._check = check
        self.reads = reads
        self._table = own_mounts()
        self.mounts = self._table.current()
        self._hazards = hazards_among(self.mounts, access.filesystems_allow)
        self._rules = FileRules(access, reads, shown)
        self._directories: dict[str, PathHandle] = {}
        self._walked: dict[tuple[PathHandle, str], PathHandle] = {}
        self._descriptors_kept = 0
        self._mounts_reread = False
        self._lookups = 0
        self._typed: dict[str, bool] = {}
        self.root = self._open_root()
        if self._hazards.causes:  # renaming the directory of a mount point causes no notification
            self._table.read()
            self._refresh_mounts()

    # Walking

    def walk(self, start: PathHandle, path: str) -> PathHandle:
        """Walk a path from a directory, resolving links by their text.

        Raises RefusedError, and OSError as open(2) would.
        """
        pending = path.split("/")[::-1]
        handle, links = start, 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if not handle.status.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), handle.path)
            if name == "..":
                handle = handle.parent or handle
                continue
            path = joined(handle, name)
            entered = self._directories.get(path)
            if entered is None:
                entered = self.enter(handle, name)
                if entered.status.is_directory:
                    self._cache_directory(path, entered)
            if not S_ISLNK(entered.status.mode):
                handle = entered
                continue
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), entered.path)
            self._check()
            text = self.link_text(handle, name, entered.descriptor)
            if text.startswith("/"):
                handle = self.root
            pending += text.split("/")[::-1]
        return handle

    def status(self, directory: PathHandle, name: str) -> FileStatus:
        """Attributes of the target of a directory entry, or of the entry itself if it is a link that is not followed.

        Raises RefusedError for the mount point of a file system that may hang, and OSError.
        """
        status = self.entry_status(directory, name)
        if not S_ISLNK(status.mode):
            return status
        try:
            return self._target_status(directory, name)
        except (RefusedError, OSError):
            return status

    def statuses(self, directory: PathHandle, names: Iterable[str], links: Collection[str]) -> Iterator[Listed]:
        """`status` of many entries of a directory, where `links` are likely to be links.

        Entries that were removed meanwhile are omitted; for others without attributes the error is returned.
        """
        descriptor, mount = directory.descriptor, directory.status.mount
        hazardous = False
        for number, name in enumerate(names):
            if number % _LOOKUPS_PER_REFRESH == 0:
                self._refresh_mounts()
                hazardous = directory.path in self._hazards.directories
            try:
                if name in links:
                    yield name, self._target_status(directory, name)
                    continue
            except (RefusedError, OSError):
                pass  # a dangling link has its own attributes
            try:
                if not hazardous:
                    status = status_on_mount(descriptor, name)
                    if status.mount == mount and not S_ISLNK(status.mode):
                        yield name, status
                        continue
            except OSError:
                pass  # handled below
            try:
                yield name, self.status(directory, name)
            except FileNotFoundError:
                continue
            except (RefusedError, OSError) as error:
                yield name, error

    def _target_status(self, directory: PathHandle, name: str) -> FileStatus:
        """Attributes of the target of a link. Raises RefusedError and OSError."""
        for _ in range(_CACHED_CHAIN_LINKS):
            text = self.link_text(directory, name)
            way, _, name = text.rstrip("/").rpartition("/")
            directory = self._walk_cached(self.root if text[:1] == "/" else directory, way)
            if name in _SPECIAL_NAMES:
                break
            status = self.entry_status(directory, name)
            if not S_ISLNK(status.mode):
                return status
        return self.walk(directory, name).status

    def _walk_cached(self, directory: PathHandle, way: str) -> PathHandle:
        """`walk` with a cache, because links in one directory mostly lead to one directory."""
        handle = self._walked.get((directory, way))
        if handle is None:
            handle = self.walk(directory, way)
            self._make_room(len(self._walked), handle)
            self._walked[directory, way] = handle
        return handle

    def enter(self, directory: PathHandle, name: str) -> PathHandle:
        """Open an entry of a directory without following a link. Raises RefusedError and OSError."""
        self._lookups += 1
        if self._lookups % _LOOKUPS_PER_REFRESH == 0:
            self._refresh_mounts()
        if directory.path in self._hazards.directories:
            self._demand_harmless(directory, name)
        if directory.depth >= DEPTH_MAX:
            raise RefusedError(f"more than {DEPTH_MAX} directories deep")
        try:
            descriptor = open_on_mount(directory.descriptor, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._demand_harmless_mount(directory, name)
            descriptor = os.open(name, _PATH_FLAGS, dir_fd=directory.descriptor)
        try:
            status = status_of(descriptor)
            mount = directory.mount
            if status.mount != directory.status.mount:
                mount = self._admitted_mount(status.mount)
            return PathHandle(descriptor, status, mount, name, directory)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, PermissionError):
                self._demand_no_hazard(directory, name)
            raise

    def _cache_directory(self, path: str, directory: PathHandle) -> None:
        self._make_room(len(self._directories), directory)
        self._directories[path] = directory

    def _make_room(self, kept: int, directory: PathHandle) -> None:
        """Close the cached directories if another one would exceed their limits."""
        self._descriptors_kept += directory.depth
        if kept >= DIRECTORIES_KEPT or self._descriptors_kept > DESCRIPTORS_KEPT:
            self._directories.clear()
            self._walked.clear()
            self._descriptors_kept = directory.depth

    def entry_status(self, directory: PathHandle, name: str) -> FileStatus:
        """Attributes of an entry of a directory, or of a link itself, without opening it.

        Raises RefusedError for the mount point of a file system that may hang, which is not touched, and OSError.
        """
        self._lookups += 1
        if self._lookups % _LOOKUPS_PER_REFRESH == 0:
            self._refresh_mounts()
        if directory.path in self._hazards.directories:
            self._demand_harmless(directory, name)
        try:
            status = status_on_mount(directory.descriptor, name)
        except PermissionError:
            self._demand_no_hazard(directory, name)
            raise
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            status = self._mount_point_status(directory, name)
        if status.mount != directory.status.mount:
            self._admitted_mount(status.mount)
        return status

    def entries(self, directory: PathHandle, check: Callable[[], None]) -> Iterator[list[os.DirEntry[str]]]:
        """The entries of a directory, unsorted, in chunks. Raises RefusedError and OSError."""
        if directory.mount.kind == "proc" and directory.path_in_file_system().endswith("/map_files"):
            raise RefusedError("file names in proc(5) that reveal memory addresses")
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC, dir_fd=directory.descriptor)
        try:
            with os.scandir(descriptor) as entries:
                while some := list(islice(entries, _ENTRIES_PER_READ)):
                    check()
                    yield some
        finally:
            os.close(descriptor)

    def reports_types(self, directory: PathHandle) -> bool:
        """Whether its file system reports the types of directory entries with their names. Raises OSError.

        Otherwise the methods of `os.DirEntry` would stat each entry, and so touch mounts on it.
        """
        typed = self._typed.get(directory.mount.device)
        if typed is None:
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC, dir_fd=directory.descriptor)
            try:
                kinds = entry_types(descriptor)
            finally:
                os.close(descriptor)
            typed = bool(kinds) and all(kinds)
            if kinds:
                self._typed[directory.mount.device] = typed
        return typed

    def working_directory(self) -> PathHandle:
        """The directory to which paths are relative. Raises RefusedError and OSError."""
        return self.walk(self.root, str(Path.cwd()))

    def link_text(self, directory: PathHandle, name: str, descriptor: int | None = None) -> str:
        """The text of a symbolic link, by its descriptor if it is open.

        Raises RefusedError for a magic link, whose text is not its target, and for the mount point of a file system
        that may hang, and OSError for anything but a link.
        """
        if directory.mount.kind == "proc":
            inside = directory.path_in_file_system()
            if inside != "/" or name not in _ORDINARY_PROC_LINKS:
                raise RefusedError("a magic link of proc(5)")
        if descriptor is not None:
            return os.readlink("", dir_fd=descriptor)
        if directory.path in self._hazards.directories:
            self._demand_harmless(directory, name)
        descriptor = open_on_mount(directory.descriptor, name)
        try:
            return os.readlink("", dir_fd=descriptor)
        finally:
            os.close(descriptor)

    # Opening

    def open_regular(self, handle: PathHandle, written: str, purpose: Purpose) -> OpenedFile | None:
        """Open a regular file for reading, without side effects; None if it is anything else.

        `written` is the absolute path as given in the query. Raises RefusedError and OSError.
        """
        if not stat.S_ISREG(handle.status.mode):
            return None
        self._rules.demand_readable(self, handle, written, added_only=purpose is Purpose.PROPERTIES)
        masks_keys = True
        if purpose is Purpose.CONTENTS:
            masks_keys = self._rules.demand_contents(handle, written)
        file = _reopened(handle.descriptor, handle.status, handle.mount)
        return OpenedFile(file, masks_keys, user_of(handle), handle.path.startswith(_LOGS))

    def open_attributes(self, handle: PathHandle, written: str) -> int | None:
        """Open a regular file or a directory to read its extended attributes; None for anything else.

        The caller closes the descriptor. A file that may not be hashed is refused. Raises RefusedError and OSError.
        """
        if not handle.status.is_directory:
            opened = self.open_regular(handle, written, Purpose.HASH)
            if opened is None:
                return None
            with opened.file:
                return os.dup(opened.file.fileno())
        self._rules.demand_readable(self, handle, written)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC, dir_fd=handle.descriptor)

    def open_executable(self, process: PathHandle) -> OpenedFile | None:
        """Open the executable of a process, for its hash; None if it is not a regular file.

        `process` is a process's or thread's directory in a proc file system, see `is_process`. The executable may have
        been deleted, or be in another mount namespace, where the process's mountinfo has its type of file system.
        Raises RefusedError and OSError.
        """
        descriptor = _open_of_process(process, "exe", _O_PATH)
        try:
            status = status_of(descriptor)
            mount = self._current_mount(status.mount)
            if mount is None:
                mount = self._foreign_mount(process, status)
            else:
                self._demand_admitted(mount)
            if not stat.S_ISREG(status.mode):
                return None
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix(" (deleted)")
            inside = mount.root.rstrip("/") + path.removeprefix(mount.mount_point.rstrip("/"))
            self._rules.demand_allowed(self, mount, path, path, inside, added_only=True)
            self._rules.demand_no_denied_object(self, status, mount)
            return OpenedFile(_reopened(descriptor, status, mount), masks_keys=True)
        finally:
            os.close(descriptor)

    def is_process(self, directory: PathHandle) -> bool:
        """Whether a directory belongs to a process or thread in a proc file system, wherever that is mounted."""
        return directory.mount.kind == "proc" and _PROCESS.fullmatch(directory.path_in_file_system()) is not None

    # Mounts

    def _open_root(self) -> PathHandle:
        descriptor = os.open("/", _O_PATH | _CLOEXEC)
        try:
            status = status_of(descriptor)
            mount = self._current_mount(status.mount)
            if mount is None:
                raise RefusedError("the root directory is on a mount that /proc/self/mountinfo does not list")
            return PathHandle(descriptor, status, mount, "/", None)
        except BaseException:
            os.close(descriptor)
            raise

    def _demand_harmless(self, directory: PathHandle, name: str) -> None:
        """Raises RefusedError if a file system is mounted there whose root may hang on a mere lookup."""
        cause = self._hazards.causes.get(joined(directory, name))
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)

    def _demand_harmless_mount(self, directory: PathHandle, name: str) -> None:
        """Raises RefusedError if what is mounted on an entry may hang on a mere lookup.

        No notification follows when a user renames a directory above a mount point, and the next name may come before
        the mounts are read. But a mount stays on its parent mount: where users can rename, it suffices that one on the
        directory's mount may hang.
        """
        self._refresh_mounts()
        self._demand_harmless(directory, name)
        if self._hazards.causes and users_can_rename(directory):
            self._table.read()
            self._refresh_mounts()
            for number, cause in self._hazards.mounts.items():
                if lowest_parent(number, self.mounts) == directory.status.mount:
                    raise RefusedError(cause, Omission.SKIPPED)

    def _mount_point_status(self, directory: PathHandle, name: str) -> FileStatus:
        """Attributes of what is mounted on an entry of a directory. Raises RefusedError and OSError."""
        self._demand_harmless_mount(directory, name)
        return status_at(directory.descriptor, name)

    def _demand_no_hazard(self, directory: PathHandle, name: str) -> None:
        """Raises RefusedError if a file system is mounted there that reveals its attributes to its owner only."""
        if not self._mounts_reread:  # directories of mount points may have been renamed
            self._mounts_reread = True
            self._table.read()
            self._refresh_mounts()
        cause = self._hazards.causes.get(joined(directory, name))
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)

    def _admitted_mount(self, number: int) -> Mount:
        """The mount with this number, which the caller keeps open. Raises RefusedError."""
        mount = self._current_mount(number)
        if mount is None:
            raise RefusedError("on a mount in another mount namespace")
        self._demand_admitted(mount)
        return mount

    def _demand_admitted(self, mount: Mount) -> None:
        cause = self._hazards.mounts.get(mount.id)
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)

    def _current_mount(self, number: int) -> Mount | None:
        self._refresh_mounts()
        return self.mounts.by_id.get(number)

    def _refresh_mounts(self) -> None:
        mounted = self._table.current()
        if mounted is not self.mounts:
            self.mounts = mounted
            self._hazards = hazards_among(mounted, self._access.filesystems_allow)

    def _foreign_mount(self, process: PathHandle, status: FileStatus) -> Mount:
        """The mount of a process's executable in another mount namespace, as that process sees it.

        Its creator is unknown: it is admitted if the agent has a mount of the same file system, or for its type. An
        overlay may be on top of a user's FUSE file system, so it must be in a namespace where only root mounts.
        Raises RefusedError and OSError.
        """
        if (status.mount, status.device) == memory_mount():
            return Mount(status.mount, "", "/", "", "tmpfs")
        with os.fdopen(_open_of_process(process, "mountinfo", os.O_RDONLY), "rb") as mountinfo:
            line = re.search(rb"^%d .*$" % status.mount, mountinfo.read(), re.MULTILINE)
        if line is None:
            raise RefusedError("on a mount in another mount namespace")
        (mount,) = parse_mountinfo(line[0])
        cause = self._foreign_hazard(process, mount)
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)
        return mount

    def _foreign_hazard(self, process: PathHandle, mount: Mount) -> str | None:
        """Why a mount in the namespace of a process must not be entered; None if it may be."""
        same = self.mounts.by_device.get(mount.device)
        if same:
            causes = [self._hazards.mounts.get(each.id) for each in same]
            return None if None in causes else causes[0]
        rules = tuple(rule for rule in self._access.filesystems_allow if not rule.startswith("/"))
        on_hazard = any(lies_on(layer, self._hazards, self.mounts) for layer in mount.layers)
        # Checked after the mounts, because no user can return to a namespace in which only root mounts.
        if mount.kind in STACKED and not only_root_mounts_for(process):
            on_hazard = True
        return hazard(mount, rules, on_hazard=on_hazard)


def _open_of_process(process: PathHandle, name: str, flags: int) -> int:
    """Open a file of a process, by its oldest living thread if the main thread has ended. Raises OSError."""
    try:
        return os.open(name, flags | _CLOEXEC, dir_fd=process.descriptor)
    except OSError as error:
        thread = living_thread(process.descriptor) if error.errno in {errno.ENOENT, errno.EINVAL} else None
        if thread is None:
            raise
        return os.open(f"{thread}{name}", flags | _CLOEXEC, dir_fd=process.descriptor)


def _reopened(descriptor: int, status: FileStatus, mount: Mount) -> FileIO:
    """Reopen the regular file of an `O_PATH` descriptor for reading, without waiting for leases.

    Raises RefusedError if /proc is missing or not the kernel's.
    """
    try:
        file = FileIO(os.open(f"/proc/self/fd/{descriptor}", _READ_FLAGS))
    except FileNotFoundError:
        if mount.kind == "proc":
            raise  # its process has ended
        raise RefusedError("/proc/self/fd does not exist", Omission.SKIPPED) from None
    opened = os.fstat(file.fileno())
    if (opened.st_dev, opened.st_ino) != (status.device, status.inode):
        file.close()
        raise RefusedError("/proc/self/fd opened a different file", Omission.SKIPPED)
    return file
