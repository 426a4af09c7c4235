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

from zeek_agent import platforms
from zeek_agent.config.sections import LimitSettings
from zeek_agent.text import escaped, from_os

log = logging.getLogger(__name__)

FLOOR_BYTES: Final = 65_536
"""Bytes that a statement may read of any file, so that large files of other users cannot hide it."""
FLOOR_LINES: Final = 1_000
"""The same for lines: more than configuration files have."""
FLOOR_FILES: Final = 16
"""Files of one user that get the minimum after the statement's budget is used up. Root's are not counted."""
BUDGET_SHARE: Final = 2
"""One file gets at most this fraction of its statement's remaining budget."""
PATHS_KEPT: Final = 10_000
"""Bounds the memory of the paths of unread files; with more, rows of any path may be missing."""
CAUSES_KEPT: Final = 50
"""Far more than there are, without the names of files."""
_REPEAT_AFTER_SECONDS: Final = 3600.0
"""A file that is skipped again and again is logged once an hour."""
_LOGGED_FILES_MAX: Final = 1_000
"""Bounds the log and the memory, because users control the number of skipped files."""
_LIMIT_LOGGED: Final = ("", "")
_logged: dict[tuple[str, str], float] = {}


class Omission(StrEnum):
    """The kind of omission of a file."""

    REFUSED = "refused"
    """A rule forbids it."""
    SKIPPED = "skipped"
    """It was not readable, or its file system may hang."""
    TRUNCATED = "truncated"
    """Only its beginning was read."""
    REPORTED = "reported"
    """It was read because `access.mode` is `report`, and will be refused otherwise."""


class Allowance(NamedTuple):
    """How much of one file may be read."""

    bytes: int
    lines: int


@dataclass(frozen=True, slots=True)
class Omissions:
    """The files that a statement omitted."""

    refused: int = 0
    skipped: int = 0
    truncated: int = 0
    reported: int = 0
    causes: frozenset[str] = frozenset()
    """Each cause, such as `refused: denied by access.paths_deny`."""
    examples: tuple[str, ...] = ()
    """For each cause a sentence with one of its paths."""
    unread: frozenset[str] = frozenset()
    """Paths of missing or incomplete rows, as rows of the result spell them; at most `PATHS_KEPT`."""
    all_paths: bool = True
    """Whether `unread` is complete."""

    def __bool__(self) -> bool:
        return bool(self.causes)

    def summary(self) -> str:
        """One line of text: the number of omitted files, and an example of each cause."""
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
        self._unread: dict[str, Omission] = {}
        self._all_paths = True

    def allowance(self, user: int = 0) -> Allowance:
        """How much may be read of the next file, which is in a user's directory.

        The bounds are the limit per file and a share of the budget for all files. When little is left, a few files of
        each user still get the minimum, so that neither large nor many files of one user hide those of others.
        """
        share = Allowance(self._bytes // BUDGET_SHARE, self._lines // BUDGET_SHARE)
        if share.bytes < FLOOR_BYTES or share.lines < FLOOR_LINES:
            if user:
                self._floors[user] += 1
            if self._floors[user] <= FLOOR_FILES:
                share = Allowance(max(share.bytes, FLOOR_BYTES), max(share.lines, FLOOR_LINES))
        return Allowance(min(self.limits.file_bytes, share.bytes), min(self.limits.file_lines, share.lines))

    def charge(self, taken: Allowance) -> None:
        """Charge the bytes and lines of a file to the budget."""
        self._bytes = max(0, self._bytes - taken.bytes)
        self._lines = max(0, self._lines - taken.lines)

    @contextmanager
    def measure_time(self) -> Iterator[None]:
        """Charge the time of one read or computation to the statement's `limits.files_time`."""
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds -= self._clock() - begin

    @property
    def seconds_left(self) -> float:
        """Seconds that reading may still take; 0 or less when they are used up."""
        return self._seconds

    def leave_out(self, omission: Omission, path: str, cause: str) -> None:
        """Count an omitted file by a cause that does not name it, and log it (once an hour).

        A path is counted once, within the limit of `PATHS_KEPT`. `path` is in the form of `os.fsdecode`.
        """
        if from_os(path) in self._unread and omission is not Omission.REPORTED:
            return  # counted by another scan of the same statement
        self._counts[omission] += 1
        key = f"{omission.value}: {cause}"
        if key not in self._causes and len(self._causes) < CAUSES_KEPT:
            shown = escaped(from_os(platforms.HERE.shown_path(path))) or "''"
            self._causes[key] = f"{shown} {omission.value} ({cause})"
        if omission is not Omission.REPORTED:
            self._note_unread(from_os(path), omission)
        _log_once(omission, path, cause)

    @property
    def omitted(self) -> int:
        """The number of omissions until now."""
        return sum(self._counts.values())

    def include(self, other: FileReads) -> None:
        """Add the omissions of other reads of the same statement."""
        for omission, count in other._counts.items():
            self._counts[omission] += count
        for path, omission in other._unread.items():
            if path in self._unread:
                self._counts[omission] -= 1
            else:
                self._note_unread(path, omission)
        for key, example in other._causes.items():
            if len(self._causes) < CAUSES_KEPT:
                self._causes.setdefault(key, example)
        self._all_paths = self._all_paths and other._all_paths

    def _note_unread(self, path: str, omission: Omission) -> None:
        if len(self._unread) < PATHS_KEPT:
            self._unread[path] = omission
        else:
            self._all_paths = False

    def omissions(self) -> Omissions:
        """The omissions until now."""
        if not self._causes:
            return _NO_OMISSIONS
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


_NO_OMISSIONS: Final = Omissions()


def _log_once(omission: Omission, path: str, cause: str) -> None:
    now = time.monotonic()
    if now - _logged.get((path, cause), -_REPEAT_AFTER_SECONDS) < _REPEAT_AFTER_SECONDS:
        return
    if len(_logged) >= _LOGGED_FILES_MAX and not _may_log(now):
        return
    _logged[path, cause] = now
    level = logging.WARNING if omission is Omission.REPORTED else logging.INFO
    log.log(level, "%s %s: %s", path, omission.value, cause)


def _may_log(now: float) -> bool:
    """Whether more may be logged, because users control the number of skipped files; the end is logged once."""
    for key, logged in list(_logged.items()):
        if now - logged >= _REPEAT_AFTER_SECONDS:
            _logged.pop(key, None)
    if len(_logged) < _LOGGED_FILES_MAX:
        return True
    if _LIMIT_LOGGED not in _logged:
        _logged[_LIMIT_LOGGED] = now
        log.warning("more than %d files were omitted within an hour: others are only counted", _LOGGED_FILES_MAX)
    return False
