"""The accounts in /etc/passwd, which can be read at any time without waiting for a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.files.system_files import system_lines
from zeek_agent.text import from_bytes

PASSWD: Final = Path("/etc/passwd")
GROUP: Final = Path("/etc/group")
_ID_MAX: Final = 0xFFFF_FFFF
_DIGITS: Final = 10
"""Digits of the highest id; int() of a longer text could take long."""


def local_accounts(report: Callable[[str], None], file: Path = PASSWD) -> Iterator[Account]:
    """The accounts in the order of the file, with all entries of a name or uid that occurs several times.

    Lines that are not entries of passwd(5), or that include or exclude accounts of NIS, are left out, as in the C
    library. `report` is called with a sentence if the file cannot be read.
    """
    for line in system_lines(file, report):
        fields = line.lstrip().split(b":", 6)
        if len(fields) < 4 or not fields[0] or fields[0].startswith((b"#", b"+", b"-")):
            continue
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is not None and gid is not None:
            fields += [b""] * (7 - len(fields))
            gecos, home, shell = map(from_bytes, fields[4:])
            yield Account(from_bytes(fields[0]), uid, gid, gecos, home, shell)


def _id(field: bytes) -> int | None:
    number = int(field) if field.isdigit() and len(field) <= _DIGITS else _ID_MAX + 1
    return number if number <= _ID_MAX else None


class LocalAccounts:
    """Reads the file again when it has changed. Accounts of directory services are not known."""

    def __init__(self, file: Path = PASSWD) -> None:
        self._file = file
        self._read: tuple[int, int, int] | None = None
        self._uids: dict[str, int] = {}
        self._names: dict[int, str | None] = {}

    def uid(self, name: str) -> int | None:
        self._refresh()
        return self._uids.get(name)

    def name(self, uid: int) -> str | None:
        """The account with that uid; None if there are several."""
        self._refresh()
        return self._names.get(uid)

    def _refresh(self) -> None:
        try:
            status = self._file.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version == self._read:
                return
            lines = self._file.read_bytes().splitlines()
        except OSError:
            return
        self._read, self._uids, self._names = version, {}, {}
        for line in lines:
            fields = line.split(b":")
            uid = _id(fields[2]) if len(fields) >= 4 else None
            if uid is not None and not fields[0].startswith((b"+", b"-")):
                name = from_bytes(fields[0])
                if self._uids.setdefault(name, uid) == uid:
                    self._names[uid] = name if self._names.get(uid, name) == name else None


def names_by_id(file: Path) -> dict[int, str]:
    """The first name of each id in /etc/passwd or /etc/group; empty if the file is missing."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    names: dict[int, str] = {}
    for line in lines:
        fields = line.split(b":")
        number = _id(fields[2]) if len(fields) >= 3 else None
        if number is not None and not fields[0].startswith((b"+", b"-")):
            names.setdefault(number, from_bytes(fields[0]))
    return names
