"""For tests of file events: real sources with a real process that watches, started as by root's `zeek-agent run`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from recording import Event, Recording

from zeek_agent.config.sections import SourceSettings
from zeek_agent.containment.file_watchers import launched
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.files.fanotify_files import FanotifyFiles
from zeek_agent.recording.files.file_watcher_link import FileWatchers, Launcher
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.source import MissedTime

TABLE = "files_events"
WINDOW_SECONDS = 0.1


class Watching(Recording):
    """The recording of processes and of files below a directory."""

    @property
    def source(self) -> FanotifyFiles:
        source = self.sources[1]
        assert isinstance(source, FanotifyFiles)
        return source

    @property
    def watcher(self) -> int:
        """The process that watches."""
        return watching_processes()[1]

    def files(self, **wanted: object) -> list[Event]:
        """The rows so far, as for `events`."""
        return self.events(TABLE, **wanted)

    def expect_file(self, action: str, path: Path | bytes, count: int = 1, **wanted: object) -> Event:
        """The one row with this action and path, when it is there."""
        found = self.expect(TABLE, count, action=action, path=shown(path), **wanted)
        assert len(found) == count, found
        return found[0]


def shown(path: Path | bytes) -> str:
    """A path as rows have it."""
    from zeek_agent.text import from_bytes

    return from_bytes(os.fsencode(path))


def launcher(settings: SourceSettings) -> Launcher:
    started = launched(settings)
    if started is None:
        pytest.skip("needs CAP_SYS_ADMIN")
    return started


@contextmanager
def watching(
    *paths: Path | str,
    filesystems: Sequence[Path] = (),
    may_read: Callable[[str], bool] = lambda _: True,
    directories: int = 20_000,
    since: float | None = None,
    window: float = WINDOW_SECONDS,
    watchers: FileWatchers | None = None,
) -> Iterator[Watching]:
    """Record what happens to the files in these directories; find what changed since a time, as after a restart."""
    settings = SourceSettings(
        ignore_self=False,
        files_watch=tuple(map(str, paths)),
        files_filesystems=tuple(map(str, filesystems)),
        files_window=window,
        files_directories=directories,
    )
    own = launcher(settings) if watchers is None else None
    monitor = BpfMonitor(ProcessCache())
    files = FanotifyFiles(monitor, settings, watchers or own, may_read)
    if since is not None:
        files.missed = MissedTime(since, lambda *_: frozenset())
    try:
        with Watching([EbpfProcesses(monitor, settings), files]) as recording:
            yield recording
    finally:
        if own is not None:
            own.close()


def directories_of(recording: Watching) -> int:
    """The number of directories that are watched, as last reported."""
    status = recording.source._status
    return -1 if status is None else status.directories


def problem_of(recording: Watching) -> str:
    """The last problem that was reported."""
    recording.source.update_counters()
    return recording.source.counters.last_error or ""


@contextmanager
def stopped_watcher() -> Iterator[None]:
    """The process that watches is stopped meanwhile."""
    pid = watching_processes()[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def short_queue(events: int = 200) -> Iterator[None]:
    """Groups that are opened meanwhile have a queue of this length."""
    setting = Path("/proc/sys/fs/fanotify/max_queued_events")
    before = setting.read_text()
    setting.write_text(str(events))
    try:
        yield
    finally:
        setting.write_text(before)


def watching_processes() -> list[int]:
    """The pids of the processes that watch files for this one, and of their launcher first."""
    launchers = [pid for pid in children(os.getpid()) if b"files_helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [*launchers, *(child for pid in launchers for child in children(pid))]


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def proportional_kb(pid: int) -> int:
    """The proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
