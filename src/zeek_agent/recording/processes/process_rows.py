"""Rows of the table `processes_events`, from whichever source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process_cache import Process
    from zeek_agent.schema import Row

PROCESSES_EVENTS: Final = "processes_events"


class Exit(NamedTuple):
    """How a process ended, and what it used: processor time in seconds, memory in bytes at its end.

    `status` is what wait(2) gives. None: not known.
    """

    status: int | None = None
    utime: float | None = None
    stime: float | None = None
    vsize: int | None = None
    rsize: int | None = None


def process_row(process: Process, at: int, boot_time: float, ended: Exit | None) -> Row:
    """A process that started (`ended` is None) or stopped at `at`, ns since the boot at `boot_time`."""
    return (
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
        process.cmdline,
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
    )


def exit_code(status: int | None) -> int | None:
    """The exit code in a wait status; minus its number for the signal that ended a process."""
    if status is None:
        return None
    signal = status & 0x7F
    return -signal if signal else status >> 8 & 0xFF
