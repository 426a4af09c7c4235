"""Login accounting: utmp(5), wtmp and btmp, and the databases wtmpdb(8) and lastlog2(8) that follow them."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from zeek_agent.text import from_bytes

UTMP: Final = Path("/run/utmp")
WTMP: Final = Path("/var/log/wtmp")
BTMP: Final = Path("/var/log/btmp")
WTMPDB: Final = Path("/var/lib/wtmpdb/wtmp.db")
LASTLOG2: Final = Path("/var/lib/lastlog/lastlog2.db")

LOGIN_PROCESS: Final = 6
USER_PROCESS: Final = 7
DEAD_PROCESS: Final = 8

_RECORD: Final = struct.Struct("=hxxi32s4s32s256shhiii16s20x")
RECORD_BYTES: Final = _RECORD.size
_NO_RECORD: Final = bytes(RECORD_BYTES)
_ROWS: Final = 10_000
"""Rows of a database that are read at a time."""
_BUSY_MS: Final = 200
"""Time to wait for a program that writes to a database."""
_RECORDS_MAX: Final = 100_000
"""Records of utmp; there is one for each terminal."""


class AccountingRecord(NamedTuple):
    """A record of utmp, wtmp or btmp. `time` is in seconds since the epoch, `line` the terminal."""

    kind: int
    pid: int
    line: str
    user: str
    host: str
    remote_addr: str | None
    time: float


def parse_record(raw: bytes) -> AccountingRecord:
    """A record of `RECORD_BYTES` bytes. Raises struct.error for any other length."""
    kind, pid, line, _, user, host, _, _, _, seconds, microseconds, addr = _RECORD.unpack(raw)
    packed = addr if any(addr[4:]) else addr[:4]
    address = ipaddress.ip_address(packed) if any(packed) else None
    mapped = getattr(address, "ipv4_mapped", None) or address
    return AccountingRecord(
        kind,
        pid,
        _text(line),
        _text(user),
        _text(host),
        None if mapped is None else str(mapped),
        (seconds & 0xFFFF_FFFF) + microseconds % 1_000_000 / 1e6,
    )


def read_utmp(file: Path = UTMP) -> list[AccountingRecord]:
    """The terminals with a session now. Raises FileNotFoundError where the system has no utmp."""
    records = islice(accounting_records(file), _RECORDS_MAX)
    return [record for record in records if record.kind == USER_PROCESS and record.user]


def accounting_records(file: Path) -> Iterator[AccountingRecord]:
    """All records of utmp, wtmp or btmp, in the order of the file, but those in holes of it. Raises OSError."""
    with file.open("rb") as stream:
        while len(raw := stream.read(RECORD_BYTES)) == RECORD_BYTES:
            yield parse_record(raw)
            if raw == _NO_RECORD:
                stream.seek(_next_record(stream.fileno(), stream.tell()))


def _next_record(descriptor: int, position: int) -> int:
    """The position of the first record from `position` on that is not in a hole; the end of the file without one."""
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        found = os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(descriptor).st_size
    finally:
        os.lseek(descriptor, at, os.SEEK_SET)  # where the buffered reader expects it
    return max(found - found % RECORD_BYTES, position)


def address(text: str | None) -> str | None:
    """An IP address without its zone; None for anything else, such as a name, which its owner may choose."""
    try:
        found = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def _text(raw: bytes) -> str:
    return from_bytes(raw.partition(b"\0")[0])


class StoredLogin(NamedTuple):
    """A row of wtmpdb or lastlog2; times in seconds since the epoch."""

    id: int
    user: str
    login: float
    logout: float | None
    tty: str | None
    host: str | None
    service: str | None


def wtmpdb_end(file: Path, until: float | None = None) -> tuple[int, float, float]:
    """The last id, logout and login, those up to a time if it is given. Raises OSError if it cannot be read."""
    sql = "SELECT max(ID), max(Logout) / 1e6, max(Login) / 1e6 FROM wtmp WHERE Type = 3 AND Login <= ?"
    (last, logout, login), *_ = _selected(file, sql, (2**62 if until is None else round(until * 1e6),))
    if last is None:
        return -1, until or 0.0, until or 0.0
    return (last, logout or 0.0, login) if until is None else (last, until, until)


def wtmpdb_logins(file: Path, after: int, begun_after: float, ended_after: float) -> Iterator[StoredLogin]:
    """Logins of wtmpdb with a higher id, or that began or ended after these times. Raises OSError."""
    sql = (
        "SELECT ID, CAST(User AS BLOB), Login / 1e6, Logout / 1e6, CAST(TTY AS BLOB), CAST(RemoteHost AS BLOB), "
        f"CAST(Service AS BLOB) FROM wtmp WHERE Type = 3 AND ID > ? AND (ID > ? OR Login > ? OR Logout > ?) "
        f"ORDER BY ID LIMIT {_ROWS}"
    )
    last = -1
    while True:
        rows = _logins(file, sql, (last, after, round(begun_after * 1e6), round(ended_after * 1e6)))
        yield from rows
        if len(rows) < _ROWS:
            return
        last = rows[-1].id


def lastlog2_logins(file: Path, since: float) -> list[StoredLogin]:
    """Last logins of lastlog2 since then. Raises OSError if it cannot be read."""
    sql = (
        "SELECT Time, CAST(Name AS BLOB), Time, NULL, CAST(TTY AS BLOB), CAST(RemoteHost AS BLOB), "
        "CAST(Service AS BLOB) FROM Lastlog2 WHERE Time >= ? ORDER BY Time"
    )
    return _logins(file, sql, (math.ceil(since),))


def _logins(file: Path, sql: str, bindings: Sequence[int]) -> list[StoredLogin]:
    return [
        StoredLogin(
            number,
            from_bytes(user or b""),
            float(login),
            logout,
            *(from_bytes(text) if text else None for text in texts),
        )
        for number, user, login, logout, *texts in _selected(file, sql, bindings)
    ]


def _selected(file: Path, sql: str, bindings: Sequence[int]) -> list[tuple[Any, ...]]:
    try:
        database = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            database.set_busy_timeout(_BUSY_MS)
            return database.execute(sql, bindings).fetchall()
        finally:
            database.close()
    except apsw.Error as error:
        raise OSError(f"{file} cannot be read: {error}") from None
