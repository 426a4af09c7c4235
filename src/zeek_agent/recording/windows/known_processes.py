"""The processes of a Windows host that events or the host itself have named, by process id and by Sysmon's GUID.

Most events name a process by its id alone, which Windows uses again soon. The id becomes an entity id with the time at
which the process was created, which is read from the host while the process lives.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec import Struct

from zeek_agent.host.windows.event_values import base_name

if TYPE_CHECKING:
    from zeek_agent.masking.command_line import CommandLine

_SECOND: Final = 10_000_000
_DELAY: Final = 2 * _SECOND
"""A process is reported within this time of its creation, in units of 100 ns."""
_EARLY: Final = _SECOND // 10
"""Clocks of Windows tick every 15.6 ms, and Sysmon writes whole milliseconds."""


class LiveProcess(NamedTuple):
    """A process that exists. `created` is a FILETIME."""

    pid: int
    created: int
    exe: str | None


class LiveProcesses(Protocol):
    """Reads processes of the host that exist now."""

    def read(self, pid: int) -> LiveProcess | None:
        """The process with this id; None if there is none, or it must not be read."""

    def all(self) -> Iterable[LiveProcess]:
        """All of them that may be read."""


class Account(NamedTuple):
    """Who runs a process, and the id of the logon session."""

    user: str | None = None
    sid: str | None = None
    session: int | None = None


class KnownProcess(Struct):
    """A process. `created` is a FILETIME, None if it is known from Sysmon's GUID alone. None: not known."""

    pid: int
    entity_id: str | None
    exe: str | None
    created: int | None
    account: Account = Account()
    command_line: CommandLine | None = None
    cwd: str | None = None
    ppid: int | None = None
    parent_entity_id: str | None = None
    parent_exe: str | None = None
    has_ended: bool = False

    @property
    def name(self) -> str | None:
        return base_name(self.exe)


class KnownProcesses:
    """Thread-safe. The processes that were named longest ago are forgotten beyond `limit`."""

    def __init__(self, live: LiveProcesses, entity_id: Callable[[int, str | int], str], limit: int = 20_000) -> None:
        """`entity_id` makes the id of a process from its process id and its creation, or else a text."""
        self._live = live
        self._entity_id = entity_id
        self._limit = limit
        self._by_pid: OrderedDict[int, KnownProcess] = OrderedDict()
        self._by_guid: OrderedDict[str, KnownProcess] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return max(len(self._by_pid), len(self._by_guid))

    def seed(self) -> None:
        """Note the processes that exist, so that their ends are attributed to them."""
        found = list(self._live.all())
        with self._lock:
            for process in found:
                known = self._by_pid.get(process.pid)
                if known is None or known.created != process.created:
                    self._remember(self._of_live(process), None)

    def start(self, pid: int, at: int, exe: str | None, guid: str | None = None) -> KnownProcess:
        """The process that began at about `at` (FILETIME), as an event reports."""
        with self._lock:
            if (known := self._of_guid(pid, guid)) is not None:
                return known
            shown = self._live.read(pid)
            if shown is not None and at - _DELAY <= shown.created <= at + _EARLY:
                process = self._of_live(shown)
                process.exe = exe or process.exe
            elif guid is not None:
                process = KnownProcess(pid, self._by_guid_id(pid, guid), exe, None)
            else:
                process = KnownProcess(pid, self._entity_id(pid, at), exe, at)
            return self._remember(process, guid)

    def end(self, pid: int, at: int, exe: str | None, guid: str | None = None) -> KnownProcess | None:
        """The process that ended at `at`; None if it is not known."""
        with self._lock:
            process = self._find(pid, at, exe, guid)
            if process is None and guid is not None:
                process = self._remember(KnownProcess(pid, self._by_guid_id(pid, guid), exe, None), guid)
            if process is not None:
                process.has_ended = True
            return process

    def find(self, pid: int, at: int, exe: str | None = None, guid: str | None = None) -> KnownProcess | None:
        """The process that had this id at `at`, from the host if it still exists; None if it is not known."""
        with self._lock:
            process = self._find(pid, at, exe, guid)
            if process is not None and (guid is not None or not process.has_ended):
                return process
            shown = self._live.read(pid)
            if shown is not None and shown.created <= at + _EARLY:
                return self._remember(self._of_live(shown), guid)
            if process is not None:  # the event comes shortly after the end, from another log
                return process
            if guid is None:
                return None
            return self._remember(KnownProcess(pid, self._by_guid_id(pid, guid), exe, None), guid)

    def _of_guid(self, pid: int, guid: str | None) -> KnownProcess | None:
        known = None if guid is None else self._by_guid.get(guid)
        return known if known is not None and known.pid == pid else None

    def _find(self, pid: int, at: int, exe: str | None, guid: str | None) -> KnownProcess | None:
        if (known := self._of_guid(pid, guid)) is not None:
            return known
        process = self._by_pid.get(pid)
        if process is None or process.created is None or process.created > at + _EARLY:
            return None
        if guid is None:
            return process
        if process.has_ended or not _may_be_same(process.exe, exe):
            return None
        return self._remember(process, guid)

    def _of_live(self, shown: LiveProcess) -> KnownProcess:
        known = self._by_pid.get(shown.pid)
        if known is not None and known.created == shown.created:
            return known
        return KnownProcess(shown.pid, self._entity_id(shown.pid, shown.created), shown.exe, shown.created)

    def _by_guid_id(self, pid: int, guid: str) -> str:
        return self._entity_id(pid, guid.replace("-", ""))

    def _remember(self, process: KnownProcess, guid: str | None) -> KnownProcess:
        self._by_pid[process.pid] = process
        self._by_pid.move_to_end(process.pid)
        if len(self._by_pid) > self._limit:
            self._by_pid.popitem(last=False)
        if guid is not None:
            self._by_guid[guid] = process
            self._by_guid.move_to_end(guid)
            if len(self._by_guid) > self._limit:
                self._by_guid.popitem(last=False)
        return process


def _may_be_same(path: str | None, other: str | None) -> bool:
    return path is None or other is None or path.casefold() == other.casefold()
