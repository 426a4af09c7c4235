"""Lines of a syslog daemon's files, for hosts without a journal.

A line contains time, program, process id and message (RFC 3164 §4.1, or with an RFC 3339 timestamp, which is rsyslog's
default since version 8.2210 of Debian), and level and facility only if the priority is written too.
"""

from __future__ import annotations

import os
import re
import time
from calendar import isleap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zeek_agent.masking.log_messages import masked_message
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.periodic import Periodic
from zeek_agent.recording.source import Source
from zeek_agent.recording.system_log.file_tail import BEGINNING, FilePosition, FileTail, regular_file_status
from zeek_agent.recording.system_log.log_entry import SYSTEM_LOGS_EVENTS, SystemLogEntry, bounded
from zeek_agent.text import from_bytes

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.source import PositionReader, Sink

FILES: Final = (("/var/log/syslog", "/var/log/messages"), ("/var/log/auth.log", "/var/log/secure"))
"""The first existing file of each pair: the log of all programs, and the authentication log."""

_INTERVAL_SECONDS: Final = 1.0
"""Interval of reading new lines, which queries also trigger."""
_BATCH_ROWS: Final = 1_000
"""Rows passed on at a time, so that a large backlog takes little memory."""
_DAY_SECONDS: Final = 86_400.0
_CURSOR: Final = re.compile(r"\d+:\d+(,\d+:\d+)*")
_AHEAD_SECONDS: Final = 1.0
"""A time that is so little in the future was rounded."""
_LEAP_DAY: Final = (2, 29)
_MONTHS: Final = {
    name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}
_HEADER: Final = re.compile(
    rb"(?:<(?P<priority>\d{1,3})>)?"
    rb"(?:(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)"
    rb"|(?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d))"
    rb" \S+ "
    rb"(?:(?P<tag>[^\s:\[]{1,256})(?:\[(?P<pid>\d{1,9})\])?:(?: |$))?"
)


class Syslog(Source):
    """Follows log files by reading them once a second, and whenever a query runs."""

    kind = "system_logs"
    backend = "syslog"

    def __init__(
        self, settings: SourceSettings, files: Sequence[Sequence[str]] = FILES, masker: Masker | None = None
    ) -> None:
        """`masker` masks secrets in command lines that messages quote."""
        super().__init__()
        self._masker = masker or Masker()
        self._choices = [(name,) for name in settings.syslog_files] or files
        self._own = os.getpid() if settings.ignore_self else None
        self._tails: list[FileTail] = []
        self._younger: dict[FileTail, float] = {}
        self._periodic: Periodic | None = None

    def probe(self) -> str | None:
        files = self._files()
        present = [file for file in files if regular_file_status(file)]
        if not present:
            return f"neither {' nor '.join(name for choice in self._choices for name in choice)} exists as a file"
        denied = [str(file) for file in present if not os.access(file, os.R_OK)]
        return f"{' and '.join(denied)} is not readable; it requires root or the group adm" if denied else None

    def resume(self, recorded: PositionReader) -> None:
        past = recorded(SYSTEM_LOGS_EVENTS)
        places = past.cursor.split(",") if past.cursor is not None and _CURSOR.fullmatch(past.cursor) else []
        known = [FilePosition(*map(int, place.split(":"))) for place in places]
        if past.cursor is not None or not self._tails:
            self._younger.clear()
            self._tails = [self._tail(file, known, past.until) for file in self._files()]

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._tails = self._tails or [FileTail(file) for file in self._files()]
        self._periodic = Periodic(self._scan, _INTERVAL_SECONDS, self.failed)
        self._periodic.start()

    def stop(self) -> None:
        if self._periodic is not None:
            periodic, self._periodic = self._periodic, None
            periodic.stop()
            try:
                periodic.now()
            finally:
                for tail in self._tails:
                    tail.close()

    def drain(self) -> None:
        """Read new lines now."""
        if self._periodic is not None:
            self._periodic.now()

    def _files(self) -> list[Path]:
        """The first existing file of each choice, else the first one, which may be created later."""
        return [
            next((file for file in map(Path, choice) if file.exists()), Path(choice[0])) for choice in self._choices
        ]

    def _tail(self, file: Path, known: Sequence[FilePosition], until: float | None) -> FileTail:
        """Continue at a known position; in another file, with all lines younger than the recorded ones."""
        for position in known:
            tail = FileTail(file, position)
            if tail.is_known():
                return tail
        if until is None:
            return FileTail(file)
        tail = FileTail(file, BEGINNING)
        self._younger[tail] = until
        return tail

    def _scan(self) -> None:
        for tail in self._tails:
            try:
                self._record(tail, self._younger.get(tail, 0.0))
            except FileNotFoundError:
                continue
            self._younger.pop(tail, None)

    def _record(self, tail: FileTail, since: float) -> None:
        """Record new lines that are younger than `since`."""
        rows: list[SystemLogEntry] = []
        now = time.time()
        try:
            for line in tail.lines():
                entry = log_entry(line, now)
                if entry.time > since and (self._own is None or entry.pid != self._own):
                    message = masked_message(entry.message or "", self._masker)
                    rows.append(replace(entry, cursor=self._cursor(), message=message))
                if len(rows) >= _BATCH_ROWS:
                    self._hand_over(rows)
                    rows = []
        finally:
            self._hand_over(rows)

    def _hand_over(self, rows: list[SystemLogEntry]) -> None:
        if rows:
            self.counters.received += len(rows)
            self._sink(SYSTEM_LOGS_EVENTS, rows)

    def _cursor(self) -> str:
        return ",".join(f"{tail.position.inode}:{tail.position.offset}" for tail in self._tails)


def log_entry(line: bytes, now: float) -> SystemLogEntry:
    """The row of a line; a line that is not in syslog format is a message logged `now`."""
    header = _HEADER.match(line)
    if header is None:
        return SystemLogEntry(now, None, None, from_bytes(bounded(line)))
    tag = from_bytes(header["tag"]) if header["tag"] else None
    priority = int(header["priority"]) if header["priority"] else None
    return SystemLogEntry(
        time=_time(header, now),
        process=tag,
        level=None if priority is None else str(priority & 7),
        message=from_bytes(bounded(line[header.end() :])),
        pid=int(header["pid"]) if header["pid"] else None,
        identifier=tag,
        facility=None if priority is None else priority >> 3,
    )


def _time(header: re.Match[bytes], now: float) -> float:
    """Seconds since the epoch, at most `now`, because retention depends on it; `now` for a nonexistent day.

    A time without a zone is local. Without a year, it is the latest such time that is not in the future. An hour that
    clocks repeat at the end of summer time is the second one as soon as that has begun.
    """
    try:
        if header["iso"]:
            return min(max(_latest(datetime.fromisoformat(header["iso"].decode()), now), 0.0), now)
        year = datetime.fromtimestamp(now).year
        month = _MONTHS[header["month"]]
        day, hour, minute, second = (int(header[name]) for name in ("day", "hour", "minute", "second"))
        if (month, day) == _LEAP_DAY:
            year -= next(years for years in range(8) if isleap(year - years))
        written = _latest(datetime(year, month, day, hour, minute, second), now)
        if written > now + _DAY_SECONDS:
            written = datetime(year - 1, month, day, hour, minute, second).timestamp()
        return min(written, now)
    except (KeyError, ValueError, OverflowError):
        return now


def _latest(written: datetime, now: float) -> float:
    """A local time in seconds since the epoch; of two with this time, the latest that is not in the future."""
    first, second = written.timestamp(), written.replace(fold=1).timestamp()
    return second if first < second <= now + _AHEAD_SECONDS else first
