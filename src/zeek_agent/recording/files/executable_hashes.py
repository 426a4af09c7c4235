"""Hashes of new executables, in a thread of their own, so that reading a large file delays no event."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
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

_PENDING_MAX: Final = 64
_CACHED_MAX: Final = 128
_WAIT_NS: Final = 30_000_000_000
"""A change waits no longer than this for the hash of its file."""
_CHUNK_BYTES: Final = 65_536


class ExecutableHashes:
    """Computes the SHA-256 of files of up to `bytes_max`; 0: of none."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._orders: queue.SimpleQueue[tuple[Change, int]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Change, bytes | None]] = queue.SimpleQueue()
        self._pending: dict[int, Change] = {}
        self._cache: dict[tuple[int, int, int, int], bytes] = {}
        self.finished, self._finish = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Readable when there are results."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="hashes", daemon=True).start()

    def wants(self, size: int) -> bool:
        """Whether a file of that size is hashed now."""
        return size <= self._bytes_max and self._bytes_max > 0 and len(self._pending) < _PENDING_MAX

    def add(self, change: Change, descriptor: int) -> None:
        """Hash an open file, which is closed then, for the change, which `results` returns."""
        self._pending[id(change)] = change
        self._orders.put((change, descriptor))

    def results(self) -> list[Change]:
        """The changes whose files have been hashed, or could not be."""
        ended = []
        with contextlib.suppress(BlockingIOError):
            os.read(self.finished, 4_096)
        while not self._done.empty():
            change, digest = self._done.get()
            if self._pending.pop(id(change), None) is not None:
                change.sha256 = digest
                ended.append(change)
        oldest = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _WAIT_NS
        for number, change in list(self._pending.items()):
            if change.at < oldest:
                del self._pending[number]
                ended.append(change)
        return ended

    def oldest(self) -> int | None:
        """The boot time (ns) of the oldest change that waits for its hash."""
        return min((change.at for change in self._pending.values()), default=None)

    def _run(self) -> None:
        while True:
            change, descriptor = self._orders.get()
            try:
                digest = self._hash(descriptor)
            except OSError:
                digest = None  # the file system failed: the column is null
            finally:
                os.close(descriptor)
            self._done.put((change, digest))
            try:
                os.write(self._finish, b"\0")
            except BlockingIOError:
                continue  # there are unread results

    def _hash(self, descriptor: int) -> bytes | None:
        """None if the file changed meanwhile, or is larger than it was."""
        before = _version(descriptor)
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
        if len(self._cache) >= _CACHED_MAX:
            self._cache.clear()
        digest: bytes = state.digest()
        self._cache[before] = digest
        return digest


def _version(descriptor: int) -> tuple[int, int, int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size
