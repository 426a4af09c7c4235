"""Processes and their namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Final, TypeAlias

from zeek_agent.bpf.iterators import Task
from zeek_agent.host.linux.process_files import NAMESPACES, ExecutablePaths, namespaces
from zeek_agent.host.linux.procfs import STATES, Procfs, ProcfsProcess
from zeek_agent.schema import Column, Row, Value
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.processes import listed_processes

_Process: TypeAlias = "ProcfsProcess | Task"

processes = osquery_table(
    "processes",
    "running processes",
    description=(
        "All processes, including kernel threads, whose `path` is empty. The secrets in `cmdline` are masked. "
        "`WHERE pid = …` reads only these processes, and only the columns that the statement uses are read."
    ),
    columns=[
        Column("pid", "int", "process id"),
        Column("name", "text", "short name of the process (comm in proc(5))"),
        Column("path", "text", "path of the executable, without ` (deleted)`; empty for a kernel thread"),
        Column("cmdline", "text", "arguments joined by blanks, with secrets masked (`***`)"),
        Column("state", "text", "`R` running, `S` sleeping, `D`, `T`, `t`, `Z` zombie, `X`, `I` idle or `P`"),
        Column("cwd", "text", "working directory"),
        Column("root", "text", "root directory, as set by chroot(2)"),
        Column("uid", "int", "real user id"),
        Column("gid", "int", "real group id"),
        Column("euid", "int", "effective user id"),
        Column("egid", "int", "effective group id"),
        Column("suid", "int", "saved user id"),
        Column("sgid", "int", "saved group id"),
        Column("on_disk", "int", "1 if the executable still has its path, 0 if it has been deleted, -1 if unknown"),
        Column("wired_size", "int", "always 0 on Linux"),
        Column("resident_size", "int", "bytes in memory; null without memory of its own"),
        Column("total_size", "int", "bytes of address space; null without memory of its own"),
        Column("user_time", "int", "CPU time spent in user mode, in milliseconds"),
        Column("system_time", "int", "CPU time spent in the kernel, in milliseconds"),
        Column("disk_bytes_read", "int", "bytes that it caused to be read from disk"),
        Column("disk_bytes_written", "int", "bytes that it caused to be written to disk"),
        Column("start_time", "int", "when it started, in seconds since the epoch"),
        Column("parent", "int", "process id of the parent"),
        Column("pgroup", "int", "process group"),
        Column("threads", "int", "number of threads"),
        Column("nice", "int", "nice value: -20 is most urgent, 19 least"),
        Column("cgroup_path", "text", "path of its control group"),
    ],
    foreign=(
        "elevated_token:int secure_process:int protection_type virtual_process:int elapsed_time:int handle_count:int "
        "percent_processor_time:int upid:int uppid:int cpu_type:int cpu_subtype:int translated:int"
    ),
    examples=[
        "SELECT pid, name, path, cmdline FROM osquery_processes WHERE on_disk = 0",
        "SELECT name, uid, resident_size FROM osquery_processes WHERE pid = 1",
    ],
)

process_namespaces = osquery_table(
    "process_namespaces",
    "namespaces of processes",
    description="One row per process. The inode number of a namespace is null if the agent may not see it.",
    columns=[
        Column("pid", "int", "process id"),
        *(Column(f"{kind}_namespace", "text", f"inode number of its {kind} namespace") for kind in NAMESPACES),
    ],
    examples=["SELECT net_namespace, mnt_namespace FROM process_namespaces WHERE pid = 1"],
)

_LETTERS: Final = {name: letter for letter, name in STATES.items()}
_BLANKS: Final = " \t\n\v\f\r"

_READERS: Final[Mapping[str, Callable[[_Process], Value]]] = {
    "state": lambda process: _LETTERS.get(process.state, process.state),
    "cwd": lambda process: process.cwd or "",
    "root": lambda process: process.root or "",
    "uid": attrgetter("ruid"),
    "gid": attrgetter("rgid"),
    "euid": attrgetter("uid"),
    "egid": attrgetter("gid"),
    "wired_size": lambda _: 0,
    "resident_size": lambda process: process.rsize if process.vsize else None,
    "total_size": lambda process: process.vsize or None,
    "user_time": lambda process: round(process.utime * 1_000),
    "system_time": lambda process: round(process.stime * 1_000),
    "disk_bytes_read": attrgetter("disk_read"),
    "disk_bytes_written": attrgetter("disk_written"),
    "start_time": lambda process: int(process.start_time),
    "parent": attrgetter("ppid"),
    "pgroup": attrgetter("pgid"),
    "cgroup_path": lambda process: process.cgroup or "",
}
"""How columns are read that are not attributes of the same name."""


@processes.snapshot
def running(wanted: Constraints) -> Iterator[Row]:
    context = wanted.context
    paths = ExecutablePaths(context.access, context.reads, wanted.check, context.proc)
    read = [_reader(column.name, wanted, paths) for column in processes.columns if not column.hidden]
    for process in listed_processes(wanted):
        wanted.check()
        try:
            row = [value(process) for value in read]
        except ProcessLookupError:
            continue
        yield row


@process_namespaces.snapshot
def inside(wanted: Constraints) -> Iterator[Row]:
    kinds = [kind for kind in NAMESPACES if wanted.needs(f"{kind}_namespace")]
    for pid in asked_pids(wanted):
        found = namespaces(wanted.context.proc, pid, kinds)
        if found is not None:
            yield pid, *(found.get(kind) for kind in NAMESPACES)


def asked_pids(wanted: Constraints) -> Iterator[int]:
    """The process ids that the statement asks for, or all of them; the statement's limits are checked at each."""
    procfs = Procfs(wanted.context.proc)
    pids = wanted.integers("pid")
    for pid in procfs.pids() if pids is None else (process.pid for process in procfs.processes(pids)):
        wanted.check()
        yield pid


def _reader(column: str, wanted: Constraints, paths: ExecutablePaths) -> Callable[[_Process], Value]:
    """A function that reads the value of that column; nothing is read for columns that the statement does not use."""
    if column not in wanted.columns:
        return lambda _: None
    if column == "path":
        return lambda process: paths.path(process.pid, process.exe)
    if column == "on_disk":
        return lambda process: paths.on_disk(process.pid, process.exe)
    if column == "cmdline":
        masked = wanted.context.access.masker.command_line
        return lambda process: masked(raw).cmdline.strip(_BLANKS) if (raw := process.arguments) else ""
    return _READERS.get(column) or attrgetter(column)


TABLES = (processes, process_namespaces)
