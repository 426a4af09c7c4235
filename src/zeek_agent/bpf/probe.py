"""Checks whether eBPF sources can work here, and the remedy if not."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from zeek_agent.bpf import tracepoints
from zeek_agent.bpf.libbpf import LibbpfMissingError, load_library
from zeek_agent.host.linux import capabilities
from zeek_agent.host.linux.capabilities import Capability
from zeek_agent.host.linux.mounts import mounts

OLDEST_KERNEL: Final = (5, 15)
_NEEDED: Final = (Capability.BPF, Capability.PERFMON)
"""Capabilities that every object needs. CAP_SYS_ADMIN covers them and those of single objects."""
_NEEDED_FOR: Final = {"udp": (Capability.NET_ADMIN,), "dns": (Capability.NET_ADMIN,)}


def why_not(objects: Sequence[str], *, release: str | None = None, btf: str = "/sys/kernel/btf/vmlinux") -> str | None:
    """Why these objects cannot work here: the first obstacle and its remedy; None if they can be tried."""
    release = platform.release() if release is None else release
    if _version(release) < OLDEST_KERNEL:
        return f"kernel {release} is too old for eBPF sources: 5.15 or later is needed"
    if not Path(btf).exists():
        return f"the kernel has no type information ({btf}): one built with CONFIG_DEBUG_INFO_BTF is needed"
    try:
        load_library()
    except LibbpfMissingError as error:
        return str(error.args[0])
    missing = [name for name in objects if not resources.files(__package__).joinpath(f"{name}.bpf.o").is_file()]
    if missing:
        return f"built without eBPF (no {missing[0]}.bpf.o): install clang and libbpf-dev and build the package again"
    return _why_not_permitted(objects, capabilities.effective())


def is_built() -> bool:
    """Whether this installation has eBPF programs."""
    return any(file.name.endswith(".bpf.o") for file in resources.files("zeek_agent.bpf").iterdir())


def _why_not_permitted(objects: Sequence[str], held: set[Capability]) -> str | None:
    if Capability.SYS_ADMIN in held:
        return None
    needed = [*_NEEDED, *(capability for name in objects for capability in _NEEDED_FOR.get(name, ()))]
    missing = " and ".join(f"CAP_{capability.name}" for capability in needed if capability not in held)
    if not missing:
        return None
    remedy = (
        "run as root, or grant" if os.geteuid() else "root lacks capabilities here; its unit or container must allow"
    )
    return f"not permitted without {missing}: {remedy} {'them' if ' ' in missing else 'it'}"


def why_no_tracepoints() -> str | None:
    """Why the numbers of tracepoints cannot be looked up; None if they can."""
    if tracepoints.can_be_opened():
        return None
    return "tracefs is not mounted, or not accessible to this user: mount -t tracefs none /sys/kernel/tracing, as root"


def cgroup2(mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """The mount point of the root of the control group hierarchy, version 2; None if it is not mounted."""
    return next(
        (mount.mount_point for mount in mounts(mountinfo) if mount.kind == "cgroup2" and mount.root == "/"), None
    )


def why_no_cgroup2() -> str | None:
    """Why programs cannot be attached to the root control group; None if they can."""
    mounted = cgroup2()
    if mounted is None:
        return "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
    if not os.access(mounted, os.R_OK):
        return f"not permitted to open {mounted}: run as root"
    return None


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
