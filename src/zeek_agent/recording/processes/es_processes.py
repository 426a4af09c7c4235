"""Rows of process events from Endpoint Security's messages.

A message describes the process as it is, but not its parent's program, nor, at its end, its arguments. Both come from
the messages before, so each living process that one has shown is remembered, in the form of the row of its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec import structs

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.macos.eslogger_line import EsProcess, Execution, Exit, Fork, Message
from zeek_agent.masking.command_line import CommandLine
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.processes.process_changes import FORK_TIMEOUT_NS
from zeek_agent.recording.processes.process_event import ProcessEvent, exit_code, process_event
from zeek_agent.text import to_bytes

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process

ARGUMENT_BYTES_MAX: Final = 4_096
"""Longer command lines are cut off, as with eBPF."""
_KNOWN_MAX: Final = 20_000
"""More than a system has processes; the rest are some whose end was lost."""
_FORK_TIMEOUT: Final = FORK_TIMEOUT_NS // 1_000
_UNKNOWN_ROW: Final = ProcessEvent(
    *(0.0, None, 0, None, None, None, None, None, None, None, None, None, None, None, "started", None, None, None),
    *(None, None, None, None, None, None, None, None, None, None),
)


@dataclass(slots=True)
class _Known:
    """A living process. `forked` is when it was forked, until its start is reported; times in microseconds."""

    row: ProcessEvent
    started: int | None
    forked: int | None = None


class EsProcesses:
    """Receives messages in their order and returns rows; `boot_session` is the id of this boot."""

    def __init__(self, boot_session: str, masker: Masker, *, known_max: int = _KNOWN_MAX) -> None:
        self._boot_session = boot_session
        self._masker = masker
        self._known_max = known_max
        self._known: dict[int, _Known] = {}
        self._forks: dict[int, _Known] = {}
        self._gone: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    def oldest_fork(self) -> float | None:
        """When the oldest process was forked whose start is not reported yet (seconds since the epoch); any thread."""
        return next((known.forked / 1e6 for known in list(self._forks.values()) if known.forked is not None), None)

    def rows(self, message: Message) -> list[ProcessEvent]:
        """The rows of an event, which may include that of an earlier fork."""
        event = message.event
        if isinstance(event, Fork):
            return list(self._fork(event, message))
        if isinstance(event, Execution):
            return list(self._exec(event, message))
        return list(self._exit(event, message.time))

    def overdue(self, until: float | None) -> list[ProcessEvent]:
        """The starts of processes that had executed nothing a second after their fork, if that was before `until`.

        Without it, of all forked processes. Until then (seconds since the epoch) all messages were read.
        """
        rows = []
        for pid, known in list(self._forks.items()):
            if until is not None and known.forked is not None and known.forked > until * 1e6 - _FORK_TIMEOUT:
                break
            del self._forks[pid]
            known.forked = None
            rows.append(known.row)
        return rows

    def reconcile(self, is_alive: Callable[[int], bool], now: float) -> tuple[list[ProcessEvent], bool]:
        """The ends of known processes that no longer exist, after messages were lost; whether that is all.

        The message of an end may still come, with the exit code, so an end takes two calls.
        """
        rows: list[ProcessEvent] = []
        gone = {pid for pid in self._known if not is_alive(pid)}
        for pid in gone & self._gone:
            rows += self._end(pid, self._known[pid], round(now * 1e6), None)
        self._gone = gone - self._gone
        return rows, not self._gone

    def add_running(self, running: Sequence[Process], since: float, until: float) -> list[ProcessEvent]:
        """Remember living processes that no message has shown, with times since the epoch.

        Returns the starts of those that began in this period (seconds since the epoch).
        """
        added = [process for process in running if process.pid not in self._known]
        for process in added:
            row = process_event(process, process.started, 0.0, None)
            row = structs.replace(row, name=_name(row.exe) or row.name)
            self._add(process.pid, _Known(row, process.start_ticks))
        rows = []
        for process in added:  # a parent's pid may be the higher one
            known = self._known.get(process.pid)
            parent = self._known.get(process.ppid)
            if known is not None and parent is not None and (parent.started or 0) <= process.start_ticks:
                known.row = _with_parent(known.row, parent.row)
            if known is not None and since <= known.row.time < until:
                rows.append(structs.replace(known.row, found_running=True))
        return rows

    def _fork(self, event: Fork, message: Message) -> Iterator[ProcessEvent]:
        """A child is a copy of its parent until it executes a program."""
        child, pid = event.process, event.process.token.pid
        parent = self._parent(child) if message.actor is None else self._seen(message.actor, message.time)
        yield from self._replaced(pid, child.started, message.time)
        row = self._row(child, message.time, parent)
        if parent is not None:
            row = structs.replace(
                row,
                exe=row.exe or parent.row.exe,
                name=row.name or parent.row.name,
                cmdline=parent.row.cmdline,
                argv=parent.row.argv,
                cwd=parent.row.cwd,
            )
        known = _Known(row, child.started, message.time)
        self._add(pid, known)
        self._forks[pid] = known

    def _exec(self, event: Execution, message: Message) -> Iterator[ProcessEvent]:
        process, pid = event.process, event.process.token.pid
        yield from self._replaced(pid, process.started, message.time)
        before = self._known.get(pid)
        self._forks.pop(pid, None)
        line = self._command_line(event.arguments)
        row = structs.replace(
            self._row(process, message.time, self._parent(process), before),
            cmdline=line.cmdline if line else None,
            argv=line.stored_argv if line else None,
            cwd=event.cwd,
        )
        self._add(pid, _Known(row, process.started))
        yield row

    def _exit(self, event: Exit, time: int) -> Iterator[ProcessEvent]:
        pid = event.process.token.pid
        yield from self._replaced(pid, event.process.started, time)
        yield from self._end(pid, self._seen(event.process, time), time, event.status)

    def _end(self, pid: int, known: _Known, time: int, status: int | None) -> Iterator[ProcessEvent]:
        del self._known[pid]
        if self._forks.pop(pid, None) is not None:
            yield known.row
        time = max(time, round(known.row.time * 1e6) if known.row.time else 0)
        yield structs.replace(
            known.row,
            time=time / 1e6,
            duration=None if known.started is None else max(time - known.started, 0) / 1e6,
            state="stopped",
            vsize=None,
            rsize=None,
            exit_code=exit_code(status),
        )

    def _replaced(self, pid: int, started: int | None, time: int) -> Iterator[ProcessEvent]:
        """The end of a process, if the pid belongs to another one now: its message was lost."""
        known = self._known.get(pid)
        if known is not None and started is not None and known.started not in (None, started):
            yield from self._end(pid, known, min(started, time), None)

    def _seen(self, process: EsProcess, time: int) -> _Known:
        """The process as it is known, with what the message shows."""
        token = process.token
        known = self._known.get(token.pid)
        if known is None or process.started not in (None, known.started):
            known = _Known(self._row(process, time, self._parent(process)), process.started)
            self._add(token.pid, known)
            return known
        row = known.row
        if _executes_something_else(row, process):  # the message of the exec was lost
            row = structs.replace(
                row,
                name=_name(process.exe),
                exe=process.exe,
                exe_device=process.exe_device,
                exe_inode=process.exe_inode,
                cmdline=None,
                argv=None,
                cwd=None,
            )
        elif row.exe_inode is None:
            row = structs.replace(row, exe_device=process.exe_device, exe_inode=process.exe_inode)
        known.row = structs.replace(
            row,
            uid=token.euid,
            gid=token.egid,
            ruid=token.ruid,
            rgid=token.rgid,
            loginuid=token.auid,
            session=token.asid,
        )
        return known

    def _parent(self, process: EsProcess) -> _Known | None:
        """The parent, if it is known and its pid did not belong to another process when this one began."""
        parent = None if process.ppid is None else self._known.get(process.ppid)
        if parent is None or parent.started is None or process.started is None or parent.started > process.started:
            return None
        return parent

    def _row(self, process: EsProcess, time: int, parent: _Known | None, before: _Known | None = None) -> ProcessEvent:
        """The start of a process. `before` is the process before an exec, whose parent is the one that forked it."""
        token = process.token
        row = structs.replace(
            _UNKNOWN_ROW,
            time=time / 1e6,
            name=_name(process.exe),
            pid=token.pid,
            ppid=process.ppid,
            uid=token.euid,
            gid=token.egid,
            ruid=token.ruid,
            rgid=token.rgid,
            exe=process.exe,
            loginuid=token.auid,
            session=token.asid,
            entity_id=self._entity_id(token.pid, process.started),
            exe_device=process.exe_device,
            exe_inode=process.exe_inode,
        )
        if before is not None and before.row.parent_entity_id is not None:
            ancestor = before.row
            return structs.replace(
                row,
                ppid=ancestor.ppid,
                parent_entity_id=ancestor.parent_entity_id,
                parent_name=ancestor.parent_name,
                parent_exe=ancestor.parent_exe,
            )
        return row if parent is None else _with_parent(row, parent.row)

    def _entity_id(self, pid: int, started: int | None) -> str | None:
        return None if started is None else entity_id(self._boot_session, pid, started)

    def _add(self, pid: int, known: _Known) -> None:
        self._known.pop(pid, None)
        self._known[pid] = known
        if len(self._known) > self._known_max:
            oldest = next(iter(self._known))
            if oldest not in self._forks:
                del self._known[oldest]

    def _command_line(self, arguments: tuple[str, ...] | None) -> CommandLine | None:
        if not arguments:
            return None
        raw = to_bytes("\0".join([*arguments, ""]))
        return self._masker.command_line(raw[:ARGUMENT_BYTES_MAX], cut=len(raw) > ARGUMENT_BYTES_MAX)


def _with_parent(row: ProcessEvent, parent: ProcessEvent) -> ProcessEvent:
    return structs.replace(
        row,
        ppid=parent.pid,
        parent_entity_id=parent.entity_id,
        parent_name=parent.name,
        parent_exe=parent.exe,
    )


def _name(exe: str | None) -> str | None:
    return exe.rpartition("/")[2] or None if exe else None


def _executes_something_else(row: ProcessEvent, process: EsProcess) -> bool:
    """Whether the program is another file; a file that was only renamed keeps its inode."""
    shown, known = (process.exe_device, process.exe_inode), (row.exe_device, row.exe_inode)
    if None in shown or None in known:
        return process.exe not in (None, row.exe)
    return shown != known
