"""The log of a worker process, which goes to the agent's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from zeek_agent.containment.messages import LogLine
from zeek_agent.text import clipped

LINES_PER_SECOND: Final = 10
"""Of a worker that runs statements; the agent drops further lines, and kills a worker that sends many more."""
LINE_CHARACTERS: Final = 2_000


class AgentLog(logging.Handler):
    """Sends records to the agent's log, at most so many per second; a line counts those that were not sent.

    `send` raises OSError if the agent does not read.
    """

    def __init__(self, send: Callable[[LogLine], None], lines_per_second: int = LINES_PER_SECOND) -> None:
        super().__init__()
        self._send = send
        self._lines_per_second = lines_per_second
        self._second = 0
        self._sent = 0
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._sent = second, 0
        text = clipped(self.format(record), LINE_CHARACTERS)
        if self._dropped:
            text = f"{text} (and {self._dropped} more lines before this one)"
        try:
            if self._sent >= self._lines_per_second:
                raise BlockingIOError
            self._send(LogLine(record.name, record.levelno, text))
        except OSError:  # too many, or the agent does not read
            self._dropped += 1
        else:
            self._sent += 1
            self._dropped = 0
