"""Installed queries: what Zeek asked for, when it runs, what is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zeek_agent.database import Profile, ResultColumn
    from zeek_agent.schema import Row


class Subscription(StrEnum):
    """How results of a repeated query are reported."""

    SNAPSHOTS = "Snapshots"
    DIFFERENCES = "Differences"
    SNAPSHOT_PLUS_DIFFERENCES = "SnapshotPlusDifferences"
    EVENTS = "Events"


class Change(StrEnum):
    """What happened to a row since the last report."""

    ADD = "Add"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True)
class Query:
    """A query as Zeek sends it. `schedule` is in seconds; None or 0, or no subscription, means once."""

    sql: str
    event: str
    schedule: float | None = None
    subscription: Subscription | None = None
    cookie: str | None = None
    requires_tables: frozenset[str] = frozenset()
    if_missing_tables: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """Rows for one query's recipient, in order. `change` is None for snapshot rows."""

    query_id: str
    query: Query
    columns: tuple[ResultColumn, ...]
    rows: Sequence[tuple[Change | None, Row]] = field(repr=False)


class Recipient(Protocol):
    """Who installed a query: a Zeek instance behind a connection, or a shell."""

    identity: str
    """Stable across restarts of either side: the destination. Key of what was delivered."""
    profile: Profile

    async def deliver(self, report: Report) -> None:
        """Send the rows and return once the recipient has them. Raises ConnectionError when it is gone."""

    async def fail(self, query_id: str, query: Query, message: str) -> None:
        """Report that a query could not be compiled or run."""
