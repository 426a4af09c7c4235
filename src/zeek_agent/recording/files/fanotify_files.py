"""File events by fanotify, from a helper process."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.access_defaults import LOCAL_FILE_SYSTEMS
from zeek_agent.files_defaults import FILES_UNEXECUTED
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.files import watch_messages
from zeek_agent.recording.files.file_event import FILES_EVENTS, FileEvent, file_event
from zeek_agent.recording.files.watch_messages import Change, MessageError, Status, Watch
from zeek_agent.recording.source import Sink, Source
from zeek_agent.text import from_bytes, to_bytes

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.bpf_monitor import BpfMonitor
    from zeek_agent.recording.files.file_watcher_link import FileWatchers
    from zeek_agent.recording.processes.process import Process

log = logging.getLogger(__name__)

_PSEUDO: Final = frozenset({"proc", "sysfs", "overlay", "ecryptfs", "cgroup", "cgroup2", "debugfs", "tracefs", "nsfs"})
"""Types of file systems that are local, but report no events."""
_START_TIMEOUT_SECONDS: Final = 240.0
"""For marking all directories; tens of thousands on a disk that seeks."""
_STOP_TIMEOUT_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 2.5
"""For the last changes, after which no more are waited for."""
_POLL_MS: Final = 500
_SILENCE_SECONDS: Final = 60.0
"""The watching process reports every quarter of a second; it may be stopped or starved for a while."""
_RETRY_SECONDS_MAX: Final = 60.0
_STEADY_SECONDS: Final = 300.0
"""A run of this length ends the series of failures."""
_EXIT_SLACK_NS: Final = 2_000_000_000
"""An event is read within milliseconds, but the end of its process may have been recorded before that."""
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
"""The inode of the host's pid namespace, PROC_PID_INIT_INO of <linux/proc_ns.h>."""


class FanotifyFiles(Source):
    """What happens to files in the watched directories, with the process that did it."""

    kind = "files"
    backend = "fanotify"
    essential = False

    def __init__(
        self, monitor: BpfMonitor, settings: SourceSettings, watchers: FileWatchers, may_read: Callable[[str], bool]
    ) -> None:
        """`monitor` keeps the cache of processes, where there is eBPF. `may_read` says of a path whether access rules
        permit the file's hash."""
        super().__init__()
        self._monitor = monitor
        self._cache = monitor.cache
        self._settings = settings
        self._watchers = watchers
        self._may_read = may_read
        self._exclusions = Exclusions(settings)
        self._has_host_pids = Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
        self._channel: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._sink: Sink | None = None
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._status: Status | None = None
        self._begun = 0
        self._complete_until = 0
        self._lost_since: int | None = None
        """The boot time (ns) since which events may be missing, of losses that were not counted yet."""
        self._received = 0
        self._heard = 0.0
        """When the watching process reported last, by the monotonic clock."""
        self._overflows = 0
        self._failures = 0
        self._message = ""

    def probe(self) -> str | None:
        if not self._settings.files_watch and not self._settings.files_filesystems:
            return "sources.files_watch is empty"
        return self._watchers.why_not()

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self.retry_seconds = min(2.0**self._failures, _RETRY_SECONDS_MAX)
        self._failures += 1  # until it has worked for some time
        self._ended.clear()
        self._ready.clear()
        self._status = None
        channel = self._channel = self._watchers.connect()
        try:
            channel.send(watch_messages.encode_watch(self._watch()))
        except ValueError as error:
            raise OSError(f"sources.files_watch: {error}") from error
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(channel,), name="files", daemon=True)
        self._thread.start()
        begun = self._heard
        while not self._ready.wait(_POLL_MS / 1_000):
            if time.monotonic() > min(self._heard + _SILENCE_SECONDS, begun + _START_TIMEOUT_SECONDS):
                seconds = time.monotonic() - begun
                raise OSError(f"the process that watches files has not started within {seconds:.0f} s")
        if self.failure is not None:
            raise OSError(self.failure)

    def stop(self) -> None:
        self._ended.set()
        if self._channel is not None:
            with suppress(OSError):  # the other side may have ended
                self._channel.shutdown(socket.SHUT_WR)  # it sends what it has, and ends
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_TIMEOUT_SECONDS)
            self._thread = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        # The watching process counts from 0 again.
        self._received, self._overflows = self.counters.received, self.counters.lost["overrun"]
        self._status = None

    def recording_since(self) -> float | None:
        return boot_time() + self._begun / 1e9

    def recorded_until(self) -> float | None:
        return boot_time() + max(self._begun, self._complete_until) / 1e9

    def losses_since(self) -> float | None:
        since, self._lost_since = self._lost_since, None
        return None if since is None else boot_time() + since / 1e9

    def update_counters(self) -> None:
        status = self._status
        if status is not None:
            self.counters.received = self._received + status.received
            self.counters.lost["overrun"] = self._overflows + status.overflows
            if status.message and status.message != self._message:
                self._message = status.message
                self.counters.last_error = from_bytes(status.message.encode(errors="replace"))
                log.warning("files events: %s (%d directories are not watched)", status.message, status.unwatched)

    def _watch(self) -> Watch:
        settings = self._settings
        kinds = sorted(LOCAL_FILE_SYSTEMS - _PSEUDO)
        missed = self.missed
        return Watch(
            paths=[to_bytes(path.removesuffix("/**") or "/") for path in settings.files_watch],
            unexecuted=[to_bytes(path) for path in FILES_UNEXECUTED],
            file_systems=[to_bytes(path) for path in settings.files_filesystems],
            kinds=[kind.encode() for kind in kinds],
            window_seconds=settings.files_window,
            directories_max=settings.files_directories,
            hash_bytes_max=settings.files_hash_bytes,
            since=missed.since if missed is not None else 0.0,
        )

    def _run(self, channel: socket.socket) -> None:
        try:
            reason = self._receive(channel)
        except (MessageError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        except Exception as error:
            log.exception("messages of the process that watches files cannot be handled")
            reason = f"{type(error).__name__}: {error}"
        if reason is not None and not self._ended.is_set():
            self.failed(reason)
        self._ready.set()

    def _receive(self, channel: socket.socket) -> str | None:
        """Handle messages until the source is stopped (None), or the other side ended (the reason)."""
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        begun = time.monotonic()
        while True:
            if not poll.poll(_POLL_MS):
                if self._ended.is_set() and time.monotonic() - self._heard > _LAST_SECONDS:
                    return None
                if self._ready.is_set() and time.monotonic() - self._heard > _SILENCE_SECONDS:
                    return f"the process that watches files has not reported for {_SILENCE_SECONDS:.0f} s"
                continue
            self._heard = time.monotonic()
            packet, _, flags, _ = channel.recvmsg(watch_messages.PACKET_BYTES_MAX)
            if not packet:
                if self._ended.is_set():
                    return None
                status = self._status
                return (status.message if status else "") or "the process that watches files has ended"
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise MessageError("a message that is too long, or has descriptors")
            message = watch_messages.decode(packet)
            if isinstance(message, Status):
                self._note(message)
            else:
                self._record(message)
            if self._heard - begun > _STEADY_SECONDS:
                self._failures = 0

    def _note(self, status: Status) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if status.overflows > (self._status.overflows if self._status else 0) and self._lost_since is None:
            self._lost_since = max(self._begun, self._complete_until)
        self._status = status
        if status.ready and not self._ready.is_set():
            self._begun, self._complete_until = now, 0  # all directories have been marked by now
            self._ready.set()
        if status.ready:
            self._complete_until = max(self._complete_until, min(status.complete_until, now))

    def _record(self, changes: list[Change]) -> None:
        self._monitor.drain()  # what is known of processes now includes those of these changes
        since_epoch, now = boot_time(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        events: list[FileEvent] = []
        for change in changes:
            change.at = min(change.at, now)
            process = None if change.pid is None else self._process(change.pid, change.at)
            if self._exclusions.process(process):
                continue
            paths = [from_bytes(path) for path in (change.path, change.old_path) if path is not None]
            may_hash = change.sha256 is not None and change.path is not None and all(map(self._may_read, paths))
            events.append(file_event(change, process, since_epoch, may_hash=may_hash))
        events = self._exclusions.without(events)
        if events and self._sink is not None:
            self._sink(FILES_EVENTS, events)

    def _process(self, pid: int, at: int) -> Process | None:
        """The latest process with that id that began before the event was read; None if that is not certain.

        The cache has the host's pids, from eBPF. fanotify and /proc have those of the agent's pid namespace.
        """
        process = self._cache.lookup(pid, at) if self._has_host_pids else None
        if process is None:
            process = self._cache.read(pid)
            return process if process is not None and process.started <= at else None
        if process.exited and process.until is not None and process.until < at - _EXIT_SLACK_NS:
            return None  # another process must have had the id, whose start was lost
        return process
