"""What the event sources of a Windows host share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zeek_agent.masking.masker import Masker
from zeek_agent.recording.windows.event_mapping import MappingContext
from zeek_agent.recording.windows.known_processes import KnownProcesses, LiveProcesses

if TYPE_CHECKING:
    from zeek_agent.platforms.winapi.audit_policy import Subcategory
    from zeek_agent.platforms.winapi.channel_reader import EventLogs


@dataclass(frozen=True)
class WindowsHost:
    """The host's event logs, processes and policies; tests pass others.

    `state` is the directory of the positions in the logs. `is_audited` returns whether the audit policy includes a
    subcategory, None if this user must not know. `entity_id` makes the id of a process from its process id and its
    creation (FILETIME) or Sysmon's GUID.
    """

    state: Path
    masker: Masker
    open_logs: Callable[[], EventLogs]
    open_processes: Callable[[], LiveProcesses]
    read_drives: Callable[[], Mapping[str, str]]
    is_audited: Callable[[Subcategory], bool | None]
    entity_id: Callable[[int, str | int], str]
    processes_max: int = 20_000

    @cached_property
    def logs(self) -> EventLogs:
        """The event logs. Raises OSError where there are none."""
        return self.open_logs()

    @cached_property
    def context(self) -> MappingContext:
        """What mappings need. Raises OSError on other systems."""
        known = KnownProcesses(self.open_processes(), self.entity_id, self.processes_max)
        return MappingContext(known, self.masker, self.read_drives())


def this_host(state: Path, masker: Masker, processes_max: int) -> WindowsHost:
    """The host that the agent runs on."""
    from zeek_agent.host.entity_id import entity_id
    from zeek_agent.host.windows.processes import boot_id
    from zeek_agent.platforms.winapi import audit_policy, drives
    from zeek_agent.platforms.winapi.event_log import EventLog
    from zeek_agent.recording.windows.live_processes import HostProcesses

    def is_audited(subcategory: Subcategory) -> bool | None:
        try:
            return audit_policy.query_policy(subcategory)
        except OSError:
            return None

    def identify(pid: int, start: str | int) -> str:
        if isinstance(start, int):
            return entity_id(boot_id(), pid, start)
        return entity_id(boot_id(), pid, 0).removesuffix("0") + start

    return WindowsHost(
        state,
        masker,
        EventLog,
        HostProcesses,
        drives.drive_letters,
        is_audited,
        identify,
        processes_max,
    )
