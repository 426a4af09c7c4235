"""The embedded collector in the agent's own process, where it cannot have a process of its own without privileges."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from zeek_agent.collector.server import EMBEDDED_LIMITS, Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zeek_agent.collector.pack import Pack
    from zeek_agent.collector.stats import CollectorStats
    from zeek_agent.config.server_sections import CollectorSettings
    from zeek_agent.containment.pool import WorkerStatus


class CollectorInProcess:
    """Has the interface of `embedded.EmbeddedCollector`."""

    place: Final = "in the agent"
    warning: str | None = None
    lost: Final = 0
    pid: Final = None

    def __init__(self, settings: CollectorSettings, pack: Pack) -> None:
        self.logs = Path(settings.logs).absolute()
        self.pack = pack
        self._collector = Collector(structs.replace(settings, logs=str(self.logs)), pack, limits=EMBEDDED_LIMITS)

    @property
    def stats(self) -> CollectorStats:
        return self._collector.stats

    def status(self) -> Iterable[WorkerStatus]:
        """Empty: the collector has no process of its own."""
        return ()

    def set_log_level(self) -> None:
        """Nothing to do: it logs in this process."""

    async def dial(self) -> socket.socket:
        """A socket connected to the collector, which starts if necessary. Raises ZeekAgentError if that fails."""
        await self._collector.start_embedded()
        client, served = socket.socketpair()
        for end in (client, served):
            end.setblocking(False)
        self._collector.serve_connection(served)
        return client

    async def stop(self) -> bool:
        """Send the shutdown message to the agent and close the logs, which have all that was received."""
        await self._collector.stop()
        return True
