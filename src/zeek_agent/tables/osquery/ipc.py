"""Shared memory."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.linux.shared_memory import DESTROYED, LOCKED, shared_memory
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

segments = osquery_table(
    "shared_memory",
    "shared memory segments of System V",
    description="One row per segment of shmget(2) in the agent's IPC namespace.",
    columns=[
        Column("shmid", "int", "id of the segment"),
        Column("owner_uid", "int", "user id of the owner"),
        Column("creator_uid", "int", "user id of the creator"),
        Column("pid", "int", "process that last attached or detached it; 0 if none has"),
        Column("creator_pid", "int", "process that created it"),
        Column("atime", "int", "last attachment, in seconds since 1970; 0 if there was none"),
        Column("dtime", "int", "last detachment, likewise"),
        Column("ctime", "int", "creation or last change of its attributes, in seconds since 1970"),
        Column("permissions", "text", "four octal digits; the first is 1 if it is to be destroyed, 2 if it is locked"),
        Column("size", "int", "size in bytes"),
        Column("attached", "int", "number of attachments"),
        Column("status", "text", "`dest` if it will be destroyed with its last attachment, otherwise empty"),
        Column("locked", "int", "1 if it is locked in memory, otherwise 0"),
    ],
    examples=["SELECT shmid, owner_uid, size, attached FROM shared_memory WHERE attached > 0"],
)


@segments.snapshot
def listed(wanted: Constraints) -> Iterator[Row]:
    for each in shared_memory(wanted.context.proc):
        yield (
            each.id,
            each.uid,
            each.creator_uid,
            each.last_pid,
            each.creator_pid,
            each.attach_time,
            each.detach_time,
            each.change_time,
            f"{each.mode & 0o7777:04o}",
            each.size,
            each.attached,
            "dest" if each.mode & DESTROYED else "",
            int(bool(each.mode & LOCKED)),
        )


TABLES = (segments,)
