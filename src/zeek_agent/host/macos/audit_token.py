"""Audit tokens, which identify a process with its users: `audit_token_t` of <bsm/audit.h>, as eslogger writes it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from zeek_agent.host.macos.json_records import count, unsigned

UNSET: Final = 0xFFFF_FFFF
"""A user or session that was never set: AU_DEFAUDITID."""
FIELDS: Final = ("auid", "euid", "egid", "ruid", "rgid", "pid", "asid", "pidversion")
"""In the order of the array."""
_PID: Final = FIELDS.index("pid")
_PID_MAX: Final = 0x7FFF_FFFF


class AuditToken(NamedTuple):
    """None: not known, or never set. `pidversion` increases with each exec."""

    pid: int
    auid: int | None
    euid: int | None
    egid: int | None
    ruid: int | None
    rgid: int | None
    asid: int | None
    pidversion: int | None


def audit_token(value: Any) -> AuditToken | None:
    """A token: an object up to message version 9 (macOS 15), an array of eight numbers from version 10 (macOS 26).

    None if it is neither, or has no process id.
    """
    if isinstance(value, dict):
        value = [value.get(name) for name in FIELDS]
    elif not isinstance(value, list) or len(value) != len(FIELDS):
        return None
    if (pid := count(value[_PID], _PID_MAX)) is None:
        return None
    auid, euid, egid, ruid, rgid, _, asid, pidversion = map(unsigned, value)
    return AuditToken(pid, _set_or_none(auid), euid, egid, ruid, rgid, _set_or_none(asid), pidversion)


def _set_or_none(number: int | None) -> int | None:
    return None if number == UNSET else number
