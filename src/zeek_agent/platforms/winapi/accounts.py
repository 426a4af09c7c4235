"""Accounts and profiles.

References: NetUserEnum (USER_INFO_0, USER_INFO_3, USER_INFO_20), NetUserGetLocalGroups, LookupAccountNameW and the
registry key ProfileList in Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from zeek_agent.platforms import winapi

PROFILES: Final = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\ProfileList"

_ALL_USERS: Final = 0x2  # FILTER_NORMAL_ACCOUNT
_UNLIMITED: Final = 0xFFFF_FFFF  # MAX_PREFERRED_LENGTH
_MORE_DATA: Final = 234
_WITH_INDIRECT_GROUPS: Final = 0x1


class LocalUser(NamedTuple):
    """An account of this computer; None for what the system does not report. `last_logon`: seconds since the epoch."""

    name: str
    full_name: str | None
    home: str | None
    last_logon: int | None


class _User0(ctypes.Structure):
    """`USER_INFO_0`."""

    _fields_ = (("name", ctypes.c_wchar_p),)


class _User3(ctypes.Structure):
    """`USER_INFO_3`."""

    _fields_ = (
        ("name", ctypes.c_wchar_p),
        ("password", ctypes.c_void_p),
        ("password_age", ctypes.c_uint32),
        ("privilege", ctypes.c_uint32),
        ("home", ctypes.c_wchar_p),
        ("comment", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("script", ctypes.c_void_p),
        ("operator_flags", ctypes.c_uint32),
        ("full_name", ctypes.c_wchar_p),
        ("user_comment", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("workstations", ctypes.c_void_p),
        ("last_logon", ctypes.c_uint32),
        ("last_logoff", ctypes.c_uint32),
        ("expires", ctypes.c_uint32),
        ("storage_max", ctypes.c_uint32),
        ("units_per_week", ctypes.c_uint32),
        ("logon_hours", ctypes.c_void_p),
        ("bad_passwords", ctypes.c_uint32),
        ("logons", ctypes.c_uint32),
        ("server", ctypes.c_void_p),
        ("country", ctypes.c_uint32),
        ("code_page", ctypes.c_uint32),
        ("rid", ctypes.c_uint32),
        ("primary_group", ctypes.c_uint32),
        ("profile", ctypes.c_void_p),
        ("home_drive", ctypes.c_void_p),
        ("password_expired", ctypes.c_uint32),
    )


class _User20(ctypes.Structure):
    """`USER_INFO_20`."""

    _fields_ = (
        ("name", ctypes.c_wchar_p),
        ("full_name", ctypes.c_wchar_p),
        ("comment", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("rid", ctypes.c_uint32),
    )


class _Group0(ctypes.Structure):
    """`LOCALGROUP_USERS_INFO_0`."""

    _fields_ = (("name", ctypes.c_wchar_p),)


_LEVELS: Final = ((3, _User3), (20, _User20), (0, _User0))
"""The levels of NetUserEnum, the most informative first; not every system has all of them."""


def local_users() -> list[LocalUser]:
    """The accounts of this computer. Raises OSError."""
    for level, _ in _LEVELS:
        try:
            return list(_users(level))
        except OSError as error:
            failure = error
    raise failure


def local_groups(name: str) -> list[str]:
    """The names of the local groups of an account, also through other groups. Raises OSError."""
    found, read, total = ctypes.c_void_p(), ctypes.c_uint32(), ctypes.c_uint32()
    network = winapi.library("netapi32")
    number = network.NetUserGetLocalGroups(
        None,
        ctypes.c_wchar_p(name),
        0,
        _WITH_INDIRECT_GROUPS,
        ctypes.byref(found),
        _UNLIMITED,
        ctypes.byref(read),
        ctypes.byref(total),
    )
    try:
        if number:
            raise winapi.error_of(number, name)
        return [each.name or "" for each in _array(found, _Group0, read.value)]
    finally:
        if found:
            network.NetApiBufferFree(found)


def profiles() -> dict[str, str]:
    """The directories of the users who have logged in to this computer, by SID."""
    if sys.platform == "win32":
        import winreg

        found: dict[str, str] = {}
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, PROFILES) as key:
            for number in range(winreg.QueryInfoKey(key)[0]):
                sid = winreg.EnumKey(key, number)
                try:
                    with winreg.OpenKey(key, sid) as profile:
                        path = str(winreg.QueryValueEx(profile, "ProfileImagePath")[0])
                except FileNotFoundError:  # a profile that is being made or removed
                    continue
                found[sid] = winreg.ExpandEnvironmentStrings(path)
        return found
    raise winapi.NotWindowsError("winreg")


def computer_name() -> str:
    """The name that domain accounts have of this computer. Raises OSError."""
    size = ctypes.c_uint32(256)
    name = ctypes.create_unicode_buffer(size.value)
    if not winapi.library("kernel32").GetComputerNameW(name, ctypes.byref(size)):
        raise winapi.last_error("name of the computer")
    return name.value


def _users(level: int) -> Iterator[LocalUser]:
    """The accounts by NetUserEnum with that level. Raises OSError."""
    kind = dict(_LEVELS)[level]
    network = winapi.library("netapi32")
    resume = ctypes.c_uint32()
    is_more = True
    while is_more:
        found, read, total = ctypes.c_void_p(), ctypes.c_uint32(), ctypes.c_uint32()
        number = network.NetUserEnum(
            None,
            level,
            _ALL_USERS,
            ctypes.byref(found),
            _UNLIMITED,
            ctypes.byref(read),
            ctypes.byref(total),
            ctypes.byref(resume),
        )
        is_more = number == _MORE_DATA
        try:
            if number and not is_more:
                raise winapi.error_of(number, f"NetUserEnum, level {level}")
            yield from [_user(each) for each in _array(found, kind, read.value)]
        finally:
            if found:
                network.NetApiBufferFree(found)


def _user(record: Any) -> LocalUser:
    return LocalUser(
        record.name,
        getattr(record, "full_name", None) or None,
        getattr(record, "home", None) or None,
        getattr(record, "last_logon", 0) or None,
    )


def _array(address: ctypes.c_void_p, kind: type[ctypes.Structure], length: int) -> list[Any]:
    """The records that the system has written there."""
    return list((kind * length).from_address(address.value)) if address.value and length else []
