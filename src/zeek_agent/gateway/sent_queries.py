"""Queries that agents were sent: what an agent may answer, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from zeek_agent.zeek.protocol import InstallQuery

ENDED_SECONDS: Final = 120.0
"""A query may be answered for so long after it was cancelled: rows may be on their way or wait for credit."""
ENDED_MAX: Final = 1_000
"""Cancelled queries that are remembered per agent; beyond that, those cancelled first are not."""
INSTANCES_MAX: Final = 100
"""Zeek instances per agent, as `zeek.instances_max` of an agent."""


class SentQuery(NamedTuple):
    """The parts of a query that its answers have to match."""

    instance: str
    event: str
    cookie: str | None


class QueryTexts:
    """Shares equal queries among agents, since Zeek sends each of them to thousands."""

    KEPT: Final = 10_000
    CHARACTERS_KEPT: Final = 8 * 1024 * 1024

    def __init__(self) -> None:
        self._queries: dict[SentQuery, SentQuery] = {}
        self._texts: dict[str, str] = {}
        self._characters = 0

    def query(self, event: InstallQuery) -> SentQuery:
        if len(self._queries) >= self.KEPT:
            self._queries.clear()
        query = SentQuery(self.text(event.instance), self.text(event.query.event), event.query.cookie)
        return self._queries.setdefault(query, query)

    def text(self, text: str) -> str:
        if (known := self._texts.get(text)) is not None:
            return known
        if len(self._texts) >= self.KEPT or self._characters + len(text) > self.CHARACTERS_KEPT:
            self._texts.clear()
            self._characters = 0
        self._characters += len(text)
        self._texts[text] = text
        return text


class SentQueries:
    """Those of one agent, at most `limit` at a time."""

    __slots__ = ("_ended", "_limit", "_queries", "instances")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queries: dict[str, SentQuery] = {}
        self._ended: dict[str, tuple[float, SentQuery]] = {}
        self.instances: dict[str, None] = {}
        """Zeek instances that have addressed the agent, in the order of their first message."""

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, query_id: str, query: SentQuery) -> bool:
        """Returns False if there are too many."""
        if query_id not in self._queries and len(self._queries) >= self._limit:
            return False
        self._queries[query_id] = query
        self._ended.pop(query_id, None)
        return True

    def heard(self, instance: str) -> None:
        """Remember an instance that addresses the agent; of too many, the one that did so first is forgotten."""
        if instance not in self.instances:
            while len(self.instances) >= INSTANCES_MAX:
                del self.instances[next(iter(self.instances))]
            self.instances[instance] = None

    def cancel(self, query_id: str, instance: str, now: float) -> None:
        """End a query of that instance; it may still be answered for a while."""
        query = self._queries.get(query_id)
        if query is not None and query.instance == instance:
            del self._queries[query_id]
            self._end(query_id, query, now)

    def cancel_where(self, ends: Callable[[SentQuery], bool], now: float) -> None:
        for query_id, query in [one for one in self._queries.items() if ends(one[1])]:
            del self._queries[query_id]
            self._end(query_id, query, now)

    def find(self, query_id: str, now: float) -> SentQuery | None:
        """A query that the agent may answer."""
        query = self._queries.get(query_id)
        if query is not None:
            return query
        ended = self._ended.get(query_id)
        return ended[1] if ended is not None and now - ended[0] <= ENDED_SECONDS else None

    def _end(self, query_id: str, query: SentQuery, now: float) -> None:
        self._ended.pop(query_id, None)
        while self._ended:
            oldest = next(iter(self._ended))
            if len(self._ended) < ENDED_MAX and now - self._ended[oldest][0] <= ENDED_SECONDS:
                break
            del self._ended[oldest]
        self._ended[query_id] = (now, query)
