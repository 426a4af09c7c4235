"""A simulated host: an event store whose rows follow from a formula, and a database that reads nothing else.

A store holds no rows, only how many there are by now, so that thousands fit into one process. Delivery states are kept
as the real store keeps them: what was not flushed is lost when the agent is killed.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from zeek_agent import version_number
from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.database import Lane, Profile, SqlDatabase
from zeek_agent.database.results import Result, ResultColumn, Statement
from zeek_agent.errors import SqlError
from zeek_agent.events.delivery_states import Delivered, EndedIncarnation
from zeek_agent.events.event_file import SeqBounds
from zeek_agent.schema import Column, ZeekType
from zeek_agent.table import Table
from zeek_agent.tables.agent import zeek_agent

if TYPE_CHECKING:
    from zeek_agent.events.delivery_states import RecentProgress

TABLE: Final = "fleet_events"
SQL: Final = f"SELECT store, number, check_sum, detail FROM {TABLE}"
"""The only statement that a simulated host runs."""
COMMIT_SECONDS: Final = 1.0
"""The real store commits what waits after this time, also without a flush."""
RETENTION_SECONDS: Final = 86_400.0
"""The default of `events.retention_age`."""
_CELL_BYTES: Final = 40
"""Of a row without its detail, packed."""

fleet_events: Final = Table(
    TABLE,
    "events of a simulated host",
    description="Row `number` of a store has the sequence number `number`.",
    columns=[
        Column("time", "time", "when it was recorded"),
        Column("store", "text", "the id of the event store"),
        Column("number", "count", "its number in the store, from 1"),
        Column("check_sum", "count", "of store and number"),
        Column("detail", "text", "blanks, for its size"),
    ],
    kind="events",
)
_TABLES: Final[Mapping[str, Table]] = {one.name: one for one in (zeek_agent, fleet_events)}
_COLUMNS: Final = tuple(
    ResultColumn(name, ZeekType.parse(kind))
    for name, kind in (("store", "text"), ("number", "count"), ("check_sum", "count"), ("detail", "text"))
)
_STATEMENT: Final = Statement(_COLUMNS, frozenset({TABLE}))
_HELLO_COLUMNS: Final = tuple(ResultColumn(column.name, column.zeek_type) for column in zeek_agent.columns)


def check_sum(store: str, number: int) -> int:
    """What shows that a row of a log belongs to a store and was not made up on the path."""
    return zlib.crc32(f"{store}/{number}".encode())


@dataclass(slots=True)
class Phase:
    """So many rows per second and store from one moment to another (seconds since the epoch)."""

    begin: float
    end: float
    rows_per_second: float

    def rows(self, offset: float, now: float) -> int:
        """Rows of a store until now; `offset` from 0 to 1 spreads the stores over the interval between rows."""
        seconds = min(now, self.end) - self.begin
        return math.floor(seconds * self.rows_per_second + offset) if seconds > 0 else 0


@dataclass(slots=True)
class Recording:
    """What the hosts of a process record: the same for all, apart from each store's offset and clock."""

    detail_bytes: int = 40
    phases: list[Phase] = field(default_factory=list)
    bursts: list[tuple[float, int]] = field(default_factory=list)
    """Moments, and the rows that each store has from then on."""

    def rows(self, offset: float, now: float) -> int:
        """How many rows a store has recorded by `now`."""
        in_bursts = sum(rows for moment, rows in self.bursts if moment <= now)
        return in_bursts + sum(phase.rows(offset, now) for phase in self.phases)


class FakeStore:
    """The event store of one host, as query runner and strategies use it."""

    __slots__ = ("_durable", "_offset", "_pending", "_recording", "clock_offset", "id", "retention_seconds")

    def __init__(self, store_id: str, recording: Recording, offset: float) -> None:
        self.id = store_id
        self.clock_offset = 0.0
        """Seconds by which this host's clock is ahead."""
        self.retention_seconds = RETENTION_SECONDS
        self._recording = recording
        self._offset = offset
        self._durable: dict[str, Delivered] = {}
        self._pending: dict[str, tuple[float, Delivered]] = {}

    def age_clock(self) -> float:
        return time.time() + self.clock_offset

    def record_alone(self, rows_per_second: float, begin: float, end: float) -> None:
        """From now on, record what other hosts do until now, and then rows of its own."""
        now = time.time()
        shared = self._recording
        past = [Phase(one.begin, min(one.end, now), one.rows_per_second) for one in shared.phases if one.begin < now]
        past.append(Phase(begin, end, rows_per_second))
        bursts = [burst for burst in shared.bursts if burst[0] <= now]
        self._recording = Recording(shared.detail_bytes, past, bursts)

    def last_seq(self, _table: str) -> int:
        return self._recording.rows(self._offset, self.age_clock())

    def first_seq(self, table: str) -> int:
        expired = self._recording.rows(self._offset, self.age_clock() - self.retention_seconds)
        return expired + 1 if self.last_seq(table) > expired else 0

    def seq_bounds(self, table: str) -> SeqBounds:
        return SeqBounds(self.first_seq(table), self.last_seq(table))

    def has_holes(self, _table: str, _after: int) -> bool:
        return False

    def missing(self, _table: str, _low: int, _high: int) -> int:
        return 0

    def acknowledge(
        self,
        key: str,
        seqs: Mapping[str, int],
        snapshot: bytes | None,
        under_way: Mapping[str, int] | None = None,
        *,
        owner: str = "",
        recent: RecentProgress | None = None,
        shape: str = "",
    ) -> None:
        self._commit(time.monotonic() - COMMIT_SECONDS)
        state = Delivered(dict(seqs), snapshot, dict(under_way or {}), owner, recent, shape)
        self._pending[key] = (time.monotonic(), state)

    def delivered(self, key: str) -> Delivered | None:
        pending = self._pending.get(key)
        return pending[1] if pending else self._durable.get(key)

    def end_incarnation(self, owner: str, incarnation: str) -> None:
        self.flush()
        one = EndedIncarnation(owner, incarnation)
        for key, state in self._durable.items():
            if one.had(state):
                self._durable[key] = replace(state, recent=None)

    def flush(self) -> bool:
        self._commit(math.inf)
        return True

    def crash(self) -> None:
        """The agent is killed: what the store had not committed is lost."""
        self._commit(time.monotonic() - COMMIT_SECONDS)
        self._pending.clear()

    def _commit(self, until: float) -> None:
        for key, (since, state) in list(self._pending.items()):
            if since <= until:
                self._durable[key] = state
                del self._pending[key]

    def row(self, number: int) -> tuple[str, int, int, str]:
        return self.id, number, check_sum(self.id, number), " " * self._recording.detail_bytes

    def size_bytes(self, rows: int) -> int:
        return rows * (_CELL_BYTES + self._recording.detail_bytes)


class FakeDatabase(SqlDatabase):
    """The tables of one host: `fleet_events`, and `zeek_agent` for its hello."""

    limits = LimitSettings()

    def __init__(self, agent_id: str, instance: str, store: FakeStore) -> None:  # the base class would keep a catalog
        self._agent_id = agent_id
        self._instance = instance
        self._fake_store = store
        self._started = time.monotonic()

    @property
    def tables(self) -> Mapping[str, Table]:
        return _TABLES

    def on_change(self, listener: Callable[[], None]) -> None:
        """The tables never change."""

    def check_length(self, sql: str, origin: str) -> None:
        """Every statement but one is refused anyway."""

    async def prepare(
        self, sql: str, *, profile: Profile = Profile.FULL, lane: Lane = Lane.SNAPSHOTS, origin: str = "local"
    ) -> Statement:
        if sql != SQL:
            raise SqlError(f"a simulated host runs only: {SQL}")
        return _STATEMENT

    async def query(
        self,
        sql: str,
        *,
        profile: Profile = Profile.FULL,
        lane: Lane = Lane.SNAPSHOTS,
        window: Mapping[str, tuple[int, int]] | None = None,
        origin: str = "local",
    ) -> Result:
        low, high = (window or {})[TABLE]
        rows: list[tuple[Any, ...]] = [self._fake_store.row(number) for number in range(low + 1, high + 1)]
        return Result(_COLUMNS, rows, size_bytes=self._fake_store.size_bytes(high - low))

    async def own_rows(self, name: str) -> Result:
        uptime = time.monotonic() - self._started
        kernel = ("Linux", "6.1.0", "x86_64")
        names = tuple(sorted(_TABLES))
        host = (f"host-{self._agent_id}", (f"192.0.2.{zlib.crc32(self._agent_id.encode()) % 254 + 1}",))
        row = (self._agent_id, self._instance, *host, "Linux", "Simulated", *kernel, version_number(), uptime, names)
        return Result(_HELLO_COLUMNS, [row])

    async def aclose(self) -> None:
        """Nothing runs here."""
