"""`zeek-agent collector`: a collector as a program of its own, with its metrics, summary and reload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from zeek_agent import logbook, platforms, reload
from zeek_agent.collector import pack, summary, tls
from zeek_agent.collector.server import Collector, CollectorLimits
from zeek_agent.errors import ZeekAgentError
from zeek_agent.signals import HangupSignal, on_hangup, stop_signals

if TYPE_CHECKING:
    from zeek_agent.collector.pack import Pack
    from zeek_agent.config.sections import MetricsSettings
    from zeek_agent.config.server_sections import CollectorSettings
    from zeek_agent.metrics.server import MetricsServer
    from zeek_agent.reload import Loaded

FILES: Final = 256
"""Open files other than connections: logs, and those of Python. The default soft limit is often 1,024."""

log = logging.getLogger("zeek_agent.collector")


async def run_collector(load: Callable[[], Loaded], hangup: HangupSignal | None = None) -> None:
    """Run until SIGTERM or SIGINT. Raises ZeekAgentError if the collector cannot start.

    `load` reads and checks the configuration, and does so again for SIGHUP. `hangup` handles that signal from the start
    of the program.
    """
    loaded = load()
    platforms.HERE.allow_open_files(2 * CollectorLimits().connections + FILES)
    logbook.set_up(loaded.config.log, warnings=loaded.warnings)
    program = CollectorProgram(loaded, load)
    with stop_signals() as stopped, on_hangup(program.reload_or_log, hangup):
        await program.start()
        shown = asyncio.create_task(summary.show(program.collector))
        await stopped
        shown.cancel()
        await asyncio.wait([shown])
        await program.stop()


class CollectorProgram:
    """The collector and its metrics, with the configuration in force."""

    def __init__(self, loaded: Loaded, load: Callable[[], Loaded]) -> None:
        """Raises UsageError for settings or a pack that cannot be used."""
        tls.check(loaded.config.collector.tls)
        self._config, self._origins = loaded.config, loaded.origins
        self._load = load
        self._metrics: MetricsServer | None = None
        self._started = asyncio.Event()
        self.collector = Collector(loaded.config.collector, _pack(loaded.config.collector))

    async def start(self) -> None:
        """Raises UsageError for settings that cannot be used."""
        await self.collector.start()
        self._metrics = self._metrics_server(self._config.metrics)
        if self._metrics is not None:
            await self._metrics.start()
        self._started.set()

    async def stop(self) -> None:
        if self._metrics is not None:
            await self._metrics.stop()
        await self.collector.stop()

    async def reload_or_log(self) -> None:
        """Apply the configuration as it is now; an invalid one is logged and changes nothing."""
        await self._started.wait()
        try:
            log.info("%s", await self.reload())
        except ZeekAgentError as error:
            log.error("the configuration is not reloaded: %s", error)

    async def reload(self) -> str:
        """Read configuration, pack and certificates again, and apply what needs no restart; says what that was.

        Raises ZeekAgentError if one of them is invalid: then nothing is applied.
        """
        loaded = await asyncio.to_thread(self._load)
        changes = reload.compare(
            self._config, self._origins, loaded, live=reload.LIVE_IN_COLLECTOR, used=reload.OF_COLLECTOR
        )
        settings = changes.config.collector
        tls.check(settings.tls)
        if (settings.tls.certificate is None) != (self._config.collector.tls.certificate is None):
            raise ZeekAgentError("collector.tls.certificate: TLS can only be switched on or off by a restart")
        queries = await asyncio.to_thread(_pack, settings)
        certificates = None if settings.tls.certificate is None else await asyncio.to_thread(tls.load, settings.tls)
        for warning in loaded.warnings:
            log.warning("%s", warning)
        if certificates is not None:
            await asyncio.to_thread(tls.log_doubts, settings.tls)
            log.info("certificates read again, for new connections")
        self._config, self._origins = changes.config, changes.origins
        if changes.concern("log."):
            logbook.set_level(changes.config.log.level)
        await self.collector.reconfigure(settings, queries, certificates)
        if changes.concern("metrics."):
            await self._restart_metrics()
        return changes.summary()

    async def _restart_metrics(self) -> None:
        """Serve metrics where the configuration says now. Continue without if that is not possible."""
        if self._metrics is not None:
            await self._metrics.stop()
        self._metrics = server = self._metrics_server(self._config.metrics)
        if server is not None:
            try:
                await server.start()
            except ZeekAgentError as error:
                self._metrics = None
                log.error("%s; metrics are not served", error)

    def _metrics_server(self, settings: MetricsSettings) -> MetricsServer | None:
        if settings.listen is None:
            return None
        from zeek_agent.metrics.collector_metrics import collector_text
        from zeek_agent.metrics.server import MetricsServer

        return MetricsServer(settings, lambda: collector_text(self.collector.stats))


def _pack(settings: CollectorSettings) -> Pack:
    return pack.load_all(settings.pack_names, schedule=settings.schedule)
