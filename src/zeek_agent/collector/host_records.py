"""Keeps the hosts of a collector in its log directory: reads them once, and writes what has changed.

The disk is accessed in another thread. An error is logged once, counted, and retried at the next write; what was not
written waits in memory, which is bounded by the number of hosts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zeek_agent.collector.hosts_file import HostsError, HostsFile
from zeek_agent.collector.intake import Intake

REPLACE_INTERVAL_SECONDS: Final = 60.0
"""How often at most the file is written again as a whole."""

log = logging.getLogger("zeek_agent.collector")


class HostRecords:
    """Writes the intake's hosts. `error` is why that is not possible now."""

    def __init__(self, directory: Path, intake: Intake, monotonic: Callable[[], float]) -> None:
        self.errors = 0
        self.error: str | None = None
        self._file = HostsFile(directory)
        self._intake = intake
        self._monotonic = monotonic
        self._loaded = False
        self._replace_after = float("-inf")
        self._evicted = 0

    async def write(self, *, everything: bool = False) -> None:
        """Write changed hosts: those that are due, or `everything`."""
        hosts = self._intake.hosts
        if not await self._load():
            return
        due = hosts.due(self._monotonic(), everything=everything)
        whole = list(hosts) if self._is_replacement_due(everything=everything) else None
        if not due and whole is None and hosts.evicted == self._evicted:
            return
        evicted = hosts.evicted
        try:
            if whole is None:
                await asyncio.to_thread(self._file.append, due, evicted)
            else:
                self._replace_after = self._monotonic() + REPLACE_INTERVAL_SECONDS
                await asyncio.to_thread(self._file.replace, whole, evicted)
        except OSError as error:
            hosts.postpone(due)
            self._failed(f"cannot write {error.filename or 'the hosts'}: {error.strerror or error}")
        else:
            self._evicted = evicted
            self._succeeded()

    def _is_replacement_due(self, *, everything: bool) -> bool:
        return self._file.is_due and (everything or self._monotonic() >= self._replace_after)

    async def _load(self) -> bool:
        """Read what an earlier run has written, which must succeed before anything is written over it."""
        if self._loaded:
            return True
        try:
            content = await asyncio.to_thread(self._file.load)
        except HostsError as error:
            self._failed(str(error))
        except OSError as error:
            self._failed(f"cannot read {error.filename or 'the hosts'}: {error.strerror or error}")
        else:
            self._loaded = True
            self._intake.restore(content.hosts, content.evicted)
            self._evicted = content.evicted
            return True
        return False

    def _failed(self, reason: str) -> None:
        self.errors += 1
        if self.error != reason:
            log.error("%s; hosts are kept in memory", reason)
        self.error = reason

    def _succeeded(self) -> None:
        if self.error is not None:
            log.info("hosts can be written again")
        self.error = None
