"""What processes have open, mapped and set, from proc(5): descriptors, memory maps, environment, namespaces."""

# ruff: noqa: PTH115, PTH123, PTH208
# A query makes thousands of short reads, for which pathlib costs more than the kernel.

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from zeek_agent.host.files.statx import FOLLOW_WITHOUT_SYNC, FileStatus, status_at
from zeek_agent.host.linux.procfs import living_directory
from zeek_agent.text import from_bytes, to_bytes

if TYPE_CHECKING:
    from zeek_agent.access import AccessPolicy
    from zeek_agent.host.files.gate import Gate
    from zeek_agent.host.files.portable import PortableGate
    from zeek_agent.host.files.reads import FileReads

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
ENVIRONMENT_BYTES_MAX: Final = 8 << 20
"""More than the kernel passes to a program whose stack is not larger than usual: a quarter of it, at most 6 MiB."""

DESCRIPTORS_PER_CHECK: Final = 1_000
"""Descriptors between checks of the statement's limits: a process may have a million."""

_DELETED: Final = " (deleted)"
_AT_FDCWD: Final = -100
_LINES_PER_CHECK: Final = 500


class Mapping(NamedTuple):
    """A line of /proc/PID/maps. `start` and `end` are hexadecimal digits, `device` is `major:minor` in such digits."""

    start: str
    end: str
    permissions: str
    offset: int
    device: str
    inode: int
    path: str


def descriptors(root: str, pid: int) -> tuple[str, list[str]]:
    """The directory with a process's open descriptors, with a slash, and their numbers; none if it is gone.

    If its main thread has ended while others run, the directory is that of the oldest of these.
    """
    directory = f"{root}/{pid}/fd/"
    try:
        numbers = os.listdir(directory)
        if not numbers:  # few processes but kernel threads
            directory = f"{living_directory(root, pid)}/fd/"
            numbers = os.listdir(directory)
    except OSError:  # gone, or not accessible
        return directory, []
    return directory, numbers


def namespaces(root: str, pid: int, kinds: Collection[str]) -> dict[str, str] | None:
    """Inode numbers of a process's namespaces, by kind, without those that are not accessible; None if it is gone."""
    found: dict[str, str] = {}
    directory = f"{root}/{pid}"
    for kind in kinds:
        try:
            try:
                link = os.readlink(f"{directory}/ns/{kind}")
            except FileNotFoundError:
                if not os.path.exists(directory):  # noqa: PTH110
                    return None
                directory = living_directory(root, pid)
                link = os.readlink(f"{directory}/ns/{kind}")
        except OSError:
            continue
        found[kind] = link.partition("[")[2].removesuffix("]")
    return found


def memory_maps(root: str, pid: int, check: Callable[[], None] = lambda: None) -> Iterator[Mapping]:
    """The memory maps of a process, in the order of their addresses; none if it is gone or not accessible."""
    try:
        with open(f"{living_directory(root, pid)}/maps", "rb") as file:
            for number, line in enumerate(file):
                if number % _LINES_PER_CHECK == 0:
                    check()
                addresses, permissions, offset, device, inode, *path = line.rstrip(b"\n").split(None, 5)
                start, _, end = addresses.decode().partition("-")
                yield Mapping(
                    start,
                    end,
                    permissions.decode(),
                    int(offset, 16),
                    device.decode(),
                    int(inode),
                    from_bytes(path[0]) if path else "",
                )
    except OSError:
        return


def environment(root: str, pid: int) -> tuple[list[bytes], bool]:
    """The variables with which a process was started, as `NAME=value`, unmasked, and whether that is all.

    None if it is gone or not accessible. A process can overwrite them.
    """
    try:
        with open(f"{living_directory(root, pid)}/environ", "rb", buffering=0) as file:
            parts, size = [], 0
            while size <= ENVIRONMENT_BYTES_MAX and (part := file.read(1 << 16)):
                parts.append(part)
                size += len(part)
    except OSError:
        return [], True
    raw = b"".join(parts)
    return [entry for entry in raw[:ENVIRONMENT_BYTES_MAX].split(b"\0") if entry], size <= ENVIRONMENT_BYTES_MAX


class ExecutablePaths:
    """Paths of the executables of processes, for one statement, and whether these files still have them.

    The kernel appends ` (deleted)` to the path of a deleted file, but a file's name may also end like that.
    """

    def __init__(self, access: AccessPolicy, reads: FileReads, check: Callable[[], None], root: str) -> None:
        self._access = access
        self._reads = reads
        self._check = check
        self._root = root
        self._gate: Gate | PortableGate | None = None
        self._last: tuple[int, str, bool] | None = None

    def path(self, pid: int, exe: str | None) -> str:
        """The path without the kernel's suffix; empty without an executable."""
        if exe is None:
            return ""
        return exe.removesuffix(_DELETED) if self._is_deleted(pid, exe) else exe

    def on_disk(self, pid: int, exe: str | None) -> int:
        """1 if the executable has its path, 0 if it has been deleted, -1 without one or if it is unknown."""
        if exe is None:
            return -1
        return 0 if self._is_deleted(pid, exe) else 1

    def _is_deleted(self, pid: int, exe: str) -> bool:
        if not exe.endswith(_DELETED):
            return False
        if self._last is None or self._last[:2] != (pid, exe):
            self._last = pid, exe, self._has_lost(pid, exe)
        return self._last[2]

    def _has_lost(self, pid: int, exe: str) -> bool:
        """Whether the executable is not the file at that path."""
        try:
            status = status_at(_AT_FDCWD, f"{living_directory(self._root, pid)}/exe", FOLLOW_WITHOUT_SYNC)
        except OSError:  # gone meanwhile
            return True
        return status.links == 0 or not self._is_at(status, exe)

    def _is_at(self, status: FileStatus, path: str) -> bool:
        from zeek_agent.host.files.file_rules import RefusedError
        from zeek_agent.host.files.globbing import open_gate

        if self._gate is None:
            self._gate = open_gate(self._access, self._reads, self._check)
        try:
            there = self._gate.walk(self._gate.root, os.fsdecode(to_bytes(path))).status
        except (OSError, RefusedError):
            return False
        return (there.device, there.inode) == (status.device, status.inode)
