"""Packages that rpm(8) has installed, from its database `rpmdb.sqlite`.

Each row of the database's table `Packages` has a package's header: numbers in big-endian order, namely the numbers of
index entries and of data bytes, the entries (tag, type, offset, count), and the data (rpm's documentation, "Package
format"). Databases of the older kinds, Berkeley DB and `ndb`, are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import apsw

from zeek_agent.text import from_bytes, to_bytes

DATABASE: Final = "rpmdb.sqlite"
_OTHER_DATABASES: Final = ("Packages", "Packages.db")
HEADER_BYTES_MAX: Final = 256 << 20
"""rpm's own limit for the data of a header."""
_ENTRIES_MAX: Final = 65_535
_SIZES: Final = struct.Struct(">II")
_ENTRY: Final = struct.Struct(">IIII")
_NUMBERS: Final = {3: struct.Struct(">H"), 4: struct.Struct(">I"), 5: struct.Struct(">Q")}
_TEXTS: Final = frozenset({6, 9})
"""STRING, and I18NSTRING, whose first text is that of the locale C."""
_NAME, _VERSION, _RELEASE, _EPOCH, _INSTALL_TIME, _SIZE = 1000, 1001, 1002, 1003, 1008, 1009
_VENDOR, _GROUP, _ARCHITECTURE, _SOURCE, _LONG_SIZE, _SHA1_HEADER = 1011, 1016, 1022, 1044, 5009, 269
_STEPS_BETWEEN_CHECKS: Final = 10_000


class RpmPackage(NamedTuple):
    """A package; texts are empty where its header has none."""

    name: str
    version: str
    release: str
    source: str
    size: int | None
    sha1: str
    architecture: str
    epoch: int | None
    install_time: int | None
    vendor: str
    group: str


class RpmError(Exception):
    """The database or one of its headers is not as it should be."""


def database_in(directories: Iterable[str]) -> str | None:
    """The path of the first database; None if there is none. Raises RpmError if there are only older kinds."""
    old: str | None = None
    for directory in directories:
        if Path(directory, DATABASE).exists():
            return str(Path(directory, DATABASE))
        old = old or next((name for name in _OTHER_DATABASES if Path(directory, name).exists()), None)
    if old is not None:
        raise RpmError(f"the package database {old} is of a kind that is not read: rpm --rebuilddb converts it")
    return None


def rpm_packages(
    database: str, names: Iterable[str] | None, check: Callable[[], None], report: Callable[[str], None]
) -> Iterator[RpmPackage]:
    """The installed packages, or those with these names. Headers that do not make sense are reported.

    Raises RpmError for a database that is not one.
    """
    try:
        for number, header in _headers(database, names, check):
            check()
            try:
                yield parse_header(header)
            except RpmError as error:
                report(f"package {number} of {database}: {error}")
    except apsw.Error as error:
        raise RpmError(f"{database}: {error}") from error


def _headers(database: str, names: Iterable[str] | None, check: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    connection = _opened(database)
    try:
        connection.set_progress_handler(partial(_goes_on, check), _STEPS_BETWEEN_CHECKS)
        if names is None:
            yield from connection.execute("SELECT hnum, blob FROM Packages")
            return
        for name in sorted(names):
            sql = "SELECT hnum, blob FROM Packages WHERE hnum IN (SELECT hnum FROM Name WHERE key = CAST(? AS TEXT))"
            yield from connection.execute(sql, (to_bytes(name),))
    finally:
        connection.close()


def _goes_on(check: Callable[[], None]) -> bool:
    check()
    return False


def _opened(database: str) -> apsw.Connection:
    """The database for reading only.

    Without write permission, SQLite reads a write-ahead log only if its index exists. rpm leaves no log behind that
    matters, so without one the file is read as it is.
    """
    options = "immutable=1"
    with suppress(OSError):
        if Path(f"{database}-wal").stat().st_size:
            options = "mode=ro"
    connection = apsw.Connection(
        f"file:{quote(database)}?{options}", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, HEADER_BYTES_MAX)
    return connection


def parse_header(header: object) -> RpmPackage:
    """The package that a header describes. Raises RpmError."""
    if not isinstance(header, bytes) or len(header) < _SIZES.size:
        raise RpmError("the header is too short")
    entries, data_bytes = _SIZES.unpack_from(header)
    start = _SIZES.size + entries * _ENTRY.size
    if entries > _ENTRIES_MAX or start + data_bytes > len(header):
        raise RpmError("the header is shorter than it says")
    data = header[start : start + data_bytes]
    index = {tag: (kind, offset) for tag, kind, offset, _ in _ENTRY.iter_unpack(header[_SIZES.size : start])}

    def text(tag: int) -> str:
        kind, offset = index.get(tag, (0, 0))
        if kind not in _TEXTS:
            return ""
        end = data.find(b"\0", offset)
        if offset >= len(data) or end < 0:
            raise RpmError("a text is not within the header")
        return from_bytes(data[offset:end])

    def number(tag: int) -> int | None:
        kind, offset = index.get(tag, (0, 0))
        if kind not in _NUMBERS:
            return None
        if offset + _NUMBERS[kind].size > len(data):
            raise RpmError("a number is not within the header")
        return int(_NUMBERS[kind].unpack_from(data, offset)[0])

    name = text(_NAME)
    if not name:
        raise RpmError("the package has no name")
    size = number(_SIZE)
    return RpmPackage(
        name,
        text(_VERSION),
        text(_RELEASE),
        text(_SOURCE),
        number(_LONG_SIZE) if size is None else size,
        text(_SHA1_HEADER),
        text(_ARCHITECTURE),
        number(_EPOCH),
        number(_INSTALL_TIME),
        text(_VENDOR),
        text(_GROUP),
    )
