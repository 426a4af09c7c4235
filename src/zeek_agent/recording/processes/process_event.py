"""Process events, whichever backend recorded them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from msgspec import Struct, structs

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process

PROCESSES_EVENTS: Final = "processes_events"


class ProcessEvent(Struct, frozen=True, gc=False):  # its values are scalars, so it is in no reference cycle
    """A row of `processes_events`, which describes the columns. None: not known."""

    time: float
    name: str | None
    pid: int
    ppid: int | None
    uid: int | None
    gid: int | None
    ruid: int | None
    rgid: int | None
    priority: str | None
    duration: float | None
    vsize: int | None
    rsize: int | None
    utime: float | None
    stime: float | None
    state: Literal["started", "stopped"]
    exe: str | None
    cmdline: str | None
    cwd: str | None
    exit_code: int | None
    loginuid: int | None
    session: int | None
    cgroup: str | None
    container_id: str | None
    netns: int | None
    entity_id: str | None
    parent_entity_id: str | None
    parent_name: str | None
    parent_exe: str | None
    argv: str | None = None
    """As the event store holds it (`CommandLine.stored_argv`)."""
    exe_device: int | None = None
    exe_inode: int | None = None
    exe_mntns: int | None = None
    found_running: bool = False
    user: str | None = None
    sid: str | None = None


class Exit(NamedTuple):
    """Exit of a process, and its resources: processor time in seconds, memory in bytes at its end.

    `status` is that of wait(2). None: not known.
    """

    status: int | None = None
    utime: float | None = None
    stime: float | None = None
    vsize: int | None = None
    rsize: int | None = None


def process_event(process: Process, at: int, boot_time: float, ended: Exit | None) -> ProcessEvent:
    """A process that started (`ended` is None) or stopped at `at`, in ns since the boot at `boot_time`."""
    command_line = process.command_line
    return ProcessEvent(
        boot_time + at / 1e9,
        process.name or None,
        process.pid,
        process.ppid,
        process.uid,
        process.gid,
        process.ruid,
        process.rgid,
        process.priority,
        (at - process.started) / 1e9 if ended else None,
        ended.vsize if ended else process.vsize,
        ended.rsize if ended else process.rsize,
        ended.utime if ended else None,
        ended.stime if ended else None,
        "stopped" if ended else "started",
        process.exe,
        command_line.cmdline if command_line else None,
        process.cwd,
        exit_code(ended.status) if ended else None,
        process.loginuid,
        process.session,
        process.cgroup,
        process.container_id,
        process.netns,
        process.entity_id or None,
        process.parent_entity_id or None,
        process.parent_name or None,
        process.parent_exe,
        command_line.stored_argv if command_line else None,
        process.exe_device,
        process.exe_inode,
        process.exe_mntns,
        False,
        process.user,
        process.sid,
    )


def found_process_event(process: Process, boot_time: float) -> ProcessEvent:
    """The start of a process that nobody recorded, with what /proc shows of it now."""
    return structs.replace(process_event(process, process.started, boot_time, None), found_running=True)


def exit_code(status: int | None) -> int | None:
    """The exit code in a wait status; the negative number of the signal if one ended the process."""
    if status is None:
        return None
    signal = status & 0x7F
    return -signal if signal else status >> 8 & 0xFF
