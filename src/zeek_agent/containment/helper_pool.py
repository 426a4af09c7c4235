"""Helper processes: they read tables with privileges for the statements of snapshot workers.

A helper belongs to one recipient and has the privileges of one table, and it may serve other tables and statements of
that recipient for which these are the same. Its rows go to the asking worker by a spool that the agent does not read.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zeek_agent.containment import messages, spool
from zeek_agent.containment.messages import Need, TableRows
from zeek_agent.containment.worker_process import WorkerProcess, WorkerState
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.privileges import Privileges

if TYPE_CHECKING:
    from pathlib import Path

    from zeek_agent.containment.usage import StatementKey

HELPERS_MAX: Final = 4
"""Helpers that read tables at one time, in addition to `limits.processes`: a helper that had to wait for a place among
those of its askers could wait for ever. Further ones wait in the order in which they were asked for, and the last place
is for a recipient that has none: daemons that hang for some may not keep all the others from theirs."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a helper gets: the privileges, and the declared sockets that it may use by joining their groups."""

    privileges: Privileges
    group_sockets: tuple[str, ...] = ()


class HelperPool:
    """The helpers of a worker pool.

    `start` starts a process and reserves it for a statement, `check` raises SqlError if none may be used now, and
    `grant` raises AccessDeniedError for a table that may not have its privileges.
    """

    def __init__(
        self,
        start: Callable[[StatementKey, Grant], Awaitable[WorkerProcess]],
        check: Callable[[], None],
        grant: Callable[[str], Grant] | None,
        directory: Path | None,
        most: int = HELPERS_MAX,
    ) -> None:
        self._start = start
        self._check = check
        self._directory = directory
        self._grant = grant
        self._most = most
        self._reading: Counter[str] = Counter()
        """Helpers that read tables now, by recipient."""
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        """Recipients that wait for a place, in the order in which they came."""
        self._helpers: dict[WorkerProcess, Grant] = {}
        self._starting = 0

    async def read(self, asker: WorkerProcess, need: Need) -> tuple[bytes, Sequence[int]]:
        """The answer to an asking worker: where a table's rows are, and the spool. Raises SqlError."""
        if self._grant is None:
            raise SqlError(f"table {need.name} is read in a helper process, and none can be started here")
        grant = self._grant(need.name)
        self._check()
        async with self._turn(asker, need.name):
            try:
                async with asyncio.timeout(max(asker.seconds_left, 0)):
                    helper = await self._helper(asker.statement, grant, need.name)  # type: ignore[arg-type]
            except TimeoutError:
                raise LimitError(f"table {need.name}: its helper process did not start within limits.time") from None
            return await self._read(helper, asker, need)

    @asynccontextmanager
    async def _turn(self, asker: WorkerProcess, table: str) -> AsyncIterator[None]:
        """One of the places for helpers. Raises LimitError if there is none while the statement may run."""
        try:
            async with asyncio.timeout(max(asker.seconds_left, 0)):
                await self._take_place(asker.recipient)
        except TimeoutError:
            raise LimitError(
                f"table {table} was not read within limits.time: all {self._most} helper processes were busy"
            ) from None
        try:
            yield
        finally:
            self._leave_place(asker.recipient)

    def _has_place(self, recipient: str) -> bool:
        left = self._most - self._reading.total()
        return left > 1 or (left == 1 and not self._reading[recipient])

    async def _take_place(self, recipient: str) -> None:
        if self._has_place(recipient):
            self._reading[recipient] += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((recipient, place))
        try:
            await place
        except BaseException:
            if place.cancelled():
                self._waiting.remove((recipient, place))
            else:
                self._leave_place(recipient)
            raise

    def _leave_place(self, recipient: str) -> None:
        """Free a place, and hand free ones to those who have waited longest."""
        self._reading[recipient] -= 1
        if not self._reading[recipient]:
            del self._reading[recipient]
        for waiting in tuple(self._waiting):
            if not waiting[1].done() and self._has_place(waiting[0]):
                self._waiting.remove(waiting)
                self._reading[waiting[0]] += 1
                waiting[1].set_result(None)

    def freed(self, helper: WorkerProcess) -> None:
        """A helper has ended its work; one whose work failed is not used again."""
        if helper.state is WorkerState.IDLE and helper.is_spent:
            helper.retire()

    async def _helper(self, key: StatementKey, grant: Grant, table: str) -> WorkerProcess:
        """A helper with these privileges, reserved for the statement."""
        self._helpers = {helper: held for helper, held in self._helpers.items() if helper.counts}
        idle = [helper for helper in self._helpers if helper.state is WorkerState.IDLE]
        for helper in idle:
            if helper.recipient == key[0] and self._helpers[helper] == grant and not helper.is_spent:
                helper.take(key)
                return helper
        if len(self._helpers) + self._starting >= self._most and idle:
            min(idle, key=lambda helper: helper.idle_since).retire()
        self._starting += 1
        try:
            helper = await self._start(key, grant)
        except SqlError as error:
            raise SqlError(f"table {table}: {error}") from error
        finally:
            self._starting -= 1
        self._helpers[helper] = grant
        return helper

    async def _read(self, helper: WorkerProcess, asker: WorkerProcess, need: Need) -> tuple[bytes, Sequence[int]]:
        try:
            file = spool.create(self._directory)
        except OSError as error:
            helper.release()
            raise SqlError(f"cannot create a file for the rows of table {need.name}: {error.strerror}") from error
        try:
            seconds = max(asker.seconds_left, 0.0)
            read = await helper.read_table(need.name, need.arguments, file, seconds)
        except BaseException:
            os.close(file)
            raise
        return messages.encode(TableRows(read.size_bytes, read.errors)), [file]
