"""Kernel timestamps and ids in /proc's representation: start times in ticks, the boot id, ids that were never set."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

from zeek_agent.host.linux import procfs

TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
"""USER_HZ: the unit of start times in /proc."""


@cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(nanoseconds: int) -> int:
    """A start time of the kernel (since boot) in /proc's unit, rounded down as /proc does."""
    return nanoseconds * TICKS // 1_000_000_000


def set_or_none(number: int) -> int | None:
    """A login uid or session; None if it was never set."""
    return None if number == procfs.UNSET_ID else number
