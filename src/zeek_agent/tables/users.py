"""User accounts, from the name service switch (passwd(5), group(5)) and lastlog(8)."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.accounts import last_login, name_service
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table

users = Table(
    "users",
    "user accounts",
    description=(
        "All accounts known to the system at query time: local ones, and those that directory services enumerate. "
        "`WHERE name = …` also finds accounts that a directory service does not enumerate. "
        "Lines of `/etc/passwd` that include or exclude accounts of NIS (`+`, `-name`, `+@netgroup`) are not accounts."
    ),
    columns=[
        Column("name", "text", "login name"),
        Column("full_name", "text", "full name, the first field of GECOS"),
        Column("is_admin", "bool", "administrator: uid 0, or a member of the group `sudo`, `wheel` or `admin`"),
        Column("is_system", "bool", "system account: uid below UID_MIN of login.defs(5), a service account or nobody"),
        Column("uid", "text", "user id"),
        Column("gid", "count", "id of the primary group"),
        Column("home", "text", "home directory"),
        Column("shell", "text", "login shell"),
        Column("email", "text", "always null: Linux accounts have no email address"),
        Column("groups", "set[text]", "names of all groups of the user, including the primary one", added=True),
        Column("last_login", "time", "last login; null if none is recorded", added=True),
    ],
    examples=[
        "SELECT name, uid, shell FROM users WHERE is_admin",
        "SELECT name, datetime(last_login, 'unixepoch') FROM users WHERE NOT is_system",
        "SELECT * FROM users WHERE name = 'root'",
    ],
    platforms=("linux", "darwin"),
    privileges=Privileges(user_database=True),
)


@users.snapshot
def accounts(wanted: Constraints) -> Iterator[Row]:
    names = wanted.equal("name")
    first_human = name_service.first_human_uid()
    with_groups = wanted.needs("groups", "is_admin")
    with_login = wanted.needs("last_login")
    logins = last_login.by_name() if with_login else {}
    found = name_service.accounts() if names is None else name_service.accounts_named(sorted(map(str, names)))
    for account in found:
        wanted.check()
        groups = name_service.groups_of(account) if with_groups else []
        yield (
            account.name,
            account.full_name,
            name_service.is_admin(account.uid, groups),
            name_service.is_system(account.uid, first_human),
            str(account.uid),
            account.gid,
            account.home,
            account.shell,
            None,
            groups,
            (logins.get(account.name) or last_login.by_uid(account.uid)) if with_login else None,
        )


TABLES = (users,)
