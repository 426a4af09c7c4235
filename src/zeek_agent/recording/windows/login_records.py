"""Maps Security 4624, 4625 and 4634 to rows of `logins_events`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zeek_agent.host.windows import event_values
from zeek_agent.host.windows.event_fields import SECURITY
from zeek_agent.host.windows.event_xml import WindowsEvent
from zeek_agent.recording.logins.login_event import LoginEvent
from zeek_agent.recording.windows.event_mapping import MappingContext, acting_process, required

_TYPES: Final = {
    0: "system",
    2: "interactive",
    3: "network",
    4: "batch",
    5: "service",
    7: "unlock",
    8: "network_cleartext",
    9: "new_credentials",
    10: "remote_interactive",
    11: "cached_interactive",
    12: "cached_remote_interactive",
    13: "cached_unlock",
}
"""Logon types of SECURITY_LOGON_TYPE (ntsecapi.h)."""
_NOT_LOGINS: Final = frozenset({0, 4, 5})
_NEW_CREDENTIALS: Final = 9
"""`runas /netonly`: the same account, with other credentials towards the network."""

_REASONS: Final = {
    0xC000_0064: "unknown user",
    0xC000_006A: "wrong password",
    0xC000_006D: "unknown user or wrong password",
    0xC000_006E: "account restriction",
    0xC000_006F: "not at this time of day",
    0xC000_0070: "not from this workstation",
    0xC000_0071: "password expired",
    0xC000_0072: "account disabled",
    0xC000_00DC: "server in the wrong state",
    0xC000_0133: "clocks differ",
    0xC000_015B: "logon type not granted",
    0xC000_018C: "trust relationship failed",
    0xC000_0192: "net logon service not started",
    0xC000_0193: "account expired",
    0xC000_0224: "password must be changed",
    0xC000_0234: "account locked out",
    0xC000_0413: "authentication firewall",
}
"""NTSTATUS codes of refused logons (ntstatus.h)."""
_STATUS_MAX: Final = 2**32 - 1


def login_row(event: WindowsEvent, context: MappingContext) -> LoginEvent | None:
    """The row of an event; None if it is of another kind. Raises EventFieldError."""
    if event.provider != SECURITY or event.event_id not in {4624, 4625, 4634}:
        return None
    data = event.data
    kind = required(event_values.number(data.get("LogonType"), 255), "LogonType")
    user, target = _account(data, "Target"), None
    if event.event_id == 4624 and kind == _NEW_CREDENTIALS:
        user, target = _account(data, "Subject"), _account(data, "TargetOutbound") or user
    pid = event_values.process_id(data.get("ProcessId"))
    exe = event_values.drive_path(data.get("ProcessName"), context.drives)
    process = acting_process(event, context, pid, exe)
    exe = exe or (process.exe if process is not None else None)
    return LoginEvent(
        time=event.time,
        action=_action(event.event_id, kind),
        user=user,
        uid=None,
        target_user=target,
        tty=None,
        remote_addr=event_values.address(data.get("IpAddress")),
        remote_port=event_values.port(data.get("IpPort")),
        pid=pid,
        process=event_values.base_name(exe),
        session=event_values.number(data.get("TargetLogonId")) or None,
        entity_id=process.entity_id if process is not None else None,
        method=_method(kind, event_values.text(data.get("AuthenticationPackageName"))),
        command=None,
        outcome="failure" if event.event_id == 4625 else "success",
        reason=_reason(data) if event.event_id == 4625 else None,
        source="security",
        verified=True,
        cursor=f"{event.channel}:{event.record_id}",
    )


def _account(data: Mapping[str, str], prefix: str) -> str | None:
    return event_values.account(data.get(f"{prefix}DomainName"), data.get(f"{prefix}UserName"))


def _action(event_id: int, kind: int) -> str:
    if event_id == 4625:
        return "failed"
    if kind in _NOT_LOGINS:
        return "session_closed" if event_id == 4634 else "session_opened"
    if event_id == 4634:
        return "logout"
    return "su" if kind == _NEW_CREDENTIALS else "login"


def _method(kind: int, package: str | None) -> str:
    name = _TYPES.get(kind, f"type_{kind}")
    return name if package is None else f"{name}/{package.strip()}"


def _reason(data: Mapping[str, str]) -> str | None:
    """Why it failed: the more exact of the two codes."""
    for name in ("SubStatus", "Status"):
        code = event_values.number(data.get(name), _STATUS_MAX)
        if code:
            return _REASONS.get(code, f"0x{code:08x}")
    return None
