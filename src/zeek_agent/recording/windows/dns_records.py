"""Maps Sysmon 22 to rows of `dns_events`."""

from __future__ import annotations

from typing import Final

import msgspec

from zeek_agent.host.windows import event_values
from zeek_agent.host.windows.event_fields import SYSMON
from zeek_agent.host.windows.event_xml import WindowsEvent
from zeek_agent.recording.dns.dns_event import DnsEvent
from zeek_agent.recording.windows.event_mapping import MappingContext, acting_process, event_time, required

_CODES: Final = {
    0: "NOERROR",
    9001: "FORMERR",
    9002: "SERVFAIL",
    9003: "NXDOMAIN",
    9004: "NOTIMP",
    9005: "REFUSED",
    9006: "YXDOMAIN",
    9007: "YXRRSET",
    9008: "NXRRSET",
    9009: "NOTAUTH",
    9010: "NOTZONE",
    9501: "NOERROR",
}
"""Response codes by DNS_ERROR_RCODE_ of WinError.h, and DNS_INFO_NO_RECORDS. Other errors are not a server's answer."""


def dns_row(event: WindowsEvent, context: MappingContext) -> DnsEvent | None:
    """The row of an event; None if it is of another kind. Raises EventFieldError.

    Windows' resolver asks on behalf of the process, so the server and the flow are unknown.
    """
    if (event.provider, event.event_id) != (SYSMON, 22):
        return None
    data = event.data
    pid = event_values.process_id(data.get("ProcessId"))
    exe = event_values.drive_path(data.get("Image"), context.drives)
    process = acting_process(event, context, pid, exe)
    exe = exe or (process.exe if process is not None else None)
    query = required(event_values.text(data.get("QueryName")), "QueryName")
    status = event_values.number(data.get("QueryStatus"))
    code = None if status is None else _CODES.get(status)
    answers = event_values.query_results(data.get("QueryResults"))
    command_line = process.command_line if process is not None else None
    return DnsEvent(
        time=event_time(event),
        pid=pid,
        process=event_values.base_name(exe),
        uid=None,
        query=event_values.domain_name(query),
        type=None,
        rcode=code,
        answers=None if code is None and not answers else msgspec.json.encode(answers).decode(),
        latency=None,
        attempts=None,
        truncated=False,
        protocol=None,
        local_addr=None,
        local_port=None,
        server_addr=None,
        server_port=None,
        via=None,
        exe=exe,
        cmdline=command_line.cmdline if command_line is not None else None,
        loginuid=None,
        netns=None,
        container_id=None,
        entity_id=process.entity_id if process is not None else None,
        parent_entity_id=process.parent_entity_id if process is not None else None,
        community_id=None,
        cookie=None,
        argv=command_line.stored_argv if command_line is not None else None,
    )
