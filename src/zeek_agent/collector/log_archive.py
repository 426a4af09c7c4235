"""Rotated logs: compressed by a thread of their own, removed by age and by the total size of all logs.

Only files that a collector wrote to this directory are touched: regular files of the agent's user or root, with the
name of a rotated log.

A compressed log appears under its name when it is complete and on the disk, and only then is the original removed.
After a crash there is therefore at least one complete copy; if there are both, the original is removed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from zeek_agent import ownership
from zeek_agent.collector import log_folder
from zeek_agent.collector.log_folder import LogFolder
from zeek_agent.collector.log_formats import local_time

SUFFIX: Final = ".gz"
DEFAULT_SHARE: Final = 10
"""Without a limit of the operator's, logs take at most a tenth of their file system."""
DEFAULT_BYTES_MIN: Final = 64 << 20
DEFAULT_BYTES_MAX: Final = 10 << 30
"""The same for very small and large file systems."""
SETTLE_SECONDS: Final = 300.0
"""How long a rotated log stays uncompressed, for log shippers that have not read its end."""
PASS_SECONDS: Final = 60.0
"""Time between two looks at the directory, and between two reports of what was removed."""
CLOCK_STEP_SECONDS: Final = 3600.0
CLOCK_DOUBT_SECONDS: Final = 3600.0
"""When the clock was set forward by so much, nothing is removed by age for that time, in which it can be corrected."""
CHUNK_BYTES: Final = 256 * 1024
PAUSE_FACTOR: Final = 3.0
"""Pause after each chunk, as a multiple of the time that it took: compression takes a quarter of one core at most.
A lower scheduling priority would hold up the whole process whenever the thread holds the interpreter's lock."""
SLACK_BYTES: Final = 4096
"""Kept free below the limit, for headers and last lines of logs."""
PARTS_OF_LIMIT: Final = 16
"""A log is rotated at this part of the total size, so that what is removed first is not the whole log."""

_KNOWN_LOGS: Final = ".logs"
"""Names of the logs that were ever written to the directory, so that those of earlier packs are removed, too."""
_KNOWN_LOGS_BYTES: Final = 256 * 1024
_LOG_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ROTATED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.(\d{4}(?:-\d\d){5})\.log(\.gz)?")
_PARTIAL: Final = re.compile(r"\.([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.\d{4}(?:-\d\d){5}\.log\.gz\.part")
_GZIP_HEADER: Final = struct.Struct("<4sIBB")
_GZIP_MAGIC: Final = b"\x1f\x8b\x08\x00"
_GZIP_TRAILER: Final = struct.Struct("<II")
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

RemovalCause = Literal["age", "size"]

log = logging.getLogger("zeek_agent.collector")


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept. `total_bytes` is None for the default limit; 0 stands for no limit."""

    age_seconds: float = 0.0
    total_bytes: int | None = None
    compress: bool = True


@dataclass(frozen=True, slots=True)
class ArchiveStats:
    """Rotated logs now, and what was done with them since the start. `limit_bytes` includes the current logs."""

    files: int = 0
    stored_bytes: int = 0
    limit_bytes: int = 0
    compressed: int = 0
    compression_errors: int = 0
    removed_by_age: int = 0
    removed_by_size: int = 0
    removed_bytes: int = 0


@dataclass(slots=True)
class _RotatedLog:
    """A file; `closed` is when its last line was written."""

    name: str
    log: str
    size: int
    closed: float
    is_compressed: bool
    is_stuck: bool = False
    """It could not be removed, and is not tried again."""
    is_in_use: bool = False
    """Another program has it open, so that Windows does not remove it: it is tried again at the next pass."""
    is_unreadable: bool = False
    """It could not be compressed, and is not tried again."""
    is_copied: bool = False
    """Its compressed form is complete: only its removal is left to do."""


@dataclass(slots=True)
class _Removals:
    """What was removed since the last report, by cause."""

    files: Counter[RemovalCause] = field(default_factory=Counter)
    size: int = 0
    logs: Counter[str] = field(default_factory=Counter)


class _AbandonedError(Exception):
    """A compression was abandoned: the log was removed meanwhile, or the collector stops."""


class LogArchive:
    """The rotated logs of a directory.

    `current_bytes` returns the sizes of the logs that are being written. `add`, `make_room` and `stats` may be used
    from any thread.
    """

    def __init__(
        self,
        directory: Path,
        retention: Retention,
        *,
        current_bytes: Callable[[], Counter[str]] = Counter,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._retention = retention
        self._current_bytes = current_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._limit = retention.total_bytes or 0
        self._lock = threading.RLock()
        self._logs: frozenset[str] = frozenset()
        self._files: dict[str, _RotatedLog] = {}
        self._by_log: Counter[str] = Counter()
        self._rotated_bytes = 0
        self._partial_bytes = 0
        self._counts: Counter[str] = Counter()
        self._removed_bytes = 0
        self._unreported = _Removals()
        self._reported_at = float("-inf")
        self._notices: set[str] = set()
        self._clock_offset: float | None = None
        """Of the clock to the monotonic one, at the last pass."""
        self._trust_clock_after = float("-inf")
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def stats(self) -> ArchiveStats:
        """The current figures. Takes no lock, which the thread holds while it waits for the disk."""
        return ArchiveStats(
            files=len(self._files),
            stored_bytes=self._total_bytes(),
            limit_bytes=self._limit,
            compressed=self._counts["compressed"],
            compression_errors=self._counts["compression errors"],
            removed_by_age=self._counts["age"],
            removed_by_size=self._counts["size"],
            removed_bytes=self._removed_bytes,
        )

    @property
    def logs(self) -> frozenset[str]:
        """The logs that were ever written to the directory."""
        return self._logs

    @property
    def rotate_bytes(self) -> int:
        """Size at which a log is rotated because of the limit; 0: no limit."""
        return self._limit // PARTS_OF_LIMIT

    def open(self, logs: Iterable[str]) -> None:
        """Find the rotated logs. `logs` are the names of those that are written now. Raises OSError."""
        with log_folder.opened(self._directory) as folder:
            known = _read_known_logs(folder)
            self._logs = known | frozenset(logs)
            if self._logs != known:
                self._save_known_logs(folder)
            if self._retention.total_bytes is None:
                share = folder.system_bytes() // DEFAULT_SHARE
                self._limit = min(max(share, DEFAULT_BYTES_MIN), DEFAULT_BYTES_MAX)
            self._scan(folder)

    def _save_known_logs(self, folder: LogFolder) -> None:
        try:
            _write_known_logs(folder, self._logs)
        except OSError as error:  # a full disk, where rotated logs may still have to be removed
            log.warning("cannot write %s in %s: %s", _KNOWN_LOGS, self._directory, error.strerror)

    def start(self) -> None:
        """Start the thread that compresses and removes, unless it runs."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="log-archive", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread. A log that is being compressed stays as it is."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._report_removals()

    def add(self, name: str) -> None:
        """Note that a log was rotated to this name. Raises OSError."""
        with log_folder.opened(self._directory) as folder, self._lock:
            self._note(folder, name)

    def make_room(self, adding: int) -> bool:
        """Remove rotated logs until `adding` bytes fit; False if they do not fit even so."""
        if not self._limit:
            return True
        with self._lock:
            if self._fits(adding):
                return True
            with log_folder.opened(self._directory) as folder:
                while not self._fits(adding) and (victim := self._next_to_remove()):
                    self._remove(folder, victim, "size")
            return self._fits(adding)

    def maintain(self) -> None:
        """Remove what is too old or too much, and compress the rest. Raises OSError."""
        with log_folder.opened(self._directory) as folder:
            self._remove_partial(folder)
            with self._lock:
                self._scan(folder)
                for file in self._files.values():
                    file.is_in_use = False
                self._remove_old(folder)
            self.make_room(0)
            self._finish_compressions(folder)
            if self._retention.compress:
                self._compress_all(folder)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.maintain()
                self._notices.discard("directory")
            except OSError as error:
                self._warn_once("directory", f"cannot tidy the logs in {self._directory}: {error.strerror or error}")
            except Exception:
                log.exception("tidying the logs in %s has failed", self._directory)
            self._report_removals_if_due()
            self._stopping.wait(PASS_SECONDS)

    # Inventory; all of these are called with the lock held.

    def _scan(self, folder: LogFolder) -> None:
        present = set()
        for name in folder.names():
            if self._is_rotated(name):
                present.add(name)
                self._note(folder, name)
        for name in self._files.keys() - present:
            self._forget(name)

    def _is_rotated(self, name: str) -> bool:
        match = _ROTATED.fullmatch(name)
        return match is not None and match[1] in self._logs

    def _note(self, folder: LogFolder, name: str) -> None:
        match = _ROTATED.fullmatch(name)
        status = folder.own_status(name)
        if match is None or status is None:
            self._forget(name)
            return
        known = self._files.get(name)
        if known is not None:
            self._count(known.log, status.st_size - known.size)
            known.size = status.st_size
            return
        closed = _closed_at(folder, name, status) if match[3] else status.st_mtime
        self._files[name] = _RotatedLog(name, match[1], status.st_size, closed, is_compressed=bool(match[3]))
        self._count(match[1], status.st_size)

    def _forget(self, name: str) -> None:
        known = self._files.pop(name, None)
        if known is not None:
            self._count(known.log, -known.size)
            self._notices.discard(name)

    def _count(self, log_name: str, size: int) -> None:
        self._by_log[log_name] += size
        self._rotated_bytes += size

    def _total_bytes(self) -> int:
        return self._rotated_bytes + self._partial_bytes + self._current_bytes().total()

    def _fits(self, adding: int) -> bool:
        return self._total_bytes() + adding + SLACK_BYTES <= self._limit

    def _next_to_remove(self) -> _RotatedLog | None:
        """The oldest file of the log that takes the most, so that a flood in one log does not displace the others."""
        sizes = self._by_log + self._current_bytes()
        candidates = [file for file in self._files.values() if not (file.is_stuck or file.is_in_use)]
        return min(candidates, key=lambda file: (-sizes[file.log], file.closed, file.name), default=None)

    def _remove_old(self, folder: LogFolder) -> None:
        if self._retention.age_seconds <= 0 or self._is_clock_doubtful():
            return
        oldest = self._clock() - self._retention.age_seconds
        for file in [file for file in self._files.values() if file.closed < oldest and not file.is_stuck]:
            self._remove(folder, file, "age")

    def _is_clock_doubtful(self) -> bool:
        """Whether the clock was set forward lately: one wrong time must not cost all logs at once."""
        now = self._monotonic()
        offset = self._clock() - now
        if self._clock_offset is not None and offset - self._clock_offset > CLOCK_STEP_SECONDS:
            self._trust_clock_after = now + CLOCK_DOUBT_SECONDS
            log.warning(
                "the clock was set forward by %.0f s: rotated logs are not removed by age for %.0f s",
                offset - self._clock_offset,
                CLOCK_DOUBT_SECONDS,
            )
        elif self._clock_offset is not None and self._clock_offset - offset > CLOCK_STEP_SECONDS:
            self._trust_clock_after = now  # set back, as after a mistake
        self._clock_offset = offset
        return now < self._trust_clock_after

    def _remove(self, folder: LogFolder, file: _RotatedLog, cause: RemovalCause) -> None:
        if folder.own_status(file.name) is None:  # somebody replaced it
            self._forget(file.name)
            return
        try:
            folder.remove(file.name)
        except FileNotFoundError:
            self._forget(file.name)
            return
        except OSError as error:
            file.is_in_use = log_folder.is_in_use(error)
            file.is_stuck = not file.is_in_use
            self._warn_once(file.name, f"cannot remove the rotated log {file.name}: {error.strerror}")
            return
        self._forget(file.name)
        self._counts[cause] += 1
        self._removed_bytes += file.size
        self._unreported.files[cause] += 1
        self._unreported.size += file.size
        self._unreported.logs[file.log] += 1

    # Compression; called by the thread, without the lock.

    def _remove_partial(self, folder: LogFolder) -> None:
        """Remove what compressions left that were killed. Not in `open`, which may run as another user."""
        for name in folder.names():
            match = _PARTIAL.fullmatch(name)
            if match and match[1] in self._logs and folder.own_status(name):
                try:
                    folder.remove(name)
                except FileNotFoundError:
                    continue
                except OSError as error:  # such as chattr +a; the other files still have to be tidied
                    self._warn_once(name, f"cannot remove the incomplete compressed log {name}: {error.strerror}")

    def _finish_compressions(self, folder: LogFolder) -> None:
        """Remove originals whose compression was complete when the collector was killed."""
        with self._lock:
            originals = [self._files[name] for name in self._files if f"{name}{SUFFIX}" in self._files]
        for original in originals:
            if original.is_unreadable:
                continue
            try:
                same = original.is_copied = original.is_copied or _is_compressed_form(folder, original.name)
                if same:
                    with self._lock:
                        folder.remove(original.name)
                        self._forget(original.name)
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                self._leave(original, error)
                continue
            if not same:
                original.is_unreadable = True
                text = f"{original.name}{SUFFIX} is not the compressed form of {original.name}: left as they are"
                self._warn_once(original.name, text)

    def _compress_all(self, folder: LogFolder) -> None:
        """The newest first: in a flood the oldest may be removed soon."""
        settled = self._clock() - SETTLE_SECONDS
        with self._lock:
            waiting = [
                file
                for file in self._files.values()
                if not (file.is_compressed or file.is_unreadable or file.is_copied) and file.closed <= settled
            ]
        for file in sorted(waiting, key=lambda file: file.closed, reverse=True):
            self._report_removals_if_due()
            try:
                self._compress(folder, file)
                self._notices.discard("disk")
            except _AbandonedError:
                if self._stopping.is_set():
                    return
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                self._counts["compression errors"] += not file.is_copied
                if error.errno in _DISK_FULL:
                    text = f"cannot compress rotated logs in {self._directory}: {error.strerror}; tried again later"
                    self._warn_once("disk", text)
                    return
                self._leave(file, error)

    def _compress(self, folder: LogFolder, file: _RotatedLog) -> None:
        partial = f".{file.name}{SUFFIX}.part"
        source = folder.open(file.name)
        try:
            status = os.fstat(source)
            if not log_folder.is_own(status) or status.st_nlink > 1:
                raise PermissionError(errno.EPERM, "not a file of the collector's, or it has another hard link")
            target = folder.create(partial)
        except BaseException:
            os.close(source)
            raise
        try:
            self._write_and_close(source, status, target, file)  # Windows renames no open file
            self._put_in_place(folder, status, file, partial)
        except BaseException:
            with suppress(FileNotFoundError):
                folder.remove(partial)
            raise
        finally:
            with self._lock:
                self._partial_bytes = 0

    def _write_and_close(self, source: int, status: os.stat_result, target: int, file: _RotatedLog) -> None:
        try:
            self._write_compressed(source, status, target, file)
            os.fsync(target)
        finally:
            os.close(target)
            os.close(source)

    def _write_compressed(self, source: int, status: os.stat_result, target: int, file: _RotatedLog) -> None:
        if os.fstat(target).st_gid == status.st_gid:  # otherwise another group could read it
            ownership.set_mode(target, stat.S_IMODE(status.st_mode) & ownership.LOG_MODE_GROUP)
        # Its time is in the header: only the privileged part of the agent may set those of files.
        self._write(target, _GZIP_HEADER.pack(_GZIP_MAGIC, max(int(status.st_mtime), 0) & 0xFFFF_FFFF, 0, 255))
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        checksum = size = 0
        while chunk := os.read(source, CHUNK_BYTES):
            began = self._monotonic()
            checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
            self._write(target, compressor.compress(chunk))
            self._pause((self._monotonic() - began) * PAUSE_FACTOR)
            with self._lock:
                if self._files.get(file.name) is not file:
                    raise _AbandonedError
        self._write(target, compressor.flush() + _GZIP_TRAILER.pack(checksum, size & 0xFFFF_FFFF))

    def _write(self, target: int, content: bytes) -> None:
        with self._lock:
            self.make_room(len(content))
            self._partial_bytes += len(content)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(target, rest) :]

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _AbandonedError

    def _put_in_place(self, folder: LogFolder, status: os.stat_result, file: _RotatedLog, partial: str) -> None:
        final = f"{file.name}{SUFFIX}"
        with self._lock:
            if self._files.get(file.name) is not file or not folder.is_at(file.name, status):
                raise _AbandonedError
            if folder.exists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            folder.rename(partial, final)
            folder.sync()
            file.is_copied = True
            self._counts["compressed"] += 1
            folder.remove(file.name)
            self._forget(file.name)
            self._note(folder, final)
            self._partial_bytes = 0

    def _leave(self, file: _RotatedLog, error: OSError) -> None:
        if file.is_copied and log_folder.is_in_use(error):
            self._warn_once(file.name, f"the rotated log {file.name} is removed when no other program has it open")
            return
        file.is_unreadable = True
        self._warn_once(file.name, f"the rotated log {file.name} stays uncompressed: {error.strerror or error}")

    # Reports

    def _warn_once(self, key: str, text: str) -> None:
        """Log a warning unless it was logged for this file or purpose."""
        if key not in self._notices:
            self._notices.add(key)
            log.warning("%s", text)

    def _report_removals_if_due(self) -> None:
        if self._monotonic() - self._reported_at >= PASS_SECONDS:
            self._report_removals()

    def _report_removals(self) -> None:
        with self._lock:
            removed, self._unreported = self._unreported, _Removals()
            self._reported_at = self._monotonic()
        total = removed.files.total()
        if not total:
            return
        causes = []
        if by_size := removed.files["size"]:
            causes.append(f"{by_size} because all logs together reached {self._limit:,} bytes")
        if by_age := removed.files["age"]:
            causes.append(f"{by_age} older than {self._retention.age_seconds:,.0f} s")
        largest = ", ".join(f"{name} {number}" for name, number in removed.logs.most_common(3))
        level = logging.WARNING if by_size else logging.INFO
        log.log(
            level,
            "removed %d rotated %s of %s bytes (%s): %s",
            total,
            "log" if total == 1 else "logs",
            f"{removed.size:,}",
            largest,
            ", ".join(causes),
        )


def free_name(directory: Path, path: str, opened: float) -> Path:
    """`<path>.<time of opening>.log`, or the first later second whose name is free, also compressed."""
    while True:
        target = directory / f"{path}.{local_time(opened)}.log"
        if not os.path.lexists(target) and not os.path.lexists(f"{target}{SUFFIX}"):
            return target
        opened += 1


def _closed_at(folder: LogFolder, name: str, status: os.stat_result) -> float:
    """When the last line of a compressed log was written: its header has that, the file may be younger."""
    try:
        descriptor = folder.open(name)
    except OSError as error:
        log.debug("cannot read the header of %s: %s", name, error.strerror)
        return status.st_mtime
    try:
        header = os.read(descriptor, _GZIP_HEADER.size)
    finally:
        os.close(descriptor)
    if len(header) < _GZIP_HEADER.size or not header.startswith(_GZIP_MAGIC[:3]):
        return status.st_mtime
    return float(_GZIP_HEADER.unpack(header)[1]) or status.st_mtime


def _is_compressed_form(folder: LogFolder, name: str) -> bool:
    """Whether the compressed log has the content of the original, by its length and checksum. Raises OSError."""
    compressed = folder.open(f"{name}{SUFFIX}")
    try:
        length = os.fstat(compressed).st_size
        if length < _GZIP_HEADER.size + _GZIP_TRAILER.size:
            return False
        os.lseek(compressed, length - _GZIP_TRAILER.size, os.SEEK_SET)
        trailer = os.read(compressed, _GZIP_TRAILER.size)
    finally:
        os.close(compressed)
    original = folder.open(name)
    checksum = size = 0
    try:
        while chunk := os.read(original, CHUNK_BYTES):
            checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
    finally:
        os.close(original)
    return trailer == _GZIP_TRAILER.pack(checksum, size & 0xFFFF_FFFF)


def _read_known_logs(folder: LogFolder) -> frozenset[str]:
    if folder.own_status(_KNOWN_LOGS) is None:
        return frozenset()
    try:
        descriptor = folder.open(_KNOWN_LOGS)
    except PermissionError as error:  # root's, of a time when the agent ran as root
        log.warning("cannot read the names of the logs of earlier packs from %s: %s", _KNOWN_LOGS, error.strerror)
        return frozenset()
    try:
        text = os.read(descriptor, _KNOWN_LOGS_BYTES).decode("ascii", "replace")
    finally:
        os.close(descriptor)
    return frozenset(filter(_LOG_NAME.fullmatch, text.splitlines()))


def _write_known_logs(folder: LogFolder, logs: Iterable[str]) -> None:
    new = f"{_KNOWN_LOGS}.new"
    with suppress(FileNotFoundError):
        folder.remove(new)
    descriptor = folder.create(new)
    try:
        os.write(descriptor, "".join(f"{name}\n" for name in sorted(logs)).encode())
    finally:
        os.close(descriptor)
    folder.rename(new, _KNOWN_LOGS)
