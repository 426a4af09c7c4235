"""Finds what changed in watched directories while events were lost."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from zeek_agent.recording.files import fanotify
from zeek_agent.recording.files.watch_messages import Action
from zeek_agent.recording.files.watched_directories import FoundEntry, MountDescriptors, WatchedDirectories, shown

_CLOCK_SLACK_SECONDS: Final = 0.02
"""Of the times in inodes, which are those of the last timer tick."""

Finding: TypeAlias = Callable[[Action, FoundEntry], None]


class Comparison:
    """Compares watched directories with what is known of them, some at a time, so that events are read meanwhile."""

    def __init__(
        self,
        directories: WatchedDirectories,
        since: tuple[int, float],
        found: Finding,
        report: Callable[[str], None],
    ) -> None:
        """`since` when events are missing, by the boot time (ns) and in seconds since the epoch.

        `found` is called with each difference, `report` with each problem.
        """
        self.since = since[0]
        self._since = since[1] - _CLOCK_SLACK_SECONDS
        self._directories = directories
        self._found = found
        self._report = report
        self._steps = self._compare_all()

    def advance(self, until: int, is_full: Callable[[], bool]) -> bool:
        """Compare until that boot time (ns) or until there is no room for more; returns whether all was compared."""
        while not is_full() and time.clock_gettime_ns(time.CLOCK_BOOTTIME) < until:
            if next(self._steps, self) is self:
                return True
        return False

    def _compare_all(self) -> Iterator[None]:
        for key, path in self._directories.marked():
            if self._directories.is_marked(key):  # else it was removed or moved since, and that is known
                yield from self._compare(key, path)

    def _compare(self, key: bytes, known: bytes) -> Iterator[None]:
        directories = self._directories
        try:
            with MountDescriptors(directories) as mounts:
                opened = directories.opened(key, os.O_RDONLY | os.O_DIRECTORY, mounts)
        except OSError as error:
            if error.errno == errno.ESTALE:
                yield from self._removed(key, known)
            else:
                self._report(f"{shown(known)} cannot be compared: {error.strerror}")
            return
        try:
            if not os.fstat(opened).st_nlink:
                yield from self._removed(key, known)
            elif (path := directories.current_path(key, opened)) is not None:
                yield from self._compare_opened(key, path, opened)
        except OSError as error:
            self._report(f"{shown(known)} cannot be compared: {error.strerror}")
        finally:
            os.close(opened)

    def _removed(self, key: bytes, path: bytes) -> Iterator[None]:
        names = self._directories.names.get(key) or ()
        self._directories.removed(key)
        for name in names:
            self._found(Action.DELETED, FoundEntry(_joined(path, name), False, None))
            yield
        self._found(Action.DELETED, FoundEntry(path, True, None))
        yield

    def _compare_opened(self, key: bytes, path: bytes, opened: int) -> Iterator[None]:
        former = self._directories.names.get(key)
        missing = set(former or ())
        for entry in os.scandir(opened):
            name = os.fsencode(entry.name)
            missing.discard(name)
            is_new = former is not None and name not in former
            if is_new:
                self._directories.names.add(key, name)
            self._compare_entry(opened, path, name, is_new=is_new)
            yield
        for name in missing:
            self._found(Action.DELETED, FoundEntry(_joined(path, name), False, None))
            self._directories.names.discard(key, name)
            yield

    def _compare_entry(self, opened: int, path: bytes, name: bytes, *, is_new: bool) -> None:
        try:
            status = fanotify.status_below(opened, name)
        except OSError:
            return  # it is gone, or something is mounted there
        is_directory = stat.S_ISDIR(status.st_mode)
        entry = FoundEntry(_joined(path, name), is_directory, status)
        is_unmarked = is_directory and not self._directories.is_marked_below(opened, name)
        if is_new or is_unmarked:  # another directory can have replaced the known one
            self._found(Action.CREATED, entry)
        elif not is_directory and status.st_ctime >= self._since:
            self._found(Action.WRITTEN if status.st_mtime >= self._since else Action.ATTRIBUTES, entry)
        if is_unmarked:
            self._directories.mark_below(entry.path, self._note_new)

    def _note_new(self, entry: FoundEntry) -> None:
        self._found(Action.CREATED, entry)


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + name if directory.endswith(b"/") else directory + b"/" + name
