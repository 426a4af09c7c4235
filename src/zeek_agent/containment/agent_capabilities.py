"""The capabilities of the running agent. Started as root, it drops all others, as its systemd unit does.

An exploited parser in the main process is then not root: it cannot mount, load modules, change other users' files, or
get back what was dropped by executing a program.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeek_agent.containment import kernel

PURPOSES: Final[Mapping[str, str]] = {
    "CAP_BPF": "loads eBPF programs and reads their maps",
    "CAP_PERFMON": "attaches eBPF programs to tracepoints and kernel functions",
    "CAP_NET_ADMIN": "attaches eBPF programs to control groups; reads connection tracking, closed sockets and, before "
    "Linux 6.6, the process connector",
    "CAP_SYS_PTRACE": "executables, sockets and environments of other users' processes; also of snapshot workers",
    "CAP_DAC_READ_SEARCH": "private files and directories of other users, to read; also of snapshot workers",
    "CAP_AUDIT_READ": "reads the audit log, a substitute for eBPF",
    "CAP_AUDIT_CONTROL": "installs audit rules, if sources.audit_rules is set",
    "CAP_CHOWN": "gives the control socket to the group of control.group",
    "CAP_SETUID": "gives worker processes a user of their own",
    "CAP_SETGID": "gives worker processes a group of their own",
    "CAP_SETPCAP": "restricts the bounding set of worker processes",
    "CAP_KILL": "kills worker processes that hang",
}
"""The capabilities that the agent keeps, and what for. The unit's CapabilityBoundingSet is the same set."""
FOR_OTHERS_DIRECTORIES: Final = ("CAP_DAC_OVERRIDE", "CAP_FOWNER")
"""Kept in addition if the agent has to write in another user's directory, as after `sudo make run`."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What `drop` did: the capabilities that are gone, and the other user's directory for which some were kept."""

    names: tuple[str, ...] = ()
    directory: Path | None = None


def drop(directories: Iterable[Path]) -> Dropped:
    """Drop what the agent does not need, in this thread, which must be the only one; irreversible. Raises OSError.

    `directories` are those that the agent writes to. Does nothing without capabilities.
    """
    _, permitted, _ = kernel.capability_sets()
    if not permitted:
        return Dropped()
    directory = next((path for path in directories if _is_others(path)), None)
    kept = _mask(PURPOSES) | (_mask(FOR_OTHERS_DIRECTORIES) if directory else 0)
    if permitted & _mask(["CAP_SETPCAP"]):
        for number in range(64):
            if (kernel.bounding_set() & ~kept) >> number & 1:
                kernel.prctl(kernel.PR_CAPBSET_DROP, number)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    kernel.set_capabilities(permitted & kept)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    return Dropped(kernel.capability_names(permitted & ~kept), directory)


def _mask(names: Collection[str]) -> int:
    return kernel.capability_mask(tuple(names))


def _is_others(path: Path) -> bool:
    """Whether a directory, or what it would be created in, belongs to another user than this process's."""
    place = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return place.stat().st_uid != os.geteuid()
