"""`zeek-agent gateway`: a gateway as a program, with its metrics and summary."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from zeek_agent import logbook, reload
from zeek_agent.errors import ZeekAgentError
from zeek_agent.gateway.gateway import Gateway
from zeek_agent.host.hostname import hostname
from zeek_agent.signals import HangupSignal, on_hangup, stop_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from zeek_agent.metrics.server import MetricsServer
    from zeek_agent.reload import Loaded

log = logging.getLogger("zeek_agent.gateway")

SUMMARY_SECONDS: Final = 60.0
"""Interval of the lines that describe the gateway's state, if anything has changed."""


async def run_gateway(load: Callable[[], Loaded], hangup: HangupSignal | None = None) -> None:
    """Run until SIGTERM or SIGINT, then send the agents to other gateways. Raises ZeekAgentError if it cannot start.

    `load` reads and checks the configuration, and does so again for SIGHUP. `hangup` handles that signal from the start
    of the program.
    """
    loaded = load()
    config = loaded.config
    logbook.set_up(config.log, warnings=loaded.warnings)
    gateway = Gateway(config.gateway, config.zeek, hostname=hostname(config.agent.hostname))
    metrics = _metrics_server(loaded, gateway)
    reloading = _Reloading(gateway, loaded, load)
    with stop_signals() as stopped, on_hangup(reloading.reload_or_log, hangup):
        if metrics is not None:
            await metrics.start()
        running: asyncio.Future[None] = asyncio.ensure_future(gateway.run())
        summary = asyncio.create_task(_summarize(gateway))
        try:
            waited: list[asyncio.Future[Any]] = [running, stopped]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            await gateway.drain()
        finally:
            log.info("stopping: %s", gateway.stats().line())
            for task in (running, summary):
                task.cancel()
            await asyncio.gather(running, summary, return_exceptions=True)
            if metrics is not None:
                await metrics.stop()


class _Reloading:
    """Keeps the configuration in force."""

    def __init__(self, gateway: Gateway, loaded: Loaded, load: Callable[[], Loaded]) -> None:
        self._gateway = gateway
        self._config, self._origins = loaded.config, loaded.origins
        self._load = load

    async def reload_or_log(self) -> None:
        """Apply what needs no restart of the configuration as it is now; an invalid one is logged."""
        try:
            loaded = await asyncio.to_thread(self._load)
        except ZeekAgentError as error:
            log.error("the configuration is not reloaded: %s", error)
            return
        changes = reload.compare(
            self._config, self._origins, loaded, live=reload.LIVE_IN_GATEWAY, used=reload.OF_GATEWAY
        )
        for warning in loaded.warnings:
            log.warning("%s", warning)
        self._config, self._origins = changes.config, changes.origins
        if changes.concern("log."):
            logbook.set_level(changes.config.log.level)
        self._gateway.reconfigure(changes.config.gateway)
        log.info("%s", changes.summary())


async def _summarize(gateway: Gateway) -> None:
    before = ""
    while True:
        await asyncio.sleep(SUMMARY_SECONDS)
        line = gateway.stats().line()
        if line != before:
            log.info("%s", line)
        before = line


def _metrics_server(loaded: Loaded, gateway: Gateway) -> MetricsServer | None:
    if loaded.config.metrics.listen is None:
        return None
    from zeek_agent.metrics.gateway_metrics import gateway_text
    from zeek_agent.metrics.server import MetricsServer

    return MetricsServer(loaded.config.metrics, lambda: gateway_text(gateway.stats()))
