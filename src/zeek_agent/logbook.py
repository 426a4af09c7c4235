"""The agent's own log: standard error or a file, and the last entries for the table zeek_agent_log.

One line per record: control characters and raw bytes, which names from the host may contain, are escaped. A line, and
an entry's message, have at most `LINE_BYTES`, because logged text may come from someone who wants to fill the disk.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from zeek_agent import ownership
from zeek_agent.errors import UsageError
from zeek_agent.text import escaped

if TYPE_CHECKING:
    from zeek_agent.config.sections import LogSettings

LINE_BYTES: Final = 4096
"""Maximum of a line with its newline, and of a message in the table."""

_NOTICE: Final = "… [{:,} bytes truncated] …"
_NOTICE_BYTES: Final = 40
"""Space for the notice with any number."""
_HEAD_SHARE: Final = 0.75
"""The beginning tells what happened, and the end of a traceback the reason."""
_TRACEBACK = logging.Formatter()
_SURROGATE = re.compile("[\ud800-\udfff]")


class LineFormatter(logging.Formatter):
    """`2026-01-01T12:00:00.123Z warning zeek_agent.identity: message`; a traceback is part of the line."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        start = escaped(f"{at}.{int(record.msecs):03d}Z {record.levelname.lower()} {record.name}: ")
        return start + cut(_message(record), LINE_BYTES - len(start.encode()) - 1, escaped)


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current standard error: a live view replaces it to write above the view."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class AgentLogFile(logging.StreamHandler[TextIO]):
    """Appends to the agent's own log file, which is reopened if it was moved, for example by logrotate.

    While it cannot be written, lines go to standard error. Raises OSError if it cannot be opened at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failing = False
        super().__init__(self._opened())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._is_in_place():
                moved, self.stream = self.stream, self._opened()
                moved.close()
        except OSError:
            self.handleError(record)
        else:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exception()
        reason = error.strerror if isinstance(error, OSError) else error
        if not self._failing:
            self._failing = True
            notice = f"zeek-agent: log.file: cannot write {self._path}: {reason}; logging here instead"
            sys.stderr.write(f"{escaped(notice)}\n")
        sys.stderr.write(f"{self.format(record)}\n")

    def close(self) -> None:
        super().close()
        self.stream.close()

    def _opened(self) -> TextIO:
        stream = os.fdopen(ownership.open_log(self._path), "a", encoding="utf-8")
        self._failing = False
        return stream

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.stream.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


class LogLine(NamedTuple):
    """A row of `zeek_agent_log`, which describes the columns. `time` is in seconds since the epoch."""

    time: float
    level: str
    component: str
    message: str


class RecentLines(logging.Handler):
    """Keeps the last entries in memory."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self._entries: deque[LogLine] = deque(maxlen=entries)

    def emit(self, record: logging.LogRecord) -> None:
        message = cut(_message(record), LINE_BYTES)
        self._entries.append(LogLine(record.created, record.levelname.lower(), record.name, message))

    def rows(self) -> Iterator[LogLine]:
        """The oldest first."""
        self.acquire()
        try:
            return iter(list(self._entries))
        finally:
            self.release()


def cut(text: str, most: int, render: Callable[[str], str] = str) -> str:
    """The text rendered by `render` if it has at most that many bytes, otherwise without a part, whose size is given.

    `render` is also applied to parts, so it must render each character independently.
    """
    if len(text) <= most and len((whole := render(text)).encode()) <= most:
        return whole
    room = most - _NOTICE_BYTES
    head = _fitting(text, int(room * _HEAD_SHARE), render)
    tail = _fitting(reversed(text), int(room * (1 - _HEAD_SHARE)), render)
    left_out = len(text[head : len(text) - tail].encode())
    return render(text[:head]) + _NOTICE.format(left_out) + render(text[len(text) - tail :])


def _fitting(characters: Iterable[str], room: int, render: Callable[[str], str]) -> int:
    """How many of the characters fit."""
    count = 0
    for character in characters:
        room -= len(render(character).encode())
        if room < 0:
            break
        count += 1
    return count


def _message(record: logging.LogRecord) -> str:
    """The message followed by a traceback, as text that SQLite can store."""
    try:
        message = record.getMessage()
    except (TypeError, ValueError) as error:
        message = f"{record.msg!r} with {record.args!r}: {error}"
    if record.exc_info:
        message += " | " + " | ".join(_TRACEBACK.formatException(record.exc_info).splitlines())
    return _SURROGATE.sub(_raw_byte, message)


def _raw_byte(match: re.Match[str]) -> str:
    """A byte of a file name that Python could not decode, in the form of `zeek_agent.text`."""
    code = ord(match[0])
    return chr(code - 0xDC00 + 0xEF00) if 0xDC80 <= code <= 0xDCFF else "?"


def set_up(settings: LogSettings, *, quiet: bool = False, warnings: Iterable[str] = ()) -> RecentLines:
    """Set up the log according to the settings. Raises UsageError if the file cannot be written.

    With `quiet`, only warnings go to standard error, where there is a live view; the table has all entries. `warnings`
    about the configuration, which preceded the log, are logged first.
    """
    handler: logging.Handler
    if settings.file is None:
        handler = StandardError()
        handler.setLevel(logging.WARNING if quiet else logging.NOTSET)
    else:
        try:
            handler = AgentLogFile(Path(settings.file))
        except OSError as error:
            raise UsageError(f"log.file: cannot write {settings.file}: {error.strerror}") from None
    handler.setFormatter(LineFormatter())
    ring = RecentLines(settings.entries)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.addHandler(ring)
    set_level(settings.level)
    logging.captureWarnings(True)
    for warning in warnings:
        logging.getLogger("zeek_agent.config.loading").warning("%s", warning)
    return ring


def to_terminal() -> None:
    """Set up the log of commands: only messages of warnings and errors, to standard error, and no audit log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MessageFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("zeek_agent.audit").setLevel(logging.CRITICAL)


class _MessageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        start = "zeek-agent: "
        return start + cut(_message(record), LINE_BYTES - len(start) - 1, escaped)


def set_level(level: str) -> None:
    """Log records of this level and above (`log.level`)."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    logging.getLogger("websockets").setLevel(max(root.level, logging.WARNING))
