"""Capabilities of this process (capabilities(7))."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path


class Capability(IntEnum):
    """The capabilities that the agent uses, by their numbers in `linux/capability.h`."""

    DAC_READ_SEARCH = 2
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_ADMIN = 12
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    AUDIT_CONTROL = 30
    AUDIT_READ = 37
    PERFMON = 38
    BPF = 39


def effective(status: str = "/proc/self/status") -> set[Capability]:
    """The capabilities in effect. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, as in the kernel."""
    lines = Path(status).read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    held = {capability for capability in Capability if mask >> capability & 1}
    return held | {Capability.BPF, Capability.PERFMON} if Capability.SYS_ADMIN in held else held
