"""The directories that are watched: their marks, their paths by key, and the names in them.

A mark holds for a directory and the files in it, so each directory below a watched one has a mark of its own. Paths
are kept because a directory that was removed can no longer be asked for its path. Names are kept to find what is
missing after events were lost.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from zeek_agent.recording.files import fanotify
from zeek_agent.recording.files.directory_names import DirectoryNames
from zeek_agent.recording.files.fanotify_groups import FanotifyGroups
from zeek_agent.recording.files.mount_table import Mount, MountTable, is_below

BASE_MASK: Final = fanotify.CREATE | fanotify.DELETE | fanotify.CLOSE_WRITE | fanotify.ATTRIB | fanotify.ONDIR
_JOINED: Final = fanotify.RENAME
_SPLIT: Final = fanotify.MOVED_FROM | fanotify.MOVED_TO
_WAYPOINT_MASK: Final = fanotify.CREATE | _SPLIT | fanotify.ONDIR
"""For a directory in which a watched one may appear, or be replaced."""
_OPEN: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_PATH: Final = getattr(os, "O_PATH", 0)
_WILDCARDS: Final = frozenset(b"*?[")
_LAZY_PATHS_MAX: Final = 4_096
"""Paths that are kept of directories that have no mark of their own, in file systems that are watched entirely."""
_PATH_BYTES_PER_DIRECTORY: Final = 200
"""On average, in all paths that are kept; the default directories have 60."""
_MISSED_MAX: Final = 10_000
"""Directories that could not be marked and are counted once each."""
_LINKS_MAX: Final = 40
_SAMPLES: Final = 4
"""Directories whose marks show whether their file system is still the one that was marked."""
_PROGRAMS_SHARE: Final = 0.5
"""Of the memory for names, because directories of programs have most of them."""
_SHOWN_MAX: Final = 300
_ROOT_USER: Final = 0
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})


class FoundEntry(NamedTuple):
    """An entry of a directory that a scan came upon, with its attributes unless it is gone or something covers it."""

    path: bytes
    is_directory: bool
    status: os.stat_result | None


class _Scan(NamedTuple):
    """The marking of a directory and all below it, on one mount."""

    mount: Mount
    root: int
    """The open mount point."""
    mask: int
    found: Callable[[FoundEntry], None] | None
    pending: list[bytes]
    added: list[bytes]
    """Directories that are marked now and were not before."""


class WatchedDirectories:
    """Marks directories, and knows their paths.

    `report` is called with each kind of problem, in words, and `progress` before each directory, of which there may be
    very many on a slow disk.
    """

    def __init__(
        self,
        groups: FanotifyGroups,
        *,
        patterns: Sequence[bytes],
        unexecuted: Sequence[bytes],
        directories_max: int,
        mounts: MountTable,
        report: Callable[[str], None],
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._groups = groups
        self._mask = BASE_MASK | (_JOINED if groups.joins_renames else _SPLIT)
        self._roots = [pattern for pattern in patterns if not pattern.startswith(b"!")]
        self._excluded = [pattern[1:] for pattern in patterns if pattern.startswith(b"!")]
        self._unexecuted = unexecuted
        self._directories_max = directories_max
        self._report = report
        self._progress = progress
        self.mounts = mounts
        self._paths: dict[bytes, bytes] = {}
        self._path_bytes = 0
        self._lazy: dict[bytes, bytes] = {}
        self._waypoints: dict[bytes, tuple[bytes, set[bytes]]] = {}
        """The path of a directory, and the patterns of the names in it that lead to watched directories."""
        self._devices: dict[bytes, bytes] = {}
        """The devices in mountinfo of the file systems in which something is marked, by their ids in keys."""
        self._entered: set[int] = set()
        """The ids of the mounts whose directories were marked, as far as they are watched."""
        self._whole: set[bytes] = set()
        """The ids of file systems that are watched entirely."""
        self._places: set[bytes] = set()
        """What the patterns match."""
        self.names = DirectoryNames()
        self._missed: set[int] = set()
        self.has_new_mounts = False
        """Whether a scan came upon a mount that was not entered yet."""
        self.is_incomplete = False
        """Whether `mark_all` has to be called, because a mark was removed that it needs."""

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def unwatched(self) -> int:
        """Directories that could not be marked, up to a limit."""
        return len(self._missed)

    def mark_file_systems(self, mount_points: Sequence[bytes]) -> None:
        """Watch these file systems entirely, if they are mounted and not watched yet."""
        for place in mount_points:
            mount = self.mounts.at(place)
            if mount is None or not mount.is_admitted:
                self._report(f"{shown(place)} is not the mount point of a local file system")
            elif mount.number not in self._entered or mount.device not in self._devices.values():
                self._mark_file_system(mount)

    def _mark_file_system(self, mount: Mount) -> None:
        try:
            opened = self._open_mount(mount)
            try:
                flags = fanotify.MARK_ADD | fanotify.MARK_FILESYSTEM
                identity = fanotify.file_system(opened)
                self._groups.mark(flags, self._mask | fanotify.OPEN_EXEC, opened, identity)
            finally:
                os.close(opened)
        except OSError as error:
            self._report(f"{shown(mount.place)} cannot be watched entirely: {_reason(error)}")
        else:
            self._whole.add(identity)
            self._devices[identity] = mount.device
            self._entered.add(mount.number)

    def mark_all(self, found: Callable[[FoundEntry], None] | None = None) -> list[bytes]:
        """Mark what the patterns match now and was not marked before; otherwise as `mark_below`."""
        self.is_incomplete = False
        added: list[bytes] = []
        places = set()
        for root in self._roots:
            for place in self._expand(root):
                places.add(place)
                added += self.mark_below(place, found)
        for place in self._places - places:
            if any(self._is_covered(key, path) for key, path in self._paths.items() if path == place):
                places.add(place)  # it is still there, and whoever has it open can change it
            elif not any(is_below(place, each) for each in places):
                self.moved(place, None)
        self._places = places
        return added

    def mark_uncovered(self, places: Sequence[bytes], found: Callable[[FoundEntry], None]) -> None:
        """Mark directories in watched ones from which a mount has gone."""
        above: dict[bytes, set[bytes]] = {}
        for place in places:
            above.setdefault(place.rpartition(b"/")[0] or b"/", set()).add(place)
        if above:
            for place in {one for path in self._paths.values() for one in above.get(path, ())}:
                self.mark_below(place, found)

    def mark_mounts(self, found: Callable[[FoundEntry], None] | None = None) -> None:
        """Mark the directories of mounts within watched directories."""
        self.has_new_mounts = False
        while places := self._mount_points_below():
            for place in places:
                self.mark_below(place, found)

    def mark_below(self, path: bytes, found: Callable[[FoundEntry], None] | None = None) -> list[bytes]:
        """Mark a directory and all below it. `found` is called with each entry of the new ones.

        Returns the directories that are marked now and were not before.
        """
        mount = self.mounts.around(path)
        if mount is None or not mount.is_admitted:
            return []
        self._entered.add(mount.number)
        mask = self._mask | fanotify.EVENT_ON_CHILD
        if not any(_covers(pattern, path) for pattern in self._unexecuted):
            mask |= fanotify.OPEN_EXEC
        try:
            root = self._open_mount(mount)
        except OSError as error:
            self._miss(path, _reason(error))
            return []
        scan = _Scan(mount, root, mask, found, [path], [])
        try:
            while scan.pending:
                place = scan.pending.pop()
                if not self.is_excluded(place):
                    self._progress()
                    self._mark_place(place, scan)
        finally:
            os.close(root)
        return scan.added

    def _mark_place(self, place: bytes, scan: _Scan) -> None:
        """Mark one directory of a scan; directories in it become pending."""
        try:
            opened = _open_within(scan.root, scan.mount.place, place)
        except OSError as error:
            if error.errno == errno.EXDEV:
                self.has_new_mounts = True
            elif error.errno not in _GONE:
                self._miss(place, _reason(error))
            return
        try:
            if (key := self._mark_one(opened, place, scan.mount, scan.mask)) is not None:
                scan.added.append(place)
                self._note_entries(key, place, opened, scan)
        except OSError as error:
            self._miss(place, _reason(error))
        finally:
            os.close(opened)

    def _mark_one(self, opened: int, place: bytes, mount: Mount, mask: int) -> bytes | None:
        """Mark an open directory; returns its key unless it is marked already. Raises OSError."""
        key = fanotify.directory_key(opened)
        if key in self._paths:
            self._set_path(key, place)
            return None
        if reason := self._limit(opened, place):
            self._miss(place, reason)
            return None
        identity = fanotify.key_file_system(key)
        self._groups.mark(fanotify.MARK_ADD | fanotify.MARK_ONLYDIR, mask, opened, identity)
        self._devices[identity] = mount.device
        self._set_path(key, place)
        self._missed.discard(hash(place))
        return key

    def _limit(self, opened: int, place: bytes) -> str | None:
        """Why one more directory cannot be watched. The last quarter is for those of root."""
        most = self._directories_max
        if len(self._paths) >= most:
            return _too_many(most)
        if len(self._paths) * 4 >= most * 3 and os.fstat(opened).st_uid != _ROOT_USER:
            return (
                f"three quarters of {most} directories are watched, others are for root's (sources.files_directories)"
            )
        if self._path_bytes + len(place) > most * _PATH_BYTES_PER_DIRECTORY:
            return "the paths of watched directories are too long (sources.files_directories)"
        return None

    def _note_entries(self, key: bytes, place: bytes, opened: int, scan: _Scan) -> None:
        """Note the names in a new directory; directories in it become pending, up to the limit."""
        prefix = place if place.endswith(b"/") else place + b"/"
        with self.noting_names(key, place) as note:
            for entry in os.scandir(opened):
                name = os.fsencode(entry.name)
                note(name)
                is_directory = entry.is_dir(follow_symlinks=False)
                if scan.found is not None:
                    scan.found(FoundEntry(prefix + name, is_directory, _status_below(opened, name)))
                if not is_directory:
                    continue
                if len(scan.pending) < self._directories_max:
                    scan.pending.append(prefix + name)
                else:
                    self._miss(prefix + name, _too_many(self._directories_max))

    def path(self, key: bytes) -> bytes | None:
        """The path of a directory; None if it is not watched and cannot be found."""
        path = self._paths.get(key)
        if path is None and fanotify.key_file_system(key) in self._whole:
            path = self._lazy.get(key) or self._ask(key)
        return path

    def is_watched(self, key: bytes) -> bool:
        """Whether events in the directory are wanted, and not only those of directories that patterns match."""
        return key in self._paths or fanotify.key_file_system(key) in self._whole

    def is_marked(self, key: bytes) -> bool:
        """Whether the directory has a mark of its own, so that directories in it get one, too."""
        return key in self._paths

    def leads_to_watched(self, key: bytes, name: bytes) -> bytes | None:
        """The path of a name in a directory, if a pattern goes that way."""
        place, names = self._waypoints.get(key, (b"", ()))
        if any(fnmatch.fnmatchcase(name, each) for each in names):
            return os.path.join(place, name)  # noqa: PTH118
        return None

    def learn(self, key: bytes, path: bytes) -> None:
        """Note the path of a directory in a file system that is watched entirely."""
        if key not in self._paths and fanotify.key_file_system(key) in self._whole:
            while len(self._lazy) >= _LAZY_PATHS_MAX:
                del self._lazy[next(iter(self._lazy))]
            self._lazy[key] = path

    def removed(self, key: bytes) -> None:
        """Note that a directory was removed; the kernel has removed its mark."""
        self._drop(key)
        self._lazy.pop(key, None)
        self._waypoints.pop(key, None)

    def moved(self, old: bytes, new: bytes | None) -> None:
        """Change the paths of a directory and all below it; None: it left what is watched."""
        below = old + b"/"
        for key, path in [each for each in self._paths.items() if each[1] == old or each[1].startswith(below)]:
            changed = None if new is None else new + path[len(old) :]
            if changed is None or self.is_excluded(changed):
                self._unmark(key)
            else:
                self._set_path(key, changed)
        for key, path in [each for each in self._lazy.items() if each[1] == old or each[1].startswith(below)]:
            del self._lazy[key]
            if new is not None:
                self._lazy[key] = new + path[len(old) :]

    def left(self, place: bytes) -> None:
        """Forget a directory on the way to watched ones, and all below it, because it was moved."""
        for key in [key for key, (each, _) in self._waypoints.items() if is_below(each, place)]:
            self._unmark(key)
        self.moved(place, None)
        self.is_incomplete = True

    def opened(self, key: bytes, flags: int, mounts: MountDescriptors) -> int:
        """Open the object of a key. Raises OSError: ESTALE if it is gone."""
        return fanotify.open_key(mounts.descriptor(fanotify.key_file_system(key)), key, flags)

    def read_mounts(self) -> list[bytes]:
        """Read which file systems are mounted, and forget the directories of those that are gone.

        Returns the places where mounts are gone, so that other directories have appeared.
        """
        gone = self.mounts.read()
        lost = self._without_marks()
        devices = {self._devices[identity] for identity in lost}
        gone += [mount for mount in self.mounts if mount.device in devices]
        self._entered.difference_update(mount.number for mount in gone)
        for identity in lost:
            del self._devices[identity]
            self._whole.discard(identity)
            self._groups.forget(identity)
            for known in (self._paths, self._lazy, self._waypoints):
                for key in [key for key in known if fanotify.key_file_system(key) == identity]:
                    self.removed(key)
        for mount in gone:
            for key, path in [each for each in self._paths.items() if is_below(each[1], mount.place)]:
                is_elsewhere = self._device(key) == mount.device and not self._is_covered(key, path)
                if is_elsewhere and not self._leads_to(path, key):  # it was seen through a bind mount
                    self._unmark(key)
        return [mount.place for mount in gone]

    def _without_marks(self) -> list[bytes]:
        """The ids in keys of the file systems that have been unmounted since they were marked.

        A file system that was mounted again between two readings may have the ids that it had before, but no marks.
        """
        samples: dict[bytes, list[bytes]] = {identity: [] for identity in self._devices}
        for key in (*self._paths, *self._waypoints):
            if len(keys := samples.setdefault(fanotify.key_file_system(key), [])) < _SAMPLES:
                keys.append(key)
        return [
            identity
            for identity, device in self._devices.items()
            if not self.mounts.has_device(device) or not self._has_marks(identity, samples[identity])
        ]

    def _has_marks(self, identity: bytes, keys: Sequence[bytes]) -> bool:
        """Whether the kernel has the mark of a file system, or of one of these directories in it."""
        with MountDescriptors(self) as mounts:
            try:
                root = mounts.descriptor(identity)
            except OSError:
                return True  # a covered one keeps its marks
            if identity in self._whole and not self._groups.has_mark(fanotify.MARK_FILESYSTEM, root, identity):
                return False
            return not keys or any(self._has_mark(key, mounts) for key in keys)

    def _has_mark(self, key: bytes, mounts: MountDescriptors) -> bool:
        try:
            opened = self.opened(key, _OPEN, mounts)
        except OSError as error:
            return error.errno not in _GONE
        try:
            return self._groups.has_mark(0, opened, fanotify.key_file_system(key))
        finally:
            os.close(opened)

    def _device(self, key: bytes) -> bytes | None:
        return self._devices.get(fanotify.key_file_system(key))

    def _is_covered(self, key: bytes, path: bytes) -> bool:
        """Whether another file system is mounted over a directory, so that its path leads elsewhere."""
        mount = self.mounts.around(path)
        return mount is not None and mount.device != self._device(key)

    def _leads_to(self, path: bytes, key: bytes) -> bool:
        """Whether the directory with that path is the one with that key."""
        try:
            opened = self._open(path)
        except OSError:
            return False
        try:
            return fanotify.directory_key(opened) == key
        except OSError:
            return False
        finally:
            os.close(opened)

    def _mount_points_below(self) -> list[bytes]:
        """Mount points within watched directories, or on them, whose directories have not been marked."""
        above: dict[bytes, list[bytes]] = {}
        for mount in self.mounts:
            if mount.is_admitted and mount.number not in self._entered:
                for place in (mount.place, mount.place.rpartition(b"/")[0] or b"/"):
                    above.setdefault(place, []).append(mount.place)
        return list({place for path in self._paths.values() for place in above.get(path, ())}) if above else []

    def marked(self) -> Iterator[tuple[bytes, bytes]]:
        """The keys and paths of all directories that have a mark."""
        return iter(list(self._paths.items()))

    def _set_path(self, key: bytes, path: bytes) -> None:
        self._path_bytes += len(path) - len(self._paths.get(key, b""))
        self._paths[key] = path

    def _drop(self, key: bytes) -> None:
        self._path_bytes -= len(self._paths.pop(key, b""))
        self.names.forget(key)

    def current_path(self, key: bytes, opened: int) -> bytes | None:
        """The path of an open directory by now; None if it is not watched any more, because it was moved."""
        known = self._paths[key]
        if self._is_covered(key, known) or self._leads_to(known, key):
            return known
        path = os.readlink(b"/proc/self/fd/%d" % opened)  # noqa: PTH115
        is_wanted = not self.is_excluded(path) and any(is_below(path, place) for place in self._places)
        if is_wanted and self._leads_to(path, key):
            self._set_path(key, path)
            return path
        self._unmark(key)
        return None

    def noting_names(self, key: bytes, path: bytes) -> AbstractContextManager[Callable[[bytes], None]]:
        """As `DirectoryNames.replacing`."""
        is_program = any(_covers(pattern, path) for pattern in self._unexecuted)
        return self.names.replacing(key, _PROGRAMS_SHARE if is_program else 1.0)

    def has_entry(self, directory: bytes, name: bytes) -> bool:
        """Whether a watched directory has an entry with that name."""
        try:
            opened = self._open(self._paths[directory])
        except (KeyError, OSError):
            return False
        try:
            fanotify.status_below(opened, name)
        except OSError as error:
            return error.errno == errno.EXDEV
        else:
            return True
        finally:
            os.close(opened)

    def is_marked_below(self, opened: int, name: bytes) -> bool:
        """Whether a directory in an open one has a mark, or something is mounted there."""
        try:
            below = fanotify.open_below(opened, name, _PATH)
        except OSError:
            return True
        try:
            return fanotify.directory_key(below) in self._paths
        finally:
            os.close(below)

    def _open_mount(self, mount: Mount) -> int:
        """Open the root of a mount, and no other that covers it by now: it may hang. Raises OSError."""
        found = os.open(mount.place, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if fanotify.mount_id(found) != mount.number:
                raise OSError(errno.ESTALE, "another file system has been mounted there")
            return os.open(".", _OPEN | os.O_CLOEXEC, dir_fd=found)
        finally:
            os.close(found)

    def _open(self, place: bytes) -> int:
        """Open a directory by its path, without following links or entering a mount that is not admitted."""
        mount = self.mounts.around(place)
        if mount is None or not mount.is_admitted:
            raise OSError(errno.EXDEV, "it is on a file system that is not entered")
        root = self._open_mount(mount)
        try:
            return _open_within(root, mount.place, place)
        finally:
            os.close(root)

    def _expand(self, pattern: bytes) -> list[bytes]:
        """The directories that match a pattern; marks the directories on the way, where others may appear.

        Links are followed if they belong to root, in components without wildcards.
        """
        places = [b"/"]
        components = [each for each in pattern.split(b"/") if each]
        for component in components:
            following = []
            for place in places:
                self._mark_waypoint(place, component)
                if _WILDCARDS.isdisjoint(component):
                    following += self._resolved(place, component, iter(range(_LINKS_MAX)))
                else:
                    names = self._directories_in(place)
                    matching = [name for name in names if fnmatch.fnmatchcase(name, component)]
                    following += [os.path.join(place, name) for name in matching]  # noqa: PTH118
            places = following
        for place in places:
            mount = self.mounts.around(place)
            if mount is not None and not mount.is_admitted:
                self._miss(place, f"{shown(mount.place)} is of type {os.fsdecode(mount.kind)}, which is not watched")
        return places

    def _resolved(self, place: bytes, name: bytes, links: Iterator[int]) -> list[bytes]:
        """The directory that a name in a directory leads to, if any; `links` has one item for each link to follow."""
        if name == b"..":
            return [os.path.dirname(place)]  # noqa: PTH120
        path = os.path.join(place, name) if name != b"." else place  # noqa: PTH118
        if self.mounts.at(path) is not None:
            return [path]
        try:
            target = self._link(place, name)
        except OSError:
            return []
        if target is None:
            return [path]
        if next(links, None) is None:
            return []
        places = [b"/" if target.startswith(b"/") else place]
        for component in [each for each in target.split(b"/") if each]:
            for each in places:
                self._mark_waypoint(each, component)
            places = [one for each in places for one in self._resolved(each, component, links)]
        return places

    def _link(self, place: bytes, name: bytes) -> bytes | None:
        """The target of an entry that is a link of root's; None if it is a directory. Raises OSError for others."""
        above = self._open(place)
        try:
            entry = fanotify.open_below(above, name, _PATH)
        finally:
            os.close(above)
        try:
            status = os.fstat(entry)
            if stat.S_ISDIR(status.st_mode):
                return None
            if not stat.S_ISLNK(status.st_mode):
                self._report(f"{shown(os.path.join(place, name))} is not a directory, so it is not watched")  # noqa: PTH118
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if status.st_uid != _ROOT_USER:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            return os.readlink(b"", dir_fd=entry)
        finally:
            os.close(entry)

    def _directories_in(self, place: bytes) -> list[bytes]:
        try:
            opened = self._open(place)
        except OSError:
            return []
        try:
            return [os.fsencode(entry.name) for entry in os.scandir(opened) if entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(opened)

    def _mark_waypoint(self, place: bytes, name: bytes) -> None:
        try:
            opened = self._open(place)
        except OSError:
            return
        try:
            key = fanotify.directory_key(opened)
            _, names = self._waypoints.get(key, (b"", set()))
            if key not in self._waypoints and key not in self._paths:
                identity = fanotify.key_file_system(key)
                self._groups.mark(fanotify.MARK_ADD | fanotify.MARK_ONLYDIR, _WAYPOINT_MASK, opened, identity)
                mount = self.mounts.around(place)
                if mount is not None:
                    self._devices[identity] = mount.device
            self._waypoints[key] = (place, names | {name})
        except OSError as error:
            self._report(f"{shown(place)} cannot be watched: {_reason(error)}")
        finally:
            os.close(opened)

    def _unmark(self, key: bytes) -> None:
        """Remove a mark, and forget the directory."""
        mask = self._mask | _WAYPOINT_MASK | fanotify.OPEN_EXEC | fanotify.EVENT_ON_CHILD
        if self._waypoints.pop(key, None) is not None:
            self.is_incomplete = True
        try:
            with MountDescriptors(self) as mounts:
                opened = self.opened(key, _OPEN, mounts)
                try:
                    self._groups.mark(fanotify.MARK_REMOVE, mask, opened, fanotify.key_file_system(key))
                finally:
                    os.close(opened)
        except OSError as error:
            if error.errno not in _GONE:
                self._report(f"a mark cannot be removed: {_reason(error)}")
        self._drop(key)

    def _ask(self, key: bytes) -> bytes | None:
        """The path of a directory from the kernel."""
        try:
            with MountDescriptors(self) as mounts:
                opened = self.opened(key, _PATH, mounts)
                try:
                    path = os.readlink(b"/proc/self/fd/%d" % opened)  # noqa: PTH115
                finally:
                    os.close(opened)
        except OSError:
            return None
        if path.endswith(b" (deleted)") or not path.startswith(b"/"):
            return None
        self.learn(key, path)
        return path

    def is_excluded(self, place: bytes) -> bool:
        """Whether a path is in a directory that is left out."""
        return any(_covers(pattern, place) for pattern in self._excluded)

    def mount_of(self, identity: bytes) -> Mount | None:
        """A mount of a file system that is watched, which can be opened."""
        device = self._devices.get(identity)
        return None if device is None else self.mounts.of_device(device)

    def open_mount_of(self, identity: bytes) -> int:
        """Open a mount of a file system. Raises OSError: ENXIO if it can not be reached by a path."""
        mount = self.mount_of(identity)
        if mount is None:
            raise OSError(errno.ENXIO, "the file system cannot be reached")
        return self._open_mount(mount)

    def _miss(self, place: bytes, reason: str) -> None:
        if len(self._missed) < _MISSED_MAX:
            self._missed.add(hash(place))
        self._report(f"{shown(place)} cannot be watched: {reason}")


class MountDescriptors:
    """Open mount points, for `fanotify.open_key`; closed soon, because they keep file systems from being unmounted."""

    def __init__(self, directories: WatchedDirectories) -> None:
        self._directories = directories
        self._opened: dict[bytes, int] = {}

    def __enter__(self) -> MountDescriptors:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._opened.values():
            os.close(opened)
        self._opened.clear()

    def descriptor(self, identity: bytes) -> int:
        """Raises OSError if the file system cannot be reached."""
        opened = self._opened.get(identity)
        if opened is None:
            opened = self._opened[identity] = self._directories.open_mount_of(identity)
        return opened


def _open_within(mount: int, mounted: bytes, place: bytes) -> int:
    """Open a directory on a mount whose mount point is open, without following a link. Raises OSError."""
    relative = b"." if place == mounted else place[len(mounted) :].lstrip(b"/")
    return fanotify.open_below(mount, relative, _OPEN)


def _status_below(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return fanotify.status_below(directory, name)
    except OSError:
        return None


def shown(path: bytes) -> str:
    """A path in a message, without its middle if it is long."""
    text = os.fsdecode(path)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX // 2]}…{text[-_SHOWN_MAX // 2 :]}"


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file of an overlay's upper layer stands for one that was deleted."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _covers(pattern: bytes, path: bytes) -> bool:
    """Whether the pattern matches the path, or a directory above it."""
    depth = pattern.rstrip(b"/").count(b"/")
    beginning = b"/".join(path.split(b"/")[: depth + 1])
    return beginning.count(b"/") == depth and fnmatch.fnmatchcase(beginning, pattern.rstrip(b"/"))


def _too_many(most: int) -> str:
    return f"more than {most} directories to watch (sources.files_directories)"


def _reason(error: OSError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return "its file system does not support fanotify (an overlay, for instance)"
    if error.errno == errno.ENOSPC:
        return "the limit fs.fanotify.max_user_marks is reached"
    if error.errno == errno.EXDEV:
        return "it is in a btrfs subvolume, and there are too many of those, or the kernel is older than 6.8"
    return error.strerror or str(error)
