"""Programs that run with the rights of their owner or group (set-user-id, set-group-id), in the usual directories."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from zeek_agent.host.files.file_rules import Listed, RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.sql_patterns import Entries, directory_entries, leave_out
from zeek_agent.host.files.statx import FileStatus

DIRECTORIES: Final = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/tmp")
DIRECTORIES_MAX: Final = 100_000
"""Directories below one of these that are looked into, because users choose how many there are in /tmp."""
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class SetIdProgram(NamedTuple):
    """A regular file, or a link to one; the path is in the form of `os.fsdecode`."""

    path: str
    found: FileStatus


def set_id_programs(
    gate: Gate, check: Callable[[], None], directories: Iterable[str] = DIRECTORIES
) -> Iterator[SetIdProgram]:
    """Those in the directories and below them, where links to directories are not followed.

    The search ends, counted as truncated, when the statement's time for files is used up: users can fill /tmp.
    """
    for path in directories:
        try:
            directory = gate.walk(gate.root, path)
        except (OSError, RefusedError) as error:
            leave_out(gate, path, error)
            continue
        if directory.status.is_directory:
            yield from _Search(gate, check).below(directory, path)


class _Search:
    """The search in one of the directories."""

    def __init__(self, gate: Gate, check: Callable[[], None]) -> None:
        self._gate = gate
        self._check = check
        self._left = DIRECTORIES_MAX
        self._is_truncated = False

    def below(self, directory: PathHandle, path: str) -> Iterator[SetIdProgram]:
        subdirectories: list[str] = []
        for entries in directory_entries(self._gate, directory, f"{path}/", self._check):
            if self._gate.reads.seconds_left <= 0:
                self._truncate(path, "reading took longer than limits.files_time allows")
                return
            for name, found in self._statuses(directory, entries):
                if not isinstance(found, FileStatus):
                    leave_out(self._gate, f"{path}/{name}", found)
                elif found.is_directory:
                    if len(subdirectories) <= self._left:
                        subdirectories.append(name)
                elif found.mode & _SET_ID and stat.S_ISREG(found.mode):
                    yield SetIdProgram(f"{path}/{name}", found)
        for name in sorted(subdirectories):
            if self._left == 0:
                self._truncate(path, f"more than {DIRECTORIES_MAX} directories")
                return
            self._left -= 1
            yield from self._below_entry(directory, f"{path}/{name}", name)

    def _statuses(self, directory: PathHandle, entries: Entries) -> list[Listed]:
        with self._gate.reads.measure_time():
            return list(self._gate.statuses(directory, entries.names, entries.links))

    def _below_entry(self, directory: PathHandle, path: str, name: str) -> Iterator[SetIdProgram]:
        try:
            entered = self._gate.enter(directory, name)
        except (OSError, RefusedError) as error:
            leave_out(self._gate, path, error)
            return
        if entered.status.is_directory and not self._is_truncated:
            yield from self.below(entered, path)

    def _truncate(self, path: str, cause: str) -> None:
        """Count that the search ends here, once."""
        if not self._is_truncated:
            self._is_truncated = True
            self._gate.reads.leave_out(Omission.TRUNCATED, path, cause)
