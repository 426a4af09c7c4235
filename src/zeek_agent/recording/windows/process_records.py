"""Maps Security 4688 and 4689, and Sysmon 1 and 5, to rows of `processes_events`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from zeek_agent.host.windows import event_values
from zeek_agent.host.windows.event_fields import SECURITY, SYSMON
from zeek_agent.host.windows.event_xml import WindowsEvent, epoch_seconds
from zeek_agent.recording.processes.process_event import ProcessEvent
from zeek_agent.recording.windows.event_mapping import MappingContext, event_filetime, masked_command_line, required
from zeek_agent.recording.windows.known_processes import Account, KnownProcess

_NT_STATUS_MAX: Final = 2**32 - 1


def process_row(event: WindowsEvent, context: MappingContext) -> ProcessEvent | None:
    """The row of an event; None if it is of another kind. Raises EventFieldError."""
    map_event = _MAPPINGS.get((event.provider, event.event_id))
    return None if map_event is None else map_event(event, context)


def _security_start(event: WindowsEvent, context: MappingContext) -> ProcessEvent:
    data = event.data
    pid = required(event_values.process_id(data.get("NewProcessId")), "NewProcessId")
    exe = event_values.drive_path(data.get("NewProcessName"), context.drives)
    process = context.known.start(pid, event.filetime, exe)
    target = _account(data, "Target")
    process.account = target if target.user is not None else _account(data, "Subject")
    process.ppid = event_values.process_id(data.get("ProcessId"))
    process.parent_exe = event_values.drive_path(data.get("ParentProcessName"), context.drives)
    return _started(event, context, process)


def _sysmon_start(event: WindowsEvent, context: MappingContext) -> ProcessEvent:
    data = event.data
    pid = required(event_values.process_id(data.get("ProcessId")), "ProcessId")
    exe = event_values.drive_path(data.get("Image"), context.drives)
    process = context.known.start(pid, event_filetime(event), exe, event_values.guid(data.get("ProcessGuid")))
    process.account = Account(event_values.text(data.get("User")), None, event_values.number(data.get("LogonId")))
    process.cwd = event_values.text(data.get("CurrentDirectory"))
    process.ppid = event_values.process_id(data.get("ParentProcessId"))
    process.parent_exe = event_values.drive_path(data.get("ParentImage"), context.drives)
    return _started(event, context, process, event_values.guid(data.get("ParentProcessGuid")))


def _started(
    event: WindowsEvent, context: MappingContext, process: KnownProcess, parent_guid: str | None = None
) -> ProcessEvent:
    at = event_filetime(event)
    process.command_line = masked_command_line(event_values.text(event.data.get("CommandLine")), context.masker)
    if process.ppid is not None:
        parent = context.known.find(process.ppid, at, process.parent_exe, parent_guid)
        process.parent_entity_id = parent.entity_id if parent is not None else None
        process.parent_exe = process.parent_exe or (parent.exe if parent is not None else None)
    return _row(process, at, "started")


def _security_end(event: WindowsEvent, context: MappingContext) -> ProcessEvent:
    data = event.data
    exe = event_values.drive_path(data.get("ProcessName"), context.drives)
    status = event_values.number(data.get("Status"), _NT_STATUS_MAX)
    return _ended(event, context, exe, _account(data, "Subject"), status)


def _sysmon_end(event: WindowsEvent, context: MappingContext) -> ProcessEvent:
    exe = event_values.drive_path(event.data.get("Image"), context.drives)
    return _ended(event, context, exe, Account(event_values.text(event.data.get("User"))), None)


def _ended(
    event: WindowsEvent, context: MappingContext, exe: str | None, account: Account, exit_code: int | None
) -> ProcessEvent:
    """The end of a process, with what its start reported. An event is right where both report something."""
    at = event_filetime(event)
    pid = required(event_values.process_id(event.data.get("ProcessId")), "ProcessId")
    process = context.known.end(pid, at, exe, event_values.guid(event.data.get("ProcessGuid")))
    if process is None:
        process = KnownProcess(pid, None, exe, None)
    process.exe = exe or process.exe
    known = process.account
    process.account = Account(account.user or known.user, account.sid or known.sid, account.session or known.session)
    return _row(process, at, "stopped", exit_code)


def _row(
    process: KnownProcess, at: int, state: Literal["started", "stopped"], exit_code: int | None = None
) -> ProcessEvent:
    command_line, created = process.command_line, process.created
    return ProcessEvent(
        time=epoch_seconds(at),
        name=process.name,
        pid=process.pid,
        ppid=process.ppid,
        uid=None,
        gid=None,
        ruid=None,
        rgid=None,
        priority=None,
        duration=None if state == "started" or created is None else max(at - created, 0) / 1e7,
        vsize=None,
        rsize=None,
        utime=None,
        stime=None,
        state=state,
        exe=process.exe,
        cmdline=command_line.cmdline if command_line is not None else None,
        cwd=process.cwd,
        exit_code=exit_code,
        loginuid=None,
        session=process.account.session,
        cgroup=None,
        container_id=None,
        netns=None,
        entity_id=process.entity_id,
        parent_entity_id=process.parent_entity_id,
        parent_name=event_values.base_name(process.parent_exe),
        parent_exe=process.parent_exe,
        argv=command_line.stored_argv if command_line is not None else None,
        user=process.account.user,
        sid=process.account.sid,
    )


def _account(data: Mapping[str, str], prefix: str) -> Account:
    """The account of the fields that begin with `Subject` or `Target`."""
    return Account(
        event_values.account(data.get(f"{prefix}DomainName"), data.get(f"{prefix}UserName")),
        event_values.sid(data.get(f"{prefix}UserSid")),
        event_values.number(data.get(f"{prefix}LogonId")) or None,
    )


_MAPPINGS: Final = {
    (SECURITY, 4688): _security_start,
    (SECURITY, 4689): _security_end,
    (SYSMON, 1): _sysmon_start,
    (SYSMON, 5): _sysmon_end,
}
