"""Process events of macOS from Endpoint Security, by a subprocess of eslogger(1)."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

from zeek_agent import platforms
from zeek_agent.host.macos import eslogger_line
from zeek_agent.host.macos.boot_session import boot_session
from zeek_agent.host.macos.eslogger_errors import with_remedy
from zeek_agent.host.macos.eslogger_line import KINDS, MESSAGE_VERSIONS, SCHEMA_VERSION, Message
from zeek_agent.masking.masker import Masker
from zeek_agent.platforms.darwin import PLATFORM as DARWIN
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.processes.es_processes import EsProcesses
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS, ProcessEvent
from zeek_agent.recording.processes.sequence_gaps import SequenceGaps
from zeek_agent.recording.program_lines import ProgramLines
from zeek_agent.recording.source import Counters, Sink, Source
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.processes.process import LivingProcesses

log = logging.getLogger(__name__)

COMMAND: Final = ("/usr/bin/eslogger",)
SIGN_OF_LIFE: Final = ("/usr/bin/true",)
"""A program that is executed to see whether eslogger reports it."""
LINE_BYTES_MAX: Final = 16 << 20
"""Arguments and environment have at most 1 MiB, of which JSON makes up to six, and their process is written twice."""
_BEGIN_SECONDS: Final = 10.0
"""Time for the first line."""
_SIGN_INTERVAL_SECONDS: Final = 0.25
_LIST_SECONDS: Final = 10.0
_LATENCY_SECONDS: Final = 2.0
"""Time from an event until eslogger has written it; usually some milliseconds."""
_RECONCILE_SECONDS: Final = 1.0


class Eslogger(Source):
    """Every fork, exec and exit, as eslogger reports it."""

    kind = "processes"
    backend = "eslogger"
    restart_after_seconds = 30.0
    return_seconds = 600.0

    def __init__(
        self,
        settings: SourceSettings,
        masker: Masker | None = None,
        command: Sequence[str] = COMMAND,
        *,
        is_root: Callable[[], bool] = platforms.HERE.is_privileged,
        boot: Callable[[], str] = boot_session,
        is_alive: Callable[[int], bool] | None = None,
        living: LivingProcesses | None = None,
        sign_of_life: Sequence[str] = SIGN_OF_LIFE,
        begin_seconds: float = _BEGIN_SECONDS,
    ) -> None:
        """`masker` masks secrets in command lines before they are kept anywhere.

        `living` shows processes that began before the recording or whose start was lost, by a clock since the epoch.
        """
        super().__init__()
        self._masker = masker or Masker()
        self._command = command
        self._exclusions = Exclusions(settings, DARWIN)
        self._is_root = is_root
        self._boot = boot
        self._is_alive = is_alive or _exists
        self._living = living
        self._sign_of_life = sign_of_life
        self._begin_seconds = begin_seconds
        self._own_signs: set[int] = set()
        self._sink: Sink | None = None
        self._program: ProgramLines | None = None
        self._reset()

    def _reset(self) -> None:
        self._processes = EsProcesses("", self._masker)
        self._gaps = SequenceGaps()
        self._lost_before = self.counters.lost["overrun"]
        self._decode_before = self.counters.lost["decode"]
        self._unreadable = 0
        self._rows: list[ProcessEvent] = []
        self._first: float | None = None
        self._last = 0.0
        self._begun = threading.Event()
        self._own_signs.clear()
        self._refused: str | None = None
        self._versions: set[tuple[int | None, int | None]] = set()
        self._reconcile_at: float | None = None

    def probe(self) -> str | None:
        """Runs eslogger until its first line, since nothing else shows whether macOS permits it."""
        if not os.access(self._command[0], os.X_OK):
            return f"{self._command[0]} does not exist: it requires macOS 13 or later"
        if not self._is_root():
            return "eslogger needs root"
        counters, self.counters = self.counters, Counters()
        try:
            reason = missing_events(self._command)
            if reason is None:
                self._begin(None)
        except OSError as error:
            return str(error)
        else:
            return reason
        finally:
            self._end()
            self.counters = counters

    def start(self, sink: Sink) -> None:
        try:
            self._begin(sink)
        except OSError:
            self._end()
            raise
        self._find_missed()

    def stop(self) -> None:
        if self._end():
            self._pass_on(self._processes.overdue(None))
            self._sink = None

    def recording_since(self) -> float | None:
        return self._first

    def recorded_until(self) -> float | None:
        """A fork is reported later than it is read."""
        times = (self._read_until(), self._processes.oldest_fork())
        return min(at for at in times if at is not None)

    def _read_until(self) -> float:
        """Until when (seconds since the epoch) all events were read, which takes a moment after they happened."""
        program = self._program
        if program is not None and program.read_until is not None:
            self._last = max(self._last, program.read_until - _LATENCY_SECONDS)
        return self._last

    def drain(self) -> None:
        program = self._program
        if program is not None:
            program.drain()

    def find_lost(self, since: float) -> None:
        program = self._program
        if program is not None:
            program.drain()
            self._find_running(program, since, time.time() - _LATENCY_SECONDS, frozenset())

    def _find_missed(self) -> None:
        """Report running processes that began while nobody recorded, and remember those that began before."""
        program, missed, first = self._program, self.missed, self._first
        if program is not None and first is not None:
            recorded = missed.entities_since(PROCESSES_EVENTS, missed.since) if missed else frozenset()
            self._find_running(program, missed.since if missed else first, first, recorded)

    def _find_running(self, program: ProgramLines, since: float, until: float, recorded: Collection[str]) -> None:
        if self._living is None:
            return
        shown = [self._living.read(pid, self._masker) for pid in self._living.pids()]
        with program.lock:
            running = [
                one for one in shown if one is not None and one.started < until * 1e9 and self._is_alive(one.pid)
            ]
            found = self._processes.add_running(running, since, until)
            self._pass_on([row for row in found if row.entity_id not in recorded])

    def _begin(self, sink: Sink | None) -> None:
        """Start eslogger, and wait for its first line. Raises OSError with the reason if it is refused."""
        self._reset()
        self._processes = EsProcesses(self._boot(), self._masker)
        self._sink = sink
        self._program = ProgramLines(
            [*self._command, *KINDS],
            receive=self._receive,
            settle=self._settle,
            ended=self._ended,
            line_bytes_max=LINE_BYTES_MAX,
        )
        try:
            self._program.start()
        except OSError:
            self._program = None
            raise
        deadline = time.monotonic() + self._begin_seconds
        while not self._begun.wait(_SIGN_INTERVAL_SECONDS):
            if time.monotonic() > deadline:
                wrote = self.counters.last_error if self._unreadable else "it wrote nothing, although programs ran"
                raise TimeoutError(f"eslogger reported no event in {self._begin_seconds:g} s: {wrote}")
            with subprocess.Popen(self._sign_of_life, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as sign:
                self._own_signs.add(sign.pid)
        if self._refused is not None:
            raise OSError(self._refused)

    def _end(self) -> bool:
        """Stop eslogger. Returns False if it did not run."""
        program, self._program = self._program, None
        if program is None:
            return False
        try:
            program.stop()
        finally:
            self._count(program)
        return True

    def _ended(self, reason: str) -> None:
        reason = with_remedy(reason)
        if self._begun.is_set():
            self.failed(reason)
        else:
            self._refused = reason
            self._begun.set()

    def _receive(self, line: bytes) -> None:
        found = eslogger_line.read_line(line)
        self._gaps.note(found.sequence)
        if isinstance(found, Message):
            self.counters.received += 1
            self._last = found.time / 1e6
            if self._first is None:
                self._first = self._last
            self._check_versions(found)
            self._rows += self._processes.rows(found)
            self._begun.set()
        else:
            self._unreadable += 1
            self.counters.last_error = f"unreadable line of eslogger ({found.reason}): {_shown(line)}"

    def _check_versions(self, message: Message) -> None:
        versions = (message.schema_version, message.version)
        if versions in self._versions or len(self._versions) >= len(MESSAGE_VERSIONS) + 1:
            return
        self._versions.add(versions)
        if message.schema_version != SCHEMA_VERSION or message.version not in MESSAGE_VERSIONS:
            log.warning(
                "eslogger writes messages of an unknown version, %s (schema %s): columns may be null",
                message.version,
                message.schema_version,
            )

    def _settle(self) -> None:
        now, program = time.time(), self._program
        rows, self._rows = self._rows, []
        rows += self._processes.overdue(self._read_until())
        if program is not None and self._count(program):
            self._reconcile_at = now + _RECONCILE_SECONDS
        if self._reconcile_at is not None and now >= self._reconcile_at:
            ended, is_complete = self._processes.reconcile(self._is_alive, now)
            self._reconcile_at = None if is_complete else now + _RECONCILE_SECONDS
            rows += ended
        self._pass_on(rows)

    def _count(self, program: ProgramLines) -> bool:
        """Bring the counters of losses up to date. Returns whether messages were lost since the last time."""
        lost, unreadable = self._lost_before + self._gaps.lost, self._unreadable + program.too_long
        lost_more = lost > self.counters.lost["overrun"]
        if lost_more:
            self.counters.last_error = f"Endpoint Security dropped {self._gaps.lost} messages for eslogger"
        lost_more |= self._decode_before + unreadable > self.counters.lost["decode"]
        self.counters.lost["overrun"] = lost
        self.counters.lost["decode"] = self._decode_before + unreadable
        return lost_more

    def _pass_on(self, rows: list[ProcessEvent]) -> None:
        rows = [row for row in self._exclusions.without(rows) if not self._is_own_sign(row)]
        if rows and self._sink is not None:
            self._sink(PROCESSES_EVENTS, rows)

    def _is_own_sign(self, row: ProcessEvent) -> bool:
        """Whether it is about a process that this source started to see whether eslogger reports it."""
        if row.pid not in self._own_signs or row.ppid != os.getpid():
            return False
        if row.state == "stopped":
            self._own_signs.discard(row.pid)
        return True


def missing_events(eslogger: Sequence[str]) -> str | None:
    """Why this eslogger cannot report what is recorded; None if it can. Needs no root.

    One event that eslogger does not know makes it refuse them all. Raises OSError.
    """
    command = [*eslogger, "--list-events"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_LIST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} does not end"
    if done.returncode:
        return f"{' '.join(command)} ended with status {done.returncode}"
    missing = set(KINDS) - set(done.stdout.decode(errors="replace").split())
    return f"this eslogger does not report {' and '.join(sorted(missing))}" if missing else None


def _shown(line: bytes) -> str:
    return clipped(line[:400].decode(errors="replace"))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
