"""Set-user-id and set-group-id programs."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from typing import Final

from zeek_agent.host.accounts.local_accounts import GROUP, PASSWD, names_by_id
from zeek_agent.host.files import set_id_programs
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import open_gate
from zeek_agent.text import from_os

suid_bin = osquery_table(
    "suid_bin",
    "programs that run with the rights of their owner or group",
    description=(
        "One row per set-user-id or set-group-id file in or below `/bin`, `/sbin`, `/usr/bin`, `/usr/sbin`, "
        "`/usr/local/bin`, `/usr/local/sbin` and `/tmp`. Links to directories are not followed below these; a file "
        "with several of the paths has several rows. The search ends when `limits.files_time` is used up."
    ),
    columns=[
        Column("path", "text", "full path"),
        Column("username", "text", "owner's name, if it is a local account; otherwise the user id"),
        Column("groupname", "text", "group's name, if it is a local one; otherwise the group id"),
        Column("permissions", "text", "`S` for set-user-id, `G` for set-group-id, or both"),
        Column("pid_with_namespace", "int", "always null: the agent does not enter containers", hidden=True),
    ],
    examples=["SELECT path, username FROM suid_bin WHERE permissions LIKE 'S%'"],
    opens_files=True,
)

_WILDCARD: Final = re.compile("[%_]")


@suid_bin.snapshot
def programs(wanted: Constraints) -> Iterator[Row]:
    users, groups = names_by_id(PASSWD), names_by_id(GROUP)
    directories = [path for path in set_id_programs.DIRECTORIES if _may_contain(f"{path}/", wanted)]
    for path, found in set_id_programs.set_id_programs(open_gate(wanted), wanted.check, directories):
        uid, gid = found.uid or 0, found.gid or 0
        permissions = "S" * bool(found.mode & stat.S_ISUID) + "G" * bool(found.mode & stat.S_ISGID)
        yield from_os(path), users.get(uid, str(uid)), groups.get(gid, str(gid)), permissions, None


def _may_contain(directory: str, wanted: Constraints) -> bool:
    """Whether there may be paths in a directory that satisfy the statement's constraints."""
    paths = wanted.equal("path")
    if paths is not None and not any(str(path).startswith(directory) for path in paths):
        return False
    patterns = [bound for bound in wanted.bounds if bound.column == "path" and bound.operator == "LIKE"]
    beginnings = (_WILDCARD.split(str(bound.value), maxsplit=1)[0].lower() for bound in patterns)
    return all(directory.startswith(text) or text.startswith(directory) for text in beginnings)


TABLES = (suid_bin,)
