"""Accounts and groups from the name service switch (nsswitch.conf(5)): local files and directory services."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.text import escaped, from_bytes, from_os, to_bytes

if TYPE_CHECKING:
    from pwd import struct_passwd

ADMIN_GROUPS: Final = frozenset({"sudo", "wheel", "admin"})
"""Groups whose members may become root with sudo, in the default setup of distributions."""

_UID_MIN: Final = 1000
"""The default of login.defs(5)."""
_DYNAMIC_UIDS: Final = range(61_184, 65_520)
_NOBODY: Final = frozenset({65_534, 65_535, 0xFFFF_FFFE, 0xFFFF_FFFF})
_ID_MASK: Final = 0xFFFF_FFFF
"""Python returns uids and gids as they are, except 4294967295, which it returns as -1."""
_GROUPS_EXPECTED: Final = 64
_GROUPS_MAX: Final = 1 << 20
"""16 times what Linux assigns to a process."""


_LOCAL_SERVICES: Final = frozenset({"files", "db", "altfiles", "extrausers"})
"""Services of nsswitch.conf(5) that read files only."""
_ACCOUNT_DATABASES: Final = frozenset({b"passwd", b"group", b"initgroups"})


@dataclass(frozen=True, slots=True)
class Account:
    """An entry of passwd(5)."""

    name: str
    uid: int
    gid: int
    gecos: str
    home: str
    shell: str

    @property
    def full_name(self) -> str:
        """The first field of GECOS."""
        return self.gecos.partition(",")[0]


def has_daemons(nsswitch: Path = Path("/etc/nsswitch.conf"), userdb: Path = Path("/run/systemd/userdb")) -> bool:
    """Whether accounts or groups come from more than local files: from daemons, which are reached by Unix sockets.

    `systemd`, which most distributions configure, has further accounts only where a service offers some in `userdb`.
    """
    try:
        lines = nsswitch.read_bytes().splitlines()
    except OSError:
        return False  # the C library then reads files only
    services: set[str] = set()
    for line in lines:
        database, _, sources = line.partition(b"#")[0].partition(b":")
        if database.strip() in _ACCOUNT_DATABASES:
            services.update(re.sub(rb"\[[^\]]*\]", b" ", sources).decode(errors="replace").split())
    if "systemd" in services and not _has_entries(userdb):
        services.remove("systemd")
    return not services <= _LOCAL_SERVICES


def _has_entries(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except OSError:
        return False


def accounts() -> Iterator[Account]:
    """All accounts that the name service enumerates; directory services may omit theirs."""
    import pwd

    return (_account(entry) for entry in pwd.getpwall() if not _is_inclusion(entry))


def accounts_named(names: Iterable[str]) -> Iterator[Account]:
    """The existing accounts with these names, including those that are not enumerated."""
    import pwd

    for name in names:
        with suppress(KeyError, ValueError):
            yield _account(pwd.getpwnam(os.fsdecode(to_bytes(name))))


def accounts_with_ids(uids: Iterable[int]) -> Iterator[Account]:
    """For each of these uids the account that the name service returns for it, if there is one."""
    import pwd

    for uid in uids:
        with suppress(KeyError, OverflowError):
            yield _account(pwd.getpwuid(uid))


@dataclass(frozen=True, slots=True)
class Group:
    """An entry of group(5), without its members."""

    name: str
    gid: int


def groups() -> Iterator[Group]:
    """All groups that the name service enumerates; directory services may omit theirs."""
    import grp

    for entry in grp.getgrall():
        if not entry.gr_name.startswith(("+", "-")) or _is_group(entry.gr_name):
            yield Group(from_os(entry.gr_name), entry.gr_gid & _ID_MASK)


def groups_with_ids(gids: Iterable[int]) -> Iterator[Group]:
    """For each of these gids the group that the name service returns for it, if there is one."""
    import grp

    for gid in gids:
        with suppress(KeyError, OverflowError):
            entry = grp.getgrgid(gid)
            yield Group(from_os(entry.gr_name), entry.gr_gid & _ID_MASK)


def groups_of(account: Account) -> list[str]:
    """Names of all groups that a login of this account belongs to; a nameless group is given by its number."""
    return group_names(group_ids(account))


def group_names(ids: Iterable[int]) -> list[str]:
    """The names of these groups; a nameless one is given by its number."""
    return [_group_name(gid) for gid in ids]


def group_ids(account: Account) -> list[int]:
    """Ids of all groups that a login of this account belongs to, the primary one first."""
    return _group_ids(to_bytes(account.name), account.gid)


def is_admin(uid: int, groups: Iterable[str]) -> bool:
    """Whether an account may act as root: uid 0, or a member of a group that sudo trusts."""
    return uid == 0 or not ADMIN_GROUPS.isdisjoint(groups)


def first_human_uid(login_defs: Path = Path("/etc/login.defs")) -> int:
    """UID_MIN of login.defs(5); lower uids belong to the system."""
    try:
        setting = re.search(rb"^\s*UID_MIN\s+(\d+)", login_defs.read_bytes(), re.MULTILINE)
    except OSError:
        setting = None
    return int(setting[1]) if setting else _UID_MIN


def is_system(uid: int, first_human: int) -> bool:
    """Whether an account is a system account: below `first_human`, `nobody`, or created for a running service."""
    return uid < first_human or uid in _DYNAMIC_UIDS or uid in _NOBODY


def _is_inclusion(entry: struct_passwd) -> bool:
    """Whether an entry is a line such as `+`, `-name` or `+@netgroup`, which includes or excludes accounts of NIS.

    glibc lists these lines as accounts with uid 0 but finds none of them by name; an account of a directory service may
    have such a name.
    """
    import pwd

    if not entry.pw_name.startswith(("+", "-")):
        return False
    try:
        return pwd.getpwnam(entry.pw_name).pw_uid != entry.pw_uid
    except KeyError:
        return True


def _is_group(name: str) -> bool:
    """Whether an entry is a group, and not a line that includes or excludes groups of NIS."""
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _group_ids(name: bytes, primary: int) -> list[int]:
    """getgrouplist(3). `os.getgrouplist` takes only names that are valid UTF-8."""
    libc = ctypes.CDLL(None)
    size = _GROUPS_EXPECTED
    while size <= _GROUPS_MAX:
        found, count = (ctypes.c_uint32 * size)(), ctypes.c_int(size)
        if libc.getgrouplist(name, ctypes.c_uint32(primary), found, ctypes.byref(count)) >= 0:
            return found[: count.value]
        size = max(2 * size, count.value)
    raise OSError(f"getgrouplist: the account {escaped(from_bytes(name))} has more than {_GROUPS_MAX:,} groups")


def _account(entry: struct_passwd) -> Account:
    return Account(
        from_os(entry.pw_name),
        entry.pw_uid & _ID_MASK,
        entry.pw_gid & _ID_MASK,
        from_os(entry.pw_gecos),
        from_os(entry.pw_dir),
        from_os(entry.pw_shell),
    )


def _group_name(gid: int) -> str:
    import grp

    try:
        return from_os(grp.getgrgid(gid).gr_name)
    except KeyError:
        return str(gid)
