"""Shared memory segments of System V, from /proc/sysvipc/shm (shmget(2), proc(5))."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

DESTROYED: Final = 0o1000
LOCKED: Final = 0o2000


class SharedMemory(NamedTuple):
    """A segment; `mode` has the permissions and the flags `DESTROYED` and `LOCKED`. Times are seconds since 1970."""

    id: int
    mode: int
    size: int
    creator_pid: int
    last_pid: int
    attached: int
    uid: int
    creator_uid: int
    attach_time: int
    detach_time: int
    change_time: int


def shared_memory(proc: str = "/proc") -> Iterator[SharedMemory]:
    """The segments of this process's IPC namespace; none on a kernel without them."""
    try:
        lines = Path(proc, "sysvipc/shm").read_text().splitlines()[1:]
    except FileNotFoundError:
        return
    for line in lines:
        _, shmid, mode, *numbers = line.split()
        size, creator, last, attached, uid, _, creator_uid, _, *times = map(int, numbers)
        yield SharedMemory(int(shmid), int(mode, 8), size, creator, last, attached, uid, creator_uid, *times[:3])
