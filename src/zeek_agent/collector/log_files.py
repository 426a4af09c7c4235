"""The directory of logs: buffered files that always contain whole lines, rotated by time and size, with Zeek's names.

`write` may be called from the event loop: it only adds a line in memory. `flush` accesses the disk, and may run in
another thread. Disk errors are counted and retried at the next flush; meanwhile lines wait, up to a limit, beyond which
they are counted as dropped.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from zeek_agent import ownership, platforms
from zeek_agent.collector import log_folder
from zeek_agent.collector.log_archive import ArchiveStats, LogArchive, Retention, free_name
from zeek_agent.collector.log_formats import DATE_FORMAT, Field, Format, FormatName, ResultNames, make_format
from zeek_agent.errors import UsageError
from zeek_agent.file_lock import FileLock, LockHeldError

PENDING_BYTES: Final = 8 * 1024 * 1024
"""Maximum of one log waiting in memory for the disk, unless a single line is longer; some seconds of a busy log."""

LOCK: Final = ".lock"
"""The lock file in the directory of logs. Older versions locked the directory itself, which every user can open."""

_HEADER_BYTES: Final = 4096
"""Beginning of a log that contains its `#open` line."""
_OPENED = re.compile(rb"^#open\t(\d{4}(?:-\d{2}){5})$", re.MULTILINE)

log = logging.getLogger("zeek_agent.collector")


class WriteLimits(Protocol):
    """The limit of all logs together, as one log sees it."""

    @property
    def rotate_bytes(self) -> int:
        """Maximum of a log and of what is written at once; 0: none."""
        ...

    def make_room(self, adding: int) -> None:
        """Called before bytes are written. May rotate the log. Raises OSError."""
        ...

    def rotated(self, file: Path) -> None:
        """Called after the log was renamed to this. Raises OSError."""
        ...


class LogFile:
    """One log: `<path>.log`, opened when its first line is written."""

    def __init__(
        self,
        directory: Path,
        path: str,
        layout: Format,
        *,
        rotate_interval_seconds: float = 0.0,
        rotate_bytes: int = 0,
        clock: Callable[[], float] = time.time,
        limits: WriteLimits | None = None,
    ) -> None:
        self.path = path
        self.rows = 0
        self.dropped = 0
        self._directory = directory
        self._file = directory / f"{path}.log"
        self._layout = layout
        self._rotate_interval_seconds = rotate_interval_seconds
        self._rotate_bytes = rotate_bytes
        self._clock = clock
        self._limits = limits
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._waiting_since = 0.0
        self._fd: int | None = None
        self._size = 0
        self._opened = 0.0
        self._rotate_at = float("inf")
        self._is_held_up = False
        """Whether another program prevents the rotation, which was logged."""

    @property
    def pending_bytes(self) -> int:
        """Bytes waiting for a flush."""
        return self._pending_bytes

    @property
    def open_bytes(self) -> int:
        """Size of the file that is being written; 0 if there is none."""
        return 0 if self._fd is None else self._size

    def write(self, values: Sequence[Any]) -> None:
        """Add a line. Raises ValueError, and adds nothing, if a value does not fit its field."""
        line = self._layout.line(values)
        with self._lock:
            if self._pending and self._pending_bytes + len(line) > PENDING_BYTES:
                self.dropped += 1
                return
            if not self._pending:
                self._waiting_since = self._clock()
            self._pending.append(line)
            self._pending_bytes += len(line)
        self.rows += 1

    def flush(self) -> None:
        """Write pending lines, then rotate if due. Raises OSError; the lines are kept for the next flush."""
        with self._lock:
            lines, self._pending = self._pending, []
            self._pending_bytes = 0
            since = self._waiting_since
        written = 0
        try:
            for piece in _pieces(lines, self._limits.rotate_bytes if self._limits else 0):
                content = b"".join(piece)
                if self._limits is not None:
                    self._limits.make_room(len(content))
                self._open(since)
                self._append(content)
                written += len(piece)
                if self._is_full():
                    self.rotate()
        except OSError:
            with self._lock:
                rest = lines[written:]
                self._pending[:0], self._waiting_since = rest, since
                self._pending_bytes += sum(map(len, rest))
            raise
        if self._fd is not None and (self._is_due() or self._is_full()):
            self.rotate()

    def _is_full(self) -> bool:
        maxima = (self._rotate_bytes, self._limits.rotate_bytes if self._limits else 0)
        return any(0 < maximum <= self._size for maximum in maxima)

    def _is_due(self) -> bool:
        """Whether the interval has passed, or the clock was set back by more than that."""
        now = self._clock()
        return now >= self._rotate_at or 0 < self._rotate_interval_seconds < self._opened - now

    def rotate(self) -> bool:
        """Close the file and rename it to its final name; False if another program's use of it prevents that now.

        Raises OSError.
        """
        if self._fd is None:
            return True
        if not platforms.HERE.renames_open_files and self._is_in_use(self._fd):
            return False
        opened = self._opened
        self.close()
        if self._file.exists():
            target = free_name(self._directory, self.path, opened)
            self._file.rename(target)
            self._note_rotated(target)
        return True

    def _is_in_use(self, own: int) -> bool:
        """Whether the file cannot be renamed even after it is closed here. Raises OSError."""
        self._fd = None
        os.close(own)
        try:
            self._file.replace(self._file)
        except FileNotFoundError:
            pass
        except OSError as error:
            if not log_folder.is_in_use(error):
                raise
            if not self._is_held_up:
                log.warning("%s is not rotated while another program has it open: %s", self._file, error.strerror)
            self._is_held_up = True
            return True
        finally:
            self._fd = ownership.open_log(self._file)
        self._is_held_up = False
        return False

    def _note_rotated(self, target: Path) -> None:
        if self._limits is not None:
            self._limits.rotated(target)

    def close(self) -> None:
        """End the file with its last line. Raises OSError."""
        if self._fd is None:
            return
        try:
            self._append(self._layout.footer(self._clock()))
        finally:
            fd, self._fd = self._fd, None
            os.close(fd)

    def drop_pending(self) -> None:
        """Discard pending lines and count them as dropped."""
        with self._lock:
            self.dropped += len(self._pending)
            self.rows -= len(self._pending)
            self._pending, self._pending_bytes = [], 0

    def move_leftover(self) -> None:
        """Rename the file of an earlier run to its final name. Raises OSError."""
        if self._fd is None and (target := _move_leftover(self._directory, self.path)):
            self._note_rotated(target)

    def _open(self, since: float) -> None:
        """Open the file unless it is open; a new one counts as opened when its first line was added."""
        if self._fd is not None and self._in_place():
            return
        if self._fd is not None:  # the file was removed or renamed
            fd, self._fd = self._fd, None
            os.close(fd)
        self._directory.mkdir(parents=True, exist_ok=True)
        self.move_leftover()
        self._opened = since
        self._fd = ownership.create_log(self._file)
        self._size = 0
        if self._rotate_interval_seconds > 0:
            self._rotate_at = (self._opened // self._rotate_interval_seconds + 1) * self._rotate_interval_seconds
        try:
            self._append(self._layout.header(self._opened))
        except OSError:
            fd, self._fd = self._fd, None
            os.close(fd)
            self._file.unlink(missing_ok=True)
            raise

    def _in_place(self) -> bool:
        assert self._fd is not None
        try:
            return os.path.samestat(os.fstat(self._fd), self._file.lstat())
        except FileNotFoundError:
            return False

    def _append(self, content: bytes) -> None:
        """Write everything or nothing: after an error the file has its previous length."""
        assert self._fd is not None
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with suppress(OSError):  # the error of the write shows the cause
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(content)


class LogDirectory:
    """All logs of a collector, in a directory that no other collector writes to.

    `holder` is the process that the lock names, if not this one. Without `retention`, rotated logs stay as they are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kind: FormatName = "tsv",
        rotate_interval_seconds: float = 0.0,
        rotate_bytes: int = 0,
        clock: Callable[[], float] = time.time,
        holder: int | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.directory = directory
        self.files: dict[str, LogFile] = {}
        self.errors = 0
        self.last_error: str | None = None
        self.failing = False
        self._kind = kind
        self._rotate_interval_seconds = rotate_interval_seconds
        self._rotate_bytes = rotate_bytes
        self._clock = clock
        self._holder = holder
        self._lock: FileLock | None = None
        self._ready = False
        self._archive: LogArchive | None = None
        if retention is not None:
            self._archive = LogArchive(directory, retention, current_bytes=self._current_bytes, clock=clock)

    @property
    def has_counters(self) -> bool:
        """Whether lines of results end with a counter."""
        return self._kind == "osquery"

    def add(self, path: str, fields: Sequence[Field], results: ResultNames | None = None) -> LogFile:
        """Declare a log; `path` is its name without `.log`."""
        file = self.files[path] = LogFile(
            self.directory,
            path,
            make_format(self._kind, path, fields, results),
            rotate_interval_seconds=self._rotate_interval_seconds,
            rotate_bytes=self._rotate_bytes,
            clock=self._clock,
            limits=None if self._archive is None else self,
        )
        return file

    def start(self) -> None:
        """Lock the directory and rename logs of an earlier run.

        Raises UsageError if another collector uses the directory. If it cannot be created or written, the error is
        counted, and retried at each flush. Both are in `last_error`.
        """
        errors = self.errors
        try:
            self._prepare()
        except OSError as error:
            self._failed(error)
        except UsageError as error:
            self._failed(error)
            raise
        self.failing = self.errors > errors

    def flush(self) -> None:
        """Write the pending lines of all logs. Errors are counted, and kept in `last_error`."""
        errors = self.errors
        try:
            self._prepare()
            if self._archive is not None:
                self._archive.start()
            for file in list(self.files.values()):
                self._flush(file)
        except (OSError, UsageError) as error:
            self._failed(error)
        self.failing = self.errors > errors

    def close(self) -> None:
        """Write as much as possible and end all files."""
        self.flush()
        for file in self.files.values():
            file.drop_pending()
            try:
                file.close()
            except OSError as error:
                self._failed(error)
        if self._archive is not None:
            self._archive.close()
        self.release()

    def release(self) -> None:
        """Unlock the directory for other collectors."""
        self._ready = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def pending_bytes(self) -> int:
        return sum(file.pending_bytes for file in self.files.values())

    @property
    def archive_stats(self) -> ArchiveStats | None:
        """The rotated logs; None if they are kept for ever."""
        return None if self._archive is None else self._archive.stats

    @property
    def rotate_bytes(self) -> int:
        return 0 if self._archive is None else self._archive.rotate_bytes

    def make_room(self, adding: int) -> None:
        """Remove rotated logs until the bytes fit, if necessary also the largest of those that are being written."""
        assert self._archive is not None
        while not self._archive.make_room(adding):
            largest = max(self.files.values(), key=lambda file: file.open_bytes)
            if not largest.open_bytes or not largest.rotate():  # a single line is larger than the limit
                return

    def rotated(self, file: Path) -> None:
        assert self._archive is not None
        self._archive.add(file.name)

    def _current_bytes(self) -> Counter[str]:
        return Counter({path: file.open_bytes for path, file in list(self.files.items())})

    def _flush(self, file: LogFile) -> None:
        try:
            file.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError | UsageError) -> None:
        self.failing = True
        self.errors += 1
        if isinstance(error, OSError):
            self.last_error = f"cannot write {error.filename or self.directory}: {error.strerror or error}"
        else:
            self.last_error = str(error)

    def _prepare(self) -> None:
        if self._ready:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock_directory()
        if self._archive is not None:
            self._archive.open(self.files)
            for former in self._archive.logs - self.files.keys():  # of an earlier pack
                if moved := _move_leftover(self.directory, former):
                    self._archive.add(moved.name)
        for file in self.files.values():
            file.move_leftover()
        self._ready = True

    def _lock_directory(self) -> None:
        if self._lock is not None:
            return
        try:
            self._lock = platforms.HERE.acquire_lock(
                self.directory / LOCK, legacy_directory=self.directory, holder=self._holder
            )
        except LockHeldError as error:
            raise UsageError(
                f"another collector{error.holder} writes its logs to {self.directory}: "
                "stop it, or choose another directory"
            ) from None
        if reason := platforms.HERE.directory_exposure(self.directory) or platforms.HERE.group_exposure(self.directory):
            log.warning("other users can replace the logs: %s", reason)


def _pieces(lines: list[bytes], size: int) -> Iterator[list[bytes]]:
    """The lines in pieces of about that size; 0: in one."""
    piece: list[bytes] = []
    piece_bytes = 0
    for line in lines:
        if piece and 0 < size < piece_bytes + len(line):
            yield piece
            piece, piece_bytes = [], 0
        piece.append(line)
        piece_bytes += len(line)
    if piece:
        yield piece


def _move_leftover(directory: Path, path: str) -> Path | None:
    """Rename a log of an earlier run. Returns its final name, or None if there is none. Raises OSError."""
    file = directory / f"{path}.log"
    if not os.path.lexists(file):
        return None
    target = free_name(directory, path, _opened_at(file))
    file.rename(target)
    return target


def _opened_at(file: Path) -> float:
    """When an earlier run's log was opened, by its header, or last written; its mode is narrowed if necessary."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return status.st_mtime
    try:
        descriptor = ownership.read_log(file)
    except PermissionError:  # another user's, such as root's; renaming it needs only the directory
        return status.st_mtime
    with os.fdopen(descriptor, "rb") as content:
        with suppress(PermissionError):  # another user's, which only that user can narrow
            ownership.narrow_log(descriptor)
        match = _OPENED.search(content.read(_HEADER_BYTES))
    if match:
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(match[1].decode(), DATE_FORMAT))
    return status.st_mtime
