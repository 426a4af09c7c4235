"""Follows the files of login accounting: wtmp, btmp, and the databases of wtmpdb and lastlog2."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zeek_agent.host.accounts import accounting
from zeek_agent.host.accounts.accounting import address
from zeek_agent.recording.logins.observation import Action, Observation, service_action, terminal
from zeek_agent.recording.system_log.file_tail import regular_file_status

_RECORDS_PER_TURN: Final = 10_000
_SSH_LINES: Final = ("ssh", "ssh:notty")
_CONNECTIONS_MAX: Final = 1_000


class RecordFile:
    """New records of wtmp or btmp, also of a file that rotation has renamed to `.1`. `position` is `inode:offset`."""

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
            rotated = self.path.with_name(f"{self.path.name}.1")
            before = regular_file_status(rotated)
            if before is not None and before.st_ino == self._inode:
                yield from self._read(rotated)
            self._inode, self._offset = found.st_ino, 0
        elif found.st_size < self._offset:
            self._offset = 0
        if found.st_size > self._offset:
            yield from self._read(self.path)

    def _read(self, path: Path) -> Iterator[Observation]:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                return
            file.seek(self._offset)
            for _ in range(_RECORDS_PER_TURN):
                raw = file.read(accounting.RECORD_BYTES)
                if len(raw) < accounting.RECORD_BYTES:
                    return
                self._offset += accounting.RECORD_BYTES
                statement = self._statement(accounting.parse_record(raw))
                if statement is not None and statement.time > self._younger:
                    yield statement

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
    """New rows of wtmpdb, and ends of earlier ones. `position` is `id:time of the last end`."""

    name = "wtmpdb"

    def __init__(self, path: Path = accounting.WTMPDB) -> None:
        self.path = path
        self._id, self._ended = -1, 0.0
        self._changed = 0

    def probe(self) -> str | None:
        return _probe_database(self.path)

    def resume(self, position: str | None, until: float | None = None) -> None:
        number, _, ended = (position or "").partition(":")
        if number.isdigit() and ended.replace(".", "", 1).isdigit():
            self._id, self._ended = int(number), float(ended)
            return
        for row in accounting.wtmpdb_logins(self.path, -1, 0.0) if self.path.exists() else ():
            if until is not None and row.login > until:
                continue
            self._id, self._ended = max(self._id, row.id), max(self._ended, row.logout or 0.0)

    @property
    def position(self) -> str:
        return f"{max(self._id, 0)}:{self._ended}"

    def read(self) -> Iterator[Observation]:
        changed = self.path.stat().st_mtime_ns
        if changed == self._changed:
            return
        before = self._ended
        for row in accounting.wtmpdb_logins(self.path, self._id, self._ended):
            if row.id > self._id:
                self._id = row.id
                yield _from_database(self.name, row, row.login, ends=False)
            if row.logout is not None and row.logout > before:
                self._ended = max(self._ended, row.logout)
                yield _from_database(self.name, row, row.logout, ends=True)
        self._changed = changed


class LastLogins:
    """New last logins of lastlog2, which knows no end. `position` is the time of the newest."""

    name = "lastlog2"

    def __init__(self, path: Path = accounting.LASTLOG2) -> None:
        self.path = path
        self._until = 0.0
        self._changed = 0

    def probe(self) -> str | None:
        return _probe_database(self.path)

    def resume(self, position: str | None, until: float | None = None) -> None:
        if position and position.replace(".", "", 1).isdigit():
            self._until = float(position)
            return
        if until is not None:
            self._until = until
            return
        rows = accounting.lastlog2_logins(self.path, 0.0) if self.path.exists() else []
        self._until = max((row.login for row in rows), default=0.0)

    @property
    def position(self) -> str:
        return str(self._until)

    def read(self) -> Iterator[Observation]:
        changed = self.path.stat().st_mtime_ns
        if changed == self._changed:
            return
        for row in accounting.lastlog2_logins(self.path, self._until):
            self._until = max(self._until, row.login)
            yield _from_database(self.name, row, row.login, ends=False)
        self._changed = changed


def _probe_database(path: Path) -> str | None:
    if regular_file_status(path) is None:
        return f"{path} does not exist"
    return None if os.access(path, os.R_OK) else f"{path} is not readable; it requires root"


def _from_database(name: str, row: accounting.StoredLogin, time: float, *, ends: bool) -> Observation:
    return Observation(
        time,
        name,
        "logout" if ends else "login",
        service_action(row.service or "login", ends=ends),
        user=row.user or None,
        tty=terminal(row.tty),
        remote_addr=address(row.host),
        merges_by_user=True,
    )
