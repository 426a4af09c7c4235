"""The path gate: how a path that an asker names becomes an open file, or is refused.

A path is walked one component at a time. Each is opened with `O_PATH | O_NOFOLLOW`, which neither reads nor follows
anything, and the mount it lies on is judged before anything below it is touched, since a FUSE or network file system
can hang whoever asks it, and not even SIGKILL ends that. Links are resolved by their text. The magic links of proc(5),
whose text is not where they lead, are therefore never followed, except `exe`, whose target may be hashed.

What is opened is judged by its names: the path as written, the path it has when all links are resolved, and each path
that it has through the agent's other mounts of the same file system. A proc, sys or device file system counts as
mounted at its usual place. Files with several hard links are also compared with the literal denied paths by device and
inode.

Checks are on the open descriptor, so a link or directory that is exchanged meanwhile leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum, auto
from functools import lru_cache
from io import FileIO
from itertools import islice
from pathlib import Path
from stat import S_ISLNK
from typing import Final, NamedTuple, TypeAlias

from zeek_agent.access import AccessPolicy, Contents, admits_filesystem
from zeek_agent.access_defaults import LOCAL_FILE_SYSTEMS
from zeek_agent.sources.files.reads import FileReads, Omission
from zeek_agent.sources.files.statx import Status, entry_types, status_at, status_of
from zeek_agent.sources.mounts import Mount, Mounts, MountTable, parsed
from zeek_agent.text import from_os

DEPTH_MAX: Final = 100
"""Directories on the way to a file, each of which holds a descriptor while it is walked."""
LINKS_MAX: Final = 40
"""Links on the way to a file, as in the kernel (path_resolution(7))."""
DIRECTORIES_KEPT: Final = 32
"""Directories that one statement keeps open, since links and patterns come back to the same few."""
DESCRIPTORS_KEPT: Final = 256
"""Descriptors that they may hold in all, with the directories above them: users choose how deep their links lead."""
_ENTRIES_TOGETHER: Final = 256
_SPECIAL_NAMES: Final = frozenset({"", ".", ".."})
_O_PATH: Final = getattr(os, "O_PATH", 0)
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_PLACE: Final = _O_PATH | getattr(os, "O_NOFOLLOW", 0) | _CLOEXEC
_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | _CLOEXEC
_ORDINARY_PROC_LINKS: Final = frozenset({"self", "thread-self", "mounts", "net"})
_PROCESS: Final = re.compile(r"/\d+(?:/task/\d+)?")
_USUAL_PLACES: Final = {
    "proc": "/proc",
    "sysfs": "/sys",
    "devtmpfs": "/dev",
    "debugfs": "/sys/kernel/debug",
    "pstore": "/sys/fs/pstore",
    "tracefs": "/sys/kernel/tracing",
}
_STACKED: Final = frozenset({"aufs", "ecryptfs", "overlay"})
"""Kinds that lie on other file systems, and hang with them."""
_FUSE: Final = frozenset({"fuse", "fuseblk"})
_CASELESS: Final = frozenset({"exfat", "hfs", "hfsplus", "msdos", "ntfs3", "vfat"})
"""Kinds where a file answers to its name in capitals and small letters."""
_STACK_DEPTH: Final = 3
"""How many file systems the kernel lets lie on each other, and one."""
_LOW_BITS: Final = (1 << 32) - 1
_NS_GET_USERNS: Final = 0xB701


_KERNEL_PLACES: Final = ("/dev/", "/proc/", "/sys/")
"""Where rules speak of the kernel's file systems, not of directories of those names at the top of another."""


class Purpose(Enum):
    """What a file is opened for."""

    CONTENTS = auto()
    HASH = auto()


class RefusedError(Exception):
    """A file or directory is left out by a rule; the message is the cause and does not name it."""

    def __init__(self, cause: str, omission: Omission = Omission.REFUSED) -> None:
        super().__init__(cause)
        self.omission = omission


class Place:
    """Something on the way of a path, held by a descriptor of `O_PATH` until nobody refers to it any more."""

    __slots__ = ("depth", "descriptor", "mount", "name", "parent", "path", "status")

    def __init__(self, descriptor: int, status: Status, mount: Mount, name: str, parent: Place | None) -> None:
        self.descriptor = descriptor
        self.status = status
        self.mount = mount
        self.name = name
        self.parent = parent
        self.path: str = name if parent is None else _joined(parent, name)
        """Absolute, with all links resolved, in the form of `os.fsdecode`."""
        self.depth: int = 0 if parent is None else parent.depth + 1

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def ancestors(self) -> Iterator[Place]:
        """The directories above, the nearest first."""
        place = self.parent
        while place is not None:
            yield place
            place = place.parent

    def path_in_file_system(self) -> str:
        """The path from the root of its file system, whichever part of that is mounted where."""
        names: list[str] = []
        place = self
        while place.parent is not None and place.parent.status.mount == place.status.mount:
            names.append(place.name)
            place = place.parent
        return "/".join((self.mount.root.rstrip("/"), *reversed(names))) or "/"


Listed: TypeAlias = "tuple[str, Status | RefusedError | OSError]"
"""A name in a directory with its attributes, or why it has none."""


class OpenedFile(NamedTuple):
    """A regular file, open for reading. `masks_keys` says that private keys in it are masked line by line; else a file
    that begins with one is refused as a whole. `user` is who decides how many files lie there."""

    file: FileIO
    masks_keys: bool
    user: int = 0


class Gate:
    """Walks and opens paths for one statement, in one thread. What it leaves out is counted in `reads`."""

    def __init__(self, access: AccessPolicy, reads: FileReads) -> None:
        self._access = access
        self.reads = reads
        self._table = _own_mounts()
        self._mounts = self._table.current()
        self._hazards = _hazards(self._mounts, access.filesystems_allow)
        self._denied_objects: frozenset[tuple[int, int]] | None = None
        self._directories: dict[str, Place] = {}
        self._ways: dict[tuple[Place, str], Place] = {}
        self._descriptors_kept = 0
        self._mounts_reread = False
        self._typed: dict[str, bool] = {}
        self.root = self._root()

    # Walking

    def walk(self, start: Place, path: str) -> Place:
        """What a path leads to from a directory, links resolved by their text.

        Raises RefusedError, and OSError as open(2) would.
        """
        pending = path.split("/")[::-1]
        place, links = start, 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if not place.status.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place.path)
            if name == "..":
                place = place.parent or place
                continue
            path = _joined(place, name)
            entered = self._directories.get(path)
            if entered is None:
                entered = self.enter(place, name)
                if entered.status.is_directory:
                    self._remember(path, entered)
            if not S_ISLNK(entered.status.mode):
                place = entered
                continue
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), entered.path)
            text = self._link_text(place, name, entered.descriptor)
            if text.startswith("/"):
                place = self.root
            pending += text.split("/")[::-1]
        return place

    def status(self, directory: Place, name: str) -> Status:
        """Attributes of what a directory's entry leads to, or of a last link that leads nowhere or is not followed.

        Raises RefusedError for the mount point of a file system that may hang, and OSError.
        """
        status = self.entry_status(directory, name)
        if not S_ISLNK(status.mode):
            return status
        try:
            return self._target_status(directory, name)
        except (RefusedError, OSError):
            return status

    def statuses(self, directory: Place, names: Iterable[str], links: Collection[str]) -> Iterator[Listed]:
        """`status` of many entries of a directory, where `links` are likely to be links.

        Entries that have gone are left out; for those without attributes comes the error.
        """
        descriptor, mount = directory.descriptor, directory.status.mount
        hazardous = directory.path in self._hazards.directories
        for name in names:
            try:
                if name in links:
                    yield name, self._target_status(directory, name)
                    continue
            except (RefusedError, OSError):
                pass  # a link that leads nowhere has attributes of its own
            try:
                if not hazardous:
                    status = status_at(descriptor, name)
                    if status.mount == mount and not S_ISLNK(status.mode):
                        yield name, status
                        continue
            except OSError:
                pass  # what it means is looked at below
            try:
                yield name, self.status(directory, name)
            except FileNotFoundError:
                continue
            except (RefusedError, OSError) as error:
                yield name, error

    def _target_status(self, directory: Place, name: str) -> Status:
        """Attributes of what a link leads to. Raises RefusedError and OSError."""
        for _ in range(LINKS_MAX):
            text = self._link_text(directory, name)
            way, _, name = text.rstrip("/").rpartition("/")
            directory = self._way(self.root if text[:1] == "/" else directory, way)
            if name in _SPECIAL_NAMES:
                return self.walk(directory, name).status
            status = self.entry_status(directory, name)
            if not S_ISLNK(status.mode):
                return status
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)

    def _way(self, directory: Place, way: str) -> Place:
        """`walk`, remembered, since links that lie together mostly lead to one directory."""
        place = self._ways.get((directory, way))
        if place is None:
            place = self.walk(directory, way)
            self._make_room(len(self._ways), place)
            self._ways[directory, way] = place
        return place

    def enter(self, directory: Place, name: str) -> Place:
        """What a directory has under a name; a link is not followed. Raises RefusedError and OSError."""
        if directory.path in self._hazards.directories:
            self._demand_harmless(directory, name)
        if directory.depth >= DEPTH_MAX:
            raise RefusedError(f"more than {DEPTH_MAX} directories deep")
        descriptor = os.open(name, _PLACE, dir_fd=directory.descriptor)
        try:
            status = status_of(descriptor)
            mount = directory.mount
            if status.mount != directory.status.mount:
                mount = self._admitted(status.mount)
            return Place(descriptor, status, mount, name, directory)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, PermissionError):
                self._demand_no_hazard(directory, name)
            raise

    def _remember(self, path: str, directory: Place) -> None:
        self._make_room(len(self._directories), directory)
        self._directories[path] = directory

    def _make_room(self, kept: int, directory: Place) -> None:
        """Forget the directories that are kept open where one more would be too many."""
        self._descriptors_kept += directory.depth
        if kept >= DIRECTORIES_KEPT or self._descriptors_kept > DESCRIPTORS_KEPT:
            self._directories.clear()
            self._ways.clear()
            self._descriptors_kept = directory.depth

    def entry_status(self, directory: Place, name: str) -> Status:
        """Attributes of what a directory has under a name, of a link itself, without opening it.

        Raises RefusedError for the mount point of a file system that may hang, which is not touched, and OSError.
        """
        if directory.path in self._hazards.directories:
            self._demand_harmless(directory, name)
        try:
            status = status_at(directory.descriptor, name)
        except PermissionError:
            self._demand_no_hazard(directory, name)
            raise
        if status.mount != directory.status.mount:
            self._admitted(status.mount)
        return status

    def entries(self, directory: Place, check: Callable[[], None]) -> Iterator[list[os.DirEntry[str]]]:
        """The entries of a directory, unsorted, some at a time. Raises OSError."""
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC, dir_fd=directory.descriptor)
        try:
            with os.scandir(descriptor) as entries:
                while some := list(islice(entries, _ENTRIES_TOGETHER)):
                    check()
                    yield some
        finally:
            os.close(descriptor)

    def gives_types(self, directory: Place) -> bool:
        """Whether its file system tells the types of a directory's entries with their names. Raises OSError.

        Where it does not, the methods of `os.DirEntry` would look at each entry, and so at what is mounted there.
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

    def working_directory(self) -> Place:
        """Where relative paths start. Raises RefusedError and OSError."""
        return self.walk(self.root, str(Path.cwd()))

    def _link_text(self, directory: Place, name: str, descriptor: int | None = None) -> str:
        """The text of a symbolic link, by its descriptor if it is open.

        Raises RefusedError for a magic link, whose text is not where it leads, and OSError.
        """
        if directory.mount.kind == "proc":
            inside = directory.path_in_file_system()
            if inside != "/" or name not in _ORDINARY_PROC_LINKS:
                raise RefusedError("a magic link of proc(5)")
        if descriptor is not None:
            return os.readlink("", dir_fd=descriptor)
        return os.readlink(name, dir_fd=directory.descriptor)

    # Opening

    def open_regular(self, place: Place, written: str, purpose: Purpose) -> OpenedFile | None:
        """Open a regular file for reading, so that nothing but that can happen; None when it is anything else.

        `written` is the path as the asker has it, absolute. Raises RefusedError and OSError.
        """
        if not stat.S_ISREG(place.status.mode):
            return None
        self._demand_readable(place, written)
        masks_keys = True
        if purpose is Purpose.CONTENTS:
            masks_keys = self._demand_contents(place, written)
        return OpenedFile(_reopened(place.descriptor, place.status, place.mount), masks_keys, _user_of(place))

    def open_executable(self, process: Place) -> OpenedFile | None:
        """Open the executable of a process, for its hash; None when it is no regular file.

        `process` is a process's or thread's directory in a proc file system, see `is_process`. The executable may be
        deleted, and in another mount namespace, where that process's mountinfo tells the kind of its file system.
        Raises RefusedError and OSError.
        """
        descriptor = os.open("exe", _O_PATH | _CLOEXEC, dir_fd=process.descriptor)
        try:
            status = status_of(descriptor)
            mount = self._current(status.mount)
            if mount is None:
                mount = self._foreign_mount(process, status)
            else:
                self._demand_admitted(mount)
            if not stat.S_ISREG(status.mode):
                return None
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix(" (deleted)")
            inside = mount.root.rstrip("/") + path.removeprefix(mount.place.rstrip("/"))
            self._demand_allowed(mount, path, path, inside)
            self._demand_no_denied_object(status, mount)
            return OpenedFile(_reopened(descriptor, status, mount), masks_keys=True)
        finally:
            os.close(descriptor)

    def is_process(self, directory: Place) -> bool:
        """Whether a directory is that of a process or thread in a proc file system, wherever that is mounted."""
        return directory.mount.kind == "proc" and _PROCESS.fullmatch(directory.path_in_file_system()) is not None

    # Mounts

    def _root(self) -> Place:
        descriptor = os.open("/", _O_PATH | _CLOEXEC)
        try:
            status = status_of(descriptor)
            mount = self._current(status.mount)
            if mount is None:
                raise RefusedError("the root directory is on a mount that /proc/self/mountinfo does not list")
            return Place(descriptor, status, mount, "/", None)
        except BaseException:
            os.close(descriptor)
            raise

    def _demand_harmless(self, directory: Place, name: str) -> None:
        """Raises RefusedError where a file system that even a descriptor of its root may wait for is mounted."""
        cause = self._hazards.avoided.get(_joined(directory, name))
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)

    def _demand_no_hazard(self, directory: Place, name: str) -> None:
        """Raises RefusedError if a file system is mounted there that tells its attributes to nobody but its user."""
        if not self._mounts_reread:  # directories of mount points may have got other names
            self._mounts_reread = True
            self._table.read()
            self._refresh()
        cause = self._hazards.causes.get(_joined(directory, name))
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)

    def _admitted(self, number: int) -> Mount:
        """The mount with this number, which the caller holds open. Raises RefusedError."""
        mount = self._current(number)
        if mount is None:
            raise RefusedError("on a mount of another mount namespace")
        self._demand_admitted(mount)
        return mount

    def _demand_admitted(self, mount: Mount) -> None:
        cause = self._hazards.mounts.get(mount.id)
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)

    def _current(self, number: int) -> Mount | None:
        self._refresh()
        return self._mounts.by_id.get(number)

    def _refresh(self) -> None:
        mounted = self._table.current()
        if mounted is not self._mounts:
            self._mounts = mounted
            self._hazards = _hazards(mounted, self._access.filesystems_allow)

    def _foreign_mount(self, process: Place, status: Status) -> Mount:
        """The mount of another mount namespace that a process's executable lies on, as that process sees it.

        Who made it, and where, is not known: it is admitted if the agent has one of the same file system, or for its
        kind. An overlay may lie on a user's FUSE file system, so it must be in a namespace where only root mounts.
        Raises RefusedError and OSError.
        """
        if (status.mount, status.device) == _memory_mount():
            return Mount(status.mount, "", "/", "", "tmpfs")
        with os.fdopen(os.open("mountinfo", os.O_RDONLY | _CLOEXEC, dir_fd=process.descriptor), "rb") as mountinfo:
            line = re.search(rb"^%d .*$" % status.mount, mountinfo.read(), re.MULTILINE)
        if line is None:
            raise RefusedError("on a mount of another mount namespace")
        (mount,) = parsed(line[0])
        cause = self._foreign_hazard(process, mount)
        if cause is not None:
            raise RefusedError(cause, Omission.SKIPPED)
        return mount

    def _foreign_hazard(self, process: Place, mount: Mount) -> str | None:
        """Why a mount in the namespace of a process is not to be entered; None if it may be."""
        same = self._mounts.by_device.get(mount.device)
        if same:
            causes = [self._hazards.mounts.get(each.id) for each in same]
            return None if None in causes else causes[0]
        rules = tuple(rule for rule in self._access.filesystems_allow if not rule.startswith("/"))
        on_hazard = any(_lies_on(layer, self._hazards, self._mounts) for layer in mount.layers)
        # Who mounts is looked at after the mounts, since no user can go back to a namespace in which only root mounts.
        if mount.kind in _STACKED and not _only_root_mounts_for(process):
            on_hazard = True
        return _hazard(mount, rules, on_hazard=on_hazard)

    # Rules

    def _demand_readable(self, place: Place, written: str) -> None:
        """Raises RefusedError when a file may not even be hashed."""
        mount, status = place.mount, place.status
        inside = place.path_in_file_system()
        self._demand_allowed(mount, written, place.path, inside)
        if status.links != 1:
            self._demand_no_denied_object(status, mount)

    def _demand_allowed(self, mount: Mount, written: str, path: str, inside: str) -> None:
        access = self._access
        if any(access.denies(name) for name in self._names(mount, written, path, inside)):
            raise RefusedError("denied by access.paths_deny, or the agent's own")
        if not access.allows(from_os(written)) or not access.allows(from_os(path)):
            raise RefusedError("not in access.paths_allow")

    def _names(self, mount: Mount, written: str, path: str, inside: str) -> set[str]:
        """Every path that a file has, for the rules to look at."""
        names = {written, path, *self._layer_names(mount, inside)}
        if not inside.startswith(_KERNEL_PLACES):
            names.add(inside)
        usual = _USUAL_PLACES.get(mount.kind)
        if usual is not None:
            names.add(usual + inside)
        for other in self._mounts.by_device.get(mount.device, ()):
            root = other.root.rstrip("/")
            if inside == other.root or inside.startswith(f"{root}/"):
                names.add(other.place.rstrip("/") + inside[len(root) :])
        if mount.kind in _CASELESS:
            names |= {name.lower() for name in names}
        return {from_os(name) for name in names}

    def _layer_names(self, mount: Mount, inside: str) -> list[str]:
        """The paths that a file of an overlay may have in the directories which that is made of."""
        if not mount.layers or mount.place == "/":
            return []
        return [layer.rstrip("/") + inside for layer in mount.layers]

    def _demand_no_denied_object(self, status: Status, mount: Mount) -> None:
        denied = (status.device, status.inode) in self._objects()
        if mount.kind in _STACKED and not denied:
            # Its device is not that of the file below, and its inode's number has at most other high bits.
            denied = any((status.inode ^ inode) & _LOW_BITS == 0 for _, inode in self._objects())
        if denied:
            raise RefusedError("another name of a file that access.paths_deny names, or of the agent's own")

    def _objects(self) -> frozenset[tuple[int, int]]:
        """Device and inode of the literal denied paths and of the agent's own, as they are for this statement."""
        if self._denied_objects is None:
            found: set[tuple[int, int]] = set()
            for path in (*self._access.literals, *self._access.protected):
                try:
                    place = self.walk(self.root, path)
                    found.add((place.status.device, place.status.inode))
                    if place.status.is_directory and path in self._access.protected:
                        found.update(self._objects_in(place))
                except (OSError, RefusedError):
                    continue  # not there, or where nobody may look: no hard link of it can be opened either
            self._denied_objects = frozenset(found)
        return self._denied_objects

    def _objects_in(self, directory: Place) -> Iterator[tuple[int, int]]:
        for entries in self.entries(directory, lambda: None):
            for _, status in self.statuses(directory, [entry.name for entry in entries], ()):
                if isinstance(status, Status):
                    yield status.device, status.inode

    def _demand_contents(self, place: Place, written: str) -> bool:
        """Raises RefusedError when the contents may not be read. Returns whether private keys in it are masked."""
        usual = _USUAL_PLACES.get(place.mount.kind)
        name = from_os(usual + place.path_in_file_system() if usual is not None else place.path)
        listed = self._access.contents(name)
        if listed is Contents.CONFIGURED:
            return False
        cause = content_refusal(listed, readable_by_all=_readable_by_all(place), belongs_there=_belongs_there(place))
        if cause is not None:
            if not self._access.reports_only:
                raise RefusedError(cause)
            self.reads.leave_out(Omission.REPORTED, written, cause)
        return True


def _joined(directory: Place, name: str) -> str:
    return f"/{name}" if directory.parent is None else f"{directory.path}/{name}"


def _reopened(descriptor: int, status: Status, mount: Mount) -> FileIO:
    """The regular file that a descriptor of `O_PATH` stands for, open for reading; leases do not make it wait.

    Raises RefusedError when /proc is not the kernel's, or not there.
    """
    try:
        file = FileIO(os.open(f"/proc/self/fd/{descriptor}", _READ))
    except FileNotFoundError:
        if mount.kind == "proc":
            raise  # its process has ended
        raise RefusedError("/proc/self/fd is not there", Omission.SKIPPED) from None
    opened = os.fstat(file.fileno())
    if (opened.st_dev, opened.st_ino) != (status.device, status.inode):
        file.close()
        raise RefusedError("/proc/self/fd leads elsewhere", Omission.SKIPPED)
    return file


def content_refusal(listed: Contents, *, readable_by_all: bool, belongs_there: bool) -> str | None:
    """Why the contents of a file that no setting admits may not be read; None when they may."""
    if listed is Contents.UNLISTED:
        return "contents are not on the list (access.files_allow extends it)"
    if readable_by_all or (listed is Contents.PRIVATE and belongs_there):
        return None
    return "contents are not for every local user (access.files_allow admits them)"


def _readable_by_all(place: Place) -> bool:
    """Whether every local user may read a file: by its own mode, and by those of the directories above it."""
    return bool(place.status.mode & stat.S_IROTH) and all(
        directory.status.mode & stat.S_IXOTH for directory in place.ancestors()
    )


def _belongs_there(place: Place) -> bool:
    """Whether nobody can have put another user's secret where a file lies, by a link or a rename of what is above it.

    That holds where only root and the file's owner can write, groups aside, and where one other user can who may read
    the file wherever he puts it.
    """
    above = [directory.status for directory in place.ancestors()]
    if any(directory.mode & stat.S_IWOTH for directory in above):
        return False
    others = {directory.uid for directory in above} - {0, place.status.uid}
    if not others:
        return True
    reachable = all(directory.uid in others or directory.mode & stat.S_IXOTH for directory in above)
    return len(others) == 1 and reachable and place.status.links == 1 and bool(place.status.mode & stat.S_IROTH)


def _user_of(place: Place) -> int:
    """The user below whose directory a file lies: the owner of the topmost one that is not root's, or of the file."""
    user = place.status.uid
    for directory in place.ancestors():
        user = directory.status.uid or user
    return user or 0


def _hazard(mount: Mount, admitted: tuple[str, ...], *, on_hazard: bool = False) -> str | None:
    """Why a file system is not to be entered; None for one that answers by itself, or that the configuration admits."""
    if admits_filesystem(admitted, mount.kind, from_os(mount.place)):
        return None
    admits = "which may hang (access.filesystems_allow admits it)"
    if mount.kind not in LOCAL_FILE_SYSTEMS:
        return f"on a {mount.kind} file system, {admits}"
    return f"on a file system of kind {mount.kind} that may lie on another one, {admits}" if on_hazard else None


class Hazards(NamedTuple):
    """The mounts of file systems that are not to be entered."""

    mounts: Mapping[int, str]
    """By the mount's number: why."""
    causes: Mapping[str, str]
    """By mount point: why."""
    avoided: Mapping[str, str]
    """The same for those whose root is not even opened as a mere place, which FUSE does not notice."""
    directories: frozenset[str]
    """The directories that these lie in."""


@lru_cache(maxsize=8)
def _hazards(mounted: Mounts, admitted: tuple[str, ...]) -> Hazards:
    """The hazards among the mounts; at each mount point the uppermost mount counts.

    The root directory's is none: the agent runs from it.
    """
    found = Hazards({}, {}, {}, frozenset())
    for _ in range(_STACK_DEPTH):
        mounts: dict[int, str] = {}
        causes: dict[str, str] = {}
        avoided: dict[str, str] = {}
        for mount in mounted.by_id.values():
            on_hazard = any(_lies_on(layer, found, mounted) for layer in mount.layers) if found.causes else False
            cause = _hazard(mount, admitted, on_hazard=on_hazard)
            causes.pop(mount.place, None)
            avoided.pop(mount.place, None)
            if cause is not None and mount.place != "/":
                mounts[mount.id] = causes[mount.place] = cause
                if mount.kind.partition(".")[0] not in _FUSE:
                    avoided[mount.place] = cause
        if causes == found.causes:
            break
        found = Hazards(mounts, causes, avoided, frozenset(map(posixpath.dirname, avoided)))
    return found


def _lies_on(path: str, hazards: Hazards, mounted: Mounts) -> bool:
    """Whether the nearest mount above a path is a hazard."""
    while path not in mounted.places and path != "/":
        path = posixpath.dirname(path)
    return path in hazards.causes


def _only_root_mounts_for(process: Place) -> bool:
    """Whether only root can mount in a process's mount namespace, since the agent's user namespace owns it."""
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
def _own_mounts() -> MountTable:
    """The mount table of this process."""
    return MountTable()


@lru_cache(maxsize=1)
def _memory_mount() -> tuple[int, int]:
    """Number and device of the kernel's internal mount on which memfd_create(2) makes its files."""
    descriptor = os.memfd_create("zeek-agent", os.MFD_CLOEXEC)
    try:
        status = status_of(descriptor)
        return status.mount, status.device
    finally:
        os.close(descriptor)
