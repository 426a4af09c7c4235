"""Checks of `zeek-agent doctor` on Windows: event logs, Sysmon, and the policies that decide what logs contain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from zeek_agent.host.windows.event_fields import SECURITY_CHANNEL, SYSMON_CHANNEL
from zeek_agent.platforms.winapi import audit_policy
from zeek_agent.platforms.winapi.audit_policy import Subcategory
from zeek_agent.platforms.winapi.event_log import Code, EventLog, EventLogError
from zeek_agent.terminal.check import Check

if TYPE_CHECKING:
    from zeek_agent.platforms.winapi.channel_reader import EventLogs

_CHANNELS: Final = ("System", "Application", SECURITY_CHANNEL, SYSMON_CHANNEL)
_WITHOUT: Final = {
    audit_policy.PROCESS_CREATION: "without Sysmon, processes are found by polling",
    audit_policy.PROCESS_TERMINATION: "ends of processes are not recorded from the Security log",
    audit_policy.CONNECTIONS: "without Sysmon, connections are found by polling; this policy makes many events",
    audit_policy.LOGON: "logins are not recorded",
    audit_policy.LOGOFF: "ends of logins are not recorded",
}
"""What is missing without each part of the audit policy."""
_COMMAND_LINES: Final = (
    "enable the policy Computer Configuration, Administrative Templates, System, Audit Process Creation, Include "
    "command line in process creation events"
)


def checks(
    open_logs: Callable[[], EventLogs] = EventLog,
    is_audited: Callable[[Subcategory], bool] = audit_policy.query_policy,
    has_command_lines: Callable[[], bool] = audit_policy.has_command_lines,
) -> Iterator[Check]:
    """Whether the logs can be read, and contain what event sources need."""
    yield from _logs(open_logs)
    yield from _policies(is_audited)
    try:
        included = has_command_lines()
    except OSError as error:
        yield Check("command lines", "warn", f"their policy cannot be read: {error}")
        return
    if included:
        yield Check("command lines", "ok", "in the Security log's events of new processes")
    else:
        yield Check("command lines", "warn", "not in the Security log's events of new processes", _COMMAND_LINES)


def _logs(open_logs: Callable[[], EventLogs]) -> Iterator[Check]:
    try:
        logs = open_logs()
    except OSError as error:
        yield Check("event logs", "warn", str(error), "event sources that read them are not available")
        return
    for channel in _CHANNELS:
        try:
            oldest, newest = logs.log_range(channel)
        except EventLogError as error:
            if channel == SYSMON_CHANNEL and error.code == Code.CHANNEL_NOT_FOUND:
                yield Check("Sysmon", "warn", "not installed", "it gives the most complete events of processes and DNS")
            else:
                yield Check("event logs", "warn", f"{channel} cannot be read: {error}", "run the agent as a service")
        else:
            name = "Sysmon" if channel == SYSMON_CHANNEL else "event logs"
            yield Check(name, "ok", f"{channel}, {newest - oldest + 1 if newest else 0:,} records")


def _policies(is_audited: Callable[[Subcategory], bool]) -> Iterator[Check]:
    for subcategory, lost in _WITHOUT.items():
        try:
            audited = is_audited(subcategory)
        except OSError as error:
            yield Check("audit policy", "warn", f"cannot be read: {error}", "run this command as an administrator")
            return
        if audited:
            yield Check("audit policy", "ok", f"{subcategory.name} is audited")
        else:
            found = f"{subcategory.name} is not audited: {lost}"
            yield Check("audit policy", "warn", found, subcategory.remedy)
