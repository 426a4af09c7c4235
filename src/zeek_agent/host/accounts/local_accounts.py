"""Names and ids of the accounts in /etc/passwd, which can be read at any time without waiting for a service."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zeek_agent.text import from_bytes

PASSWD: Final = Path("/etc/passwd")
GROUP: Final = Path("/etc/group")


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
            if len(fields) >= 4 and fields[2].isdigit() and not fields[0].startswith((b"+", b"-")):
                name, uid = from_bytes(fields[0]), int(fields[2])
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
        if len(fields) >= 3 and fields[2].isdigit() and not fields[0].startswith((b"+", b"-")):
            names.setdefault(int(fields[2]), from_bytes(fields[0]))
    return names
