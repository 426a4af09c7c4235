"""Decoders of the records in `records.h`."""

from __future__ import annotations

import os
from enum import IntEnum, IntFlag
from functools import lru_cache
from struct import Struct
from sys import intern
from typing import Final, NamedTuple, TypeAlias

from zeek_agent import text

RECORD_KINDS: Final = 20
"""Number of an object's loss counters: one per kind of record."""

PROCESS: Final = Struct("<HHIQQQIIIIIIIIi16s4x")
FORK: Final = Struct("<QI4x")
EXIT: Final = Struct("<QQQQQI4x")
EXEC: Final = Struct("<QQIIHHHHH2xI")
TASK: Final = Struct("<IIQQQqqQQQQQ13IiiII16sIQII")
HOLDER: Final = Struct("<IIQ")
SOCKET: Final = Struct("<HBBIQQQQQIIIi16s16sHHIHH16s4x")
COUNTS: Final = Struct("<QQQQQQ")
"""What follows SOCKET in `struct flow_event`, in the order of `FlowCounts`."""
FlowCounts: TypeAlias = tuple[int, int, int, int, int, int]
"""When the flow began, bytes sent and received, packets sent and received, drops: the counts of `struct flow_event`."""
MESSAGE: Final = Struct("<II")
"""What follows SOCKET in `struct dns_event`, before the bytes: sequence number and length."""

EXEC_PATHS: Final = PROCESS.size + EXEC.size
EXEC_ARGUMENTS: Final = EXEC_PATHS + 1024 + 256
"""Offsets of the paths and the arguments in an exec's record."""


class RecordKind(IntEnum):
    """`enum record_kind`."""

    EXEC = 1
    FORK = 2
    EXIT = 3
    CONNECTED = 4
    FAILED = 5
    PASSIVE = 6
    ACCEPTED = 7
    LISTEN = 8
    CLOSED = 9
    BOUND = 10
    SENT = 11
    RECEIVED = 12
    UNLISTEN = 13
    PACKET = 14
    READ = 15
    EXPIRED = 16
    ACTIVE = 17
    MESSAGE = 18


class Flags(IntFlag):
    """`enum exec_flags`."""

    EXE_CUT = 1
    EXE_DELETED = 2
    EXE_DETACHED = 4
    CWD_CUT = 8
    CWD_DELETED = 16
    CWD_DETACHED = 32
    CGROUP_CUT = 64
    ARGUMENTS_UNREADABLE = 128


class SocketFlags(IntFlag):
    """`enum socket_flags`."""

    OWNED = 1
    UNREAD = 2
    ANY_FLOW = 4
    SHARED = 8
    FLOW_ENDED = 16
    CUT = 32
    COUNTED = 64
    SENT_ONLY = 128


class SocketRecord(NamedTuple):
    """`struct socket_event`."""

    kind: int
    protocol: int
    family: int
    pid: int
    time: int
    started: int
    acted: int
    cookie: int
    socket: int
    uid: int
    gid: int
    netns: int
    error: int
    local: bytes
    remote: bytes
    local_port: int
    remote_port: int
    token: int
    outbound: int
    flags: int
    name: bytes


def device(number: int) -> int:
    """A device number of the kernel (`dev_t`), as makedev(3) and stat(2) encode it."""
    return os.makedev(number >> 20, number & 0xFFFFF)


def comm(raw: bytes) -> str:
    """A task's name."""
    return _text(raw.partition(b"\0")[0])


@lru_cache(maxsize=8192)
def path(parts: bytes, flags: int) -> str | None:
    """Join path components, given from the leaf to the root and each with its NUL, to a path as the kernel shows it.

    `flags` are those of an executable (shift those of a working directory). None if the kernel's walk was incomplete. A
    name of more than 255 bytes would be two components, but no file system has such names.
    """
    if flags & Flags.EXE_CUT:
        return None
    names = parts.split(b"\0")[-2::-1]
    whole = text.from_bytes(b"/" + b"/".join(names))
    return intern(f"{whole} (deleted)" if flags & (Flags.EXE_DELETED | Flags.EXE_DETACHED) else whole)


def processor_time(
    utime: int, stime: int, runtime: int, reported_utime: int = 0, reported_stime: int = 0
) -> tuple[float, float]:
    """User and system time in seconds, from the ticks' (ns) and the exact sum, scaled as the kernel does.

    Previously reported times (ns) do not decrease (`cputime_adjust` in kernel/sched/cputime.c).
    """
    if stime == 0:
        system = 0
    elif utime == 0:
        system = runtime
    else:
        system = stime * runtime // (stime + utime)
    system = max(system, reported_stime)
    user = runtime - system
    if user < reported_utime:
        user, system = reported_utime, runtime - reported_utime
    return user / 1e9, system / 1e9


@lru_cache(maxsize=8192)
def _text(raw: bytes) -> str:
    return intern(text.from_bytes(raw))
