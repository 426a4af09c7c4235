"""Last logins, from lastlog(8) or the database of its successor lastlog2(8)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import apsw

from zeek_agent.text import from_bytes

LASTLOG: Final = Path("/var/log/lastlog")
LASTLOG2: Final = Path("/var/lib/lastlog/lastlog2.db")

_RECORD: Final = struct.Struct("=I32s256s")
"""One record per uid: seconds since the epoch, terminal, host."""


def by_uid(uid: int, file: Path = LASTLOG) -> float | None:
    """The time of the last login, in seconds since the epoch; None without a login or a record."""
    try:
        with file.open("rb") as records:
            records.seek(uid * _RECORD.size)
            record = records.read(_RECORD.size)
    except OSError:
        return None
    seconds = _RECORD.unpack(record)[0] if len(record) == _RECORD.size else 0
    return float(seconds) if seconds else None


def by_name(file: Path = LASTLOG2) -> dict[str, float]:
    """The last logins in lastlog2's database, in seconds since the epoch. Empty if it is unused or unreadable."""
    if not file.exists():
        return {}
    try:
        database = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error:
        return {}
    try:
        return {
            from_bytes(name): float(seconds)
            for name, seconds in database.execute("SELECT CAST(Name AS BLOB), Time FROM Lastlog2")
            if name and seconds
        }
    except apsw.Error:
        return {}
    finally:
        database.close()
