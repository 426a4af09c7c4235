"""Programs that are started at boot and at login."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from zeek_agent.access import ShownFiles
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.host.accounts.local_accounts import local_accounts
from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import listing, matching, open_gate
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.host.files.whole import literal
from zeek_agent.host.linux.desktop_entries import DesktopEntry, desktop_entry
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._user_files import limited
from zeek_agent.tables.osquery.services import systemd_units
from zeek_agent.text import from_bytes, from_os, to_bytes

_ITEM: Final = "Startup Item"
_UNIT: Final = "systemd unit"
_SHOWN: Final = ShownFiles(("/**/.config/autostart/*",))
_UNIT_COLUMNS: Final = {
    "name": "id",
    "path": "fragment_path",
    "source": "source_path",
    "status": "active_state",
    "username": "user",
}
"""Columns, and those of `systemd_units` that have their values."""

startup_items = osquery_table(
    "startup_items",
    "programs that are started at boot and at login",
    description=(
        "One row per desktop entry in `/etc/xdg/autostart` and `~/.config/autostart` of all accounts in `/etc/passwd`, "
        "per script in `/etc/init.d` and `~/.config/autostart-scripts`, and per unit that systemd has loaded, as in "
        "[`systemd_units`](#systemd_units). Secrets in command lines are masked."
    ),
    columns=[
        Column("name", "text", "name of the entry, the script or the unit"),
        Column("path", "text", "command line of an entry, path of a script, or file of a unit"),
        Column("args", "text", "always empty on Linux"),
        Column("type", "text", f"`{_ITEM}` or `{_UNIT}`"),
        Column("source", "text", "directory of an entry or script; file from which a unit was generated"),
        Column("status", "text", "`enabled` or `disabled`; of a unit `active`, `inactive`, `failed`, …"),
        Column("username", "text", "user in whose home directory it is; configured user of a unit"),
    ],
    opens_files=True,
    examples=["SELECT name, path, username FROM startup_items WHERE type = 'Startup Item' AND status = 'enabled'"],
)


@startup_items.snapshot
def items(wanted: Constraints) -> Iterator[Row]:
    kinds = wanted.equal("type")
    if kinds is None or _ITEM in kinds:
        gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check, _SHOWN)
        for home, user in _homes(wanted).items():
            yield from _entries(wanted, gate, f"{home}/.config/autostart/", user)
            yield from _scripts(wanted, gate, f"{home}/.config/autostart-scripts/", user)
        yield from _scripts(wanted, gate, "/etc/init.d/", "")
        yield from _entries(wanted, gate, "/etc/xdg/autostart/", "")
    if kinds is None or _UNIT in kinds:
        yield from _units(wanted)


def _homes(wanted: Constraints) -> dict[str, str]:
    """Home directories, each with the name of the first account that has it."""
    found: dict[str, str] = {}
    for account in local_accounts(wanted.report):
        if account.home.startswith("/"):
            found.setdefault(account.home.rstrip("/"), account.name)
    return found


def _files(wanted: Constraints, gate: Gate | PortableGate, directory: str) -> Iterator[str]:
    """The paths of the regular files in a directory, in the form of `os.fsdecode`."""
    place = literal(_as_path(directory))
    for pattern in ("*", ".*"):
        listed = listing(gate, place + pattern, wanted.check)
        for path, found in limited(listed, place, wanted.context.reads):
            if isinstance(found, FileStatus) and stat.S_ISREG(found.mode):
                yield path


def _entries(wanted: Constraints, gate: Gate | PortableGate, directory: str, user: str) -> Iterator[Row]:
    mask = wanted.context.access.masker.line
    for path in _files(wanted, gate, directory):
        entry = DesktopEntry(b"", b"", is_enabled=True)
        for match in matching(gate, literal(path), wanted.check, explain=False):
            entry = desktop_entry(lines(match, wanted.context.reads, wanted.check))
        status = "enabled" if entry.is_enabled else "disabled"
        yield from_bytes(entry.name), mask(from_bytes(entry.command)), "", _ITEM, directory, status, user


def _scripts(wanted: Constraints, gate: Gate | PortableGate, directory: str, user: str) -> Iterator[Row]:
    for path in _files(wanted, gate, directory):
        yield from_os(path.rpartition("/")[2]), from_os(path), "", _ITEM, directory, "enabled", user


def _units(wanted: Constraints) -> Iterator[Row]:
    """The units of systemd, which a helper process asks. Without them, the other rows are still right."""
    names = wanted.equal("name")
    columns = frozenset(unit for column, unit in _UNIT_COLUMNS.items() if wanted.needs(column)) | {"id"}
    question = replace(
        wanted, equalities={} if names is None else {"id": names}, columns=columns, bounds=(), limit=None
    )
    numbers = {column.name: number for number, column in enumerate(systemd_units.columns)}
    helper, access = wanted.context.helper, wanted.context.access
    try:
        if not access.may_query(systemd_units.name, f"osquery_{systemd_units.name}"):
            raise SqlError(f"the table {systemd_units.name} is denied")
        for row in systemd_units.rows(question) if helper is None else helper(systemd_units, question):
            name, path, source, status, user = (row[numbers[unit]] or "" for unit in _UNIT_COLUMNS.values())
            yield name, path, "", _UNIT, source, status, user
    except LimitError:
        raise
    except SqlError as error:
        wanted.report(f"table startup_items has no units of systemd: {error}")


def _as_path(directory: str) -> str:
    return os.fsdecode(to_bytes(directory))


TABLES = (startup_items,)
