"""Limits on the files that one statement reads, and its omissions: counted by cause and reported."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from zeek_agent.config import LimitSettings
from zeek_agent.text import escaped, from_os

log = logging.getLogger(__name__)

FLOOR_BYTES: Final = 65_536
"""Bytes that a statement reads of any file, so that large files of other users cannot hide it."""
FLOOR_LINES: Final = 1_000
FLOORS: Final = 16
"""Files of one user that get as much after the statement's budget is used up. Root's are not counted."""
SHARE: Final = 2
"""One file gets at most this part of what its statement has left."""
PATHS_KEPT: Final = 10_000
CAUSES_KEPT: Final = 50
_REPEAT_AFTER: Final = 3600.0
_REMEMBERED: Final = 1_000
_NO_MORE: Final = ("", "")
_logged: dict[tuple[str, str], float] = {}


class Omission(StrEnum):
    """How a file was left out."""

    REFUSED = "refused"
    """A rule forbids it."""
    SKIPPED = "skipped"
    """It could not be read, or its file system may hang."""
    TRUNCATED = "truncated"
    """Only its beginning was read."""
    REPORTED = "reported"
    """It was read since `access.mode` is `report`, and will be refused without that."""


class Allowance(NamedTuple):
    """What may be read of one file."""

    bytes: int
    lines: int


@dataclass(frozen=True, slots=True)
class Omissions:
    """The files that a statement left out."""

    refused: int = 0
    skipped: int = 0
    truncated: int = 0
    reported: int = 0
    causes: frozenset[str] = frozenset()
    """Each cause, such as `refused: denied by access.paths_deny`."""
    examples: tuple[str, ...] = ()
    """For each cause a sentence with one of its paths."""
    unread: frozenset[str] = frozenset()
    """Paths, as in the rows of the result, whose rows are missing or incomplete; at most `PATHS_KEPT`."""
    all_paths: bool = True
    """Whether `unread` has them all."""

    def __bool__(self) -> bool:
        return bool(self.causes)

    def summary(self) -> str:
        """One line for people: how many files were left out, and an example of each cause."""
        counts = ", ".join(
            f"{count} {omission.value}"
            for omission, count in (
                (Omission.REFUSED, self.refused),
                (Omission.SKIPPED, self.skipped),
                (Omission.TRUNCATED, self.truncated),
                (Omission.REPORTED, self.reported),
            )
            if count
        )
        return f"files omitted: {counts}: {'; '.join(self.examples)}"


class FileReads:
    """The file budget and the omissions of one statement, used by one thread."""

    def __init__(self, limits: LimitSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or LimitSettings()
        self._clock = clock
        self._bytes = self.limits.files_bytes
        self._lines = self.limits.files_lines
        self._seconds = self.limits.files_time
        self._floors: Counter[int] = Counter()
        self._counts = dict.fromkeys(Omission, 0)
        self._causes: dict[str, str] = {}
        self._unread: set[str] = set()
        self._all_paths = True

    def allowance(self, user: int = 0) -> Allowance:
        """The bytes that may be read of the next file, which lies in a user's directory.

        The bound is its own limit and a share of the budget for all files. When little is left, a few files of each
        user still get some, so that neither large nor many files of one user hide those of others.
        """
        share = Allowance(self._bytes // SHARE, self._lines // SHARE)
        if share.bytes < FLOOR_BYTES or share.lines < FLOOR_LINES:
            if user:
                self._floors[user] += 1
            if self._floors[user] <= FLOORS:
                share = Allowance(max(share.bytes, FLOOR_BYTES), max(share.lines, FLOOR_LINES))
        return Allowance(min(self.limits.file_bytes, share.bytes), min(self.limits.file_lines, share.lines))

    def took(self, taken: Allowance) -> None:
        """Bytes and lines that a file took."""
        self._bytes = max(0, self._bytes - taken.bytes)
        self._lines = max(0, self._lines - taken.lines)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time of one read or computation against the statement's `limits.files_time`."""
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds -= self._clock() - begin

    @property
    def seconds_left(self) -> float:
        """Seconds that reading may still take; not above 0 when they are used up."""
        return self._seconds

    def leave_out(self, omission: Omission, path: str, cause: str) -> None:
        """Count a file that is left out, for a cause that does not name it, and log it (the same once an hour).

        A path is counted once, as long as `PATHS_KEPT` suffices. `path` is in the form of `os.fsdecode`.
        """
        if from_os(path) in self._unread and omission is not Omission.REPORTED:
            return  # another scan of the same statement has come by
        self._counts[omission] += 1
        key = f"{omission.value}: {cause}"
        if key not in self._causes and len(self._causes) < CAUSES_KEPT:
            self._causes[key] = f"{escaped(from_os(path))} {omission.value} ({cause})"
        if omission is not Omission.REPORTED:
            self._note_unread(path)
        _log_once(omission, path, cause)

    def _note_unread(self, path: str) -> None:
        if len(self._unread) < PATHS_KEPT:
            self._unread.add(from_os(path))
        else:
            self._all_paths = False

    def omissions(self) -> Omissions:
        """What was left out until now."""
        if not self._causes:
            return _NOTHING
        return Omissions(
            refused=self._counts[Omission.REFUSED],
            skipped=self._counts[Omission.SKIPPED],
            truncated=self._counts[Omission.TRUNCATED],
            reported=self._counts[Omission.REPORTED],
            causes=frozenset(self._causes),
            examples=tuple(self._causes.values()),
            unread=frozenset(self._unread),
            all_paths=self._all_paths,
        )


_NOTHING: Final = Omissions()


def _log_once(omission: Omission, path: str, cause: str) -> None:
    now = time.monotonic()
    if now - _logged.get((path, cause), -_REPEAT_AFTER) < _REPEAT_AFTER:
        return
    if len(_logged) >= _REMEMBERED and not _forget_old(now):
        return
    _logged[path, cause] = now
    level = logging.WARNING if omission is Omission.REPORTED else logging.INFO
    log.log(level, "%s %s: %s", path, omission.value, cause)


def _forget_old(now: float) -> bool:
    """Whether more may be logged, because users control the number of skipped files; the end is logged once."""
    for key, logged in list(_logged.items()):
        if now - logged >= _REPEAT_AFTER:
            _logged.pop(key, None)
    if len(_logged) < _REMEMBERED:
        return True
    if _NO_MORE not in _logged:
        _logged[_NO_MORE] = now
        log.warning("more than %d files were omitted within an hour: others are only counted", _REMEMBERED)
    return False
