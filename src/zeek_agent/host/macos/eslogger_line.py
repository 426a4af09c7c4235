"""Lines that eslogger(1) writes for exec, fork and exit: Endpoint Security messages as JSON, versions 9 and 10.

The manual page calls this output no programming interface, so nothing is relied on: a message is read by its shape
whatever its version, a field of an unexpected type is unknown, and a line without an event, a time or a process is
`Unreadable`. The environment of a process is never read from a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Raw, Struct

from zeek_agent.host.macos.audit_token import AuditToken, audit_token
from zeek_agent.host.macos.json_records import (
    MalformedRecordError,
    count,
    decoded,
    member,
    microseconds,
    text,
    unsigned,
    valid_json,
)

SCHEMA_VERSION: Final = 1
MESSAGE_VERSIONS: Final = (9, 10)
"""Of macOS 15 and macOS 26; others are read in the same way."""
KINDS: Final = ("exec", "fork", "exit")
_SEQUENCE_MAX: Final = 1 << 53
_PID_MAX: Final = 0x7FFF_FFFF
_STATUS_MAX: Final = 0xFFFF
_EVENT_TYPE_MAX: Final = 1_023
"""There are about 150."""
_TRUNCATED: Final = " …"

FIELDS: Final[Mapping[str, str]] = {
    "schema_version": "checked: another one than 1 is logged",
    "version": "checked: others than 9 and 10 are logged",
    "time": "time, duration",
    "mach_time": "dropped: the same as time, in ticks since the boot",
    "seq_num": "counted: gaps are lost events",
    "global_seq_num": "counted: gaps are lost events",
    "event_type": "counted: separates the sequences of seq_num",
    "thread.*": "dropped: events are those of processes",
    "action.*": "dropped: what an authorization was answered; these are notifications",
    "action_type": "dropped: the same",
    "process": "process: it exits, forks, or executes a program",
    "event.exec.target": "process: after the exec",
    "event.exec.args": "cmdline, argv",
    "event.exec.env": "dropped: environments hold secrets",
    "event.exec.cwd.path": "cwd",
    "event.exec.cwd.path_truncated": "cwd",
    "event.exec.cwd.stat.*": "dropped: cwd is a path",
    "event.exec.script": "dropped: cmdline has the script's name",
    "event.exec.fds": "dropped: no column shows open files",
    "event.exec.last_fd": "dropped: no column shows open files",
    "event.fork.child": "process: the new one",
    "event.exit.stat": "exit_code",
    "*.audit_token.pid": "pid, ppid, entity_id, parent_entity_id",
    "*.audit_token.auid": "loginuid",
    "*.audit_token.asid": "session",
    "*.audit_token.euid": "uid",
    "*.audit_token.egid": "gid",
    "*.audit_token.ruid": "ruid",
    "*.audit_token.rgid": "rgid",
    "*.audit_token.pidversion": "dropped: entity_id is the same before and after an exec",
    "*.parent_audit_token.pid": "ppid, if original_ppid and ppid are missing",
    "*.parent_audit_token.*": "dropped: the parent's own messages have them",
    "*.responsible_audit_token.*": "dropped: no column shows the application that is responsible",
    "*.ppid": "ppid, if original_ppid is missing",
    "*.original_ppid": "ppid",
    "*.session_id": "dropped: session is the audit session",
    "*.group_id": "dropped: no column shows process groups",
    "*.executable.path": "exe, name, parent_exe, parent_name",
    "*.executable.path_truncated": "exe, name, parent_exe, parent_name",
    "*.executable.stat.st_dev": "exe_device",
    "*.executable.stat.st_ino": "exe_inode",
    "*.executable.stat.*": "dropped: device and inode identify the file",
    "*.tty.*": "dropped: no column shows terminals",
    "*.start_time": "entity_id, parent_entity_id, duration",
    "*.signing_id": "dropped: no column shows code signatures",
    "*.team_id": "dropped: no column shows code signatures",
    "*.cdhash": "dropped: no column shows code signatures",
    "*.codesigning_flags": "dropped: no column shows code signatures",
    "*.is_platform_binary": "dropped: no column shows code signatures",
    "*.is_es_client": "dropped: no column shows clients of Endpoint Security",
}
"""Each documented field, with the columns of `processes_events` that it determines, or why it has none.

A leading `*` is any process, a trailing one anything that has no entry of its own."""


class Sequence(NamedTuple):
    """The numbers of a message: among all messages, and among those of its type."""

    overall: int | None
    of_type: int | None
    event_type: int | None


class EsProcess(NamedTuple):
    """A process in a message. `started` is in microseconds since the epoch; None: not known."""

    token: AuditToken
    ppid: int | None
    started: int | None
    exe: str | None
    exe_device: int | None
    exe_inode: int | None


class Execution(NamedTuple):
    """`process` is the process with its new program."""

    process: EsProcess
    arguments: tuple[str, ...] | None
    cwd: str | None


class Fork(NamedTuple):
    """`process` is the child."""

    process: EsProcess


class Exit(NamedTuple):
    """`status` is that of wait(2)."""

    process: EsProcess
    status: int | None


class Message(NamedTuple):
    """An event. `time` is in microseconds since the epoch; `actor` did it: the parent of a fork, else the process."""

    schema_version: int | None
    version: int | None
    sequence: Sequence
    time: int
    actor: EsProcess | None
    event: Execution | Fork | Exit


class Unreadable(NamedTuple):
    """A line that is not an event, with its numbers if it has any."""

    reason: str
    sequence: Sequence = Sequence(None, None, None)


_NULL: Final = Raw(b"null")
_MISSING: Final = Raw(b"")


class _Line(Struct):
    schema_version: Any = None
    version: Any = None
    time: Any = None
    seq_num: Any = None
    global_seq_num: Any = None
    event_type: Any = None
    process: Raw = _NULL
    event: Raw = _NULL


class _Event(Struct):
    exec: Raw = _MISSING
    fork: Raw = _MISSING
    exit: Raw = _MISSING


class _Exec(Struct):
    target: Raw = _NULL
    args: Any = None
    cwd: Any = None


class _Fork(Struct):
    child: Raw = _NULL


class _Exit(Struct):
    stat: Any = None


class _Process(Struct):
    audit_token: Any = None
    parent_audit_token: Any = None
    ppid: Any = None
    original_ppid: Any = None
    executable: Any = None
    start_time: Any = None


ReadLine: TypeAlias = Message | Unreadable


def read_line(line: bytes) -> ReadLine:
    """The event of a line of any content. Never raises."""
    try:
        found = decoded(valid_json(line), _Line)
    except MalformedRecordError as error:
        return Unreadable(str(error))
    sequence = Sequence(
        count(found.global_seq_num, _SEQUENCE_MAX),
        count(found.seq_num, _SEQUENCE_MAX),
        count(found.event_type, _EVENT_TYPE_MAX),
    )
    time = microseconds(found.time)
    if time is None:
        return Unreadable("the message has no time", sequence)
    try:
        actor = _process(found.process)
        event = _event(found.event, actor)
    except MalformedRecordError as error:
        return Unreadable(str(error), sequence)
    return Message(count(found.schema_version), count(found.version), sequence, time, actor, event)


def _event(raw: Raw, actor: EsProcess | None) -> Execution | Fork | Exit:
    event = decoded(raw, _Event)
    if event.exec:
        execution = decoded(event.exec, _Exec)
        return Execution(_required(_process(execution.target)), _arguments(execution.args), _path(execution.cwd))
    if event.fork:
        return Fork(_required(_process(decoded(event.fork, _Fork).child)))
    if event.exit:
        return Exit(_required(actor), count(decoded(event.exit, _Exit).stat, _STATUS_MAX))
    raise MalformedRecordError("the message has no event exec, fork or exit")


def _required(process: EsProcess | None) -> EsProcess:
    if process is None:
        raise MalformedRecordError("the message has no process id")
    return process


def _process(raw: Raw) -> EsProcess | None:
    """None if it has no audit token with a process id."""
    try:
        found = decoded(raw, _Process)
    except MalformedRecordError:
        return None
    token = audit_token(found.audit_token)
    if token is None:
        return None
    return EsProcess(
        token=token,
        ppid=_ppid(found),
        started=microseconds(found.start_time),
        exe=_path(found.executable),
        exe_device=unsigned(member(found.executable, "stat", "st_dev")),
        exe_inode=count(member(found.executable, "stat", "st_ino")),
    )


def _ppid(process: _Process) -> int | None:
    for ppid in (process.original_ppid, process.ppid):
        if count(ppid, _PID_MAX) is not None:
            return int(ppid)
    parent = audit_token(process.parent_audit_token)
    return None if parent is None else parent.pid


def _path(file: Any) -> str | None:
    """The path of a file; one that the system has truncated is marked like a truncated command line."""
    path = text(member(file, "path"))
    return f"{path}{_TRUNCATED}" if path is not None and member(file, "path_truncated") is True else path


def _arguments(value: Any) -> tuple[str, ...] | None:
    """All arguments, which may be empty; None if one of them is not text."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return None
    return tuple(one.partition("\0")[0] for one in value)
