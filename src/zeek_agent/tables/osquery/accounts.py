"""Accounts, groups, and the state of passwords."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from zeek_agent.host.accounts import name_service
from zeek_agent.host.accounts.local_accounts import local_accounts
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.accounts.passwords import password_states
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import WITHOUT_NAMESPACES, osquery_table

_SIGN: Final = 1 << 31
_NOT_GIVEN: Final = -1
"""The C library's value for an empty field of shadow(5)."""


def _asks_daemons(wanted: Constraints) -> bool:
    remote = wanted.equal("include_remote")
    return remote is not None and 1 in remote


users = osquery_table(
    "users",
    "user accounts",
    description=(
        "One row per account in `/etc/passwd`. With `include_remote = 1`, the rows are those of the name service, "
        "which also has the accounts of directory services; those that it does not enumerate are found by `uid` or "
        "`username`."
    ),
    columns=[
        Column("uid", "int", "user id"),
        Column("gid", "int", "id of the primary group"),
        Column("uid_signed", "int", "user id as a signed number of 32 bits"),
        Column("gid_signed", "int", "id of the primary group as a signed number of 32 bits"),
        Column("username", "text", "login name"),
        Column("description", "text", "GECOS field"),
        Column("directory", "text", "home directory"),
        Column("shell", "text", "login shell"),
        Column("uuid", "text", "always empty on Linux", collation="nocase"),
        WITHOUT_NAMESPACES,
        Column("include_remote", "int", "set to 1 in a query: include accounts of directory services", hidden=True),
    ],
    foreign="type is_hidden:int",
    decisive=["include_remote"],
    privileges=Privileges(user_database=True),
    is_privileged=_asks_daemons,
    examples=[
        "SELECT uid, username, shell FROM osquery_users WHERE uid >= 1000",
        "SELECT username, directory FROM osquery_users WHERE include_remote = 1 AND username = 'root'",
    ],
)

groups = osquery_table(
    "groups",
    "groups",
    description="One row per group id that the name service enumerates; other groups are found by `gid`.",
    columns=[
        Column("gid", "int", "group id"),
        Column("gid_signed", "int", "group id as a signed number of 32 bits"),
        Column("groupname", "text", "name; if several groups have the id, that of the first one"),
        WITHOUT_NAMESPACES,
    ],
    foreign="group_sid comment is_hidden:int",
    privileges=Privileges(user_database=True),
    examples=["SELECT gid, groupname FROM groups WHERE gid = 0"],
)

user_groups = osquery_table(
    "user_groups",
    "groups of each user",
    description="One row per user id and group that its account belongs to, including the primary one.",
    columns=[Column("uid", "int", "user id"), Column("gid", "int", "group id")],
    privileges=Privileges(user_database=True),
    examples=["SELECT uid FROM user_groups JOIN groups USING (gid) WHERE groupname = 'root'"],
)

shadow = osquery_table(
    "shadow",
    "state of local passwords",
    description=(
        "One row per entry of `/etc/shadow`. Hashes are not part of it. Days are counted from 1970-01-01; a value that "
        "the file does not have is -1."
    ),
    columns=[
        Column("password_status", "text", "`active`, `locked`, `empty`, or `not_set` for `!!`"),
        Column("hash_alg", "text", "algorithm of an active password as in crypt(5), such as `y` (yescrypt) or `6`"),
        Column("last_change", "int", "day of the last change"),
        Column("min", "int", "days before the password may be changed again"),
        Column("max", "int", "days after which it has to be changed"),
        Column("warning", "int", "days of warning before that"),
        Column("inactive", "int", "days after that until the account is locked"),
        Column("expire", "int", "day on which the account expires"),
        Column("flag", "int", "reserved; null if it is empty"),
        Column("username", "text", "login name"),
    ],
    examples=["SELECT username, password_status, hash_alg FROM shadow WHERE password_status = 'active'"],
)


@users.snapshot
def accounts(wanted: Constraints) -> Iterator[Row]:
    remote = _asks_daemons(wanted)
    for account in _remote_accounts(wanted) if remote else local_accounts(wanted.report):
        wanted.check()
        yield (
            account.uid,
            account.gid,
            _signed(account.uid),
            _signed(account.gid),
            account.name,
            account.gecos,
            account.home,
            account.shell,
            "",
            None,
            int(remote),
        )


def _remote_accounts(wanted: Constraints) -> Iterator[Account]:
    uids, names = wanted.integers("uid"), wanted.equal("username")
    if uids is not None:
        return name_service.accounts_with_ids(uids)
    return name_service.accounts() if names is None else name_service.accounts_named(sorted(map(str, names)))


@groups.snapshot
def distinct_groups(wanted: Constraints) -> Iterator[Row]:
    gids = wanted.integers("gid")
    seen = set()
    for group in name_service.groups() if gids is None else name_service.groups_with_ids(gids):
        wanted.check()
        if group.gid not in seen:
            seen.add(group.gid)
            yield group.gid, _signed(group.gid), group.name, None


@user_groups.snapshot
def memberships(wanted: Constraints) -> Iterator[Row]:
    uids = wanted.integers("uid")
    found: Iterable[Account] = name_service.accounts() if uids is None else name_service.accounts_with_ids(uids)
    seen = set()
    for account in found:
        wanted.check()
        if account.uid not in seen:
            seen.add(account.uid)
            for gid in name_service.group_ids(account):
                yield account.uid, gid


@shadow.snapshot
def passwords(wanted: Constraints) -> Iterator[Row]:
    names = wanted.equal("username")
    for state in password_states(wanted.report):
        wanted.check()
        if names is None or state.user in names:
            days = (state.last_change, state.min_days, state.max_days, state.warning_days, state.inactive_days)
            given = (_NOT_GIVEN if number is None else number for number in (*days, state.expire))
            yield state.status, state.algorithm, *given, state.flag, state.user


def _signed(number: int) -> int:
    return number - 2 * _SIGN if number >= _SIGN else number


TABLES = (users, groups, user_groups, shadow)
