"""Entries of macOS's unified log, from a `log stream` subprocess.

It has no position to continue at, so entries of the time without it are not recorded; `zeek_agent_gaps` has that time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from zeek_agent import platforms
from zeek_agent.host.macos import log_line
from zeek_agent.host.macos.log_line import LogRecord, Loss
from zeek_agent.masking.log_messages import masked_message
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.program_lines import ProgramLines
from zeek_agent.recording.source import Sink, Source
from zeek_agent.recording.system_log.log_entry import SYSTEM_LOGS_EVENTS, SystemLogEntry, bounded
from zeek_agent.text import clipped, from_bytes, to_bytes

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings

COMMAND: Final = ("/usr/bin/log",)
LINE_BYTES_MAX: Final = 1 << 20
"""A message has at most 32 KiB; a backtrace can be longer."""
_LATENCY_SECONDS: Final = 2.0
"""Time from an entry until `log` has written it."""
_ADMINISTRATORS: Final = 80
"""The group admin."""


class UnifiedLog(Source):
    """Follows the log, as far as `sources.log_predicate` selects it."""

    kind = "system_logs"
    backend = "unified_log"
    restart_after_seconds = 10.0

    def __init__(
        self,
        settings: SourceSettings,
        masker: Masker | None = None,
        command: Sequence[str] = COMMAND,
        *,
        may_read: Callable[[], bool] | None = None,
    ) -> None:
        """`masker` masks secrets in command lines that messages quote."""
        super().__init__()
        self._masker = masker or Masker()
        self._command = command
        self._predicate = settings.log_predicate
        self._own = os.getpid() if settings.ignore_self else None
        self._may_read = may_read or _is_administrator
        self._program: ProgramLines | None = None
        self._rows: list[SystemLogEntry] = []
        self._unreadable = 0
        self._lines = 0
        self._last: float | None = None

    def probe(self) -> str | None:
        if not os.access(self._command[0], os.X_OK):
            return f"{self._command[0]} does not exist"
        return None if self._may_read() else "log stream needs root, or a member of the group admin"

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._lines = 0
        program = ProgramLines(
            [*self._command, "stream", "--style", "ndjson", "--predicate", self._predicate],
            receive=self._receive,
            settle=self._settle,
            ended=self.failed,
            line_bytes_max=LINE_BYTES_MAX,
        )
        program.start()
        self._program = program

    def stop(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            try:
                program.stop()
            finally:
                self._count(program)
                self._unreadable += program.too_long
                self._note_read(program)

    def drain(self) -> None:
        program = self._program
        if program is not None:
            program.drain()

    def recorded_until(self) -> float | None:
        program = self._program
        if program is not None:
            self._note_read(program)
        return self._last

    def _note_read(self, program: ProgramLines) -> None:
        if program.read_until is not None:
            self._last = max(self._last or 0.0, program.read_until - _LATENCY_SECONDS)

    def _receive(self, line: bytes) -> None:
        self._lines += 1
        if self._lines == 1 and line.startswith(log_line.HEADER):
            return
        found = log_line.read_line(line)
        if isinstance(found, LogRecord):
            if self._own is None or found.pid != self._own:
                self.counters.received += 1
                self._rows.append(self._entry(found))
        elif isinstance(found, Loss):
            self.counters.lost["overrun"] += found.entries
        else:
            self._unreadable += 1
            shown = clipped(line[:400].decode(errors="replace"))
            self.counters.last_error = f"unreadable line of log ({found.reason}): {shown}"

    def _settle(self) -> None:
        program = self._program
        if program is not None:
            self._count(program)
        rows, self._rows = self._rows, []
        if rows:
            self._sink(SYSTEM_LOGS_EVENTS, rows)

    def _count(self, program: ProgramLines) -> None:
        self.counters.lost["decode"] = self._unreadable + program.too_long

    def _entry(self, found: LogRecord) -> SystemLogEntry:
        shown = found.message
        if shown is not None:
            shown = masked_message(from_bytes(bounded(to_bytes(shown))), self._masker)
        return SystemLogEntry(
            time=found.time / 1e6,
            process=found.exe.rpartition("/")[2] or found.exe if found.exe else None,
            level=found.level,
            message=shown,
            pid=found.pid,
            uid=found.uid,
            exe=found.exe,
            identifier=_identifier(found.subsystem, found.category),
        )


def _identifier(subsystem: str | None, category: str | None) -> str | None:
    """As `log` itself writes them: `com.apple.securityd:keychain`."""
    if subsystem is None:
        return category
    return subsystem if category is None else f"{subsystem}:{category}"


def _is_administrator() -> bool:
    return platforms.HERE.is_privileged() or _ADMINISTRATORS in getattr(os, "getgroups", list)()
