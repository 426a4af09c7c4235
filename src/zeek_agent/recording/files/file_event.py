"""Rows of file events."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from zeek_agent.recording.files.watch_messages import Action, Change
from zeek_agent.text import from_bytes

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process

FILES_EVENTS: Final = "files_events"
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_NAMES: Final = {action: action.name.lower() for action in Action}
_STORED_MAX: Final = 2**63 - 1
"""The largest integer that the event store holds."""


class FileEvent(Struct, frozen=True, gc=False):  # its values are scalars, so it is in no reference cycle
    """A row of `files_events`, which describes the columns. None means unknown or not applicable."""

    time: float
    action: str
    path: str | None
    old_path: str | None
    type: str | None
    count: int
    pid: int | None
    process: str | None
    uid: int | None
    gid: int | None
    device: int | None
    inode: int | None
    size: int | None
    permissions: str | None
    sha256: str | None
    found: bool
    exe: str | None
    cmdline: str | None
    loginuid: int | None
    session: int | None
    container_id: str | None
    entity_id: str | None
    parent_entity_id: str | None
    argv: str | None = None
    """As the event store holds it (`CommandLine.stored_argv`)."""
    exe_device: int | None = None
    exe_inode: int | None = None
    exe_mntns: int | None = None


def file_event(change: Change, process: Process | None, boot_time: float, *, may_hash: bool) -> FileEvent:
    """The row of a change, by `process` if that is known. `may_hash` says whether access rules permit its hash."""
    status = change.status
    command_line = process.command_line if process else None
    return FileEvent(
        boot_time + change.at / 1e9,
        _NAMES[change.action],
        None if change.path is None else from_bytes(change.path),
        None if change.old_path is None else from_bytes(change.old_path),
        _TYPES.get(stat.S_IFMT(status.mode), "other") if status else "dir" if change.is_directory else None,
        change.count,
        change.pid,
        process.name or None if process else None,
        process.uid if process else None,
        process.gid if process else None,
        _stored(status.device) if status else None,
        _stored(status.inode) if status else None,
        _stored(status.size) if status and not change.is_directory else None,
        f"{stat.S_IMODE(status.mode):o}" if status else None,
        change.sha256.hex() if change.sha256 and may_hash else None,
        change.is_found,
        process.exe if process else None,
        command_line.cmdline if command_line else None,
        process.loginuid if process else None,
        process.session if process else None,
        process.container_id if process else None,
        process.entity_id or None if process else None,
        process.parent_entity_id or None if process else None,
        command_line.stored_argv if command_line else None,
        process.exe_device if process else None,
        process.exe_inode if process else None,
        process.exe_mntns if process else None,
    )


def _stored(number: int) -> int | None:
    return number if number <= _STORED_MAX else None
