"""What processes have open and mapped, and their environments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from zeek_agent.host.linux.pipes import PARTNERS_MAX, PARTNERS_OF_PROCESS_MAX, pipe_ends
from zeek_agent.host.linux.process_files import (
    DESCRIPTORS_PER_CHECK,
    ENVIRONMENT_BYTES_MAX,
    descriptors,
    environment,
    memory_maps,
)
from zeek_agent.masking.masker import Masker
from zeek_agent.masking.text_rules import MASK
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery.processes import asked_pids
from zeek_agent.text import from_bytes, from_os

VARIABLES_MAX: Final = 4_096
"""Variables of one process, many times what programs need: an environment has room for a million."""

process_open_files = osquery_table(
    "process_open_files",
    "files that processes have open",
    description=(
        "One row per file descriptor of a file, directory or device. Sockets, pipes and other objects without a path "
        "are left out. `WHERE pid = …` reads only these processes."
    ),
    columns=[
        Column("pid", "int", "process id"),
        Column("fd", "int", "file descriptor"),
        Column("path", "text", "path as /proc/PID/fd shows it, with ` (deleted)` if the file has been deleted"),
    ],
    examples=[
        "SELECT fd, path FROM process_open_files WHERE pid = 1",
        "SELECT pid, path FROM process_open_files WHERE path LIKE '% (deleted)'",
    ],
)

process_open_pipes = osquery_table(
    "process_open_pipes",
    "pipes that processes have open, and the processes at the other end",
    description=(
        "One row per open end of a pipe or FIFO and process at the other end, of which at most "
        f"{PARTNERS_MAX} are shown, and {PARTNERS_OF_PROCESS_MAX} for a process. Without one, the columns of the "
        "partner are null."
    ),
    columns=[
        Column("pid", "int", "process id"),
        Column("fd", "int", "file descriptor"),
        Column("mode", "text", "`r`, `w` or `rw`"),
        Column("inode", "int", "inode number of the pipe"),
        Column("type", "text", "`named` for a FIFO, else `anonymous`"),
        Column("partner_pid", "int", "process with the other end"),
        Column("partner_fd", "int", "its file descriptor"),
        Column("partner_mode", "text", "`r`, `w` or `rw`"),
    ],
    examples=["SELECT fd, mode, partner_pid FROM process_open_pipes WHERE pid = 1"],
)

process_memory_map = osquery_table(
    "process_memory_map",
    "memory maps of processes",
    description=(
        "One row per mapped range of a process, including programs and libraries. By default "
        "[`access.secrets_deny`](configuration.md#access) leaves `start` and `end` unset, because they help to attack "
        "the process."
    ),
    columns=[
        Column("pid", "int", "process id"),
        Column("start", "text", "first address, such as `0x7f0000000000`"),
        Column("end", "text", "address behind the range"),
        Column("permissions", "text", "`r`, `w`, `x` and `s` shared or `p` private, such as `r-xp`"),
        Column("offset", "int", "offset in the file"),
        Column("device", "text", "major and minor device number in hexadecimal, such as `fd:01`"),
        Column("inode", "int", "inode number of the file; 0 without one"),
        Column("path", "text", "path of the file, or a name such as `[heap]`; empty for anonymous memory"),
        Column("pseudo", "int", "1 if `path` is such a name, else 0"),
    ],
    examples=["SELECT DISTINCT path FROM process_memory_map WHERE pid = 1 AND permissions LIKE '__x%'"],
)

process_envs = osquery_table(
    "process_envs",
    "environment variables of processes",
    description=(
        f"One row per variable that a process was started with, at most {VARIABLES_MAX} of one process. By default "
        "[`access.secrets_deny`](configuration.md#access) denies the table, because many secrets are passed in "
        "variables; the values of those that are known to hold one are `***`."
    ),
    columns=[
        Column("pid", "int", "process id"),
        Column("key", "text", "name of the variable"),
        Column("value", "text", "its value, with secrets masked (`***`)"),
    ],
    examples=["SELECT pid, value FROM process_envs WHERE key = 'LD_PRELOAD'"],
)

_NO_FILES = ("socket:[", "pipe:[", "anon_inode:")


@process_open_files.snapshot
def open_files(wanted: Constraints) -> Iterator[Row]:
    root, readlink = wanted.context.proc, os.readlink
    for pid in asked_pids(wanted):
        directory, numbers = descriptors(root, pid)
        for index, number in enumerate(numbers):
            if index % DESCRIPTORS_PER_CHECK == 0:
                wanted.check()
            try:
                target = readlink(directory + number)
            except OSError:
                continue
            if not target.startswith(_NO_FILES):
                yield pid, int(number), from_os(target)


@process_open_pipes.snapshot
def open_pipes(wanted: Constraints) -> Iterator[Row]:
    ends = pipe_ends(wanted.context.proc, wanted.check, wanted.report)
    asked = wanted.integers("pid")
    for end in ends.of(asked):
        wanted.check()
        shown = (end.pid, end.descriptor, end.mode, end.inode, "named" if end.named else "anonymous")
        found = ends.partners(end)
        for partner in found:
            yield *shown, partner.pid, partner.descriptor, partner.mode
        if not found:
            yield *shown, None, None, None


@process_memory_map.snapshot
def mapped(wanted: Constraints) -> Iterator[Row]:
    for pid in asked_pids(wanted):
        for one in memory_maps(wanted.context.proc, pid, wanted.check):
            is_pseudo = one.inode == 0 and one.path != ""
            yield (
                pid,
                f"0x{one.start}",
                f"0x{one.end}",
                one.permissions,
                one.offset,
                one.device,
                one.inode,
                one.path,
                int(is_pseudo),
            )


@process_envs.snapshot
def variables(wanted: Constraints) -> Iterator[Row]:
    masker = wanted.context.access.masker
    asked = wanted.equal("key")
    for pid in asked_pids(wanted):
        entries, is_all = environment(wanted.context.proc, pid)
        if not is_all:
            wanted.report(f"process {pid} has an environment of more than {ENVIRONMENT_BYTES_MAX} bytes")
        named = ((from_bytes(entry.partition(b"=")[0]), entry) for entry in entries)
        found = ((name, entry) for name, entry in named if asked is None or name in asked)
        for number, (name, entry) in enumerate(found):
            wanted.check()
            if number == VARIABLES_MAX:
                wanted.report(f"process {pid} has more than {VARIABLES_MAX} variables, of which the first are shown")
                break
            yield pid, name, _masked_value(name, entry, masker) if wanted.needs("value") else None


def _masked_value(name: str, entry: bytes, masker: Masker) -> str:
    """The value of `NAME=value`, masked as if env(1) set it."""
    if b"=" not in entry:
        return ""
    masked = masker.command_line(b"env\0" + entry + b"\0").arguments.removeprefix("env\0")
    return masked.removeprefix(f"{name}=") if masked.startswith(f"{name}=") else MASK


TABLES = (process_open_files, process_open_pipes, process_memory_map, process_envs)
