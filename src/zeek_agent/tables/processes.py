"""Processes, from proc(5) or by a BPF iterator; on other systems by psutil."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from zeek_agent import platforms
from zeek_agent.bpf.iterators import Task, loaded_iterators
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.schema import Column, Row, Value
from zeek_agent.table import Constraints, Table
from zeek_agent.tables._process_columns import ACCOUNT, EXECUTABLE, process_columns

if TYPE_CHECKING:
    from zeek_agent.host.portable.processes import PortableProcess

_Process: TypeAlias = "ProcfsProcess | Task | PortableProcess"

processes = Table(
    "processes",
    "running processes",
    description=(
        "All processes at query time, including kernel threads. A process that exits during the query is omitted. "
        "Details of other users' processes that the agent may not read are null. Of a process whose main thread has "
        "ended while others run, the oldest of these is shown: its executable, directory, namespace and state. "
        "See [what `exe` proves](security.md#what-exe-proves). `WHERE pid = …` reads only that process. "
        "[On macOS and Windows](platforms.md), columns that the system has no value for are null."
    ),
    columns=[
        Column("name", "text", "short name of the process, at most 15 bytes for user processes (comm in proc(5))"),
        Column("pid", "count", "process id"),
        Column("ppid", "count", "process id of the parent; 0 if started by the kernel"),
        Column("uid", "count", "effective user id"),
        Column("gid", "count", "effective group id"),
        Column("ruid", "count", "real user id"),
        Column("rgid", "count", "real group id"),
        Column(
            "priority",
            "text",
            "the kernel's scheduling priority: 20 is normal, lower is more urgent; macOS: the negated nice value; "
            "Windows: the base priority, 8 is normal, higher is more urgent",
        ),
        Column("startup", "interval", "always null; see `start_time`"),
        Column("vsize", "count", "bytes of virtual memory; Windows: of the process's own memory"),
        Column("rsize", "count", "bytes of physical memory"),
        Column("utime", "interval", "CPU time spent in user mode"),
        Column("stime", "interval", "CPU time spent in the kernel"),
        Column("exe", "text", "path of the executable, as /proc/PID/exe shows it; null for kernel threads", added=True),
        *process_columns("cmdline", added=True),
        Column("cwd", "text", "working directory", added=True),
        Column(
            "state",
            "text",
            "`running`, `sleeping`, `uninterruptible`, `stopped`, `traced`, `zombie`, `dead`, `idle` or `parked`",
            added=True,
        ),
        Column("threads", "count", "number of threads", added=True),
        Column("start_time", "time", "when the process started", added=True),
        *process_columns("loginuid", "session", added=True),
        Column("tty", "text", "controlling terminal, such as `pts/0`", added=True),
        *process_columns("cgroup", "container_id", "netns", "entity_id", "parent_entity_id", added=True),
        *process_columns("argv", added=True, hidden=True),
        *process_columns(*EXECUTABLE, added=True),
        *process_columns(*ACCOUNT, added=True, hidden=True),
    ],
    examples=[
        "SELECT name, pid, uid, exe FROM processes WHERE pid = 1",
        'SELECT exe, count(*) AS "processes:count", sum(rsize) AS "bytes:count" FROM processes GROUP BY exe',
        "SELECT child.name, parent.name FROM processes AS child JOIN processes AS parent ON child.ppid = parent.pid",
    ],
    platforms=platforms.KEYS,
)


@processes.snapshot
def running(wanted: Constraints) -> Iterator[Row]:
    read = [_reader(column.name, wanted) for column in processes.columns]
    for process in _processes(wanted):
        wanted.check()
        try:
            row = [value(process) for value in read]
        except ProcessLookupError:
            continue
        yield row


def _processes(wanted: Constraints) -> Iterable[_Process]:
    if (group := wanted.context.platform.group) == "linux":
        return listed_processes(wanted)
    from zeek_agent.host.portable.system import portable_system

    return portable_system(group).processes().processes(wanted.integers("pid"))


def listed_processes(wanted: Constraints) -> Iterable[ProcfsProcess | Task]:
    """All processes of Linux, or the requested ones: few from /proc, all from the kernel's iterator if it is loaded."""
    pids = wanted.integers("pid")
    if pids is None and wanted.context.proc == "/proc" and (iterators := loaded_iterators()) is not None:
        return iterators.tasks()
    return Procfs(wanted.context.proc).processes(pids)


def _reader(column: str, wanted: Constraints) -> Callable[[_Process], Value]:
    """A function that reads the value of that column; nothing is read for columns that the statement does not use."""
    if column not in wanted.columns or column == "startup":
        return _unread
    if column in ACCOUNT and wanted.context.platform.has_owner_ids:
        return _unread
    if column in {"cmdline", "argv"}:
        masked, form = wanted.context.access.masker.command_line, attrgetter(column)
        return lambda process: form(masked(raw)) if (raw := process.arguments) else None
    return attrgetter(column)


def _unread(_: _Process) -> None:
    return None


TABLES = (processes,)
