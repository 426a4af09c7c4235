"""The processes of the host that exist now, for `KnownProcesses`."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.platforms.winapi import process_details, process_list
from zeek_agent.recording.windows.known_processes import LiveProcess
from zeek_agent.text import from_os


class HostProcesses:
    """Reads them by Windows' API."""

    def read(self, pid: int) -> LiveProcess | None:
        """The process with this id; None if there is none, or this user must not read it."""
        try:
            with process_details.opened(pid) as handle:
                created = process_details.started(handle)
                path = process_details.executable(handle)
        except OSError:
            return None
        return LiveProcess(pid, created, from_os(path) if path else None)

    def all(self) -> Iterator[LiveProcess]:
        """All of them. What only an administrator may read is missing from others' lists. Raises OSError."""
        for listed in process_list.list_processes():
            shown = self.read(listed.pid)
            is_same = shown is not None and shown.created == listed.started
            if listed.pid and listed.started:
                yield LiveProcess(listed.pid, listed.started, shown.exe if shown is not None and is_same else None)
