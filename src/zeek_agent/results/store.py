"""The stored results of queries that report differences, for the main process.

Workers compare (`comparison.compare`) and write delta files; this applies them. No result is held in memory, only
digests and sizes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from zeek_agent.results.delta import DeltaFile, Trailer
from zeek_agent.results.result_file import NewerResultsError, ResultFile
from zeek_agent.results.state import (
    QUERY_BYTES_MAX,
    Basis,
    DamagedResultError,
    OverBudgetError,
    ResultState,
    StaleDeltaError,
    UnavailableError,
    pack,
)

if TYPE_CHECKING:
    from zeek_agent.events.scratch import ScratchDirectory

__all__ = ["NewerResultsError", "ResultStore", "Usage"]

log = logging.getLogger(__name__)

KEPT_SECONDS: Final = 30 * 86_400.0
"""How long the result of a query that is not installed is kept."""
_TOUCHED_SECONDS: Final = 86_400.0
_MEMORY_BYTES: Final = 33_554_432
_DAMAGED: Final = (apsw.CorruptError, apsw.NotADBError)


@dataclass(frozen=True, slots=True)
class Usage:
    """Sizes of stored results in bytes; `disk_bytes` includes the write-ahead log."""

    bytes: int
    bytes_max: int
    disk_bytes: int
    queries: Mapping[str, ResultState] = field(repr=False)
    """By key: `bytes` and `rows` of each query's result."""


class ResultStore:
    """Stored results in an SQLite file at `path`; in memory when `path` is None or the file cannot be used.

    In the latter case, or when a damaged file was moved aside, `notice` says so in one line and it is logged. All
    methods can be called from any thread. Those that raise UnavailableError write to the disk and may take seconds:
    call them outside the event loop. The others never wait for the disk. Results take at most `bytes_max`, one query's
    at most `query_bytes_max`. Recipients share `bytes_max` equally when it is short: one that needs room within its
    share gets that of recipients with more than theirs. Raises NewerResultsError, and leaves the file as it is, when a
    later agent wrote it.
    """

    def __init__(
        self,
        path: Path | None,
        bytes_max: int,
        *,
        query_bytes_max: int = QUERY_BYTES_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.notice: str | None = None
        self._bytes_max = bytes_max
        self._query_bytes_max = query_bytes_max
        self._clock = clock
        self._writing = threading.RLock()
        """Held while the file is used."""
        self._figures = threading.Lock()
        """Held for a moment, to look at or change `_states`, `_reserved` and `_owners`."""
        self._states: dict[str, ResultState] = {}
        self._reserved: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._scratch: ScratchDirectory | None = None
        self._was_damaged = False
        self._closed = False
        self._path = path
        self._open(path)

    # Without waiting for the disk

    @property
    def in_memory(self) -> bool:
        """Whether results end with this process."""
        return self._scratch is not None

    @property
    def took_snapshots(self) -> bool:
        """Whether the snapshots of an event store were taken over."""
        return self._file.took_snapshots

    def state(self, key: str) -> ResultState | None:
        with self._figures:
            return self._states.get(key)

    def digest(self, key: str) -> bytes | None:
        """The digest of the stored result; None if there is none."""
        state = self.state(key)
        return None if state is None else state.digest

    def claim(self, key: str, owner: str) -> None:
        """The result of the query `key` counts towards the share of this recipient, until `release` or `forget`.

        It continues to do so while a result is stored.
        """
        with self._figures:
            self._owners[key] = owner

    def basis(self, key: str) -> Basis:
        """What a worker needs to compare a result of the query `key`."""
        with self._figures:
            return Basis(self._file.uri, self._file.hash_key, self._states.get(key), self._left(key))

    def set_limit(self, bytes_max: int) -> None:
        """Change the limit on all stored results. What exceeds it goes as soon as a query needs room."""
        self._bytes_max = min(bytes_max, _MEMORY_BYTES) if self.in_memory else bytes_max

    def usage(self) -> Usage:
        with self._figures:
            states = dict(self._states)
        used = sum(state.stored_bytes for state in states.values())
        return Usage(used, self._bytes_max, self._file.disk_bytes(), states)

    def admit(self, key: str, descriptor: int, length: int, expected: bytes | None) -> Trailer:
        """Check what a delta says of itself, and reserve room for it, before its rows are delivered.

        The room is kept until `apply`, `release` or `forget`. Raises StaleDeltaError, OverBudgetError,
        InvalidDeltaError, OSError.
        """
        delta = DeltaFile(descriptor, length)
        with self._figures:
            self._check_current(key, expected)
            size = _size(delta.trailer)
            self._check_budget(key, size)
            self._reserved[key] = size
        return delta.trailer

    def release(self, key: str) -> None:
        """Reserve no more room for a delta that will not be applied."""
        with self._figures:
            self._reserved.pop(key, None)
            if key not in self._states:
                self._owners.pop(key, None)

    # Writing

    def apply(
        self, key: str, descriptor: int, length: int, expected: bytes | None, *, durable: bool = True
    ) -> ResultState:
        """Replace the stored result by that of a delta, whose rows the recipient has; all or nothing.

        `expected` is the digest of the result that the delta belongs to. A result that is not `durable` is dropped at
        the next start. The stored result stays after UnavailableError, when the file cannot be written at the moment
        and the delta can be applied later, InvalidDeltaError and StaleDeltaError. After OverBudgetError it is dropped,
        because it is no longer what the recipient has, and the query starts over.
        """
        with self._used("save a result to"):
            delta = DeltaFile(descriptor, length)
            trailer = delta.trailer
            with self._figures:
                self._check_current(key, expected)
                old = self._states.get(key)
            try:
                with self._figures:
                    self._check_budget(key, _size(trailer))
            except OverBudgetError:
                self.forget(key)
                raise
            self._make_room(key, _size(trailer))
            with self._transaction():
                if old is None or trailer.replaces or trailer.columns != old.columns:
                    if old is not None:
                        self._file.remove(old.query)
                    query = self._file.create(key, trailer.columns, durable)
                else:
                    query = old.query
                self._file.update(query, delta, self._clock(), self._owners.get(key, ""))
                new = self._file.state(query)
            with self._figures:
                self._states[key] = new
                self._reserved.pop(key, None)
            return new

    def forget(self, key: str) -> None:
        """Drop a stored result, so that the query starts over. Raises UnavailableError."""
        with self._used("drop a result from"):
            with self._figures:
                self._reserved.pop(key, None)
                old = self._states.get(key)
            if old is None:
                return
            with self._transaction():
                self._file.remove(old.query)
            with self._figures:
                del self._states[key]
                self._owners.pop(key, None)

    def rename(self, key: str, new_key: str) -> bool:
        """Continue a result under another key, that of a recipient's present identity. False if there is none.

        Nothing happens where the new key has a result. Raises UnavailableError.
        """
        with self._used("rename a result in"):
            with self._figures:
                state = self._states.get(key)
                if state is None or new_key in self._states:
                    return False
            with self._transaction():
                self._file.rename(state.query, new_key)
            with self._figures:
                self._states[new_key] = self._states.pop(key)
                self._owners.setdefault(new_key, self._owners.pop(key, ""))
            return True

    def expire(self, installed: Collection[str]) -> None:
        """Drop results of queries that have not been installed for 30 days. `installed` are the keys of those that are.

        To be called at least once a day. Raises UnavailableError.
        """
        with self._used("drop old results from"):
            now, last_use = self._clock(), self._file.last_use()
            with self._figures:
                states = dict(self._states)
            old = [key for key, used in last_use.items() if key not in installed and used < now - KEPT_SECONDS]
            touched = [
                state.query
                for key, state in states.items()
                if key in installed and last_use.get(key, now) < now - _TOUCHED_SECONDS
            ]
            if touched:
                with self._transaction():
                    self._file.touch(touched, now)
            for key in old:
                self.forget(key)
            self._file.shrink()

    def check(self, key: str) -> bool:
        """Whether the stored result of a query is intact, which a worker doubts; if not, the query starts over.

        A damaged file is replaced by an empty one. Raises UnavailableError.
        """
        with self._used("check"):
            if self._file.is_intact(self.state(key)):
                return True
            log.error("stored results: that of a query does not match its digest: the query starts over")
            self.forget(key)
        return False

    def take_snapshots(self, results: Mapping[str, float]) -> None:
        """The results of these keys come from the event store, where they were used last at these times."""
        with self._used("save a result to"):
            with self._transaction():
                for key, used in results.items():
                    if (state := self.state(key)) is not None:
                        self._file.touch([state.query], used)
            self._file.set_took_snapshots()

    def close(self) -> None:
        with self._writing:
            if self._closed:
                return
            self._closed = True
            try:
                self._file.close()
            finally:
                if self._scratch is not None:
                    self._scratch.close()

    # Budget; called with `_figures` held

    def _left(self, key: str) -> int:
        """Bytes that the result of one query may take: what others leave, or its recipient's share of the budget."""
        taken: Counter[str] = Counter()
        for other in self._states.keys() | self._reserved.keys():
            if other != key:
                stored = self._states[other].stored_bytes if other in self._states else 0
                taken[self._owners.get(other, "")] += max(stored, self._reserved.get(other, 0))
        owner = self._owners.get(key, "")
        share = self._bytes_max // len(taken.keys() | {owner})
        return max(0, min(self._query_bytes_max, max(self._bytes_max - taken.total(), share - taken[owner])))

    def _make_room(self, key: str, size: int) -> None:
        """Drop results of recipients with more than their share, the largest first, until this one fits."""
        while (victim := self._result_to_drop(key, size)) is not None:
            log.warning(
                "stored results: no room (limits.state_bytes): a query of %s starts over, because that recipient's "
                "results take more than an equal share",
                self._owners.get(victim) or "an unknown recipient",
            )
            self.forget(victim)

    def _result_to_drop(self, key: str, size: int) -> str | None:
        """The largest result of the recipient with the most bytes; None if there is room, or nobody has too much."""
        with self._figures:
            stored = {other: state.stored_bytes for other, state in self._states.items() if other != key}
            owners = {other: self._owners.get(other, "") for other in stored}
            owner = self._owners.get(key, "")
            if sum(stored.values()) + size <= self._bytes_max:
                return None
            taken: Counter[str] = Counter()
            for other, taken_bytes in stored.items():
                taken[owners[other]] += taken_bytes
            share = self._bytes_max // len(taken.keys() | {owner})
            del taken[owner]
            largest = max(taken, key=taken.__getitem__, default=None)
            if largest is None or taken[largest] <= share:
                return None
            return max((other for other in stored if owners[other] == largest), key=stored.__getitem__)

    def _check_budget(self, key: str, size: int) -> None:
        if size > (left := self._left(key)):
            raise OverBudgetError(
                f"its result takes {size} bytes to store, more than the {left} left for it: select fewer rows or "
                "columns, or raise limits.state_bytes"
            )

    def _check_current(self, key: str, expected: bytes | None) -> None:
        state = self._states.get(key)
        if (None if state is None else state.digest) != expected:
            raise StaleDeltaError("the stored result is not the one that the new result was compared with")

    # The file

    @contextmanager
    def _used(self, action: str) -> Iterator[None]:
        """Use of the file by this thread alone. What goes wrong is raised as a ResultStateError."""
        with self._writing:
            if self._closed:
                raise UnavailableError("the stored results are closed")
            try:
                yield
            except _DAMAGED as error:
                self._replace_damaged(error)
                raise StaleDeltaError(f"{self.notice}: the query starts over") from error
            except apsw.ConnectionClosedError as error:
                self._open(self._path)
                raise UnavailableError(f"cannot {action} {self._file.path}: it was opened again") from error
            except (apsw.Error, OSError) as error:
                raise UnavailableError(f"cannot {action} {self._file.path}: {error}") from error

    def _open(self, path: Path | None) -> None:
        """Open the file, else a new one in place of a damaged one, else one in memory."""
        if path is not None:
            try:
                try:
                    self._adopt(ResultFile(path))
                except (*_DAMAGED, DamagedResultError) as error:
                    self._move_aside(path, error)
                    self._adopt(ResultFile(path))
            except (apsw.Error, OSError) as error:
                self._log_notice(f"stored results: cannot use {path} ({error}): they are kept in memory only")
            else:
                return
        self._open_in_memory()

    def _open_in_memory(self) -> None:
        from zeek_agent.events.scratch import ScratchDirectory

        self._scratch = ScratchDirectory()
        self._bytes_max = min(self._bytes_max, _MEMORY_BYTES)
        self._adopt(ResultFile(self._scratch.path / "results.db"))

    def _adopt(self, file: ResultFile) -> None:
        try:
            states, owners = file.states(), file.owners()
        except BaseException:
            file.close()
            raise
        with self._figures:
            self._file, self._states, self._owners = file, states, owners
            self._reserved.clear()

    def _replace_damaged(self, error: Exception) -> None:
        """Start over with an empty file; in memory when that is the second time."""
        path = self._file.path
        self._file.close()
        if self._scratch is not None or self._was_damaged:
            self._log_notice(f"stored results: {path} is damaged ({error}): they are kept in memory only")
            if self._scratch is not None:
                self._scratch.close()
            self._open_in_memory()
            return
        self._was_damaged = True
        try:
            self._move_aside(path, error)
        except OSError as failure:
            self._log_notice(f"stored results: cannot replace {path} ({failure}): they are kept in memory only")
            self._open_in_memory()
        else:
            self._open(path)

    def _move_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        for suffix in ("", "-wal", "-shm"):
            damaged = Path(f"{path}{suffix}")
            if damaged.exists():
                damaged.replace(f"{aside}{suffix}")
        self._log_notice(
            f"stored results: {path} is damaged ({error}): moved to {aside}, queries that report differences start over"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction, in a copy of the file if readers block this one.

        One that is stuck keeps the write-ahead log from being reused, a hostile one may hold the lock of writers.
        """
        if not self._file.may_write():
            self._renew()
        with ExitStack() as transaction:
            try:
                transaction.enter_context(self._file.transaction())
            except (apsw.BusyError, apsw.LockedError):
                self._renew()
                transaction.enter_context(self._file.transaction())
            yield

    def _renew(self) -> None:
        log.warning("stored results: readers block %s: replacing it by a copy", self._file.path)
        renewed = self._file.renewed()
        with self._figures:
            self._file = renewed

    def _log_notice(self, notice: str) -> None:
        self.notice = notice
        log.error(notice)


def _size(trailer: Trailer) -> int:
    return trailer.row_bytes + len(pack(trailer.columns)) + trailer.unread_bytes
