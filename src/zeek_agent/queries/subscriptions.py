"""Queries as Zeek sends them, subscriptions, reports and recipients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from zeek_agent.text import byte_length

if TYPE_CHECKING:
    from zeek_agent.database.database import Profile, ResultColumn
    from zeek_agent.database.encodings import Encoding
    from zeek_agent.database.results import EncodedRows
    from zeek_agent.schema import Row


SCHEDULE_MIN_SECONDS: Final = 0.05
"""Minimum interval between runs, because each run costs the host a scan."""


class Subscription(StrEnum):
    """What a repeated query reports."""

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
    """A query as Zeek sends it. `schedule` is in seconds; it runs once without a positive one or a subscription."""

    sql: str
    event: str
    schedule: float | None = None
    subscription: Subscription | None = None
    cookie: str | None = None
    requires_tables: frozenset[str] = frozenset()
    if_missing_tables: frozenset[str] = frozenset()
    dialect: str | None = None
    """The dialect of the statement, if its recipient names one."""

    @property
    def runs_once(self) -> bool:
        return self.schedule is None or self.schedule <= 0 or self.subscription is None

    @property
    def size_bytes(self) -> int:
        """Size of its strings."""
        texts = (self.sql, self.event, self.cookie or "", self.dialect or "")
        return sum(map(byte_length, (*texts, *self.requires_tables, *self.if_missing_tables)))

    @property
    def is_too_frequent(self) -> bool:
        """Whether its schedule is shorter than `SCHEDULE_MIN_SECONDS`."""
        return not self.runs_once and self.schedule is not None and self.schedule < SCHEDULE_MIN_SECONDS

    def with_minimum_schedule(self) -> Query:
        """The same query, with its schedule raised to the minimum if necessary."""
        return replace(self, schedule=SCHEDULE_MIN_SECONDS) if self.is_too_frequent else self


@dataclass(frozen=True, slots=True)
class Report:
    """Rows for one query's recipient, in order. `change` is None for snapshot rows.

    The rows are in `rows`, or, if a worker process has encoded them as the recipient wanted, in `encoded`.

    A report is identified by its stream, store and window, which stay the same when one of an event query is repeated.
    """

    query_id: str
    query: Query
    columns: tuple[ResultColumn, ...]
    rows: Sequence[tuple[Change | None, Row]] = field(default=(), repr=False)
    stream: str = ""
    """Key of the query, independent of its id and stable across restarts of both sides."""
    store: str = ""
    window: tuple[int, int] = (0, 0)
    """For an event query: sequence numbers after the first and up to the second, added up if there are several
    tables. For others: the numbers of the last report and this one; `store` then differs in each run."""
    shape: str = ""
    """Differs if the same window now has other rows, or is split into other batches."""
    encoded: EncodedRows | None = None
    size_bytes: int = 0
    """Size of the packed rows."""

    @property
    def row_count(self) -> int:
        return len(self.rows) if self.encoded is None else self.encoded.row_count

    def check(self) -> None:
        """Raises RevokedError if the rows may not be sent any more."""
        if self.encoded is not None:
            self.encoded.check()

    def close(self) -> None:
        """Release the encoded rows, which are not read any more."""
        if self.encoded is not None:
            self.encoded.close()


class Recipient(Protocol):
    """The installer of a query: a Zeek instance behind a connection, or a shell."""

    @property
    def identity(self) -> str:
        """Stable across restarts of either side: the destination. Part of the delivery state's key."""
        ...

    @property
    def profile(self) -> Profile: ...

    @property
    def durable(self) -> bool:
        """Whether its delivery state is saved to disk for its next incarnation."""
        ...

    @property
    def incarnation(self) -> str:
        """Changes when it may have lost rows that it had acknowledged: the id of a Zeek instance."""
        ...

    @property
    def recognizes_replays(self) -> bool:
        """Whether it recognizes a report that is sent a second time."""
        ...

    def encoding(self, report: Report) -> Encoding | None:
        """The encoding in which it takes the report, which has no columns and rows yet; None for plain rows."""
        ...

    async def deliver(self, report: Report) -> None:
        """Send the rows and return once the recipient has them. Raises ConnectionError when it is gone."""

    async def report_error(self, query_id: str, query: Query, message: str) -> None:
        """Report that a query could not be compiled or run."""
