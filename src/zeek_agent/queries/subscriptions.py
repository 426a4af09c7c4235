"""Queries as Zeek sends them, the four subscriptions, reports, and their recipients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from zeek_agent.text import size

if TYPE_CHECKING:
    from zeek_agent.database.database import Profile, ResultColumn
    from zeek_agent.database.encodings import Encoding
    from zeek_agent.database.results import EncodedRows
    from zeek_agent.schema import Row


SCHEDULE_MIN: Final = 0.05
"""Minimum seconds between runs: each run costs the host a scan."""


class Subscription(StrEnum):
    """How results of a repeated query are reported."""

    SNAPSHOTS = "Snapshots"
    DIFFERENCES = "Differences"
    SNAPSHOT_PLUS_DIFFERENCES = "SnapshotPlusDifferences"
    EVENTS = "Events"


class Change(StrEnum):
    """Change of a row since the last report."""

    ADD = "Add"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True)
class Query:
    """A query as Zeek sends it. `schedule` is in seconds; none above 0, or no subscription, means once."""

    sql: str
    event: str
    schedule: float | None = None
    subscription: Subscription | None = None
    cookie: str | None = None
    requires_tables: frozenset[str] = frozenset()
    if_missing_tables: frozenset[str] = frozenset()

    @property
    def once(self) -> bool:
        return self.schedule is None or self.schedule <= 0 or self.subscription is None

    @property
    def size(self) -> int:
        """Bytes of its texts."""
        return sum(map(size, (self.sql, self.event, self.cookie or "", *self.requires_tables, *self.if_missing_tables)))

    @property
    def is_too_frequent(self) -> bool:
        """Whether it wants to run more often than every `SCHEDULE_MIN` seconds."""
        return not self.once and self.schedule is not None and self.schedule < SCHEDULE_MIN

    def slowed(self) -> Query:
        """The same, but not too frequent."""
        return replace(self, schedule=SCHEDULE_MIN) if self.is_too_frequent else self


@dataclass(frozen=True, slots=True)
class Report:
    """Rows for one query's recipient, in order. `change` is None for snapshot rows.

    The rows are in `rows`, or, if a worker process has encoded them as the recipient wanted, in `encoded`.

    A report is known by its stream, store and window; an event query's is sent again under the same ones.
    """

    query_id: str
    query: Query
    columns: tuple[ResultColumn, ...]
    rows: Sequence[tuple[Change | None, Row]] = field(default=(), repr=False)
    stream: str = ""
    """Key of the query, independent of its id and stable over restarts of both sides."""
    store: str = ""
    window: tuple[int, int] = (0, 0)
    """Of an event query: sequence numbers after the first and up to the second, of the first table when there are
    several. Of another query the numbers of the last report and this one, and `store` is another one in each run."""
    encoded: EncodedRows | None = None
    size: int = 0
    """Bytes of the packed rows."""

    @property
    def row_count(self) -> int:
        return len(self.rows) if self.encoded is None else self.encoded.row_count


class Recipient(Protocol):
    """The installer of a query: a Zeek instance behind a connection, or a shell."""

    @property
    def identity(self) -> str:
        """Stable across restarts of either side: the destination. Key of what was delivered."""
        ...

    @property
    def profile(self) -> Profile: ...

    @property
    def durable(self) -> bool:
        """Whether its delivery state is saved to disk for its next life."""
        ...

    @property
    def life(self) -> str:
        """Changes when it may have lost rows that it had acknowledged: a Zeek instance's id."""
        ...

    @property
    def recognizes_replays(self) -> bool:
        """Whether it recognizes a report that is sent again unchanged."""
        ...

    def encoding(self, report: Report) -> Encoding | None:
        """The encoding in which it takes the report, which has no columns and rows yet; None for plain rows."""
        ...

    async def deliver(self, report: Report) -> None:
        """Send the rows and return once the recipient has them. Raises ConnectionError when it is gone."""

    async def fail(self, query_id: str, query: Query, message: str) -> None:
        """Report that a query could not be compiled or run."""
