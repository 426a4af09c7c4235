"""The tables of this host under SQL in the agent's own process, where worker processes cannot be confined.

Limits on time, memory and results hold as in a worker: they are checked between SQLite's steps and for each row of a
table. A system call that blocks, such as opening a file on a dead network drive, cannot be killed here, and keeps its
thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from zeek_agent.containment.usage import StatementUsage
from zeek_agent.database.database import Database, Lane
from zeek_agent.database.sql_connection import Profile

if TYPE_CHECKING:
    from zeek_agent.config.sections import LimitSettings
    from zeek_agent.containment.messages import Setup
    from zeek_agent.containment.pool import WorkerStatus
    from zeek_agent.database.results import Result
    from zeek_agent.database.sql_connection import AttachedStore
    from zeek_agent.table import Table, TableContext


class UncontainedDatabase(Database):
    """Runs statements in threads of this process; `drain` brings the event store up to date."""

    def __init__(
        self,
        tables: Iterable[Table],
        context: TableContext,
        limits: LimitSettings,
        store: AttachedStore | None,
        *,
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(tables, context, limits, store)
        self._drain = drain
        self.pool = NoWorkers(self._end_readers)

    async def query(
        self,
        sql: str,
        *,
        profile: Profile = Profile.FULL,
        lane: Lane = Lane.SNAPSHOTS,
        window: Mapping[str, tuple[int, int]] | None = None,
        origin: str = "local",
    ) -> Result:
        if lane is Lane.LOCAL:  # scheduled statements have seen to it
            await self._drain()
        return await super().query(sql, profile=profile, lane=lane, window=window, origin=origin)

    def replace_own_tables(self, gone: Iterable[str], new: Iterable[Table], why: str) -> None:
        """Replace the operator's tables."""
        self.replace_tables(gone, new, why)

    def reconfigure(
        self,
        context: TableContext,
        limits: LimitSettings,
        setup: Setup | None = None,
        *,
        concerns_rows: bool = True,
    ) -> None:
        """Use other access rules and limits from now on. Statements that run now end with an error."""
        self._cancel_all("the agent's configuration has changed; run it again")
        super().reconfigure(context, limits)

    def _end_readers(self) -> None:
        self._cancel_all("the statement kept the event store from reusing its disk space")

    def _cancel_all(self, reason: str) -> None:
        with self._lock:
            for run in self._runs:
                run.cancel(reason)


class NoWorkers:
    """What an agent without worker processes shows instead of them; `end_readers` ends statements on the store."""

    def __init__(self, end_readers: Callable[[], None]) -> None:
        self.end_readers = end_readers
        self.setup: Setup | None = None
        self.killed: Counter[str] = Counter()
        self.abandoned = 0
        self.zygote_starts = 0

    def status(self) -> Iterable[WorkerStatus]:
        return ()

    def totals(self) -> dict[str, int]:
        return {"running": 0, "abandoned": 0, "abandoned_in_all": 0, "zygote_starts": 0}

    def usage(self, recipient: str, sql: str) -> StatementUsage:
        """Nothing: what a statement uses cannot be told from what the agent uses."""
        return StatementUsage()

    def resting_until(self, recipient: str, sql: str) -> float | None:
        return None
