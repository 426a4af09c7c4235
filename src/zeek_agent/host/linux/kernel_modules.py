"""Loaded kernel modules, from /proc/modules (proc(5))."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zeek_agent.text import from_bytes


class KernelModule(NamedTuple):
    """A module; `used_by` are the modules that need it, separated by commas, or `-`."""

    name: str
    size: int
    used_by: str
    status: str


def kernel_modules(proc: str = "/proc") -> Iterator[KernelModule]:
    """The modules, latest first; none on a kernel without modules. Addresses are not read."""
    try:
        lines = Path(proc, "modules").read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        fields = line.split(b" ")
        if len(fields) >= 6 and fields[1].isdigit():
            used_by = from_bytes(fields[3].removesuffix(b","))
            yield KernelModule(from_bytes(fields[0]), int(fields[1]), used_by, from_bytes(fields[4]))
