"""The watching process: reads fanotify events, joins them, and sends what changed to the agent.

It runs alone in its process, with a thread of its own for hashes only. When the agent reads too slowly it stops
reading, too, so that the kernel's bounded queue is the only one that can overflow, and says when it does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from collections import deque
from contextlib import suppress
from typing import Final

from zeek_agent.recording.files import fanotify, watch_messages
from zeek_agent.recording.files.change_window import ChangeWindow
from zeek_agent.recording.files.executable_hashes import ExecutableHashes
from zeek_agent.recording.files.watch_messages import Action, Change, FileStatus, Status, Watch
from zeek_agent.recording.files.watched_directories import (
    FoundEntry,
    MountDescriptors,
    WatchedDirectories,
    is_whiteout,
)

_READS_PER_TURN: Final = 32
_STATUS_NS: Final = 250_000_000
_BACKLOG_PACKETS_MAX: Final = 32
_CLOCK_SLACK_SECONDS: Final = 0.02
"""Of the times in inodes, which are those of the last timer tick."""
_HASHED: Final = frozenset({Action.CREATED, Action.WRITTEN, Action.RENAMED, Action.ATTRIBUTES})


class FileWatcher:
    """Watches as `watch` says, until the other end of `channel` is closed."""

    def __init__(
        self, channel: socket.socket, watch: Watch, group: int, *, joins_renames: bool, mountinfo: int
    ) -> None:
        """`mountinfo` is an open /proc/self/mountinfo, which reports changes."""
        self._channel = channel
        self._watch = watch
        self._group = group
        self._mountinfo = mountinfo
        self._message = ""
        self.directories = WatchedDirectories(
            group,
            joins_renames=joins_renames,
            patterns=watch.paths,
            unexecuted=watch.unexecuted,
            kinds=watch.kinds,
            directories_max=watch.directories_max,
            report=self._report,
        )
        self._window = ChangeWindow(int(watch.window_seconds * 1e9))
        self._hashes = ExecutableHashes(watch.hash_bytes_max)
        self._found: dict[bytes, Change] = {}
        """Entries of new directories, which are reported if no event turns out to be about them."""
        self._moved_from: Change | None = None
        self._leaving: tuple[bytes, bytes | None] | None = None
        """The path and the key of a directory that was moved, until the next event says where (before Linux 5.17)."""
        self._packets: deque[bytes] = deque()
        self._received = 0
        self._overflows = 0
        self._emptied = _boot_time()
        self._emptied_wall = time.time()
        self._status_due = 0
        self._ready = False
        self._expands = False
        self._expands_new = False
        """Whether directories that patterns match may have appeared, and been created."""
        self._lost_since: float | None = None

    def start_threads(self) -> None:
        """Before the process is confined."""
        self._hashes.start()

    def run(self) -> None:
        """Raises OSError if watching is no longer possible."""
        self._channel.setblocking(False)
        self.directories.read_mounts()
        self.directories.mark_file_systems(self._watch.file_systems)
        self.directories.mark_all()
        self._mark_mounts()
        self._ready = True
        if self._watch.since:
            self._compare(self._watch.since)
        poll = select.poll()
        poll.register(self._mountinfo, select.POLLERR | select.POLLPRI)
        poll.register(self._hashes.finished, select.POLLIN)
        while True:
            is_behind = len(self._packets) > _BACKLOG_PACKETS_MAX
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._packets else 0))
            if is_behind:
                self._unregister(poll)
            else:
                poll.register(self._group, select.POLLIN)
            for descriptor, state in poll.poll(self._timeout_ms()):
                if descriptor == self._channel.fileno() and state & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    return  # the agent says nothing after its orders
                if descriptor == self._mountinfo:
                    self._remount()
            if not is_behind:
                self._read()
            self._send_due()

    def _unregister(self, poll: select.poll) -> None:
        try:
            poll.unregister(self._group)
        except KeyError:
            return

    def _timeout_ms(self) -> int:
        now = _boot_time()
        due = self._status_due
        oldest = self._window.oldest()
        if oldest is not None:
            due = min(due, oldest + int(self._watch.window_seconds * 1e9))
        return max(1, min(1_000, (due - now) // 1_000_000 + 1))

    def _read(self) -> None:
        """Handle pending events, and what has to wait until there are none."""
        for _ in range(_READS_PER_TURN):
            begun, begun_wall = _boot_time(), time.time()
            try:
                records = os.read(self._group, fanotify.READ_BYTES)
            except BlockingIOError:
                self._emptied, self._emptied_wall = begun, begun_wall
                self._settle()
                return
            self._handle(list(fanotify.events(records)), _boot_time())

    def _settle(self) -> None:
        """Do what has to wait until all events were read."""
        self._leave()
        for change in self._found.values():
            self._window.add(change)
        self._found.clear()
        if self._expands:
            is_new = self._expands_new
            self._expands = self._expands_new = False
            for place in self.directories.mark_all(self._note_found if is_new else None):
                if is_new:
                    self._note_found(FoundEntry(place, True))
        if self._lost_since is not None:
            since, self._lost_since = self._lost_since, None
            self._compare(since)

    def _handle(self, events: list[fanotify.Event], now: int) -> None:
        self._learn_removed(events)
        for event in events:
            self._received += 1
            if self._leaving is not None and not (event.mask & fanotify.MOVED_TO and event.target == self._leaving[1]):
                self._leave()
            if event.mask & fanotify.Q_OVERFLOW:
                self._overflows += 1
                if self._lost_since is None:
                    self._lost_since = self._emptied_wall
            elif event.mask & fanotify.RENAME:
                self._renamed(event, now)
            elif event.directory is not None and event.name:
                if self.directories.is_watched(event.directory):
                    self._changed(event, event.directory, event.name, now)
                elif event.mask & fanotify.ONDIR:  # a directory that a pattern may match
                    self._expands = True
                    self._expands_new |= bool(event.mask & fanotify.CREATE)

    def _leave(self) -> None:
        """Forget a directory that was moved to where nothing is watched."""
        if self._leaving is not None:
            self.directories.moved(self._leaving[0], None)
            self._leaving = None

    def _learn_removed(self, events: list[fanotify.Event]) -> None:
        """Note the paths of directories that are gone already, before the events in them are handled."""
        for event in events:
            if event.mask & fanotify.DELETE and event.mask & fanotify.ONDIR and event.target and event.name:
                above = self.directories.path(event.directory or b"")
                if above is not None:
                    self.directories.learn(event.target, _joined(above, event.name))

    def _changed(self, event: fanotify.Event, directory: bytes, name: bytes, now: int) -> None:
        above = self.directories.path(directory)
        path = None if above is None else above if name == b"." else _joined(above, name)
        if path is not None and self.directories.is_excluded(path):
            return
        if not event.mask & fanotify.MOVED_TO:
            self._moved_from = None  # the two events of a rename follow each other
        for bit, action in _ACTIONS:
            if event.mask & bit:
                self._add(self._change(event, bit, action, path, now))
        if path is not None and name != b".":
            self._follow(event, directory, name, path)

    def _change(self, event: fanotify.Event, bit: int, action: Action, path: bytes | None, now: int) -> Change:
        is_directory = bool(event.mask & fanotify.ONDIR)
        target = event.target or (event.directory if event.name == b"." else None)
        change = Change(action, event.pid, now, path, is_directory=is_directory, target=target)
        if bit == fanotify.MOVED_FROM:
            change.path, change.old_path = None, path
            self._moved_from = change
        elif bit == fanotify.MOVED_TO:
            earlier = self._moved_from
            if earlier is not None and (earlier.pid, earlier.target) == (event.pid, event.target):
                change.old_path = earlier.old_path
        return change

    def _follow(self, event: fanotify.Event, directory: bytes, name: bytes, path: bytes) -> None:
        """Keep up with the names in a directory, and with the directories in it."""
        directories, mask = self.directories, event.mask
        appears = mask & (fanotify.CREATE | fanotify.MOVED_TO)
        vanishes = mask & (fanotify.DELETE | fanotify.MOVED_FROM)
        if appears:
            directories.names.add(directory, name)
        if vanishes and not (appears and self._exists(path)):  # their order is unknown
            directories.names.discard(directory, name)
        if not mask & fanotify.ONDIR:
            return
        if mask & fanotify.DELETE and event.target is not None:
            directories.removed(event.target)
        if mask & fanotify.MOVED_FROM and not appears:
            self._leaving = path, event.target
        if appears:
            if self._leaving is not None:
                directories.moved(self._leaving[0], path)
                self._leaving = None
            self._appeared(directory, path, event.target, is_new=bool(mask & fanotify.CREATE))

    @staticmethod
    def _exists(path: bytes) -> bool:
        try:
            os.lstat(path)
        except OSError:
            return False
        return True

    def _renamed(self, event: fanotify.Event, now: int) -> None:
        directories = self.directories
        old = self._path_of(event.directory, event.name)
        new = self._path_of(event.new_directory, event.new_name)
        if old is None and new is None:
            if event.mask & fanotify.ONDIR:
                self._expands = True
            return
        if all(path is None or directories.is_excluded(path) for path in (old, new)):
            return
        is_directory = bool(event.mask & fanotify.ONDIR)
        change = Change(Action.RENAMED, event.pid, now, new, old, is_directory=is_directory, target=event.target)
        self._add(change)
        if old is not None and event.directory is not None and event.name:
            directories.names.discard(event.directory, event.name)
        if new is not None and event.new_directory is not None and event.new_name:
            directories.names.add(event.new_directory, event.new_name)
        if is_directory:
            if old is not None:
                directories.moved(old, new)
            if new is not None and event.new_directory is not None:
                self._appeared(event.new_directory, new, event.target, is_new=False)

    def _path_of(self, directory: bytes | None, name: bytes | None) -> bytes | None:
        if directory is None or not name or not self.directories.is_watched(directory):
            return None
        above = self.directories.path(directory)
        return None if above is None else _joined(above, name)

    def _appeared(self, above: bytes, path: bytes, target: bytes | None, *, is_new: bool) -> None:
        """Watch a new directory in `above`. What is in it already has events only if they came after its mark."""
        if target is not None:
            self.directories.learn(target, path)
        if self.directories.is_marked(above):
            self.directories.mark_below(path, self._note_found if is_new else self._note_changed)

    def _note_found(self, entry: FoundEntry) -> None:
        change = Change(Action.CREATED, None, _boot_time(), entry.path, is_directory=entry.is_directory, is_found=True)
        self._found.setdefault(entry.path, change)

    def _note_changed(self, entry: FoundEntry) -> None:
        """The same for a directory that came from elsewhere: its files are older, unless they changed since then."""
        since = self._emptied_wall - _CLOCK_SLACK_SECONDS
        if not entry.is_directory and not self.directories.is_refused(entry.path):
            with suppress(FileNotFoundError):
                status = os.lstat(entry.path)
                if status.st_ctime >= since:
                    action = Action.WRITTEN if status.st_mtime >= since else Action.ATTRIBUTES
                    change = Change(action, None, _boot_time(), entry.path, is_found=True, status=_status(status))
                    self._found.setdefault(entry.path, change)

    def _add(self, change: Change) -> None:
        if change.path is not None and self._found:
            self._found.pop(change.path, None)
        self._window.add(change)

    def _compare(self, since: float) -> None:
        """Report what changed in watched directories since then (seconds since the epoch), because events were lost."""
        since -= _CLOCK_SLACK_SECONDS
        for key, path in self.directories.marked():
            try:
                with MountDescriptors(self.directories) as mounts:
                    opened = self.directories.opened(key, os.O_RDONLY | os.O_DIRECTORY, mounts)
            except OSError as error:
                if error.errno in (errno.ESTALE, errno.ENOENT):
                    self.directories.removed(key)
                    self._report_found(Action.DELETED, path, None, is_directory=True)
                continue
            try:
                self._compare_directory(key, opened, since)
            except OSError as error:
                self._report(f"{os.fsdecode(path)} cannot be compared: {error.strerror}")
            finally:
                os.close(opened)

    def _compare_directory(self, key: bytes, opened: int, since: float) -> None:
        directories = self.directories
        path = os.readlink(b"/proc/self/fd/%d" % opened)  # noqa: PTH115
        if path.endswith(b" (deleted)"):
            directories.removed(key)
            self._report_found(Action.DELETED, path.removesuffix(b" (deleted)"), None, is_directory=True)
            return
        directories.update_path(key, path)
        former = directories.names.get(key)
        present = set()
        for entry in os.scandir(opened):
            name = os.fsencode(entry.name)
            present.add(name)
            place = _joined(path, name)
            if directories.is_refused(place):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            is_directory = stat.S_ISDIR(status.st_mode)
            if former is not None and name not in former:
                self._report_found(Action.CREATED, place, status, is_directory=is_directory)
                if is_directory:
                    directories.mark_below(place, self._note_found)
            elif not is_directory and status.st_ctime >= since:
                action = Action.WRITTEN if status.st_mtime >= since else Action.ATTRIBUTES
                self._report_found(action, place, status, is_directory=False)
        for name in (former or frozenset()) - present:
            self._report_found(Action.DELETED, _joined(path, name), None, is_directory=False)
        directories.names.replace(key, present)

    def _report_found(self, action: Action, path: bytes, status: os.stat_result | None, *, is_directory: bool) -> None:
        found = Change(action, None, _boot_time(), path, is_directory=is_directory, is_found=True)
        if status is not None:
            found.status = _status(status)
        self._window.add(found)

    def _remount(self) -> None:
        self.directories.read_mounts()
        self.directories.mark_all()
        self._mark_mounts()

    def _mark_mounts(self) -> None:
        while places := self.directories.mount_points_below():
            added = [each for place in places for each in self.directories.mark_below(place)]
            if not added:
                return

    def _send_due(self) -> None:
        now = _boot_time()
        ready = self._hashes.results()
        with MountDescriptors(self.directories) as mounts:
            for change in self._window.due(now):
                if change.target is None or change.status is not None or not self._look(change, mounts):
                    ready.append(change)
        for change in ready:
            _shorten(change)
        self._packets.extend(watch_messages.encode_changes(ready))
        if ready or now >= self._status_due:
            self._status_due = now + _STATUS_NS
            self._packets.append(watch_messages.encode_status(self._status()))
        self._flush()

    def _look(self, change: Change, mounts: MountDescriptors) -> bool:
        """Add the attributes of the file itself, whatever has its name now. Returns whether it is being hashed."""
        assert change.target is not None
        try:
            opened = self.directories.opened(change.target, os.O_PATH, mounts)
        except OSError:
            return False  # it is gone
        try:
            status = os.fstat(opened)
        finally:
            os.close(opened)
        change.status = _status(status)
        if change.action is Action.RENAMED and is_whiteout(status):
            change.action, change.old_path = Action.DELETED, None
        is_executable = stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
        if change.action not in _HASHED or not is_executable or not self._hashes.wants(status.st_size):
            return False
        try:
            opened = self.directories.opened(change.target, os.O_RDONLY | os.O_NONBLOCK, mounts)
        except OSError:
            return False
        self._hashes.add(change, opened)
        return True

    def _status(self) -> Status:
        pending = [self._emptied]
        if (oldest := self._window.oldest()) is not None:
            pending.append(oldest)
        if (oldest := self._hashes.oldest()) is not None:
            pending.append(oldest)
        return Status(
            min(pending),
            self._received,
            self._overflows,
            len(self.directories),
            self.directories.unwatched,
            self._ready,
            self._message,
        )

    def _flush(self) -> None:
        while self._packets:
            try:
                self._channel.send(self._packets[0])
            except BlockingIOError:
                return
            self._packets.popleft()

    def _report(self, message: str) -> None:
        self._message = message


_ACTIONS: Final = (
    (fanotify.CREATE, Action.CREATED),
    (fanotify.CLOSE_WRITE, Action.WRITTEN),
    (fanotify.ATTRIB, Action.ATTRIBUTES),
    (fanotify.OPEN_EXEC, Action.EXECUTED),
    (fanotify.MOVED_TO, Action.RENAMED),
    (fanotify.MOVED_FROM, Action.RENAMED),
    (fanotify.DELETE, Action.DELETED),
)


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + name if directory.endswith(b"/") else directory + b"/" + name


def _status(status: os.stat_result) -> FileStatus:
    return FileStatus(status.st_dev, status.st_ino, status.st_size, status.st_mode)


def _shorten(change: Change) -> None:
    """Leave out paths that do not fit into a message: their directories are nested four times as deep as PATH_MAX."""
    if change.path is not None and len(change.path) > watch_messages.PATH_BYTES_MAX:
        change.path = None
    if change.old_path is not None and len(change.old_path) > watch_messages.PATH_BYTES_MAX:
        change.old_path = None


def _boot_time() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
