"""Processes and sockets that the configuration excludes from the event tables.

A path proves nothing: any user can have a mount namespace in which /usr/bin/perl is a file of his own. An executable is
therefore excluded only if it is the file that has the configured path in the agent's mount namespace or that of process
1 (systemd runs the agent in one of its own), and if it was executed in one of these. macOS has no mount namespaces.
Events without the identity of the executable at the exec are recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from zeek_agent import platforms
from zeek_agent.platforms import Platform
from zeek_agent.recording.sockets.socket_event import Flow

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.processes.process import Process

_LOOPBACK = bytes(15) + b"\x01"
_NOBODY = -1
"""A process id that no process has, nor an event whose process is unknown."""


class Executed(Protocol):
    """An event, or a process."""

    @property
    def pid(self) -> int | None: ...

    @property
    def uid(self) -> int | None: ...

    @property
    def exe(self) -> str | None: ...

    @property
    def exe_device(self) -> int | None: ...

    @property
    def exe_inode(self) -> int | None: ...

    @property
    def exe_mntns(self) -> int | None: ...


_Event = TypeVar("_Event", bound=Executed)


class Exclusions:
    """The `ignore_…` settings."""

    def __init__(self, settings: SourceSettings, platform: Platform = platforms.HERE) -> None:
        paths = settings.ignore_executables
        self._executables = frozenset(paths) | {os.path.realpath(path) for path in paths}
        self._namespaces: set[int | None]
        self._file_object: Callable[[str], tuple[int, int] | None]
        if platform.key == "linux":
            from zeek_agent.host.linux.executables import file_object, mount_namespace

            self._namespaces = {mount_namespace("self"), mount_namespace(1)} - {None}
            self._file_object = file_object
        else:
            from zeek_agent.host.macos.executables import executable_file

            self._namespaces, self._file_object = {None}, executable_file
        self._uids = frozenset(settings.ignore_uids)
        self._own = os.getpid() if settings.ignore_self else _NOBODY
        self._loopback = settings.ignore_loopback

    def process(self, process: Process | None) -> bool:
        """Whether the process is excluded, and with it its connections."""
        return process is not None and (
            process.uid in self._uids
            or process.pid == self._own
            or (process.exe in self._executables and self._is_that_file(process))
        )

    def without(self, events: list[_Event]) -> list[_Event]:
        """The events, except those of excluded processes."""
        own, uids, executables = self._own, self._uids, self._executables
        return [
            event
            for event in events
            if event.pid != own
            and event.uid not in uids
            and (event.exe not in executables or not self._is_that_file(event))
        ]

    def flow(self, flow: Flow) -> bool:
        """Whether the connection is excluded by its addresses."""
        return self._loopback and (_is_loopback(flow.local) or _is_loopback(flow.remote))

    def _is_that_file(self, executed: Executed) -> bool:
        """Whether the executable is the file that has its path now: an upgrade may have replaced it."""
        if executed.exe is None or executed.exe_inode is None or executed.exe_mntns not in self._namespaces:
            return False
        return self._file_object(executed.exe) == (executed.exe_device, executed.exe_inode)


def _is_loopback(address: bytes | None) -> bool:
    return address is not None and (address[0] == 127 if len(address) == 4 else address == _LOOPBACK)
