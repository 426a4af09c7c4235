"""Values in events of Windows: numbers, accounts, paths, addresses, and what Windows writes when there is none."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from zeek_agent.host.windows.event_xml import parse_time

INTEGER_MAX: Final = 2**63 - 1
"""The event store holds no larger integer."""
PID_MAX: Final = 2**32 - 1
NO_SID: Final = "S-1-0-0"
_NO_GUID: Final = "00000000-0000-0000-0000-000000000000"

_HEXADECIMAL: Final = re.compile(r"0[xX]([0-9a-fA-F]{1,16})")
_DECIMAL: Final = re.compile(r"[0-9]{1,20}")
_GUID: Final = re.compile(r"\{?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\}?")
_SID: Final = re.compile(r"S-1-(?:0x[0-9a-fA-F]{1,12}|\d{1,15})(?:-\d{1,10}){1,15}", re.ASCII)
_DEVICE: Final = re.compile(r"\\device\\[^\\]+", re.IGNORECASE)


def text(value: str | None) -> str | None:
    """The value; None for an empty one and for `-`, which Windows writes if there is none."""
    return None if value is None or value in {"", "-"} else value


def number(value: str | None, largest: int = INTEGER_MAX) -> int | None:
    """A decimal number, or a hexadecimal one with `0x`; None for anything else and for larger ones."""
    value = (value or "").strip()
    if (match := _HEXADECIMAL.fullmatch(value)) is not None:
        found = int(match[1], 16)
    elif _DECIMAL.fullmatch(value) is not None:
        found = int(value)
    else:
        return None
    return found if found <= largest else None


def process_id(value: str | None) -> int | None:
    """A process id; None for 0, the idle process, which stands for no process."""
    return number(value, PID_MAX) or None


def port(value: str | None) -> int | None:
    """A port; None for 0."""
    return number(value, 65_535) or None


def guid(value: str | None) -> str | None:
    """A GUID in lower case without braces; None for anything else and for the one that is all zeros."""
    match = _GUID.fullmatch((value or "").strip())
    found = None if match is None else match[1].lower()
    return None if found == _NO_GUID else found


def sid(value: str | None) -> str | None:
    """A security identifier; None for anything else and for the one that stands for nobody."""
    return value if value is not None and value != NO_SID and _SID.fullmatch(value) is not None else None


def account(domain: str | None, name: str | None) -> str | None:
    r"""An account as `DOMAIN\name`, or its name alone without a domain; None without a name."""
    name, domain = text(name), text(domain)
    return f"{domain}\\{name}" if name is not None and domain is not None else name


def address(value: str | None) -> str | None:
    """An IP address in canonical form, IPv4 for a mapped one and without a scope; None for anything else."""
    try:
        found = ipaddress.ip_address((value or "").strip().partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def utc_time(value: str | None) -> int | None:
    """A time like `2026-01-31 12:00:00.123` as a FILETIME; None for anything else."""
    try:
        return parse_time(value or "")
    except ValueError:
        return None


def base_name(path: str | None) -> str | None:
    """The last component of a path, which may have slashes too; None without one."""
    return re.split(r"[\\/]", path)[-1] or None if path is not None else None


def drive_path(path: str | None, drives: Mapping[str, str]) -> str | None:
    r"""A path with its device replaced by the drive's letter, as in `C:\Windows`; unchanged if it has none.

    `drives` has letters (`C:`) by device (`\device\harddiskvolume3`, in lower case).
    """
    path = text(path)
    match = _DEVICE.match(path) if path is not None else None
    if path is None or match is None:
        return path
    letter = drives.get(match[0].lower())
    return path if letter is None else letter + path[match.end() :]


ANSWERS_MAX: Final = 100
"""As for DNS messages."""
_TYPED: Final = re.compile(r"type:\s*\d+\s+(\S.*)", re.DOTALL)


def query_results(value: str | None) -> list[str]:
    """The answers of Sysmon's event 22, such as `type:  5 alias.example.com;::ffff:192.0.2.1;`, without types.

    Addresses are in canonical form; names in lower case without the final dot, as in `dns_events`.
    """
    found: list[str] = []
    for part in (value or "").split(";"):
        answer = text(part.strip())
        if answer is not None and len(found) < ANSWERS_MAX:
            match = _TYPED.fullmatch(answer)
            answer = match[1] if match is not None else answer
            found.append(address(answer) or domain_name(answer))
    return found


def domain_name(value: str) -> str:
    """A name of the DNS in lower case without the final dot."""
    return value.lower().removesuffix(".") or value
