"""Login events from all that a host knows about logins, or from one source of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from zeek_agent.events.recording_position import RecordingPosition
from zeek_agent.host.accounts import accounting
from zeek_agent.host.accounts.local_accounts import LocalAccounts
from zeek_agent.recording.audit import audit_records
from zeek_agent.recording.audit.audit import subscribed
from zeek_agent.recording.audit.audit_rules import AuditControl
from zeek_agent.recording.listener import Listener
from zeek_agent.recording.logins import audit_messages, auth_messages
from zeek_agent.recording.logins.accounting_files import LastLogins, RecordFile, WtmpDatabase
from zeek_agent.recording.logins.kernel_sessions import KernelSessions
from zeek_agent.recording.logins.login_event import LOGINS_EVENTS, LoginEvent
from zeek_agent.recording.logins.merging import REMEMBERED_SECONDS, SETTLE_SECONDS, LoginMerger
from zeek_agent.recording.logins.observation import Observation
from zeek_agent.recording.logins.senders import Sender, Senders
from zeek_agent.recording.periodic import Periodic
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS, ProcessEvent
from zeek_agent.recording.source import Source
from zeek_agent.recording.system_log.journal import Journal
from zeek_agent.recording.system_log.log_entry import SystemLogEntry
from zeek_agent.recording.system_log.syslog import Syslog

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.masking.masker import Masker
    from zeek_agent.recording.processes.process_cache import ProcessCache
    from zeek_agent.recording.source import PositionReader, Sink
    from zeek_agent.schema import EventRow

log = logging.getLogger(__name__)

COMBINED: Final = "combined"
BACKENDS: Final = (COMBINED, "journal", "syslog", "audit", "wtmp", "kernel")

SYSLOG_FILES: Final = (("/var/log/auth.log", "/var/log/secure", "/var/log/syslog", "/var/log/messages"),)
"""The authentication log, or else the log of all programs."""
_JOURNAL_MATCHES: Final = ("SYSLOG_FACILITY=4", "SYSLOG_FACILITY=10")
"""auth and authpriv, to which all programs log that are read here."""

_INTERVAL_SECONDS: Final = 0.5
_NAME_CHARACTERS: Final = 15
"""Of a process, in the kernel."""
_RETRY_SECONDS: Final = 60.0
_RESUMED_ROWS: Final = 2_000
"""Rows whose statements are known again after a restart: those of some seconds, even under attack."""

_PROCESS_EVENTS_SECONDS: Final = 1.0
"""Time in which the events of processes are certainly read. A program may log and end before that."""
_HELD_ENTRIES_MAX: Final = 2_000

Observe: TypeAlias = Callable[[Sequence[Observation], "str | None"], None]
"""Takes the statements of an entry, which then belong to the receiver, and the position after it."""


class _HeldEntry(NamedTuple):
    """An entry with the time at which it was read (time.monotonic), and what it says about a login."""

    received: float
    entry: SystemLogEntry
    message: auth_messages.AuthMessage | None


class LogInput:
    """Messages of the journal or of a syslog daemon."""

    def __init__(self, name: str, reader: Source, parts: _Parts) -> None:
        self.name = name
        self.refused = 0
        """Messages whose sender is not the program that it claims to be."""
        self._reader = reader
        self._masker = parts.masker
        self._accounts = parts.accounts
        self._senders = parts.senders
        self._is_trusted = parts.senders.of_journal if name == "journal" else parts.senders.of_file
        self._lock = threading.Lock()
        self._held: deque[_HeldEntry] = deque()

    def probe(self) -> str | None:
        return self._reader.probe()

    def start(self, observe: Observe, position: str | None, until: float | None) -> None:
        since = None if until is None else until - REMEMBERED_SECONDS
        self._reader.failure = None
        self._reader.resume(lambda _table, _rows=1: RecordingPosition(position, since))
        self._observe = observe
        self._reader.start(self._received)

    def stop(self) -> None:
        self._reader.stop()
        self._release(at_once=True)

    def poll(self) -> None:
        try:
            self._reader.drain()
        except OSError as error:
            self._reader.failed(str(error))
        self._release()

    @property
    def failure(self) -> str | None:
        return self._reader.failure

    def _received(self, _table: str, entries: Sequence[EventRow], _position: str | None = None, /) -> None:
        now = time.monotonic()
        for entry in entries:
            assert isinstance(entry, SystemLogEntry)
            message = auth_messages.parse(entry.identifier or entry.process or "", entry.message or "")
            self._held.append(_HeldEntry(now, entry, message))
            if len(self._held) >= _HELD_ENTRIES_MAX:
                self._release(at_once=True)
        self._release()

    def _release(self, *, at_once: bool = False) -> None:
        """Pass on entries in their order; one whose process may become known waits, unless `at_once`."""
        with self._lock:
            while self._held:
                statements = self._statements(self._held[0], at_once)
                if statements is None:
                    return
                self._observe(statements, self._held.popleft().entry.cursor)

    def _statements(self, held: _HeldEntry, at_once: bool) -> list[Observation] | None:
        """What an entry says; None as long as the start of its process may not have been read yet."""
        entry, message = held.entry, held.message
        if message is None:
            return []
        process = self._senders.process(entry.pid, entry.time)
        sender = self._is_trusted(entry, message, process)
        is_unclear = process is None or (sender is None and entry.exe is None)
        if is_unclear and entry.pid is not None and self._may_be_late(held):
            if not at_once:
                return None
            sender = Sender(False, None) if self.name == "syslog" else sender
        if sender is None:
            self.refused += 1
            return []
        return [self._statement(entry, message, sender) for _ in range(message.count)]

    def _may_be_late(self, held: _HeldEntry) -> bool:
        """Whether the start of the process, or its exec, may not have been read yet."""
        waited = time.monotonic() - held.received
        return waited < _PROCESS_EVENTS_SECONDS and self._senders.is_recorded(held.entry.time)

    def _statement(self, entry: SystemLogEntry, message: auth_messages.AuthMessage, sender: Sender) -> Observation:
        user = message.user
        if user is None and message.user_uid is not None:
            user = self._accounts.name(message.user_uid)
        uid = message.user_uid if message.user_uid is not None else None if user is None else self._accounts.uid(user)
        process = sender.process
        return Observation(
            entry.time,
            self.name,
            message.statement,
            message.action,
            succeeded=message.succeeded,
            user=user,
            uid=uid,
            target_user=message.target_user,
            tty=message.tty,
            remote_addr=message.remote_addr,
            remote_port=message.remote_port,
            pid=entry.pid,
            process=entry.process or entry.identifier,
            entity_id=(process.entity_id or None) if process is not None else None,
            method=message.method,
            command=message.command,
            reason=message.reason,
            verified=sender.verified,
            repeats=message.repeats,
        )


class AuditInput:
    """Records that PAM, sshd, sudo and login send to the kernel's audit system."""

    name = "audit"

    def __init__(self, parts: _Parts, beside_log: Callable[[], bool]) -> None:
        """`beside_log`: whether a log is read too, in which su reports its refusals after a delay."""
        self.failure: str | None = None
        self.lost = 0
        self.undecoded = 0
        self._accounts = parts.accounts
        self._senders = parts.senders
        self._masker = parts.masker
        self._beside_log = beside_log
        self._listener: Listener | None = None

    def probe(self) -> str | None:
        try:
            subscribed().close()
            with AuditControl() as control:
                if not control.status().enabled:
                    return "audit is disabled: start auditd"
        except OSError as error:
            return f"audit records cannot be read ({error.strerror}): that needs CAP_AUDIT_READ and CAP_AUDIT_CONTROL"
        return None

    def start(self, observe: Observe, _position: str | None, _until: float | None) -> None:
        self.failure = None
        self._observe = observe
        self._listener = Listener(
            subscribed(), self.receive, settle=lambda: None, overrun=self._overrun, failed=self._failed
        )
        self._listener.start()

    def stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()

    def poll(self) -> None:
        if self._listener is not None:
            self._listener.drain()

    def _overrun(self) -> None:
        self.lost += 1

    def _failed(self, reason: str) -> None:
        self.failure = reason

    def receive(self, datagram: bytes) -> None:
        try:
            record = audit_records.parse_record(datagram, audit_messages.KINDS)
            message = None if record is None else audit_messages.parse(record)
        except (ValueError, LookupError) as error:
            self.undecoded += 1
            log.debug("audit record: %s", error)
            return
        if record is None or message is None:
            return
        if message.action == "su" and message.statement == "1100" and self._beside_log():
            return
        self._observe([self._statement(record.time, message)], None)

    def _statement(self, at: float, message: audit_messages.AuditMessage) -> Observation:
        process = self._senders.process(message.pid, at)
        user, target, uid = message.account, None, message.account_uid
        if message.action in {"su", "sudo"}:
            invoker = message.loginuid if message.loginuid is not None else message.uid
            target, uid = message.account if message.statement != "1123" else None, invoker
            user = None if invoker is None else self._accounts.name(invoker)
        elif message.action == "session_closed" and message.program in {"su", "sudo"}:
            user, uid, target = None, message.loginuid, message.account
        if user is None and uid is not None:
            user = self._accounts.name(uid)
        if uid is None and user is not None:
            uid = self._accounts.uid(user)
        name = process.name if process is not None else None
        if message.program is not None and name != message.program:  # its exec may not have been read yet
            name = message.program[:_NAME_CHARACTERS]
        action, pid = message.action, message.pid
        if action == "failed" and process is not None and (above := self._senders.connection(process)) is not None:
            process, pid = above, above.pid
        if action is None:
            action = "login" if (name or "").startswith(("sshd", "login")) else "session_opened"
        return Observation(
            at,
            self.name,
            message.statement,
            action,
            succeeded=message.succeeded,
            user=user,
            uid=uid,
            target_user=target,
            tty=message.tty,
            remote_addr=message.remote_addr,
            pid=pid,
            other_pid=message.pid if pid != message.pid else None,
            process=name,
            session=message.session,
            entity_id=(process.entity_id or None) if process is not None else None,
            command=None if message.command is None else self._masker.line(message.command),
            reason="unknown user" if message.unknown_user else None,
            repeats=message.unknown_user,
            awaits_log=message.action == "failed" and self._beside_log(),
        )


class FileInput:
    """Files and databases of login accounting. Only root and the group utmp can write them."""

    def __init__(self, file: RecordFile | WtmpDatabase | LastLogins) -> None:
        self.name = file.name
        self.failure: str | None = None
        self._file = file

    def probe(self) -> str | None:
        return self._file.probe()

    def start(self, observe: Observe, position: str | None, until: float | None) -> None:
        self.failure = None
        self._observe = observe
        self._file.resume(position, until)
        self._observe([], self._file.position)

    def stop(self) -> None: ...

    def poll(self) -> None:
        try:
            for statement in self._file.read():
                self._observe([statement], self._file.position)
        except OSError as error:
            self.failure = str(error)


class KernelInput:
    """Sessions that processes have; process events come by `Logins.complete`."""

    name = "kernel"
    failure = None

    def __init__(self, parts: _Parts) -> None:
        self.sessions = KernelSessions(parts.cache, parts.accounts)
        self.missed_since: float | None = None
        self._observe: Observe | None = None

    def probe(self) -> str | None:
        return None

    def start(self, observe: Observe, _position: str | None, _until: float | None) -> None:
        for statement in self.sessions.start(self.missed_since):
            observe([statement.copy()], None)
        self._observe = observe

    def stop(self) -> None:
        self._observe = None

    def poll(self) -> None: ...

    def changed(self, rows: Sequence[ProcessEvent]) -> None:
        if self._observe is not None:
            for statement in self.sessions.changed(rows):
                self._observe([statement.copy()], None)


Input: TypeAlias = LogInput | AuditInput | FileInput | KernelInput


class _Parts:
    """What the inputs share."""

    def __init__(self, cache: ProcessCache, masker: Masker) -> None:
        self.cache = cache
        self.masker = masker
        self.accounts = LocalAccounts()
        self.senders = Senders(cache, self.accounts)


class Logins(Source):
    """Reads the inputs of its backend that work, and merges what they say; those that fail are tried again."""

    kind = "logins"
    essential = False

    def __init__(
        self,
        backend: str,
        cache: ProcessCache,
        settings: SourceSettings,
        masker: Masker,
        *,
        readers: Mapping[str, Source] | None = None,
        files: Sequence[RecordFile | WtmpDatabase | LastLogins] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`readers` are other logs than the host's, by the names `journal` and `syslog`; `files` other files."""
        super().__init__()
        self.backend = backend
        self.shortcoming = _SHORTCOMINGS.get(backend)
        self._clock = clock
        parts = self._parts = _Parts(cache, masker)
        readers = readers or {
            "journal": Journal(settings, masker=masker, matches=_JOURNAL_MATCHES),
            "syslog": Syslog(settings, files=SYSLOG_FILES, masker=masker),
        }
        if files is None:
            files = (
                RecordFile("wtmp", accounting.WTMP, self._knows(parts)),
                RecordFile("btmp", accounting.BTMP, self._knows(parts)),
                WtmpDatabase(),
                LastLogins(),
            )
        self._kernel = KernelInput(parts)
        inputs: dict[str, Sequence[Input]] = {
            "journal": [LogInput("journal", readers["journal"], parts)],
            "syslog": [LogInput("syslog", readers["syslog"], parts)],
            "audit": [AuditInput(parts, self._has_log)],
            "wtmp": [FileInput(file) for file in files],
            "kernel": [self._kernel],
        }
        everything = [one for group in inputs.values() for one in group]
        self._inputs = self.own_inputs = everything if backend == COMBINED else inputs[backend]
        self._reasons: dict[str, str] = {}
        self._active: list[Input] = []
        self._merger = LoginMerger(masker.line)
        self._lock = threading.Lock()
        self._positions: Mapping[str, str] = {}
        self._until: float | None = None
        self._retry_at = 0.0
        self._begun = 0.0
        self._periodic: Periodic | None = None

    def _knows(self, parts: _Parts) -> Callable[[str], bool]:
        return lambda name: parts.accounts.uid(name) is not None

    def _has_log(self) -> bool:
        return any(isinstance(one, LogInput) for one in self._active)

    def probe(self) -> str | None:
        reasons = {one.name: one.probe() for one in self._inputs}
        if None in reasons.values():
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    def replaces(self, other: Source) -> str:
        """Whether this source reads what the other one would, or why it cannot."""
        if not isinstance(other, Logins):
            return super().replaces(other)
        names = [one.name for one in other.own_inputs]
        used = [one.name for one in self._active if one.name in names]
        if used:
            return f"{self.backend} reads {', '.join(used)}"
        return "; ".join(f"{name}: {self._reasons[name]}" for name in names if name in self._reasons)

    def resume(self, recorded: PositionReader) -> None:
        past = recorded(LOGINS_EVENTS, _RESUMED_ROWS)
        if past.cursor is not None:
            self._positions = self._merger.resume(past.cursors, self._clock())
        self._until = past.until if past.until is not None else self._until

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._begun = self._parts.senders.since = self._clock()
        self._kernel.missed_since = None if self.missed is None else self.missed.since
        self._start_inputs()
        if not self._active:
            raise OSError("no source of logins could be started")
        self._periodic = Periodic(self._turn, _INTERVAL_SECONDS, self.failed)
        self._periodic.start()

    def stop(self) -> None:
        periodic, self._periodic = self._periodic, None
        if periodic is None:
            return
        periodic.stop()
        self._poll()
        active, self._active = self._active, []
        for one in active:
            one.stop()
        self._hand_over(at_end=True)
        self._positions = self._merger.positions()
        self._until = self._clock()
        self._merger = LoginMerger(self._parts.masker.line)

    def recorded_until(self) -> float | None:
        """Logs and files are read on after a restart; the kernel's sessions are then found in /proc."""
        resumes = any(isinstance(one, LogInput | FileInput) for one in self._active)
        return None if resumes or self._periodic is None else max(self._begun, self._clock() - 2 * SETTLE_SECONDS)

    def drain(self) -> None:
        """Read all sources now. Events whose statements may not be complete yet have to wait."""
        if self._periodic is not None:
            self._periodic.now()

    def complete(self, table: str, rows: Sequence[EventRow]) -> Sequence[EventRow]:
        if table == PROCESSES_EVENTS and self._kernel in self._active:
            self._kernel.changed(rows)  # type: ignore[arg-type]
        return rows

    def update_counters(self) -> None:
        self.counters.lost["overrun"] = sum(one.lost for one in self._inputs if isinstance(one, AuditInput))
        self.counters.lost["decode"] = sum(one.undecoded for one in self._inputs if isinstance(one, AuditInput))
        refused = sum(one.refused for one in self._inputs if isinstance(one, LogInput))
        if refused:
            self.counters.last_error = f"{refused:,} log messages about logins were not from the program that they name"

    def _start_inputs(self) -> None:
        """Start the inputs that work and are not active; syslog only where there is no journal."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        for one in self._inputs:
            if one in self._active:
                continue
            reason = "others tell the same" if self._is_redundant(one) else one.probe()
            if reason is not None:
                self._reasons[one.name] = reason
                continue
            try:
                one.start(self._observer(one.name), self._positions.get(one.name), self._until)
            except OSError as error:
                self.counters.last_error = f"{one.name}: {error}"
                continue
            self._active.append(one)

    def _is_redundant(self, one: Input) -> bool:
        """syslog has what the journal has, and lastlog2 less than any log or file."""
        if one.name == "syslog":
            return self._has_log()
        return one.name == "lastlog2" and any(isinstance(other, LogInput | FileInput) for other in self._active)

    def _observer(self, name: str) -> Observe:
        def observe(statements: Sequence[Observation], position: str | None) -> None:
            now = self._clock()
            with self._lock:
                for part, statement in enumerate(statements):
                    self._merger.observe(statement, now, position, part)
                if position is not None:
                    self._merger.passed(name, position)
                if self._merger.is_full:
                    self._pass_on(self._merger.settled(now))
            self.counters.received += len(statements)

        return observe

    def _turn(self) -> None:
        self._poll()
        self._hand_over()

    def _poll(self) -> None:
        for one in list(self._active):
            one.poll()
            if one.failure is not None:
                log.error("login events: %s has failed: %s", one.name, one.failure)
                self.counters.last_error = f"{one.name}: {one.failure}"
                self._active.remove(one)
                one.stop()
                with self._lock:
                    self._positions = {**self._positions, **self._merger.positions()}
                self._until = self._clock()
        if time.monotonic() >= self._retry_at:
            self._start_inputs()
        if not self._active:
            self.failed("no source of logins works any more")

    def _hand_over(self, *, at_end: bool = False) -> None:
        with self._lock:
            self._pass_on(self._merger.settled(self._clock(), at_end=at_end))

    def _pass_on(self, rows: Sequence[LoginEvent]) -> None:
        if rows:
            self._sink(LOGINS_EVENTS, rows)


_SHORTCOMINGS: Final[Mapping[str, str]] = {
    "journal": "sessions that no message reports are missed",
    "syslog": "any local user can write such messages, so its rows are not verified; sudo has no process id",
    "audit": "remote ports are unknown, and logins while the agent does not run are missed",
    "wtmp": "logins without a terminal, su and sudo are missed",
    "kernel": "failed logins, su, sudo and addresses are missed",
}
