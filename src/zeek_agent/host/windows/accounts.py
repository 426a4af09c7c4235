"""Accounts of Windows: those of this computer, and others that have a profile here, such as a domain's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from zeek_agent.platforms.winapi import accounts as win32
from zeek_agent.platforms.winapi import process_details, security
from zeek_agent.platforms.winapi.accounts import LocalUser
from zeek_agent.text import from_os

_ADMINISTRATOR_RID: Final = 500
"""The built-in administrator, whatever its name."""
_FIRST_HUMAN_RID: Final = 1000
_ACCOUNT: Final = "S-1-5-21-"
"""SIDs of the accounts of computers and domains, which end with a RID."""
_ENTRA_ACCOUNT: Final = "S-1-12-1-"
"""SIDs of accounts of Microsoft Entra ID."""


@dataclass(frozen=True, slots=True)
class WindowsAccount:
    """An account. `groups` are the names of its local groups, None if they are not known."""

    name: str
    full_name: str | None
    sid: str | None
    home: str | None
    last_login: float | None
    groups: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class AccountSource:
    """The functions of Windows that the list of accounts needs."""

    local_users: Callable[[], Iterable[LocalUser]]
    profiles: Callable[[], Mapping[str, str]]
    sid_of: Callable[[str], str]
    name_of: Callable[[str], str | None]
    groups_of: Callable[[str], Sequence[str]]
    computer_name: Callable[[], str]


WIN32: Final = AccountSource(
    win32.local_users,
    win32.profiles,
    security.account_sid,
    process_details.account_name,
    win32.local_groups,
    win32.computer_name,
)


def accounts(*, with_groups: bool, source: AccountSource = WIN32) -> Iterator[WindowsAccount]:
    """All accounts. `groups` are looked up only `with_groups`. Raises OSError."""
    profiles = source.profiles()
    seen = set()
    computer = source.computer_name()
    for user in source.local_users():
        qualified = f"{computer}\\{user.name}"
        sid = _sid(source, qualified) or _sid(source, user.name)
        seen.add(sid)
        home = profiles.get(sid) if sid is not None else None
        yield WindowsAccount(
            from_os(user.name),
            from_os(user.full_name) if user.full_name else None,
            sid,
            from_os(home or user.home or "") or None,
            None if user.last_logon is None else float(user.last_logon),
            _groups(source, user.name) if with_groups else None,
        )
    for sid, home in profiles.items():
        if sid not in seen:
            name = source.name_of(sid)
            groups = _groups(source, name) if with_groups and name and is_person(sid) else None
            yield WindowsAccount(from_os(name or sid), None, sid, from_os(home) or None, None, groups)


def administrators(source: AccountSource = WIN32) -> str | None:
    """The name of the group S-1-5-32-544, which is translated; None if it is not known."""
    name = source.name_of(security.ADMINISTRATORS)
    return None if name is None else name.rpartition("\\")[2]


def is_admin(account: WindowsAccount, administrators: str | None) -> bool | None:
    """Whether an account is a member of that group, also through another one; None if its groups are not known."""
    if account.sid is not None and account.sid.startswith(_ACCOUNT) and _rid(account.sid) == _ADMINISTRATOR_RID:
        return True
    if administrators is None or not account.groups:
        return None
    return administrators in account.groups


def is_system(sid: str | None) -> bool | None:
    """Whether an account is one of Windows' own or a service's; None if its SID is not known."""
    return None if sid is None else not is_person(sid)


def is_person(sid: str) -> bool:
    """Whether the SID is one of an account that somebody created."""
    return sid.startswith(_ENTRA_ACCOUNT) or (sid.startswith(_ACCOUNT) and _rid(sid) >= _FIRST_HUMAN_RID)


def _rid(sid: str) -> int:
    """The last part of a SID."""
    last = sid.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _sid(source: AccountSource, name: str) -> str | None:
    with suppress(OSError):
        return source.sid_of(name)
    return None


def _groups(source: AccountSource, name: str) -> Sequence[str] | None:
    """The local groups; None if the system does not report them, as for an account of an unreachable domain.

    Each account belongs to at least one group, so an empty list counts as a failure, too.
    """
    with suppress(OSError):
        return [from_os(group) for group in source.groups_of(name)] or None
    return None
