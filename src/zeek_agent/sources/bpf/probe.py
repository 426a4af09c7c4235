"""Whether eBPF sources can work here, and if not, what to do about it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Final

from zeek_agent.sources.bpf.libbpf import LibbpfMissingError, library
from zeek_agent.sources.mounts import mounts

OLDEST_KERNEL: Final = (5, 15)
_CAP_SYS_ADMIN: Final = 21
_CAP_PERFMON: Final = 38
_CAP_BPF: Final = 39


def why_not(objects: Iterable[str], *, release: str | None = None, btf: str = "/sys/kernel/btf/vmlinux") -> str | None:
    """None when these objects of ours can be tried here; else the first obstacle and its remedy."""
    release = platform.release() if release is None else release
    if _version(release) < OLDEST_KERNEL:
        return f"kernel {release} is too old for eBPF sources: 5.15 or later is needed"
    if not Path(btf).exists():
        return f"the kernel has no type information ({btf}): one built with CONFIG_DEBUG_INFO_BTF is needed"
    try:
        library()
    except LibbpfMissingError as error:
        return str(error.args[0])
    missing = [name for name in objects if not resources.files(__package__).joinpath(f"{name}.bpf.o").is_file()]
    if missing:
        return f"built without eBPF (no {missing[0]}.bpf.o): install clang and libbpf-dev and build the package again"
    held = capabilities()
    if not held >> _CAP_SYS_ADMIN & 1 and not (held >> _CAP_BPF & 1 and held >> _CAP_PERFMON & 1):
        return "not permitted: run as root, or with CAP_BPF and CAP_PERFMON"
    return None


def cgroup2(mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """Where the root of control group version 2's hierarchy is mounted; None when it is not."""
    return next((mount.place for mount in mounts(mountinfo) if mount.kind == "cgroup2" and mount.root == "/"), None)


def why_no_cgroup2() -> str | None:
    """None when programs can be attached to the root of the control groups; else why not."""
    mounted = cgroup2()
    if mounted is None:
        return "control groups version 2 are not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
    if not os.access(mounted, os.R_OK):
        return f"may not open {mounted}: run as root"
    return None


def capabilities(status: str = "/proc/self/status") -> int:
    """The mask of this process's effective capabilities (capabilities(7))."""
    lines = Path(status).read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
