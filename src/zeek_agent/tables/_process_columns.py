"""Columns that describe the process behind a row, declared once for every table that has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from zeek_agent.schema import Column

EXECUTABLE: Final = ("exe_device", "exe_inode", "exe_mntns")
"""The columns that identify the executable whose path is `exe`."""
ACCOUNT: Final = ("user", "sid")
"""The columns for the user of a process where users have no numbers."""

_COLUMNS = {
    column.name: column
    for column in (
        Column("exe", "text", "path of the process's executable; `exe_inode` and `exe_device` identify the file"),
        Column("exe_device", "count", "device number of the executable's file system, as makedev(3) encodes it"),
        Column("exe_inode", "count", "inode number of the executable, which identifies it together with `exe_device`"),
        Column("exe_mntns", "count", "inode number of the mount namespace in which `exe` is the path of that file"),
        Column("cmdline", "text", "arguments joined by one blank each, with secrets masked (`***`)"),
        Column(
            "argv",
            "vector[text]",
            "arguments, with secrets masked; null if they are unknown, or more than an event holds (4 KB)",
        ),
        Column("loginuid", "count", "login user id (audit), which setuid does not change"),
        Column("session", "count", "login session id (audit)"),
        Column("cgroup", "text", "path of the control group in the unified hierarchy, or the longest path"),
        Column("container_id", "text", "container id, from the control group; null if not in a container"),
        Column("netns", "count", "inode number of the network namespace"),
        Column("entity_id", "text", "unique process id, never reused, not even after a reboot"),
        Column("parent_entity_id", "text", "the parent's `entity_id`"),
        Column(
            "user", "text", "Windows: account of the process, as `DOMAIN\\name`; null elsewhere, where `uid` has it"
        ),
        Column("sid", "text", "Windows: security identifier of that account; null elsewhere"),
    )
}


def process_columns(*names: str, added: bool = False, hidden: bool = False) -> list[Column]:
    """The columns of these names; `added` and `hidden` as in `Column`."""
    return [replace(_COLUMNS[name], added=added, hidden=hidden) for name in names]
