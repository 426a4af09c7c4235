"""Checks of `zeek-agent doctor` on worker processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.terminal.check import Check, kernel_setting

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.containment.protections import Protections

LACKING: Final = "SELECT DISTINCT class, missing FROM zeek_agent_workers WHERE missing <> '[]' ORDER BY class"


def protections(config: Config) -> Iterator[Check]:
    """The protections that hold here in worker processes of each class, by starting one, and why others do not."""
    from zeek_agent.containment import trials
    from zeek_agent.containment.protections import LockdownError

    logs = Path(config.collector.logs).absolute()
    try:
        for kind, result in trials.try_all(str(logs) if logs.is_dir() else None):
            if isinstance(result, str):
                advice = "its statements fail" if kind in ("events", "snapshots") else None
                yield Check("workers", "fail", f"{kind}: cannot be started: {result}", advice)
            else:
                advice = "; ".join(result.missing) or None
                yield Check("workers", "warn" if advice else "ok", f"{kind}: {_summary(result)}", advice)
    except LockdownError as error:
        yield Check("workers", "fail", str(error))


def _summary(found: Protections) -> str:
    held = ", ".join(found.capabilities)
    unused = any(reason.startswith("Landlock") for reason in found.by_design)
    without_landlock = "Landlock not used" if unused else "no Landlock"
    parts = [
        f"uid {found.uid}",
        held or "no capabilities",
        "seccomp" if found.seccomp == 2 else "no seccomp",
        f"Landlock {found.landlock_abi}" if found.landlock_abi else without_landlock,
    ]
    return ", ".join(parts)


def lacking(rows: Iterable[Sequence[Any]]) -> Iterator[Check]:
    """What the running agent's workers lack: the rows of `LACKING`."""
    for kind, missing in rows:
        yield Check("agent", "warn", f"its {kind} workers lack protections", "; ".join(missing))


def fuse_timeout(proc: Path = Path("/proc")) -> Iterator[Check]:
    """Whether the kernel bounds how long a process waits for a FUSE file system, even one that was killed."""
    timeout = kernel_setting(proc / "sys/fs/fuse/max_request_timeout")
    if timeout is None:
        yield Check(
            "hung mounts", "ok", "this kernel has no fs.fuse.max_request_timeout: FUSE requests may wait for ever"
        )
    elif timeout == "0":
        found = (
            "fs.fuse.max_request_timeout is 0: FUSE requests may wait for ever; a worker process that does is abandoned"
        )
        yield Check("hung mounts", "ok", found)
    else:
        yield Check("hung mounts", "ok", f"fs.fuse.max_request_timeout is {timeout} s")


def service(pid: int, proc: Path = Path("/proc")) -> Iterator[Check]:
    """Settings of the systemd unit that runs the agent, if one does."""
    unit = _unit_of(proc / str(pid) / "cgroup")
    if unit is None:
        return
    names = ("OOMPolicy", "MemoryMax", "Delegate", "TimeoutStopUSec")
    command = ["systemctl", "show", unit, *(f"--property={name}" for name in names)]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("unit", "warn", f"{unit}: its settings are unknown: {error}")
        return
    settings = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    found = f"{unit}: {', '.join(f'{name}={settings[name]}' for name in names if name in settings)}"
    if settings.get("OOMPolicy") == "continue":
        yield Check("unit", "ok", found)
    else:
        advice = "the agent is stopped when a worker process is killed for memory: set OOMPolicy=continue"
        yield Check("unit", "warn", found, advice)


def _unit_of(cgroup: Path) -> str | None:
    """The service that a process belongs to, by its control groups (cgroups(7)); None if it is in none."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            services = [part for part in path.split("/") if part.endswith(".service")]
            if services:
                return services[-1]
    return None
