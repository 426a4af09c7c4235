"""Follows the files of login accounting: wtmp, btmp, and the databases of wtmpdb and lastlog2."""

from __future__ import annotations

import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

from zeek_agent.host.accounts import accounting
from zeek_agent.host.accounts.accounting import address
from zeek_agent.recording.logins.observation import Action, Observation, service_action, terminal
from zeek_agent.recording.system_log.file_tail import regular_file_status, rotated_files

_RECORDS_PER_TURN: Final = 10_000
_SSH_LINES: Final = ("ssh", "ssh:notty")
_CONNECTIONS_MAX: Final = 1_000
_TIME: Final = re.compile(r"\d+(?:\.\d+)?")
_CLOCK_NS: Final = 2_000_000_000
"""Two changes within this time may have the same time in the file system."""


class RecordFile:
    """New records of wtmp or btmp, also of files that rotation has renamed. `position` is `inode:offset`."""

    def __init__(self, name: str, path: Path, knows: Callable[[str], bool]) -> None:
        """`knows` tells whether a user exists: sshd writes a record more about one that does not, before the first."""
        self.name = name
        self.path = path
        self._knows = knows
        self._inode, self._offset = 0, 0
        self._younger = -math.inf
        self._unknown: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._open_lines: dict[str, accounting.AccountingRecord] = {}

    def probe(self) -> str | None:
        if regular_file_status(self.path) is None:
            return f"{self.path} does not exist"
        return None if os.access(self.path, os.R_OK) else f"{self.path} is not readable; it requires root"

    def resume(self, position: str | None, until: float | None = None) -> None:
        """Continue there, or with records younger than `until`, or else at the end of the file."""
        inode, _, offset = (position or "").partition(":")
        self._younger = -math.inf
        if inode.isdigit() and offset.isdigit():
            self._inode, self._offset = int(inode), int(offset)
            return
        if until is not None:
            self._younger, self._inode, self._offset = until, 0, 0
            return
        found = regular_file_status(self.path)
        self._inode, self._offset = (found.st_ino, found.st_size) if found else (0, 0)
        self._offset -= self._offset % accounting.RECORD_BYTES

    @property
    def position(self) -> str:
        return f"{self._inode}:{self._offset}"

    def read(self) -> Iterator[Observation]:
        """New statements; `position` is always after the last one. Raises OSError."""
        found = regular_file_status(self.path)
        if found is None:
            return
        if found.st_ino != self._inode:
            family = rotated_files(self.path)
            inodes = [inode for _, inode in family]
            first = inodes.index(self._inode) if self._inode in inodes else len(family)
            for path, inode in family[first:]:
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                if path != self.path and not (yield from self._read(path)):
                    return
            if self._inode != found.st_ino:
                self._inode, self._offset = found.st_ino, 0
        elif found.st_size < self._offset:
            self._offset = 0
        if found.st_size > self._offset:
            yield from self._read(self.path)

    def _read(self, path: Path) -> Generator[Observation, None, bool]:
        """The records of a file. Returns whether these are all that it has."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                return True
            file.seek(self._offset)
            for _ in range(_RECORDS_PER_TURN):
                raw = file.read(accounting.RECORD_BYTES)
                if len(raw) < accounting.RECORD_BYTES:
                    return True
                self._offset += accounting.RECORD_BYTES
                statement = self._statement(accounting.parse_record(raw))
                if statement is not None and statement.time > self._younger:
                    yield statement
        return False

    def _statement(self, record: accounting.AccountingRecord) -> Observation | None:
        if self.name == "btmp":
            return self._refused(record)
        if record.kind == accounting.USER_PROCESS and record.user:
            if len(self._open_lines) < _RECORDS_PER_TURN:
                self._open_lines[record.line] = record
            return self._observation(record, record, "login")
        begun = self._open_lines.pop(record.line, None) if record.kind == accounting.DEAD_PROCESS else None
        if begun is None or begun.pid != record.pid:
            return None  # an end of which the beginning is not known names no user
        return self._observation(record, begun, "logout")

    def _observation(
        self, record: accounting.AccountingRecord, begun: accounting.AccountingRecord, action: Action
    ) -> Observation:
        return Observation(
            record.time,
            self.name,
            action,
            action,
            user=begun.user,
            tty=terminal(begun.line),
            remote_addr=begun.remote_addr or address(begun.host),
            pid=begun.pid or None,
            merges_by_user=True,
        )

    def _refused(self, record: accounting.AccountingRecord) -> Observation | None:
        if record.kind not in {accounting.LOGIN_PROCESS, accounting.USER_PROCESS}:
            return None
        known = self._knows(record.user)
        connection = (record.pid, record.user)
        is_ssh = record.line.startswith(_SSH_LINES)
        announced = is_ssh and not known and connection not in self._unknown
        if announced:
            self._unknown[connection] = None
            if len(self._unknown) > _CONNECTIONS_MAX:
                self._unknown.popitem(last=False)
        return Observation(
            record.time,
            self.name,
            "invalid" if announced else "refused",
            "failed",
            succeeded=False,
            user=record.user or None,
            tty=None if is_ssh else terminal(record.line),
            remote_addr=record.remote_addr or address(record.host),
            pid=record.pid or None,
            reason=None if known else "unknown user",
            repeats=announced,
            merges_by_user=True,
        )


class WtmpDatabase:
    """New rows of wtmpdb, and ends of earlier ones. `position` is `id:last end:last login`.

    `wtmpdb rotate` moves rows away, and SQLite uses the ids of the last ones again: a row is new by its id or its time.
    """

    name = "wtmpdb"

    def __init__(self, path: Path = accounting.WTMPDB) -> None:
        self.path = path
        self._id, self._ended, self._login = -1, 0.0, 0.0
        self._changes = _Changes(path)

    def probe(self) -> str | None:
        return _probe_database(self.path)

    def resume(self, position: str | None, until: float | None = None) -> None:
        self._changes = _Changes(self.path)
        number, *times = (position or "").split(":")
        if number.isdigit() and times and all(map(_TIME.fullmatch, times)):
            self._id, self._ended, self._login = int(number), float(times[0]), float(times[-1])
        elif self.path.exists():
            self._id, self._ended, self._login = accounting.wtmpdb_end(self.path, until)

    @property
    def position(self) -> str:
        return f"{max(self._id, 0)}:{self._ended}:{self._login}"

    def read(self) -> Iterator[Observation]:
        if not self._changes.may_exist():
            return
        known = (self._id, self._login, self._ended)
        self._id = -1
        for row in accounting.wtmpdb_logins(self.path, *known):
            self._id = max(self._id, row.id)
            if row.id > known[0] or row.login > known[1]:
                self._login = max(self._login, row.login)
                yield _from_database(self.name, row, row.login, ends=False)
            if row.logout is not None and row.logout > known[2]:
                self._ended = max(self._ended, row.logout)
                yield _from_database(self.name, row, row.logout, ends=True)
        self._id = accounting.wtmpdb_end(self.path)[0]


class LastLogins:
    """New last logins of lastlog2, which knows no end. `position` is the time of the newest.

    Times are whole seconds, so further users may have logged in within the newest one.
    """

    name = "lastlog2"

    def __init__(self, path: Path = accounting.LASTLOG2) -> None:
        self.path = path
        self._until = 0.0
        self._users: set[str] = set()
        self._changes = _Changes(path)

    def probe(self) -> str | None:
        return _probe_database(self.path)

    def resume(self, position: str | None, until: float | None = None) -> None:
        self._changes = _Changes(self.path)
        self._users = set()
        if position and _TIME.fullmatch(position):
            self._until = float(position) + 1
        elif until is not None:
            self._until = until
        else:
            rows = accounting.lastlog2_logins(self.path, 0.0) if self.path.exists() else []
            self._until = max((row.login for row in rows), default=0.0)
            self._users = {row.user for row in rows if row.login == self._until}

    @property
    def position(self) -> str:
        return str(self._until)

    def read(self) -> Iterator[Observation]:
        if not self._changes.may_exist():
            return
        for row in accounting.lastlog2_logins(self.path, self._until):
            if row.login > self._until:
                self._until, self._users = row.login, set()
            if row.user not in self._users:
                self._users.add(row.user)
                yield _from_database(self.name, row, row.login, ends=False)


class _Changes:
    """Whether a database may have changed since it was read: recently by its clock, which is coarse, or by its log."""

    def __init__(self, path: Path) -> None:
        self._files = (path, path.with_name(f"{path.name}-wal"))
        self._read: Sequence[int] | None = None

    def may_exist(self) -> bool:
        times = [file.stat().st_mtime_ns for file in self._files if file.exists()]
        if times == self._read:
            return False
        is_old = all(time.time_ns() - at > _CLOCK_NS for at in times)
        self._read = times if is_old else None
        return True


def _probe_database(path: Path) -> str | None:
    if regular_file_status(path) is None:
        return f"{path} does not exist"
    return None if os.access(path, os.R_OK) else f"{path} is not readable; it requires root"


def _from_database(name: str, row: accounting.StoredLogin, at: float, *, ends: bool) -> Observation:
    return Observation(
        at,
        name,
        "logout" if ends else "login",
        service_action(row.service or "login", ends=ends),
        user=row.user or None,
        tty=terminal(row.tty),
        remote_addr=address(row.host),
        merges_by_user=True,
    )
