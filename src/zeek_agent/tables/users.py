"""User accounts, from the name service switch (passwd(5), group(5)) and lastlog(8); on Windows from NetUserEnum."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zeek_agent import platforms
from zeek_agent.host.accounts import last_login, name_service
from zeek_agent.host.macos import account_rules as mac_rules
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table

users = Table(
    "users",
    "user accounts",
    description=(
        "All accounts known to the system at query time: local ones, and those that directory services enumerate. "
        "`WHERE name = …` also finds accounts that a directory service does not enumerate. "
        "Lines of `/etc/passwd` that include or exclude accounts of NIS (`+`, `-name`, `+@netgroup`) are not accounts. "
        "On Windows: the accounts of the computer, and others that have a profile on it, such as those of a domain."
    ),
    columns=[
        Column("name", "text", "login name"),
        Column("full_name", "text", "full name, the first field of GECOS"),
        Column(
            "is_admin",
            "bool",
            "administrator: uid 0, or a member of the group `sudo`, `wheel` or `admin`; macOS: uid 0, or a member of "
            "`admin` (gid 80); Windows: a member of Administrators (S-1-5-32-544), also through another group; null "
            "if its groups are not known",
        ),
        Column(
            "is_system",
            "bool",
            "system account: uid below UID_MIN of login.defs(5), a service account or nobody; macOS: uid below 500, "
            "or a name that begins with `_`; Windows: RID below 1000, or not an account of a computer or domain",
        ),
        Column("uid", "text", "user id; Windows: security identifier (SID)"),
        Column("gid", "count", "id of the primary group; null on Windows"),
        Column("home", "text", "home directory"),
        Column("shell", "text", "login shell; null on Windows"),
        Column("email", "text", "always null"),
        Column(
            "groups",
            "set[text]",
            "names of all groups of the user, including the primary one; Windows: of all local groups",
            added=True,
        ),
        Column("last_login", "time", "last login; null if none is recorded", added=True),
    ],
    examples=[
        "SELECT name, uid, shell FROM users WHERE is_admin",
        "SELECT name, datetime(last_login, 'unixepoch') FROM users WHERE NOT is_system",
        "SELECT * FROM users WHERE name = 'root'",
    ],
    platforms=platforms.KEYS,
    privileges=Privileges(user_database=True),
)


@users.snapshot
def accounts(wanted: Constraints) -> Iterator[Row]:
    if (group := wanted.context.platform.group) == "windows":
        return _windows_accounts(wanted)
    return _posix_accounts(wanted, is_mac=group == "darwin")


def _posix_accounts(wanted: Constraints, *, is_mac: bool) -> Iterator[Row]:
    names = wanted.equal("name")
    is_system = mac_rules.is_system if is_mac else _linux_rule(name_service.first_human_uid())
    with_login = wanted.needs("last_login")
    logins = last_login.by_name() if with_login else {}
    found = name_service.accounts() if names is None else name_service.accounts_named(sorted(map(str, names)))
    for account in found:
        wanted.check()
        ids = name_service.group_ids(account) if wanted.needs("groups", "is_admin") else []
        groups = name_service.group_names(ids) if not is_mac or wanted.needs("groups") else []
        yield (
            account.name,
            account.full_name,
            mac_rules.is_admin(account.uid, ids) if is_mac else name_service.is_admin(account.uid, groups),
            is_system(account.name, account.uid),
            str(account.uid),
            account.gid,
            account.home,
            account.shell,
            None,
            groups,
            (logins.get(account.name) or last_login.by_uid(account.uid)) if with_login else None,
        )


def _linux_rule(first_human_uid: int) -> Callable[[str, int], bool]:
    return lambda _, uid: name_service.is_system(uid, first_human_uid)


def _windows_accounts(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.windows import accounts as windows

    administrators = windows.administrators() if wanted.needs("is_admin") else None
    for account in windows.accounts(with_groups=wanted.needs("groups", "is_admin")):
        wanted.check()
        yield (
            account.name,
            account.full_name,
            windows.is_admin(account, administrators),
            windows.is_system(account.sid),
            account.sid,
            None,
            account.home,
            None,
            None,
            account.groups,
            account.last_login,
        )


TABLES = (users,)
