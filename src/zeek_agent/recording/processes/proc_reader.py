"""Living processes from proc(5), for the process cache."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from sys import intern
from typing import TYPE_CHECKING

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux import boot_clock, procfs
from zeek_agent.host.linux.stamps import TICKS, boot_id
from zeek_agent.recording.processes.process import Process

if TYPE_CHECKING:
    from zeek_agent.masking.masker import Masker


class ProcReader:
    """The `LivingProcesses` of Linux, whose clock is CLOCK_BOOTTIME."""

    start_unit_ns = 1_000_000_000 // TICKS

    def __init__(self, root: str = "/proc") -> None:
        self._root = root

    def now(self) -> int:
        return boot_clock.time_since_boot()

    def pids(self) -> Iterable[int]:
        return _procfs(self._root).pids()

    def read(self, pid: int, masker: Masker) -> Process | None:
        return read_process(pid, masker, self._root)


def read_process(pid: int, masker: Masker, proc: str = "/proc") -> Process | None:
    """A process from /proc, without its parent's attributes; None if the process does not exist."""
    try:
        with procfs.ProcfsProcess(_procfs(proc), pid) as shown:
            if not shown.is_leader:
                return None
            ticks = shown.start_ticks
            started = ticks * 1_000_000_000 // TICKS
            return Process(
                pid=pid,
                start_ticks=ticks,
                since=started,
                started=started,
                entity_id=entity_id(boot_id(), pid, ticks),
                name=intern(shown.name),
                ppid=shown.ppid,
                parent_entity_id=None,
                parent_name=None,
                parent_exe=None,
                uid=shown.uid,
                gid=shown.gid,
                ruid=shown.ruid,
                rgid=shown.rgid,
                exe=_shared(shown.exe),
                command_line=masker.command_line(shown.arguments) if shown.arguments else None,
                cwd=_shared(shown.cwd),
                loginuid=shown.loginuid,
                session=shown.session,
                cgroup=_shared(shown.cgroup),
                container_id=shown.container_id,
                netns=shown.netns,
                priority=shown.priority,
                vsize=shown.vsize or None,
                rsize=shown.rsize if shown.vsize else None,
            )
    except ProcessLookupError:
        return None


@cache
def _procfs(root: str) -> procfs.Procfs:
    return procfs.Procfs(root)


def _shared(path: str | None) -> str | None:
    return None if path is None else intern(path)
