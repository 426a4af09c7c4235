"""Login accounting: utmp(5), wtmp and btmp, and the databases wtmpdb(8) and lastlog2(8) that follow them."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

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
    with file.open("rb") as stream:
        raw = stream.read(RECORD_BYTES * _RECORDS_MAX)
    records = (parse_record(raw[at : at + RECORD_BYTES]) for at in range(0, len(raw) - RECORD_BYTES + 1, RECORD_BYTES))
    return [record for record in records if record.kind == USER_PROCESS and record.user]


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


def wtmpdb_logins(file: Path, after: int, changed_after: float) -> list[StoredLogin]:
    """Logins of wtmpdb with a higher id, or that ended after that time. Raises OSError if it cannot be read."""
    sql = (
        "SELECT ID, CAST(User AS BLOB), Login / 1e6, Logout / 1e6, CAST(TTY AS BLOB), CAST(RemoteHost AS BLOB), "
        "CAST(Service AS BLOB) FROM wtmp WHERE Type = 3 AND (ID > ? OR Logout > ?) ORDER BY ID LIMIT 10000"
    )
    return _logins(file, sql, (after, int(changed_after * 1e6)))


def lastlog2_logins(file: Path, after: float) -> list[StoredLogin]:
    """Last logins of lastlog2 since then. Raises OSError if it cannot be read."""
    sql = (
        "SELECT Time, CAST(Name AS BLOB), Time, NULL, CAST(TTY AS BLOB), CAST(RemoteHost AS BLOB), "
        "CAST(Service AS BLOB) FROM Lastlog2 WHERE Time > ? ORDER BY Time LIMIT 10000"
    )
    return _logins(file, sql, (int(after),))


def _logins(file: Path, sql: str, bindings: Sequence[int]) -> list[StoredLogin]:
    try:
        database = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return list(_rows(database, sql, bindings))
        finally:
            database.close()
    except apsw.Error as error:
        raise OSError(f"{file} cannot be read: {error}") from None


def _rows(database: apsw.Connection, sql: str, bindings: Sequence[int]) -> Iterator[StoredLogin]:
    for number, user, login, logout, *texts in database.execute(sql, bindings):
        tty, host, service = (from_bytes(value) if value else None for value in texts)
        yield StoredLogin(number, from_bytes(user or b""), float(login), logout, tty, host, service)
