"""The backends of Windows' event logs, by kind of event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.source import Source
    from zeek_agent.recording.windows.windows_host import WindowsHost


def _processes(host: WindowsHost, settings: SourceSettings) -> list[Source]:
    from zeek_agent.recording.windows.event_sources import SecurityProcesses, SysmonProcesses

    return [SysmonProcesses(host, settings), SecurityProcesses(host, settings)]


def _sockets(host: WindowsHost, settings: SourceSettings) -> list[Source]:
    from zeek_agent.recording.windows.event_sources import SecuritySockets, SysmonSockets

    return [SysmonSockets(host, settings), SecuritySockets(host, settings)]


def _dns(host: WindowsHost, settings: SourceSettings) -> list[Source]:
    from zeek_agent.recording.windows.event_sources import SysmonDns

    return [SysmonDns(host, settings)]


def _system_logs(host: WindowsHost, settings: SourceSettings) -> list[Source]:
    from zeek_agent.recording.windows.event_sources import EventLogEntries

    return [EventLogEntries(host, settings)]


def _logins(host: WindowsHost, settings: SourceSettings) -> list[Source]:
    from zeek_agent.recording.windows.event_sources import SecurityLogins

    return [SecurityLogins(host, settings)]


EVENT_LOGS: Final[Mapping[str, Callable[[WindowsHost, SourceSettings], list[Source]]]] = {
    "processes": _processes,
    "sockets": _sockets,
    "dns": _dns,
    "system_logs": _system_logs,
    "logins": _logins,
}
"""The sources of each kind of event, in order of preference; polling comes after them."""
