"""Queries that agents were sent: what an agent may answer, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from zeek_agent.zeek.protocol import InstallQuery

ENDED_SECONDS: Final = 120.0
"""A query may be answered for so long after it was cancelled: rows may be on their way or wait for credit."""
ENDED_MAX: Final = 1_000
"""Cancelled queries that are remembered per agent; beyond that, those cancelled first are not."""
INSTANCES_MAX: Final = 100
"""Zeek instances per agent, as `zeek.instances_max` of an agent."""
MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Memory for the queries and Zeek instances of all agents: 100 queries for each of 10,000 agents."""
ENTRY_BYTES: Final = 150
"""Memory of an entry apart from its texts."""


class SentQuery(NamedTuple):
    """The parts of a query that its answers have to match."""

    instance: str
    event: str
    cookie: str | None


@dataclass(slots=True)
class QueryMemory:
    """What all agents' queries take, so that a Zeek that installs without end does not exhaust the gateway's memory."""

    used_bytes: int = 0
    limit_bytes: int = MEMORY_BYTES_MAX

    def take(self, size_bytes: int) -> bool:
        """Returns False if that much is not available."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes


class QueryTexts:
    """Shares equal queries among agents, since Zeek sends each of them to thousands."""

    KEPT: Final = 10_000
    CHARACTERS_KEPT: Final = 8 * 1024 * 1024

    def __init__(self) -> None:
        self._queries: dict[SentQuery, SentQuery] = {}
        self._texts: dict[str, str] = {}
        self._characters = 0
        self._cookies = 0
        """Characters of the queries' cookies."""

    def query(self, event: InstallQuery) -> SentQuery:
        query = SentQuery(self.text(event.instance), self.text(event.query.event), event.query.cookie)
        if (known := self._queries.get(query)) is not None:
            return known
        size = len(query.cookie or "")
        if len(self._queries) >= self.KEPT or self._cookies + size > self.CHARACTERS_KEPT:
            self._queries.clear()
            self._cookies = 0
        self._cookies += size
        self._queries[query] = query
        return query

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
    """Those of one agent, at most `limit` at a time, as far as there is memory. `close` gives that back."""

    __slots__ = ("_ended", "_limit", "_memory", "_queries", "instances")

    def __init__(self, limit: int, memory: QueryMemory | None = None) -> None:
        self._limit = limit
        self._memory = memory or QueryMemory()
        self._queries: dict[str, SentQuery] = {}
        self._ended: dict[str, tuple[float, SentQuery]] = {}
        self.instances: dict[str, None] = {}
        """Zeek instances that have addressed the agent, in the order of their first message."""

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, query_id: str, query: SentQuery) -> bool:
        """Returns False if there are too many."""
        known = self._queries.get(query_id)
        if known is None and len(self._queries) >= self._limit:
            return False
        if known is not None:
            self._memory.give_back(_size(query_id, known))
        while not self._memory.take(_size(query_id, query)):
            if not self._ended:
                self._queries.pop(query_id, None)
                return False
            self._forget(next(iter(self._ended)))
        self._queries[query_id] = query
        self._forget(query_id)
        return True

    def heard(self, instance: str) -> None:
        """Remember an instance that addresses the agent; of too many, the one that did so first is forgotten."""
        if instance not in self.instances:
            while len(self.instances) >= INSTANCES_MAX:
                self._forget_instance()
            while not self._memory.take(ENTRY_BYTES + len(instance)):
                if not self.instances:
                    return
                self._forget_instance()
            self.instances[instance] = None

    def close(self) -> None:
        """The session is over."""
        for query_id in list(self._queries):
            self._memory.give_back(_size(query_id, self._queries.pop(query_id)))
        for query_id in list(self._ended):
            self._forget(query_id)
        while self.instances:
            self._forget_instance()

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
        """Keep a query that has left `_queries`, whose memory it has."""
        self._forget(query_id)
        while self._ended:
            oldest = next(iter(self._ended))
            if len(self._ended) < ENDED_MAX and now - self._ended[oldest][0] <= ENDED_SECONDS:
                break
            self._forget(oldest)
        self._ended[query_id] = (now, query)

    def _forget(self, query_id: str) -> None:
        """Forget a query that has ended."""
        if (ended := self._ended.pop(query_id, None)) is not None:
            self._memory.give_back(_size(query_id, ended[1]))

    def _forget_instance(self) -> None:
        """Forget the instance that addressed the agent first."""
        oldest = next(iter(self.instances))
        del self.instances[oldest]
        self._memory.give_back(ENTRY_BYTES + len(oldest))


def _size(query_id: str, query: SentQuery) -> int:
    return ENTRY_BYTES + len(query_id) + len(query.cookie or "")
