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
from typing import Final, NamedTuple

from zeek_agent.recording.files import fanotify
from zeek_agent.recording.files.directory_names import DirectoryNames

BASE_MASK: Final = fanotify.CREATE | fanotify.DELETE | fanotify.CLOSE_WRITE | fanotify.ATTRIB | fanotify.ONDIR
_JOINED: Final = fanotify.RENAME
_SPLIT: Final = fanotify.MOVED_FROM | fanotify.MOVED_TO
_WAYPOINT_MASK: Final = fanotify.CREATE | fanotify.MOVED_TO | fanotify.ONDIR
"""For a directory in which a watched one may appear."""
_OPEN: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_WILDCARDS: Final = frozenset(b"*?[")
_LAZY_PATHS_MAX: Final = 4_096
"""Paths that are kept of directories that have no mark of their own, in file systems that are watched entirely."""
_DEPTH_MAX: Final = 100


class FoundEntry(NamedTuple):
    """An entry of a directory that a scan came upon."""

    path: bytes
    is_directory: bool


class WatchedDirectories:
    """Marks directories, and knows their paths. `report` is called with each kind of problem, in words."""

    def __init__(
        self,
        group: int,
        *,
        joins_renames: bool,
        patterns: Sequence[bytes],
        unexecuted: Sequence[bytes],
        kinds: Sequence[bytes],
        directories_max: int,
        report: Callable[[str], None],
        mountinfo: str = "/proc/self/mountinfo",
    ) -> None:
        self._group = group
        self._mask = BASE_MASK | (_JOINED if joins_renames else _SPLIT)
        self._roots = [pattern for pattern in patterns if not pattern.startswith(b"!")]
        self._excluded = [pattern[1:] for pattern in patterns if pattern.startswith(b"!")]
        self._unexecuted = unexecuted
        self._kinds = frozenset(kinds)
        self._directories_max = directories_max
        self._report = report
        self._mountinfo = mountinfo
        self._paths: dict[bytes, bytes] = {}
        self._lazy: dict[bytes, bytes] = {}
        self._waypoints: dict[bytes, bytes] = {}
        self._mounts: dict[bytes, bytes] = {}
        """File systems in which directories are marked or which are watched entirely, by mount point."""
        self._whole: set[bytes] = set()
        """The ids of file systems that are watched entirely."""
        self._refused: set[bytes] = set()
        self._admitted: set[bytes] = set()
        self.names = DirectoryNames()
        self._unwatched: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def unwatched(self) -> int:
        """Directories that could not be marked."""
        return len(self._unwatched)

    def mark_file_systems(self, mount_points: Sequence[bytes]) -> None:
        """Watch these file systems entirely."""
        for place in mount_points:
            if place not in self._admitted:
                self._report(f"{os.fsdecode(place)} is not the mount point of a local file system")
                continue
            try:
                opened = os.open(place, _OPEN | os.O_CLOEXEC)
                try:
                    fanotify.mark(
                        self._group,
                        fanotify.MARK_ADD | fanotify.MARK_FILESYSTEM,
                        self._mask | fanotify.OPEN_EXEC,
                        opened,
                    )
                    identity = fanotify.file_system(opened)
                finally:
                    os.close(opened)
            except OSError as error:
                self._report(f"{os.fsdecode(place)} cannot be watched entirely: {_reason(error)}")
            else:
                self._whole.add(identity)
                self._mounts[place] = identity

    def mark_all(self, found: Callable[[FoundEntry], None] | None = None) -> list[bytes]:
        """Mark what the patterns match now and was not marked before; otherwise as `mark_below`."""
        added: list[bytes] = []
        for root in self._roots:
            for path in self._expand(root):
                added += self.mark_below(path, found)
        return added

    def mark_below(self, path: bytes, found: Callable[[FoundEntry], None] | None = None) -> list[bytes]:
        """Mark a directory and all below it. `found` is called with each entry of the new ones.

        Returns the directories that are marked now and were not before.
        """
        added: list[bytes] = []
        mounted = self._mount_point(path)
        mask = self._mask | fanotify.EVENT_ON_CHILD
        if not any(_covers(pattern, path) for pattern in self._unexecuted):
            mask |= fanotify.OPEN_EXEC
        try:
            mount = os.open(mounted, _OPEN | os.O_CLOEXEC)
        except OSError as error:
            self._miss(path, error)
            return []
        try:
            pending = [path]
            while pending:
                place = pending.pop()
                if place not in self._refused and not self.is_excluded(place) and place.count(b"/") <= _DEPTH_MAX:
                    try:
                        key, names = self._mark_one(_open_within(mount, mounted, place), place, mask, added)
                        if key is not None:
                            self._mounts.setdefault(mounted, fanotify.key_file_system(key))
                            pending += self._note_entries(key, place, names, found)
                    except OSError as error:
                        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                            self._miss(place, error)
        finally:
            os.close(mount)
        return added

    def _mark_one(
        self, opened: int, place: bytes, mask: int, added: list[bytes]
    ) -> tuple[bytes | None, list[tuple[bytes, bool]]]:
        """Mark an open directory, which is closed then, and add it to `added`. Raises OSError.

        Returns its key and entries; no key if it is marked already, or there are too many.
        """
        try:
            key = fanotify.directory_key(opened)
            if key in self._paths:
                self._paths[key] = place
                return None, []
            if len(self._paths) >= self._directories_max:
                self._unwatched.add(place)
                self._report(
                    f"more than {self._directories_max} directories to watch, {os.fsdecode(place)} is left out"
                )
                return None, []
            fanotify.mark(self._group, fanotify.MARK_ADD | fanotify.MARK_ONLYDIR, mask, opened)
            self._paths[key] = place
            self._waypoints.pop(key, None)
            self._unwatched.discard(place)
            added.append(place)
            return key, [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in os.scandir(opened)]
        finally:
            os.close(opened)

    def _note_entries(
        self,
        key: bytes,
        place: bytes,
        entries: Sequence[tuple[bytes, bool]],
        found: Callable[[FoundEntry], None] | None,
    ) -> list[bytes]:
        """Note the names in a directory; returns the paths of directories in it."""
        prefix = place if place.endswith(b"/") else place + b"/"
        self.names.replace(key, [name for name, _ in entries])
        if found is not None:
            for name, is_directory in entries:
                found(FoundEntry(prefix + name, is_directory))
        return [prefix + name for name, is_directory in entries if is_directory]

    def path(self, key: bytes) -> bytes | None:
        """The path of a directory; None if it is not watched and cannot be found."""
        path = self._paths.get(key)
        if path is None and fanotify.key_file_system(key) in self._whole:
            path = self._lazy.get(key) or self._ask(key)
        return path

    def is_watched(self, key: bytes) -> bool:
        """Whether events in the directory are wanted, and not only new directories."""
        return key in self._paths or fanotify.key_file_system(key) in self._whole

    def is_marked(self, key: bytes) -> bool:
        """Whether the directory has a mark of its own, so that directories in it get one, too."""
        return key in self._paths

    def is_refused(self, path: bytes) -> bool:
        """Whether a file system that may hang is mounted there."""
        return path in self._refused

    def learn(self, key: bytes, path: bytes) -> None:
        """Note the path of a directory in a file system that is watched entirely."""
        if key not in self._paths and fanotify.key_file_system(key) in self._whole:
            while len(self._lazy) >= _LAZY_PATHS_MAX:
                del self._lazy[next(iter(self._lazy))]
            self._lazy[key] = path

    def removed(self, key: bytes) -> None:
        """Note that a directory was removed; the kernel has removed its mark."""
        self._paths.pop(key, None)
        self._lazy.pop(key, None)
        self._waypoints.pop(key, None)
        self.names.forget(key)

    def moved(self, old: bytes, new: bytes | None) -> None:
        """Change the paths of a directory and all below it; None: it left what is watched."""
        below = old + b"/"
        for known in (self._paths, self._lazy):
            for key, path in [each for each in known.items() if each[1] == old or each[1].startswith(below)]:
                if new is not None:
                    known[key] = new + path[len(old) :]
                else:
                    self._unmark(key)
                    del known[key]
                    self.names.forget(key)

    def opened(self, key: bytes, flags: int, mounts: MountDescriptors) -> int:
        """Open the object of a key. Raises OSError."""
        return fanotify.open_key(mounts.descriptor(fanotify.key_file_system(key)), key, flags)

    def mount_of(self, identity: bytes) -> bytes | None:
        """A mount point of a file system that is watched."""
        return next((place for place, each in self._mounts.items() if each == identity), None)

    def read_mounts(self) -> None:
        """Read which file systems are mounted, and forget the directories of those that are gone."""
        admitted: set[bytes] = set()
        refused: set[bytes] = set()
        with open(self._mountinfo, "rb") as file:  # noqa: PTH123
            for line in file.read().split(b"\n"):
                if line:
                    fields = line.split(b" ")
                    place, kind = unescaped(fields[4]), fields[fields.index(b"-") + 1]
                    # The last mount of a mount point is the one that is seen.
                    (admitted if kind in self._kinds else refused).add(place)
                    (refused if kind in self._kinds else admitted).discard(place)
        self._admitted, self._refused = admitted, refused
        for place in [each for each in self._mounts if each not in admitted]:
            identity = self._mounts.pop(place)
            if identity not in self._mounts.values():
                self._whole.discard(identity)
                for known in (self._paths, self._lazy, self._waypoints):
                    for key in [key for key in known if fanotify.key_file_system(key) == identity]:
                        del known[key]
                        self.names.forget(key)

    def mount_points_below(self) -> list[bytes]:
        """Mount points within watched directories, whose file systems have to be marked themselves."""
        above: dict[bytes, list[bytes]] = {}
        for place in self._admitted:
            if place not in self._mounts:
                above.setdefault(place.rpartition(b"/")[0] or b"/", []).append(place)
        return [place for path in self._paths.values() if path in above for place in above[path]] if above else []

    def marked(self) -> Iterator[tuple[bytes, bytes]]:
        """The keys and paths of all directories that have a mark."""
        return iter(list(self._paths.items()))

    def update_path(self, key: bytes, path: bytes) -> None:
        if key in self._paths:
            self._paths[key] = path

    def _open(self, place: bytes) -> int:
        """Open a directory by its path, without following links or entering a mount that is not admitted."""
        mounted = self._mount_point(place)
        mount = os.open(mounted, _OPEN | os.O_CLOEXEC)
        try:
            return _open_within(mount, mounted, place)
        finally:
            os.close(mount)

    def _mount_point(self, place: bytes) -> bytes:
        """The mount point of the admitted file system that a path is in."""
        return max((each for each in self._admitted if is_below(place, each)), key=len, default=b"/")

    def _expand(self, pattern: bytes) -> list[bytes]:
        """The directories that match a pattern; marks the places where others may appear."""
        if _WILDCARDS.isdisjoint(pattern) and not self._is_hidden(pattern):
            real = os.path.realpath(pattern)
            if not self._is_hidden(real) and os.path.isdir(real):  # noqa: PTH112
                self._mark_waypoint(os.path.dirname(real))  # noqa: PTH120
                return [real]
        places = [b"/"]
        components = [each for each in pattern.split(b"/") if each]
        for number, component in enumerate(components, 1):
            following = []
            for place in places:
                matching = [
                    os.path.join(place, name)  # noqa: PTH118
                    for name in self._directories_in(place)
                    if fnmatch.fnmatchcase(name, component)
                ]
                following += matching
                if not _WILDCARDS.isdisjoint(component) or not matching or number == len(components):
                    self._mark_waypoint(place)
            places = following
        return places

    def _directories_in(self, place: bytes) -> list[bytes]:
        if place in self._refused:
            return []
        try:
            opened = self._open(place)
        except OSError:
            return []
        try:
            prefix = place.rstrip(b"/") + b"/"
            return [
                os.fsencode(entry.name)
                for entry in os.scandir(opened)
                if prefix + os.fsencode(entry.name) not in self._refused and entry.is_dir(follow_symlinks=False)
            ]
        finally:
            os.close(opened)

    def _mark_waypoint(self, place: bytes) -> None:
        try:
            opened = self._open(place)
        except OSError:
            return
        try:
            key = fanotify.directory_key(opened)
            if key not in self._paths and key not in self._waypoints:
                fanotify.mark(self._group, fanotify.MARK_ADD | fanotify.MARK_ONLYDIR, _WAYPOINT_MASK, opened)
                self._waypoints[key] = place
                self._mounts.setdefault(self._mount_point(place), fanotify.key_file_system(key))
        except OSError as error:
            self._report(f"{os.fsdecode(place)} cannot be watched: {_reason(error)}")
        finally:
            os.close(opened)

    def _unmark(self, key: bytes) -> None:
        try:
            with MountDescriptors(self) as mounts:
                opened = self.opened(key, _OPEN, mounts)
                try:
                    fanotify.mark(
                        self._group,
                        fanotify.MARK_REMOVE,
                        self._mask | fanotify.OPEN_EXEC | fanotify.EVENT_ON_CHILD,
                        opened,
                    )
                finally:
                    os.close(opened)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                self._report(f"a mark cannot be removed: {_reason(error)}")

    def _ask(self, key: bytes) -> bytes | None:
        """The path of a directory from the kernel."""
        try:
            with MountDescriptors(self) as mounts:
                opened = self.opened(key, os.O_PATH, mounts)
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

    def _is_hidden(self, place: bytes) -> bool:
        return any(is_below(place, each) for each in self._refused)

    def is_excluded(self, place: bytes) -> bool:
        """Whether a path is in a directory that is left out."""
        return any(_covers(pattern, place) for pattern in self._excluded)

    def _miss(self, place: bytes, error: OSError) -> None:
        self._unwatched.add(place)
        self._report(f"{os.fsdecode(place)} cannot be watched: {_reason(error)}")


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
        """Raises OSError if the file system is not mounted any more."""
        opened = self._opened.get(identity)
        if opened is None:
            place = self._directories.mount_of(identity)
            if place is None:
                raise FileNotFoundError(errno.ENOENT, "the file system is no longer mounted")
            opened = os.open(place, _OPEN | os.O_CLOEXEC)
            self._opened[identity] = opened
        return opened


def _open_within(mount: int, mounted: bytes, place: bytes) -> int:
    """Open a directory on a mount whose mount point is open, without following a link. Raises OSError."""
    relative = b"." if place == mounted else place[len(mounted) :].lstrip(b"/")
    return fanotify.open_below(mount, relative, _OPEN)


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether a path is a directory or lies in it."""
    return path == directory or path.startswith(directory if directory.endswith(b"/") else directory + b"/")


def unescaped(field: bytes) -> bytes:
    """A path in mountinfo, where blanks, tabs, newlines and backslashes are octal numbers."""
    parts = field.split(b"\\")
    return parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file of an overlay's upper layer stands for one that was deleted."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _covers(pattern: bytes, path: bytes) -> bool:
    """Whether the pattern matches the path, or a directory above it."""
    depth = pattern.rstrip(b"/").count(b"/")
    beginning = b"/".join(path.split(b"/")[: depth + 1])
    return beginning.count(b"/") == depth and fnmatch.fnmatchcase(beginning, pattern.rstrip(b"/"))


def _reason(error: OSError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return "its file system does not support fanotify (an overlay, for instance)"
    if error.errno == errno.ENOSPC:
        return "the limit fs.fanotify.max_user_marks is reached"
    return error.strerror or str(error)
