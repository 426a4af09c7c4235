"""Installed queries: state and progress of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from zeek_agent.containment.usage import StatementUsage, recipient_of
from zeek_agent.events.delivery_states import RecentProgress
from zeek_agent.host.files.reads import Omissions
from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.queries.result_backlog import Backlog
from zeek_agent.queries.subscriptions import Query, Recipient
from zeek_agent.text import STATEMENT_SHOWN, clipped

if TYPE_CHECKING:
    from zeek_agent.database.database import Profile


class QueryState(StrEnum):
    """State of an installed query."""

    RUNNING = "running"
    WAITING = "waiting"
    """One of its `requires_tables` is missing, or one of its `if_missing_tables` exists."""
    FAILING = "failing"
    """Its last run failed."""


@dataclass(slots=True)
class Installed:
    """A query with its recipient, progress and counters."""

    query_id: str
    query: Query
    recipient: Recipient
    key: str
    durable: bool
    """Whether its progress is kept on disk; never for a second identical query installed at the same time."""
    size_bytes: int
    """Size of its strings."""
    state: QueryState = QueryState.RUNNING
    event_tables: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)
    """Last delivered sequence number, by event table."""
    under_way: dict[str, int] = field(default_factory=dict)
    """End of a report that was sent but not acknowledged, maybe to an earlier incarnation, by event table."""
    under_way_shape: str = ""
    """Its `Report.shape`; empty before it is known."""
    recent: RecentProgress | None = None
    """Progress of an event query in the last seconds, if its delivery state is saved."""
    backlog: Backlog = field(default_factory=Backlog)
    snapshot: ResultSnapshot | None = None
    reported: bool = False
    """Whether a first result was reported since it was installed."""
    runs: int = 0
    rows: int = 0
    lost: int = 0
    """Events that retention removed before they could be delivered."""
    errors: int = 0
    last_run: float | None = None
    last_duration: float | None = None
    last_error: str | None = None
    last_error_reported: float = float("-inf")
    files: Omissions = field(default_factory=Omissions)
    """Files that the last run omitted."""
    files_reported: frozenset[str] = frozenset()
    """Causes already reported to its recipient."""

    @property
    def profile(self) -> Profile:
        """How its statement sees the tables. Raises KeyError for a dialect that this agent does not know."""
        from zeek_agent.database.sql_connection import DIALECTS

        return self.recipient.profile if self.query.dialect is None else DIALECTS[self.query.dialect]

    @property
    def owner(self) -> str:
        """Whose share of the budgets for stored states it counts towards."""
        return recipient_of(self.recipient.identity)

    def status(self, usage: StatementUsage | None = None, resting_until: float | None = None) -> QueryStatus:
        """Its row; `usage` is what its statement used in worker processes."""
        query, files, used = self.query, self.files, usage or StatementUsage()
        return QueryStatus(
            id=self.query_id,
            recipient=self.recipient.identity,
            sql=query.sql,
            event=query.event,
            subscription=None if query.subscription is None else query.subscription.value,
            schedule=query.schedule,
            cookie=query.cookie,
            state=self.state.value,
            runs=self.runs,
            rows=self.rows,
            lost=self.lost,
            errors=self.errors,
            last_run=self.last_run,
            last_duration=self.last_duration,
            last_error=self.last_error,
            files_refused=files.refused,
            files_skipped=files.skipped,
            files_truncated=files.truncated,
            files_causes=sorted(files.causes),
            killed=used.killed,
            resting_until=resting_until,
            cpu=used.cpu,
            peak_bytes=used.peak,
            dialect=query.dialect,
        )


class QueryStatus(NamedTuple):
    """A row of `zeek_agent_queries`, which describes the columns."""

    id: str
    recipient: str
    sql: str
    event: str
    subscription: str | None
    schedule: float | None
    cookie: str | None
    state: str
    runs: int
    rows: int
    lost: int
    errors: int
    last_run: float | None
    last_duration: float | None
    last_error: str | None
    files_refused: int
    files_skipped: int
    files_truncated: int
    files_causes: list[str]
    killed: int
    resting_until: float | None
    cpu: float
    peak_bytes: int
    dialect: str | None


def clipped_statement(query: Query) -> str:
    """The statement, shortened for messages."""
    return clipped(query.sql, STATEMENT_SHOWN)


def query_key(identity: str, query: Query) -> str:
    """Key of a query, independent of its id: recipient, statement and kind of report."""
    parts = [identity, query.sql, query.event, query.cookie or "", query.subscription or ""]
    if query.dialect is not None:
        parts.append(query.dialect)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
