"""Living processes by psutil, for the process cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from sys import intern
from typing import TYPE_CHECKING

from zeek_agent.recording.processes.process import Process

if TYPE_CHECKING:
    from zeek_agent.host.portable.processes import PortableProcess, PortableProcesses
    from zeek_agent.masking.masker import Masker


class PortableReader:
    """The `LivingProcesses` of systems without /proc, whose clock counts from the epoch."""

    def __init__(self, scan: Callable[[], PortableProcesses]) -> None:
        """`scan` begins a new scan of all processes."""
        self._new_scan = scan
        self._scan = scan()

    @property
    def start_unit_ns(self) -> int:
        return self._scan.start_unit_ns

    def now(self) -> int:
        return time.time_ns()

    def pids(self) -> Iterable[int]:
        self._scan = self._new_scan()
        return self._scan.pids()

    def read(self, pid: int, masker: Masker) -> Process | None:
        try:
            with self._scan.process(pid) as shown:
                return _described(shown, masker)
        except ProcessLookupError:
            return None


def _described(shown: PortableProcess, masker: Masker) -> Process:
    return Process(
        pid=shown.pid,
        start_ticks=shown.start,
        since=shown.started_ns,
        started=shown.started_ns,
        entity_id=shown.entity_id or "",
        name=intern(shown.name or ""),
        ppid=shown.ppid or 0,
        uid=shown.uid,
        gid=shown.gid,
        ruid=shown.ruid,
        rgid=shown.rgid,
        exe=_shared(shown.exe),
        command_line=masker.command_line(shown.arguments) if shown.arguments else None,
        cwd=_shared(shown.cwd),
        priority=shown.priority,
        vsize=shown.vsize,
        rsize=shown.rsize,
        user=_shared(shown.user),
        sid=_shared(shown.sid),
    )


def _shared(text: str | None) -> str | None:
    return None if text is None else intern(text)
