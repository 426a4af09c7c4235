"""A connection that is made again whenever it ends, for as long as the agent runs: to a Zeek, or to a bus.

The delay between attempts is random, up to a bound that doubles with each failure, because Zeek accepts few clients at
once and all agents find a restarted Zeek in the same second.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.destination import Destination


class ConnectionState(StrEnum):
    """State of a connection to Zeek or to a bus."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    """For the delay until the next attempt, after a failure."""
    STOPPED = "stopped"


class ConnectionStatus(NamedTuple):
    """A row of `zeek_agent_connections`, which describes the columns."""

    destination: str
    state: str
    since: float
    endpoint: str | None
    zeek_version: str | None
    instances: int
    queries: int
    queued_rows: int
    unacknowledged_bytes: int
    window_bytes: int
    sent_rows: int
    sent_bytes: int
    dropped_rows: int
    reconnects: int
    last_error: str | None


class LastingConnection(ABC):
    """Connects to `target`, and again after each failure. `log` is that of the subclass's module."""

    def __init__(
        self,
        target: Destination,
        settings: ZeekSettings,
        log: logging.Logger,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.destination = target
        self._settings = settings
        self._log = log
        self._clock = clock
        self._monotonic = monotonic
        self._work: asyncio.Task[None] | None = None
        self._stopping = False
        self._state = ConnectionState.STOPPED
        self._since = clock()
        self._reconnects = 0
        self._last_error: str | None = None
        self._logged_error: str | None = None

    @property
    @abstractmethod
    def _failures(self) -> tuple[type[Exception], ...]:
        """The errors after which it is made again."""

    @abstractmethod
    async def _connect_and_work(self) -> None:
        """Connect, and work until the connection ends; normally by one of those errors."""

    @abstractmethod
    def _explain(self, error: Exception) -> str:
        """One line that names the peer, what went wrong and the likely cause."""

    async def run(self) -> None:
        """Stay connected until cancelled or shut down."""
        self._work = asyncio.create_task(self._keep_connected(), name=f"connection to {self.destination}")
        try:
            await asyncio.wait([self._work])
            if not self._work.cancelled():
                self._work.result()
        finally:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._enter(ConnectionState.STOPPED)

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            began = self._monotonic()
            try:
                await self._connect_and_work()
            except self._failures as error:
                if self._stopping:
                    return
                self._note_failure(error)
            lasted = self._monotonic() - began
            failures = 0 if lasted > self._settings.reconnect_max else failures + 1
            self._enter(ConnectionState.WAITING)
            await asyncio.sleep(reconnect_pause(self._settings, failures))
            self._reconnects += 1

    def _note_failure(self, error: Exception) -> None:
        """Log why a connection failed or ended, once per cause until it has worked again."""
        text = self._explain(error)
        level = logging.DEBUG if text == self._logged_error else logging.WARNING
        self._log.log(level, "%s; retrying", text)
        self._last_error = self._logged_error = text

    def _enter(self, state: ConnectionState) -> None:
        if state is not self._state:
            self._state, self._since = state, self._clock()


def reconnect_pause(settings: ZeekSettings, failures: int) -> float:
    """Seconds until the next attempt: random, up to a bound that doubles with each failure."""
    bound = settings.reconnect_min * 2.0 ** min(max(failures - 1, 0), 30)
    return random.uniform(0, min(bound, settings.reconnect_max))
