"""The classes of worker processes, their limits, and the record of the restrictions that hold in a worker."""

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
    """Runs tables that declare privileges, and has what they declare."""


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
