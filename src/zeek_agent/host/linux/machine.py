"""The computer, its operating system and kernel: files of the kernel and of the distribution."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from zeek_agent.text import from_bytes

_BYTES_MAX: Final = 1 << 20
_QUOTED: Final = re.compile(r"""^(["'])(.*)\1$""", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\([$\"'`\\])")
_PLACEHOLDERS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000",
        "03000200-0400-0500-0006-000700080009",
        "03020100-0504-0706-0809-0a0b0c0d0e0f",
        "10000000-0000-8000-0040-000000000000",
    }
)
"""Hardware UUIDs that many computers have, because their vendors did not set one."""
_DMI: Final = "sys/class/dmi/id"


def content(path: str | Path) -> str | None:
    """The text of a short file of the system; None if it is not there or not readable."""
    try:
        with Path(path).open("rb") as file:
            return from_bytes(file.read(_BYTES_MAX))
    except OSError:
        return None


def os_release(root: str = "/") -> dict[str, str]:
    """The variables of os-release(5), in their order; empty without the file."""
    raw = content(f"{root}/etc/os-release") or content(f"{root}/usr/lib/os-release") or ""
    found = {}
    for line in raw.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            quoted = _QUOTED.match(value)
            found[name] = _ESCAPED.sub(r"\1", quoted[2]) if quoted else value
    return found


def dmi(name: str, root: str = "/") -> str | None:
    """A field of /sys/class/dmi/id; None without it."""
    raw = content(f"{root}/{_DMI}/{name}")
    return None if raw is None else raw.strip("\n").rstrip()


def host_uuid(agent_id: str, root: str = "/") -> str:
    """The UUID of the hardware; one made of the agent's id where the hardware has none or a placeholder.

    Empty if there is no such id either.
    """
    import uuid

    hardware = (dmi("product_uuid", root) or "").strip()
    if hardware and hardware.lower() not in _PLACEHOLDERS:
        return hardware
    return str(uuid.uuid5(uuid.NAMESPACE_OID, agent_id)) if agent_id else ""


def canonical_hostname(name: str, root: str = "/") -> str:
    """The host's name with its domain, as hosts(5) has it; the name itself without an entry there."""
    for line in (content(f"{root}/etc/hosts") or "").splitlines():
        names = line.partition("#")[0].split()[1:]
        if name.lower() in map(str.lower, names):
            return names[0]
    return name


def processors(root: str = "/") -> list[dict[str, str]]:
    """The fields of /proc/cpuinfo, for each processor."""
    blocks = (content(f"{root}/proc/cpuinfo") or "").split("\n\n")
    listed = [dict(_fields(block.splitlines())) for block in blocks]
    return [fields for fields in listed if fields]


def _fields(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, separator, value = line.partition(":")
        if separator:
            yield name.strip(), value.strip()


def physical_cores(listed: Iterable[Mapping[str, str]]) -> int | None:
    """How many cores these processors are; None if the kernel does not tell."""
    cores = {(one["physical id"], one["core id"]) for one in listed if {"physical id", "core id"} <= one.keys()}
    return len(cores) or None


def meminfo(root: str = "/") -> dict[str, int]:
    """The sizes of /proc/meminfo in bytes, by name."""
    found = {}
    for name, value in _fields((content(f"{root}/proc/meminfo") or "").splitlines()):
        number, _, unit = value.partition(" ")
        if number.isdecimal() and unit == "kB":
            found[name] = int(number) * 1024
    return found


def processor_ticks(root: str = "/") -> list[list[int]]:
    """The number of each processor, and its times of /proc/stat in ticks (USER_HZ)."""
    lines = (line.split() for line in (content(f"{root}/proc/stat") or "").splitlines())
    return [
        [int(fields[0][3:]), *map(int, fields[1:])]
        for fields in lines
        if fields and fields[0].startswith("cpu") and fields[0][3:].isdecimal()
    ]


def resource_limits(pid: int, root: str = "/") -> dict[str, tuple[str, str]]:
    """The limits of a process by their names in /proc/PID/limits: soft and hard, in digits or `unlimited`."""
    found = {}
    for line in (content(f"{root}/proc/{pid}/limits") or "").splitlines()[1:]:
        match = re.match(r"(.+?)  +(\S+) +(\S+)", line)
        if match:
            found[match[1]] = match[2], match[3]
    return found


def physical_memory() -> int:
    """Bytes of memory that the kernel manages."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
