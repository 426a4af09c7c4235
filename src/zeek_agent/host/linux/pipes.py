"""Open ends of pipes and FIFOs (pipe(7), fifo(7)), from proc(5)."""

# ruff: noqa: PTH115
# A query makes thousands of short reads, for which pathlib costs more than the kernel.

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

from zeek_agent.host.files.statx import FOLLOW_WITHOUT_SYNC, status_at
from zeek_agent.host.linux.process_files import DESCRIPTORS_PER_CHECK, descriptors
from zeek_agent.host.linux.procfs import Procfs

PARTNERS_MAX: Final = 100
"""Partners of one end that are shown: as many as may inherit a pipe could make a statement's result quadratic."""
PARTNERS_OF_PROCESS_MAX: Final = 10_000
"""Partners that are shown for one process, but at least one of each of its ends."""
ENDS_MAX: Final = 4_096
"""Ends of one process that are read, four times as many as it may have open by default."""

_AT_FDCWD: Final = -100
_ANONYMOUS: Final = "pipe:["


class PipeEnd(NamedTuple):
    """A descriptor of a pipe or FIFO. `device` is 0 for a pipe; `mode` is `r`, `w` or `rw`."""

    pid: int
    descriptor: int
    mode: str
    device: int
    inode: int

    @property
    def named(self) -> bool:
        return self.device != 0


class PipeEnds:
    """The open ends of all processes, by process and by pipe."""

    def __init__(self) -> None:
        self._by_process: dict[int, list[PipeEnd]] = {}
        self._by_pipe: dict[tuple[int, int], dict[str, list[PipeEnd]]] = {}
        """By device and inode number, and by mode."""

    def add(self, end: PipeEnd) -> None:
        self._by_process.setdefault(end.pid, []).append(end)
        self._by_pipe.setdefault((end.device, end.inode), {}).setdefault(end.mode, []).append(end)

    def of(self, pids: Collection[int] | None) -> Iterator[PipeEnd]:
        """The ends of these processes, or of all."""
        for pid, ends in self._by_process.items():
            if pids is None or pid in pids:
                yield from ends

    def partners(self, end: PipeEnd) -> list[PipeEnd]:
        """The other ends of a pipe: those of another mode, and if this one is open for both, all others."""
        there = self._by_pipe[end.device, end.inode]
        modes = (ends for mode, ends in there.items() if mode != end.mode or end.mode == "rw")
        others = (other for other in chain.from_iterable(modes) if other != end)
        most = max(min(PARTNERS_OF_PROCESS_MAX // len(self._by_process[end.pid]), PARTNERS_MAX), 1)
        return list(islice(others, most))


def pipe_ends(
    root: str, check: Callable[[], None] = lambda: None, report: Callable[[str], None] = lambda _: None
) -> PipeEnds:
    """The ends that all processes have open. `report` gets a message for each process with too many."""
    ends = PipeEnds()
    for pid in Procfs(root).pids():
        check()
        directory, numbers = descriptors(root, pid)
        found = list(islice(_ends(pid, directory, numbers, check), ENDS_MAX + 1))
        if len(found) > ENDS_MAX:
            report(f"process {pid} has more than {ENDS_MAX} pipes open, of which the first are shown")
        for end in found[:ENDS_MAX]:
            ends.add(end)
    return ends


def _ends(pid: int, directory: str, numbers: Collection[str], check: Callable[[], None]) -> Iterator[PipeEnd]:
    for index, number in enumerate(numbers):
        if index % DESCRIPTORS_PER_CHECK == 0:
            check()
        link = directory + number
        try:
            target = os.readlink(link)
            if target.startswith(_ANONYMOUS):
                yield PipeEnd(pid, int(number), _mode(link), 0, int(target[6:-1]))
            elif target.startswith("/"):
                status = status_at(_AT_FDCWD, link, FOLLOW_WITHOUT_SYNC)
                if stat.S_ISFIFO(status.mode):
                    yield PipeEnd(pid, int(number), _mode(link), status.device, status.inode)
        except OSError:  # closed meanwhile
            continue


def _mode(link: str) -> str:
    """The permissions of a link in /proc/PID/fd show how the descriptor was opened."""
    mode = os.lstat(link).st_mode
    return ("r" if mode & stat.S_IRUSR else "") + ("w" if mode & stat.S_IWUSR else "")
