"""Installed queries: state and progress of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from zeek_agent.host.files.reads import Omissions
from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.queries.result_backlog import Backlog
from zeek_agent.queries.subscriptions import Query, Recipient
from zeek_agent.text import STATEMENT_SHOWN, clipped


class QueryState(StrEnum):
    """State of an installed query."""

    RUNNING = "running"
    WAITING = "waiting"
    """Its `requires_tables` are not all there, or one of its `if_missing_tables` is."""
    FAILING = "failing"
    """Its last run ended with an error."""


@dataclass(slots=True)
class Installed:
    """A query with its recipient, progress and counters."""

    query_id: str
    query: Query
    recipient: Recipient
    key: str
    durable: bool
    """Whether its progress is kept on disk; never for a second, identical query at the same time."""
    size: int
    """Bytes of its texts."""
    state: QueryState = QueryState.RUNNING
    event_tables: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)
    """By event table: the last sequence number that was delivered."""
    under_way: dict[str, int] = field(default_factory=dict)
    """End of a report that was sent in an earlier life and not acknowledged."""
    backlog: Backlog = field(default_factory=Backlog)
    snapshot: ResultSnapshot | None = None
    reported: bool = False
    """Whether a first result was reported in this life of the query."""
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
    """The files that the last run left out."""
    files_reported: frozenset[str] = frozenset()
    """The causes already reported to its recipient."""

    def status(self) -> QueryStatus:
        query, files = self.query, self.files
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


def shown(query: Query) -> str:
    """The statement, cut for messages."""
    return clipped(query.sql, STATEMENT_SHOWN)


def query_key(identity: str, query: Query) -> str:
    """Key of a query, independent of its id: recipient, statement, and the kind of report."""
    parts = (identity, query.sql, query.event, query.cookie or "", query.subscription or "")
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
