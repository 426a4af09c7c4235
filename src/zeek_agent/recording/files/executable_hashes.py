"""Hashes of new executables, in a thread of their own, so that reading a large file delays no event."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from importlib import import_module
from typing import Any, Final

from zeek_agent.recording.files.watch_messages import Change

sha256: Any
try:
    sha256 = import_module("_sha2").sha256  # since Python 3.12; hashlib would load OpenSSL, and with it 4 MB
except ImportError:
    try:
        sha256 = import_module("_sha256").sha256
    except ImportError:
        sha256 = import_module("hashlib").sha256

_WAITING_MAX: Final = 4_096
_OPEN_MAX: Final = 64
_CACHED_MAX: Final = 128
_WAIT_NS: Final = 30_000_000_000
"""A change waits no longer than this for the hash of its file."""
_CHUNK_BYTES: Final = 65_536
_RESTED_SECONDS: Final = 0.05
"""A file whose last change is older than this has another change time after the next one: a timer tick is shorter."""
_NICENESS: Final = 19


class ExecutableHashes:
    """Computes the SHA-256 of files of up to `bytes_max`; 0: of none.

    The thread has the lowest priority, and rests as long as it has worked: whoever keeps changing executables in a
    watched directory gets at most half of a processor, and only if nobody else wants it.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting: deque[Change] = deque()
        self._orders: queue.SimpleQueue[tuple[Change, int]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Change, bytes | None]] = queue.SimpleQueue()
        self._open: dict[int, Change] = {}
        self._opened = 0
        self._ended: list[Change] = []
        self._cache: dict[tuple[int, int, int, int], bytes] = {}

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="hashes", daemon=True)
        thread.start()
        assert thread.native_id is not None
        os.setpriority(os.PRIO_PROCESS, thread.native_id, _NICENESS)

    def add(self, change: Change) -> bool:
        """Note that the change waits for the hash of its file; False if it is too large, or too many wait."""
        if not self._bytes_max or change.status is None or change.status.size > self._bytes_max:
            return False
        if len(self._waiting) >= _WAITING_MAX:
            return False
        self._waiting.append(change)
        return True

    def next_to_open(self) -> Change | None:
        """The next change whose file is to be opened, for `start_hash` or `skip`; None: later."""
        return self._waiting.popleft() if self._waiting and self._opened < _OPEN_MAX else None

    def start_hash(self, change: Change, descriptor: int) -> None:
        """Hash an open file, which is closed then, for the change, which `results` returns."""
        self._open[id(change)] = change
        self._opened += 1
        self._orders.put((change, descriptor))

    def skip(self, change: Change) -> None:
        """Leave out a file that cannot be opened."""
        self._ended.append(change)

    def results(self, *, everything: bool = False) -> list[Change]:
        """The changes whose files have been hashed, or could not be, or not in time; `everything`: all others, too."""
        ended, self._ended = self._ended, []
        while not self._done.empty():
            change, digest = self._done.get()
            self._opened -= 1
            if self._open.pop(id(change), None) is not None:
                change.sha256 = digest
                ended.append(change)
        oldest = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _WAIT_NS
        for number, change in list(self._open.items()):
            if everything or change.at < oldest:
                del self._open[number]
                ended.append(change)
        while self._waiting and (everything or self._waiting[0].at < oldest):
            ended.append(self._waiting.popleft())
        return ended

    def is_busy(self) -> bool:
        """Whether there are results, or soon will be."""
        return bool(self._opened or self._waiting or self._ended)

    def oldest(self) -> int | None:
        """The boot time (ns) of the oldest change that waits for its hash."""
        changes = [*self._open.values(), *self._ended, *([self._waiting[0]] if self._waiting else ())]
        return min((change.at for change in changes), default=None)

    def _run(self) -> None:
        while True:
            change, descriptor = self._orders.get()
            begun = time.monotonic()
            try:
                digest = self._hash(descriptor)
            except OSError:
                digest = None  # the file system failed: the column is null
            finally:
                os.close(descriptor)
            self._done.put((change, digest))
            time.sleep(time.monotonic() - begun)

    def _hash(self, descriptor: int) -> bytes | None:
        """None if the file changed meanwhile, or is larger than it was."""
        before = _version(descriptor)
        is_rested = time.time() - before[2] / 1e9 > _RESTED_SECONDS
        if (known := self._cache.get(before)) is not None:
            return known
        state, size = sha256(), 0
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            state.update(chunk)
            size += len(chunk)
            if size > self._bytes_max:
                return None
        if _version(descriptor) != before:
            return None
        digest: bytes = state.digest()
        if is_rested:
            if len(self._cache) >= _CACHED_MAX:
                self._cache.clear()
            self._cache[before] = digest
        return digest


def _version(descriptor: int) -> tuple[int, int, int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size
