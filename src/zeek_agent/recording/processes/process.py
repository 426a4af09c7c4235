"""The attributes of a process, as event sources know them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zeek_agent.masking.command_line import CommandLine
    from zeek_agent.masking.masker import Masker


@dataclass(slots=True, eq=False)
class Process:
    """Attributes of a process from `since` until it ends or executes another program (`until`).

    `exe` is as in /proc/PID/exe, `uid` and `gid` are the effective ids; None means unknown or not set. Times are in ns
    of the clock of `LivingProcesses`. `start_ticks` is the start in the unit of `entity_id`: ticks of /proc,
    microseconds on macOS, FILETIME on Windows. `user` and `sid` are known on Windows only.

    `exe_device`, `exe_inode` and `exe_mntns` identify the executable, and are known only from the record of its exec:
    what /proc shows later may be another program, or a file that the process chose (PR_SET_MM_EXE_FILE of prctl(2)).
    """

    pid: int
    start_ticks: int
    since: int
    started: int
    entity_id: str
    name: str
    ppid: int = 0
    parent_entity_id: str | None = None
    parent_name: str | None = None
    parent_exe: str | None = None
    uid: int | None = None
    gid: int | None = None
    ruid: int | None = None
    rgid: int | None = None
    exe: str | None = None
    command_line: CommandLine | None = None
    cwd: str | None = None
    loginuid: int | None = None
    session: int | None = None
    cgroup: str | None = None
    container_id: str | None = None
    netns: int | None = None
    priority: str | None = None
    vsize: int | None = None
    rsize: int | None = None
    until: int | None = None
    exited: bool = False
    exe_device: int | None = None
    exe_inode: int | None = None
    exe_mntns: int | None = None
    user: str | None = None
    sid: str | None = None
    is_reported: bool = False
    """Whether its start was passed on, by sources that note it."""

    def forget_executable(self) -> None:
        """Note that the process may execute something else than was recorded."""
        self.exe_device = self.exe_inode = self.exe_mntns = None

    def keep_parent(self, earlier: Process) -> None:
        """Keep the process that forked this one as its parent, even if that has ended and this one was reparented."""
        if earlier.parent_entity_id is not None:
            self.ppid = earlier.ppid
            self.parent_entity_id = earlier.parent_entity_id
            self.parent_name = earlier.parent_name
            self.parent_exe = earlier.parent_exe


class LivingProcesses(Protocol):
    """How a system shows its living processes.

    Its clock counts nanoseconds since boot on Linux, and since the epoch elsewhere. `start_unit_ns` is the accuracy of
    starts.
    """

    @property
    def start_unit_ns(self) -> int: ...

    def now(self) -> int:
        """The time by its clock."""
        ...

    def pids(self) -> Iterable[int]:
        """The ids of all processes that this agent may see."""
        ...

    def read(self, pid: int, masker: Masker) -> Process | None:
        """A process without its parent's attributes, its command line masked; None if the process does not exist."""
        ...
