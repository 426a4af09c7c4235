"""The sources of a Windows host's event logs, by kind of event."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from zeek_agent.host.windows.event_fields import SECURITY_CHANNEL, SYSMON_CHANNEL
from zeek_agent.platforms.winapi import audit_policy
from zeek_agent.recording.dns.dns_event import DNS_EVENTS
from zeek_agent.recording.logins.login_event import LOGINS_EVENTS
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS
from zeek_agent.recording.system_log.log_entry import SYSTEM_LOGS_EVENTS
from zeek_agent.recording.windows.dns_records import dns_row
from zeek_agent.recording.windows.event_log_source import EventLogSource, Log, events_query
from zeek_agent.recording.windows.log_records import log_row
from zeek_agent.recording.windows.login_records import login_row
from zeek_agent.recording.windows.process_records import process_row
from zeek_agent.recording.windows.socket_records import socket_row

if TYPE_CHECKING:
    from zeek_agent.host.windows.event_xml import WindowsEvent
    from zeek_agent.recording.dns.dns_event import DnsEvent
    from zeek_agent.recording.logins.login_event import LoginEvent
    from zeek_agent.recording.processes.process_event import ProcessEvent
    from zeek_agent.recording.sockets.socket_event import SocketEvent
    from zeek_agent.recording.source import PositionReader
    from zeek_agent.recording.system_log.log_entry import SystemLogEntry

_NOT_CONFIGURED: Final = "Sysmon has recorded none: its configuration has to include {}"
_NOT_AUDITED: Final = "the Security log has none: {}"
_RESUMED_ROWS: Final = 2_000
"""Rows after a crash of which the events may be read again: those of some seconds."""


class _ProcessEvents(EventLogSource):
    kind = "processes"
    table = PROCESSES_EVENTS

    def row(self, event: WindowsEvent, message: str | None) -> ProcessEvent | None:
        row = process_row(event, self._host.context)
        return None if row is not None and row.pid == self._own_pid else row


class SysmonProcesses(_ProcessEvents):
    """Process starts and ends by Sysmon."""

    backend = "sysmon"
    shortcoming = "exit codes are unknown"
    logs = (Log(SYSMON_CHANNEL, events_query(1, 5), _NOT_CONFIGURED.format("ProcessCreate")),)


class SecurityProcesses(_ProcessEvents):
    """Process starts and ends by the Security log."""

    backend = "security"
    shortcoming = "working directories are unknown, and command lines unless a policy includes them"
    logs = (
        Log(
            SECURITY_CHANNEL,
            events_query(4688, 4689),
            _NOT_AUDITED.format(audit_policy.PROCESS_CREATION.remedy),
            audit_policy.PROCESS_CREATION,
        ),
    )


class _SocketEvents(EventLogSource):
    kind = "sockets"
    table = SOCKETS_EVENTS

    def row(self, event: WindowsEvent, message: str | None) -> SocketEvent | None:
        row = socket_row(event, self._host.context)
        if row is None or (row.pid is not None and row.pid == self._own_pid):
            return None
        is_ignored = self._settings.ignore_loopback and (_is_loopback(row.local_addr) or _is_loopback(row.remote_addr))
        return None if is_ignored else row


class SysmonSockets(_SocketEvents):
    """Connections by Sysmon."""

    backend = "sysmon"
    shortcoming = "ends, listening ports and the outcome of attempts are unknown"
    logs = (Log(SYSMON_CHANNEL, events_query(3), _NOT_CONFIGURED.format("NetworkConnect")),)


class SecuritySockets(_SocketEvents):
    """Connections that the Windows Filtering Platform permitted, by the Security log."""

    backend = "security"
    shortcoming = "ends, listening ports and the outcome of attempts are unknown"
    logs = (
        Log(
            SECURITY_CHANNEL,
            events_query(5156),
            _NOT_AUDITED.format(audit_policy.CONNECTIONS.remedy),
            audit_policy.CONNECTIONS,
        ),
    )


class SysmonDns(EventLogSource):
    """Name lookups by Sysmon."""

    kind = "dns"
    backend = "sysmon"
    essential = False
    table = DNS_EVENTS
    shortcoming = "servers, flows and the types of questions are unknown"
    logs = (Log(SYSMON_CHANNEL, events_query(22), _NOT_CONFIGURED.format("DnsQuery")),)

    def row(self, event: WindowsEvent, message: str | None) -> DnsEvent | None:
        row = dns_row(event, self._host.context)
        return None if row is None or (row.pid is not None and row.pid == self._own_pid) else row


class _RowsWithCursor(EventLogSource):
    """Rows have the number of their record, so that none is recorded twice after a crash."""

    def resume(self, recorded: PositionReader) -> None:
        self._recorded = frozenset(recorded(self.table, _RESUMED_ROWS).cursors)

    def is_recorded(self, cursor: str | None) -> bool:
        return cursor in self._recorded


class SecurityLogins(_RowsWithCursor):
    """Logons, failed ones and logoffs by the Security log."""

    kind = "logins"
    backend = "security"
    essential = False
    table = LOGINS_EVENTS
    logs = (
        Log(
            SECURITY_CHANNEL,
            events_query(4624, 4625, 4634),
            _NOT_AUDITED.format(audit_policy.LOGON.remedy),
            audit_policy.LOGON,
        ),
    )

    def row(self, event: WindowsEvent, message: str | None) -> LoginEvent | None:
        row = login_row(event, self._host.context)
        return None if row is None or self.is_recorded(row.cursor) else row


class EventLogEntries(_RowsWithCursor):
    """The logs System, Application and Security, without the events that other sources record in large numbers."""

    kind = "system_logs"
    backend = "event_log"
    table = SYSTEM_LOGS_EVENTS
    with_messages = True
    logs = (
        Log("System"),
        Log("Application"),
        Log(SECURITY_CHANNEL, "*[System[(EventID<4688 or EventID>4689) and (EventID<5154 or EventID>5159)]]"),
    )

    def row(self, event: WindowsEvent, message: str | None) -> SystemLogEntry | None:
        if event.process_id is not None and event.process_id == self._own_pid:
            return None
        row = log_row(event, message, self._host.masker)
        return None if self.is_recorded(row.cursor) else row


def _is_loopback(address: str | None) -> bool:
    return address is not None and ipaddress.ip_address(address).is_loopback
