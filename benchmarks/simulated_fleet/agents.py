"""Simulated agents: a fake host with the agent's own query runner and connection to Zeek, over WebSocket or the bus."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from simulated_fleet.fake_host import TABLE, FakeDatabase, FakeStore, Recording
from zeek_agent import destination
from zeek_agent.bus.connection import BusConnection
from zeek_agent.bus.credentials import BusFiles
from zeek_agent.bus.session import Times
from zeek_agent.config.sections import BusTlsSettings
from zeek_agent.identity import Identity
from zeek_agent.platforms.linux import PLATFORM as LINUX
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.zeek.connection import ZeekConnection

if TYPE_CHECKING:
    from zeek_agent.config.sections import BusSettings, ZeekSettings
    from zeek_agent.queries.installed import Installed

NO_FILES: Final = BusFiles(None, BusTlsSettings())
"""Servers of a simulated fleet ask for no credentials."""
_GOLDEN: Final = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""


class SimulatedAgent:
    """One host, its agent, and its restarts. `number` decides its id and its offset within a second."""

    __slots__ = (
        "_bus",
        "_connection",
        "_settings",
        "_task",
        "_times",
        "database",
        "id",
        "runner",
        "servers",
        "starts",
        "store",
    )

    def __init__(
        self,
        number: int,
        recording: Recording,
        settings: ZeekSettings,
        bus: BusSettings,
        times: Times,
        servers: Sequence[str],
    ) -> None:
        self.id = agent_id(number)
        self.store = FakeStore(f"S{number}", recording, number * _GOLDEN % 1.0)
        self.servers = tuple(servers)
        self.starts = 0
        self._settings = settings
        self._bus = bus
        self._times = times
        self.database: FakeDatabase | None = None
        self.runner: QueryRunner | None = None
        self._connection: ZeekConnection | BusConnection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin another life of the agent."""
        self.starts += 1
        identity = Identity(self.id, f"I{secrets.token_hex(8)}")
        self.database = FakeDatabase(self.id, identity.instance, self.store)
        self.runner = QueryRunner(self.database, self.store)  # type: ignore[arg-type] - what it uses of a store is there
        self._connection = self._connect(identity)
        self._task = asyncio.create_task(self._connection.run())

    def _connect(self, identity: Identity) -> ZeekConnection | BusConnection:
        assert self.database is not None
        assert self.runner is not None
        (target,) = destination.parse_all(self.servers)
        if not target.is_bus:
            return ZeekConnection(target, self._settings, identity, self.database, self.runner, platform=LINUX)
        return BusConnection(
            target,
            self._bus,
            NO_FILES,
            self._settings,
            identity,
            self.database,
            self.runner,
            times=self._times,
            platform=LINUX,
        )

    async def stop(self) -> None:
        """End in order, as on SIGTERM."""
        if self._connection is not None and self._task is not None and self.runner is not None:
            await self._connection.shutdown()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.runner.close()
        self.store.flush()
        self._forget()

    async def kill(self) -> None:
        """End as by SIGKILL: the store keeps what it had committed."""
        if self._task is not None and self.runner is not None:
            self.store.crash()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.runner.close()
            self.store.crash()
        self._forget()

    def _forget(self) -> None:
        self.database = self.runner = self._connection = self._task = None

    @property
    def installed(self) -> Sequence[Installed]:
        return () if self.runner is None else self.runner.installed

    @property
    def is_ready(self) -> bool:
        """Whether its query is installed and knows where it begins."""
        return any(TABLE in one.seen for one in self.installed)

    @property
    def recorded(self) -> int:
        return self.store.last_seq(TABLE)

    @property
    def undelivered(self) -> int:
        """Rows that no recipient has acknowledged."""
        seen = [one.seen[TABLE] for one in self.installed if TABLE in one.seen]
        return self.recorded - min(seen) if seen else self.recorded

    @property
    def lost(self) -> int:
        """Rows that expired before they were delivered, since the last start."""
        return 0 if self.runner is None else sum(self.runner.lost.values())


def agent_id(number: int) -> str:
    return f"Hsim{number:05d}"
