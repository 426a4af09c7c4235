"""Processes and sockets that the configuration excludes from the event tables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, TypeVar

from zeek_agent.recording.sockets.socket_event import Flow

if TYPE_CHECKING:
    from zeek_agent.config import SourceSettings
    from zeek_agent.recording.processes.process_cache import Process

_LOOPBACK = bytes(15) + b"\x01"
_NOBODY = -1
"""A process id that no process has, nor an event whose process is unknown."""


class Owned(Protocol):
    """An event, or a process."""

    @property
    def pid(self) -> int | None: ...

    @property
    def uid(self) -> int | None: ...

    @property
    def exe(self) -> str | None: ...


_Event = TypeVar("_Event", bound=Owned)


class Exclusions:
    """The `ignore_…` settings."""

    def __init__(self, settings: SourceSettings) -> None:
        self._executables = frozenset(settings.ignore_executables)
        self._uids = frozenset(settings.ignore_uids)
        self._own = os.getpid() if settings.ignore_self else _NOBODY
        self._loopback = settings.ignore_loopback

    def process(self, process: Process | None) -> bool:
        """Whether the process is excluded, and with it its connections."""
        return process is not None and (
            process.exe in self._executables or process.uid in self._uids or process.pid == self._own
        )

    def without(self, events: list[_Event]) -> list[_Event]:
        """The events, except those of excluded processes."""
        own, uids, executables = self._own, self._uids, self._executables
        return [
            event for event in events if event.pid != own and event.uid not in uids and event.exe not in executables
        ]

    def flow(self, flow: Flow) -> bool:
        """Whether the connection is excluded by its addresses."""
        return self._loopback and (_is_loopback(flow.local) or _is_loopback(flow.remote))


def _is_loopback(address: bytes | None) -> bool:
    return address is not None and (address[0] == 127 if len(address) == 4 else address == _LOOPBACK)
