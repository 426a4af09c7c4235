"""The watching process: reads fanotify events, joins them, and sends what changed to the agent.

It runs alone in its process, with a thread of its own for hashes only. When the agent reads too slowly it stops
reading, too, so that the kernel's bounded queue is the only one that can overflow, and says when it does.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections import deque
from typing import Final, TypeAlias

from zeek_agent.recording.files import fanotify, watch_messages
from zeek_agent.recording.files.change_window import ChangeWindow
from zeek_agent.recording.files.comparison import Comparison
from zeek_agent.recording.files.executable_hashes import ExecutableHashes
from zeek_agent.recording.files.fanotify_groups import FanotifyGroups
from zeek_agent.recording.files.mount_table import MountTable
from zeek_agent.recording.files.watch_messages import Action, Change, FileStatus, Status, Watch
from zeek_agent.recording.files.watched_directories import (
    FoundEntry,
    MountDescriptors,
    WatchedDirectories,
    is_whiteout,
    shown,
)

_READS_PER_TURN: Final = 32
_STATUS_NS: Final = 250_000_000
_SENDING_NS: Final = 100_000_000
"""Between two sendings of changes, each of which costs the agent about as much as some changes."""
_BACKLOG_PACKETS_MAX: Final = 32
_FOUND_MAX: Final = 16_384
"""Entries that a scan found and that wait for events about them; more are lost, like those of a full queue."""
_CLOCK_SLACK_SECONDS: Final = 0.02
"""Of the times in inodes, which are those of the last timer tick."""
_COMPARING_NS: Final = 20_000_000
"""For so long directories are compared before events are read again."""
_FLUSH_SECONDS: Final = 2.0
"""For the last changes, when the agent has closed its end."""


class FileWatcher:
    """Watches as `watch` says, until the other end of `channel` is closed for writing."""

    def __init__(self, channel: socket.socket, watch: Watch, groups: FanotifyGroups, mountinfo: int) -> None:
        """`mountinfo` is an open /proc/self/mountinfo, which reports changes."""
        self._channel = channel
        self._watch = watch
        self._groups = groups
        self._mountinfo = mountinfo
        self._message = ""
        self.directories = WatchedDirectories(
            groups,
            patterns=watch.paths,
            unexecuted=watch.unexecuted,
            directories_max=watch.directories_max,
            mounts=MountTable(frozenset(watch.kinds)),
            report=self._report,
            progress=self._progress,
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
        self._status_due = self._sent = 0
        self._ready = False
        self._expands = False
        self._expands_new = False
        """Whether directories that patterns match may have appeared, and been created."""
        self._lost_since: tuple[int, float] | None = None
        """Since when events are missing that were not looked for yet, by the boot time (ns) and the time of day."""
        self._comparison: Comparison | None = None

    def start_threads(self) -> None:
        """Before the process is confined."""
        self._hashes.start()

    def run(self) -> None:
        """Raises OSError if watching is no longer possible."""
        self._channel.setblocking(False)
        self.directories.read_mounts()
        self.directories.mark_file_systems(self._watch.file_systems)
        self.directories.mark_all()
        self.directories.mark_mounts()
        self._ready = True
        if self._watch.since:
            self._lost_since = self._emptied, self._watch.since
        poll = select.poll()
        poll.register(self._mountinfo, select.POLLERR | select.POLLPRI)
        while True:
            is_behind = len(self._packets) > _BACKLOG_PACKETS_MAX
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._packets else 0))
            for group in self._groups.in_use:
                poll.register(group, 0 if is_behind else select.POLLIN)
            for descriptor, state in poll.poll(0 if self._comparison and not is_behind else self._timeout_ms()):
                if descriptor == self._channel.fileno() and state & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._finish()  # the agent says nothing after its orders
                    return
                if descriptor == self._mountinfo:
                    self._remount()
            if not is_behind:
                self._read()
            if self._packets:
                self._flush()
            if self._is_due(_boot_time()):
                self._send_due()

    def _finish(self) -> None:
        """Send what is known, in little time."""
        self._read()
        self._send_due(everything=True)
        self._packets.append(watch_messages.encode_status(self._status()))
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._packets and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._channel], [], left)
            self._flush()

    def _is_due(self, now: int) -> bool:
        return now >= self._due() or self._window.is_full()

    def _due(self) -> int:
        """The boot time (ns) when something is to be sent. What is due within a tenth of a second goes together."""
        due = 0 if self._hashes.is_busy() else self._status_due
        oldest = self._window.oldest()
        if oldest is not None:
            due = min(due, oldest + int(self._watch.window_seconds * 1e9))
        return max(due, self._sent + _SENDING_NS)

    def _timeout_ms(self) -> int:
        return max(1, min(1_000, (self._due() - _boot_time()) // 1_000_000 + 1))

    def _read(self) -> None:
        """Handle pending events, and what has to wait until there are none."""
        begun, begun_wall = _boot_time(), time.time()
        is_empty = [self._read_group(group) for group in self._groups.in_use]
        if all(is_empty):
            self._emptied, self._emptied_wall = begun, begun_wall
            self._settle()

    def _read_group(self, group: int) -> bool:
        """Whether all pending events were read."""
        for _ in range(_READS_PER_TURN):
            try:
                records = os.read(group, fanotify.READ_BYTES)
            except BlockingIOError:
                return True
            self._handle(list(fanotify.events(records)), _boot_time())
            if self._window.is_full():
                break
        return False

    def _settle(self) -> None:
        """Do what has to wait until all events were read."""
        self._leave()
        for change in self._found.values():
            self._window.add(change)
        self._found.clear()
        if self._expands or self.directories.is_incomplete:
            self._expand()
        if self.directories.has_new_mounts:
            self.directories.mark_mounts(self._note_changed)
        if self._comparison is None and self._lost_since is not None:
            self._comparison = Comparison(self.directories, self._lost_since, self._note_entry, self._report)
            self._lost_since = None
        if self._comparison is not None and self._comparison.advance(
            _boot_time() + _COMPARING_NS, self._has_found_many
        ):
            self._comparison = None

    def _has_found_many(self) -> bool:
        return len(self._found) >= _FOUND_MAX // 4

    def _expand(self) -> None:
        is_new = self._expands_new
        self._expands = self._expands_new = False
        for place in self.directories.mark_all(self._note_found if is_new else self._note_changed):
            if is_new:
                self._note_found(FoundEntry(place, True, None))

    def _handle(self, events: list[fanotify.Event], now: int) -> None:
        self._learn_removed(events)
        for event in events:
            self._received += 1
            if self._leaving is not None and not (event.mask & fanotify.MOVED_TO and event.target == self._leaving[1]):
                self._leave()
            if event.mask & fanotify.Q_OVERFLOW:
                self._overflowed()
            elif event.mask & fanotify.RENAME:
                self._renamed(event, now)
            elif event.directory is not None and event.name:
                if self.directories.is_watched(event.directory):
                    self._changed(event, event.directory, event.name, now)
                self._note_way(event)

    def _overflowed(self) -> None:
        self._overflows += 1
        if self._lost_since is None:
            self._lost_since = self._emptied, self._emptied_wall

    def _note_way(self, event: fanotify.Event) -> None:
        """See whether the directories that patterns match are others now."""
        assert event.directory is not None
        assert event.name is not None
        path = self.directories.leads_to_watched(event.directory, event.name)
        if path is None or not event.mask & (fanotify.CREATE | fanotify.MOVED_TO | fanotify.MOVED_FROM):
            return
        self._expands = True
        self._expands_new |= bool(event.mask & fanotify.CREATE and event.mask & fanotify.ONDIR)
        if event.mask & fanotify.MOVED_FROM and event.mask & fanotify.ONDIR:
            self.directories.left(path)

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
        if vanishes and not (appears and directories.has_entry(directory, name)):  # their order is unknown
            directories.names.discard(directory, name)
        if not mask & fanotify.ONDIR:
            return
        if mask & fanotify.DELETE:
            if event.target is not None and directories.is_marked(event.target):
                directories.removed(event.target)
            else:  # a btrfs subvolume has another key in its own file system
                directories.moved(path, None)
        if mask & fanotify.MOVED_FROM and not appears:
            self._leaving = path, event.target
        if appears:
            if self._leaving is not None:
                directories.moved(self._leaving[0], path)
                self._leaving = None
            self._appeared(directory, path, event.target, is_new=bool(mask & fanotify.CREATE))

    def _renamed(self, event: fanotify.Event, now: int) -> None:
        directories = self.directories
        old = self._path_of(event.directory, event.name)
        new = self._path_of(event.new_directory, event.new_name)
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
        self._note_entry(Action.CREATED, entry)

    def _note_changed(self, entry: FoundEntry) -> None:
        """The same for a directory that came from elsewhere: its files are older, unless they changed since then."""
        since = self._emptied_wall - _CLOCK_SLACK_SECONDS
        status = entry.status
        if not entry.is_directory and status is not None and status.st_ctime >= since:
            self._note_entry(Action.WRITTEN if status.st_mtime >= since else Action.ATTRIBUTES, entry)

    def _note_entry(self, action: Action, entry: FoundEntry) -> None:
        """Report a change that was found, unless an event turns out to be about it."""
        if len(self._found) >= _FOUND_MAX and entry.path not in self._found:
            self._report(f"more than {_FOUND_MAX} files were found at once, {shown(entry.path)} is left out")
            self._overflowed()
            return
        change = Change(action, None, _boot_time(), entry.path, is_directory=entry.is_directory, is_found=True)
        if entry.status is not None:
            change.status = _status(entry.status)
        self._found.setdefault(entry.path, change)

    def _add(self, change: Change) -> None:
        found = self._found.get(change.path) if change.path is not None and self._found else None
        if found is not None and (found.action is not Action.DELETED or change.action is Action.DELETED):
            del self._found[found.path or b""]
        self._window.add(change)

    def _remount(self) -> None:
        directories = self.directories
        places = directories.read_mounts()
        directories.mark_file_systems(self._watch.file_systems)
        directories.mark_all(self._note_changed)
        directories.mark_uncovered(places, self._note_changed)
        directories.mark_mounts(self._note_changed)

    def _send_due(self, *, everything: bool = False) -> None:
        now = self._sent = _boot_time()
        ready = self._hashes.results(everything=everything)
        seen: dict[bytes, _Seen | None] = {}  # most files that change do so in several ways
        with MountDescriptors(self.directories) as mounts:
            for change in self._window.due(now, everything=everything):
                if change.target is not None and change.status is None:
                    if change.target not in seen:
                        seen[change.target] = self._look(change.target, mounts)
                    _add_status(change, seen[change.target])
                if everything or not self._wants_hash(change) or not self._hashes.add(change):
                    ready.append(change)
            while (change_to_hash := self._hashes.next_to_open()) is not None:
                self._open_to_hash(change_to_hash, mounts)
        for change in ready:
            _shorten(change)
        self._packets.extend(watch_messages.encode_changes(ready))
        if ready or now >= self._status_due:
            self._status_due = now + _STATUS_NS
            self._packets.append(watch_messages.encode_status(self._status()))
        self._flush()

    def _look(self, target: bytes, mounts: MountDescriptors) -> _Seen | None:
        """The attributes of a file itself, whatever has its name now; None if it is gone."""
        try:
            opened = self.directories.opened(target, os.O_PATH, mounts)
        except OSError:
            return None
        try:
            status = os.fstat(opened)
            return _status(status), is_whiteout(status)
        finally:
            os.close(opened)

    @staticmethod
    def _wants_hash(change: Change) -> bool:
        status = change.status
        return (
            status is not None
            and change.action in _HASHED
            and change.target is not None
            and stat.S_ISREG(status.mode)
            and status.mode & 0o111 != 0
        )

    def _open_to_hash(self, change: Change, mounts: MountDescriptors) -> None:
        assert change.target is not None
        try:
            opened = self.directories.opened(change.target, os.O_RDONLY | os.O_NONBLOCK, mounts)
        except OSError:
            self._hashes.skip(change)  # it is gone
        else:
            self._hashes.start_hash(change, opened)

    def _status(self) -> Status:
        pending = [self._emptied, self._window.oldest(), self._hashes.oldest()]
        pending.append(None if self._lost_since is None else self._lost_since[0])
        pending.append(None if self._comparison is None else self._comparison.since)
        return Status(
            min(each for each in pending if each is not None),
            self._received,
            self._overflows,
            len(self.directories),
            self.directories.unwatched,
            self._ready,
            self._message,
        )

    def _progress(self) -> None:
        """Report during work that takes long, so that the agent does not take this process for hung."""
        now = _boot_time()
        if now >= self._status_due and not self._packets:
            self._status_due = now + _STATUS_NS
            self._packets.append(watch_messages.encode_status(self._status()))
            self._flush()

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
_Seen: TypeAlias = tuple[FileStatus, bool]
"""The attributes of a file, and whether it is a whiteout."""
_HASHED: Final = frozenset({Action.CREATED, Action.WRITTEN, Action.RENAMED, Action.ATTRIBUTES})


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + name if directory.endswith(b"/") else directory + b"/" + name


def _status(status: os.stat_result) -> FileStatus:
    return FileStatus(status.st_dev, status.st_ino, status.st_size, status.st_mode)


def _add_status(change: Change, seen: _Seen | None) -> None:
    if seen is None:
        return
    change.status, stands_for_deleted = seen
    if change.action is Action.RENAMED and stands_for_deleted:
        change.action, change.old_path = Action.DELETED, None


def _shorten(change: Change) -> None:
    """Leave out paths that do not fit into a message: their directories are nested four times as deep as PATH_MAX."""
    if change.path is not None and len(change.path) > watch_messages.PATH_BYTES_MAX:
        change.path = None
    if change.old_path is not None and len(change.old_path) > watch_messages.PATH_BYTES_MAX:
        change.old_path = None


def _boot_time() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
