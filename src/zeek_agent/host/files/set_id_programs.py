"""Programs that run with the rights of their owner or group (set-user-id, set-group-id), in the usual directories."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.sql_patterns import directory_entries, leave_out
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
    """Those in the directories and below them, where links to directories are not followed."""
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

    def below(self, directory: PathHandle, path: str) -> Iterator[SetIdProgram]:
        subdirectories: list[str] = []
        for entries in directory_entries(self._gate, directory, f"{path}/", self._check):
            for name, found in self._gate.statuses(directory, entries.names, entries.links):
                if isinstance(found, FileStatus):
                    if found.is_directory:
                        subdirectories.append(name)
                    elif found.mode & _SET_ID and stat.S_ISREG(found.mode):
                        yield SetIdProgram(f"{path}/{name}", found)
                else:
                    leave_out(self._gate, f"{path}/{name}", found)
        for name in sorted(subdirectories):
            self._left -= 1
            if self._left < 0:
                if self._left == -1:
                    cause = f"more than {DIRECTORIES_MAX} directories"
                    self._gate.reads.leave_out(Omission.TRUNCATED, path, cause)
                return
            yield from self._below_entry(directory, f"{path}/{name}", name)

    def _below_entry(self, directory: PathHandle, path: str, name: str) -> Iterator[SetIdProgram]:
        try:
            entered = self._gate.enter(directory, name)
        except (OSError, RefusedError) as error:
            leave_out(self._gate, path, error)
            return
        if entered.status.is_directory:
            yield from self.below(entered, path)
