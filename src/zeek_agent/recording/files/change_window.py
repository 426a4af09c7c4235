"""Joins the events of a process on a path, as far as they lie within a window of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from zeek_agent.recording.files.watch_messages import Action, Change

_CHANGES_MAX: Final = 4_096
_BYTES_MAX: Final = 1 << 20
"""Changes that wait for the end of their window, and their paths; more end the oldest ones early."""

_Key: TypeAlias = tuple[int | None, bytes | None, bytes | None, Action]
"""Process, None if a comparison found the change; paths; action."""


class ChangeWindow:
    """Changes by process, path and action. One is due when so many ns have passed since its first event."""

    def __init__(self, length: int, changes_max: int = _CHANGES_MAX, bytes_max: int = _BYTES_MAX) -> None:
        self._length = length
        self._changes_max = changes_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._changes: dict[_Key, Change] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def is_full(self) -> bool:
        """Whether changes are due before the end of their window."""
        return len(self._changes) > self._changes_max or self._bytes > self._bytes_max

    def add(self, change: Change) -> None:
        """Count the change, with an earlier one if there is one."""
        key = (change.pid, change.path, change.old_path, change.action)
        earlier = self._changes.get(key)
        if earlier is None:
            self._changes[key] = change
            self._bytes += _path_bytes(change)
        else:
            earlier.count += change.count
            earlier.target = change.target or earlier.target

    def due(self, now: int, *, everything: bool = False) -> Iterator[Change]:
        """Remove the changes whose window has ended at `now`, the oldest first."""
        oldest = now - self._length
        while self._changes:
            key = next(iter(self._changes))
            if not everything and self._changes[key].at > oldest and not self.is_full():
                return
            change = self._changes.pop(key)
            self._bytes -= _path_bytes(change)
            yield change

    def oldest(self) -> int | None:
        """When the first event of the oldest change was read."""
        return next(iter(self._changes.values())).at if self._changes else None


def _path_bytes(change: Change) -> int:
    return len(change.path or b"") + len(change.old_path or b"")
