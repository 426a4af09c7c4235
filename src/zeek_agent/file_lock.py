"""Locks on files: what all systems' locks have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from zeek_agent.errors import ZeekAgentError

EXPOSURE_ADVICE: Final = "chown it to the agent's user, chmod go-w it,"


class LockHeldError(ZeekAgentError):
    """Another process holds the lock. `holder` describes it, ` (pid 123, since …)`, or is empty when unknown."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is locked by another process{holder}")
        self.holder = holder


class FileLock:
    """A lock that is held until `close` or until the process ends for any reason."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = list(descriptors)

    def add(self, descriptor: int) -> None:
        """Keep another descriptor open for as long as the lock is held."""
        self._descriptors.append(descriptor)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
