"""The classes of worker processes, what each needs, and the record of the restrictions that hold in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class WorkerClass(StrEnum):
    """What a worker may do; see "Worker processes" in docs/security.md."""

    EVENTS = "events"
    """Reads event tables through descriptors opened before the lockdown. Opens nothing."""
    SNAPSHOTS = "snapshots"
    """Reads the state of the host, including other users' processes and files."""
    COLLECTOR = "collector"
    """Writes logs below one directory. Its connections are passed in."""
    HELPER = "helper"
    """Runs tables with declared needs, and has what `Needs` lists."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a table needs in addition to reading files that every user can read."""

    unix_sockets: tuple[str, ...] = ()
    """Paths of sockets that belong to root."""
    programs: tuple[str, ...] = ()
    """Absolute paths of programs that belong to root and that nobody else can replace."""
    network: bool = False
    """Outgoing connections and datagrams over IPv4 and IPv6."""
    user_database: bool = False
    """The name service's daemons (nscd, sssd, nslcd, systemd-userdbd), which listen on Unix sockets."""
    other_users: bool = False
    """Other users' processes and files, as in a snapshot worker. Excludes `programs` and `network`."""

    def __post_init__(self) -> None:
        if self.other_users and (self.programs or self.network):
            raise ValueError("a table that reads other users' files may use neither programs nor the network")
        for path in (*self.unix_sockets, *self.programs):
            if not path.startswith("/"):
                raise ValueError(f"not an absolute path: {path}")

    @property
    def any_unix_socket(self) -> bool:
        return bool(self.unix_sockets) or self.user_database


NO_NEEDS = Needs()


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Resource limits (setrlimit(2)). An existing hard limit that is lower stays in effect."""

    data_bytes: int = 192 << 20
    """RLIMIT_DATA: heap, other private memory and thread stacks."""
    file_bytes: int | None = 256 << 20
    """RLIMIT_FSIZE, of the largest file it may write, memfds included; None leaves it unchanged."""
    open_files: int = 256


@dataclass(frozen=True, slots=True)
class WorkerAccount:
    """The user that workers run as. `name` is None for a number without an account."""

    uid: int
    gid: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Protections:
    """The restrictions that hold in a worker, as the kernel reported them after the lockdown."""

    worker_class: WorkerClass
    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: tuple[str, ...]
    """Permitted and effective ones; a worker has no inheritable and no ambient ones."""
    bounding: tuple[str, ...]
    no_new_privileges: bool
    seccomp: int
    """Mode as in /proc/PID/status: 0 none, 2 filter."""
    landlock_abi: int
    """Version of the kernel's Landlock that is in use, 0 if none is."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Resource limits by name, in bytes or files."""
    oom_score_adj: int | None = None
    dumpable: bool = False
    missing: tuple[str, ...] = ()
    """What this class should have and does not on this host, with the reason."""
    by_design: tuple[str, ...] = ()
    """Mechanisms that this class does not use, with the reason."""


class LockdownError(Exception):
    """A restriction that this host supports could not be applied. The process must end without doing any work."""
