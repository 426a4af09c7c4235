"""Processes of a Windows host for tests of its event sources: those that a test adds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from windows_events import BOOT

from zeek_agent.masking.masker import Masker
from zeek_agent.recording.windows.event_mapping import MappingContext
from zeek_agent.recording.windows.known_processes import KnownProcesses, LiveProcess

DRIVES = {r"\device\harddiskvolume2": "C:"}


class Living:
    """Processes that exist."""

    def __init__(self, *processes: LiveProcess) -> None:
        self.processes = {process.pid: process for process in processes}

    def read(self, pid: int) -> LiveProcess | None:
        return self.processes.get(pid)

    def all(self) -> Iterable[LiveProcess]:
        return list(self.processes.values())


def entity_id(pid: int, started: str | int) -> str:
    return f"{BOOT}-{pid}-{started}"


def context(*processes: LiveProcess, limit: int = 1_000) -> MappingContext:
    """What mappings need, with these living processes."""
    return MappingContext(KnownProcesses(Living(*processes), entity_id, limit), Masker(), DRIVES)


def state(directory: Path) -> Path:
    return directory / "windows-events"
