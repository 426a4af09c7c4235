"""The capabilities of the running agent. Started as root, it drops all others, as its systemd unit does.

An exploited parser in the main process is then not root: it cannot mount, load modules, change other users' files, or
get back what was dropped by executing a program.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent import paths, platforms
from zeek_agent.bpf import tracepoints
from zeek_agent.containment import kernel
from zeek_agent.recording.periodic import URGENT_NICENESS

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config

log = logging.getLogger(__name__)

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


FOR_PRIORITY: Final = ("CAP_SYS_NICE",)
"""Kept in addition where RLIMIT_NICE cannot be raised. The unit has LimitNICE instead."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What `drop` did: the capabilities that are gone, and the other user's directory for which some were kept."""

    names: tuple[str, ...] = ()
    directory: Path | None = None


def drop_for(config: Config) -> Dropped:
    """Drop what an agent with this configuration does not need, before it has started any thread. Raises OSError.

    Does nothing on systems other than Linux.
    """
    if platforms.HERE.key != "linux":
        return Dropped()
    try:
        tracepoints.keep_tracefs()
    except OSError as error:
        log.debug("tracefs cannot be opened, eBPF sources will report why: %s", error)
    places = paths.locate(config)
    written = [places.state, places.socket.parent]
    if config.log.file is not None:
        written.append(Path(config.log.file).parent)
    if not config.zeek.destinations:
        written.append(Path(config.collector.logs))
    return drop(written)


def drop(directories: Iterable[Path]) -> Dropped:
    """Drop what the agent does not need, in this thread, which must be the only one; irreversible. Raises OSError.

    `directories` are those that the agent writes to. Does nothing without capabilities.
    """
    _, permitted, _ = kernel.capability_sets()
    if not permitted:
        return Dropped()
    directory = next((path for path in directories if _is_others(path)), None)
    kept = _mask(PURPOSES) | (_mask(FOR_OTHERS_DIRECTORIES) if directory else 0)
    if not _may_raise_priority():
        kept |= _mask(FOR_PRIORITY)
    if permitted & _mask(["CAP_SETPCAP"]):
        for number in range(64):
            if (kernel.bounding_set() & ~kept) >> number & 1:
                kernel.prctl(kernel.PR_CAPBSET_DROP, number)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    kernel.set_capabilities(permitted & kept)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    return Dropped(kernel.capability_names(permitted & ~kept), directory)


def _may_raise_priority() -> bool:
    """Let the readers of kernel events raise their priority without CAP_SYS_NICE: getrlimit(2), RLIMIT_NICE.

    Returns False where that limit cannot be raised, as in a container without CAP_SYS_RESOURCE.
    """
    import resource

    limit = 20 - URGENT_NICENESS
    if resource.getrlimit(resource.RLIMIT_NICE)[0] < limit:
        try:
            resource.setrlimit(resource.RLIMIT_NICE, (limit, limit))
        except (ValueError, OSError) as error:
            log.debug("RLIMIT_NICE cannot be raised: %s", error)
            return False
    return True


def _mask(names: Collection[str]) -> int:
    return kernel.capability_mask(tuple(names))


def _is_others(path: Path) -> bool:
    """Whether a directory, or what it would be created in, belongs to another user than this process's."""
    place = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return place.stat().st_uid != os.geteuid()
