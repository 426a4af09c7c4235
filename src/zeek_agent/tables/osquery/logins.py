"""Login sessions, and recorded logins and logouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zeek_agent.host.accounts import accounting
from zeek_agent.host.accounts.sessions import login_sessions
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

_INIT: Final = 1
_TYPES: Final = (
    "empty",
    "runlevel",
    "boot_time",
    "new_time",
    "old_time",
    "init",
    "login",
    "user",
    "dead",
    "accounting",
)
"""Names of the types of utmp(5)."""
_USER: Final = _TYPES[accounting.USER_PROCESS]
_TYPES_OF_LAST: Final = {accounting.USER_PROCESS: "user-process", accounting.DEAD_PROCESS: "dead-process"}

logged_in_users = osquery_table(
    "logged_in_users",
    "login sessions and the other records of utmp",
    description=(
        "One row per record of `/run/utmp` that is not of process 1: terminals with and without a session, the boot. "
        "Where there is no such file, one row per session with a terminal, as in [`logins`](tables.md#logins)."
    ),
    columns=[
        Column(
            "type", "text", f"`{_USER}` for a session, also {', '.join(f'`{name}`' for name in _TYPES)} or `unknown`"
        ),
        Column("user", "text", "login name"),
        Column("tty", "text", "terminal, below /dev"),
        Column("host", "text", "where the user logged in from, as the login program wrote it"),
        Column("time", "int", "when the record was made"),
        Column("pid", "int", "process that opened the session"),
    ],
    foreign="sid registry_hive",
    examples=["SELECT user, tty, host, time FROM logged_in_users WHERE type = 'user'"],
)

last = osquery_table(
    "last",
    "recorded logins and logouts",
    description=(
        "One row per record of a login or of its end in `/var/log/wtmp`, the oldest first. Where there is no such "
        "file, those in the database of wtmpdb(8), whose rows have no `pid`."
    ),
    columns=[
        Column("username", "text", "login name; mostly empty for a logout"),
        Column("tty", "text", "terminal, below /dev"),
        Column("pid", "int", "process that opened the session"),
        Column("type", "int", "7 for a login, 8 for a logout"),
        Column("type_name", "text", "`user-process` or `dead-process`"),
        Column("time", "int", "when it happened"),
        Column("host", "text", "where the user logged in from, as the login program wrote it"),
    ],
    examples=["SELECT username, host, time FROM last WHERE type_name = 'user-process'"],
)


@logged_in_users.snapshot
def sessions(wanted: Constraints) -> Iterator[Row]:
    try:
        for record in accounting.accounting_records(accounting.UTMP):
            wanted.check()
            if record.pid != _INIT:
                kind = _TYPES[record.kind] if 0 <= record.kind < len(_TYPES) else "unknown"
                yield kind, record.user, record.line, record.host, int(record.time), record.pid
    except FileNotFoundError:
        yield from _sessions_with_terminal(wanted)
    except OSError as error:
        wanted.report(_unreadable(accounting.UTMP, error))


def _sessions_with_terminal(wanted: Constraints) -> Iterator[Row]:
    for one in login_sessions(wanted.context.proc, check=wanted.check):
        if one.tty is not None:
            began = None if one.login_time is None else int(one.login_time)
            yield _USER, one.user or "", one.tty, one.remote_host or "", began, one.pid


@last.snapshot
def recorded_logins(wanted: Constraints) -> Iterator[Row]:
    file = accounting.WTMP
    try:
        if not file.exists() and accounting.WTMPDB.exists():
            file = accounting.WTMPDB
            yield from _logins_of_wtmpdb(wanted)
            return
        for record in accounting.accounting_records(file):
            wanted.check()
            name = _TYPES_OF_LAST.get(record.kind)
            if name is not None:
                yield record.user, record.line, record.pid, record.kind, name, int(record.time), record.host
    except FileNotFoundError:
        return
    except OSError as error:
        wanted.report(_unreadable(file, error))


def _unreadable(file: Path, error: OSError) -> str:
    return f"{file} cannot be read: {error.strerror}" if error.strerror else str(error)


def _logins_of_wtmpdb(wanted: Constraints) -> Iterator[Row]:
    for login in accounting.wtmpdb_logins(accounting.WTMPDB, -1, 0.0, 0.0):
        wanted.check()
        for kind, time in ((accounting.USER_PROCESS, login.login), (accounting.DEAD_PROCESS, login.logout)):
            if time is not None:
                yield login.user, login.tty or "", None, kind, _TYPES_OF_LAST[kind], int(time), login.host or ""


TABLES = (logged_in_users, last)
