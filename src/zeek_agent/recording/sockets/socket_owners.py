"""Finds the owner of a socket in the most likely order: recent owners, then the youngest processes."""

# ruff: noqa: PTH115, PTH123, PTH208  where pathlib costs more than the kernel

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from zeek_agent.host.linux.procfs import living_directory
from zeek_agent.text import from_bytes

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.processes.process_cache import ProcessCache

_YOUNG_NS: Final = 1_000_000_000
_RECENT_OWNERS: Final = 64
"""Processes that are searched first: a few of them open most of a host's connections."""


class SocketOwners:
    """Searches /proc/PID/fd for sockets by their inode numbers."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._recent: dict[int, None] = {}

    def find(self, inodes: Iterable[int]) -> dict[int, int]:
        """The owner's pid by inode, for sockets of visible processes.

        If parent and child both have a socket open, the owner is the parent: it opened the socket before the fork.
        """
        wanted = {f"socket:[{inode}]": inode for inode in inodes}
        found: dict[int, int] = {}
        for pid in self._candidates():
            if not wanted:
                break
            held = {target for target in self._sockets(pid) if target in wanted}
            for target in held:
                found[wanted.pop(target)] = self._eldest(pid, target)
            if held:
                self._remember(pid)
        return found

    def _candidates(self) -> Iterator[int]:
        recent = list(reversed(self._recent))
        yield from recent
        known = set(recent)
        youngest_first = sorted((int(name) for name in os.listdir(self._proc) if name.isdecimal()), reverse=True)
        yield from (pid for pid in youngest_first if pid not in known)

    def _remember(self, pid: int) -> None:
        self._recent.pop(pid, None)
        self._recent[pid] = None
        if len(self._recent) > _RECENT_OWNERS:
            del self._recent[next(iter(self._recent))]

    def _sockets(self, pid: int) -> list[str]:
        """Targets of the process's descriptors; empty if the process is gone or not accessible."""
        directory = f"{self._proc}/{pid}/fd/"
        try:
            descriptors = os.listdir(directory)
            if not descriptors:
                directory = f"{living_directory(self._proc, pid)}/fd/"
                descriptors = os.listdir(directory)
        except OSError:
            return []
        targets = []
        for descriptor in descriptors:
            try:
                targets.append(os.readlink(directory + descriptor))
            except OSError:  # closed meanwhile
                continue
        return targets

    def _eldest(self, pid: int, target: str) -> int:
        while (parent := self._parent(pid)) > 1 and target in self._sockets(parent):
            pid = parent
        return pid

    def _parent(self, pid: int) -> int:
        """The parent's pid; 0 without one, or if the process is gone."""
        try:
            with open(f"{self._proc}/{pid}/stat", "rb", buffering=0) as file:
                return int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            return 0


def _may_have_executed(process: Process) -> bool:
    """Whether an exec can have happened that the cache is about to be told: shortly after the fork, or by the name."""
    if time.clock_gettime_ns(time.CLOCK_BOOTTIME) - process.since < _YOUNG_NS:
        return True
    try:
        with open(f"/proc/{process.pid}/comm", "rb", buffering=0) as file:
            return from_bytes(file.read().removesuffix(b"\n")) != process.name
    except OSError:
        return False


def _current(cache: ProcessCache, pid: int, known: Process | None) -> Process | None:
    """The process as /proc has it now, or else as it is known."""
    shown = cache.read(pid)
    if shown is None:
        return known
    if known is not None and known.start_ticks == shown.start_ticks:
        shown.keep_parent(known)
    return shown


def living_owners(owners: SocketOwners, cache: ProcessCache, inodes: set[int], fed: bool) -> dict[int, Process]:
    """The current owners of these sockets; from /proc unless the cache is `fed` with process events."""
    found: dict[int, Process] = {}
    for inode, pid in owners.find(inodes).items():
        process = cache.find(pid) if fed else None
        if process is None or process.exited or _may_have_executed(process):
            process = _current(cache, pid, process)
        if process is not None:
            found[inode] = process
    return found
