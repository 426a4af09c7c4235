"""Credit for large batches: which agent may send one next.

Agents want credit for one batch each, and are granted it in the order in which they wanted it, so that one with many
batches waits its turn after each. Only so many large batches are granted or unacknowledged at a time: what a gateway
has in memory is bounded, however many agents have rows. A batch is a place from its grant to its acknowledgement.

A grant that is used late, or never because its agent was cut off, does not keep others waiting: it gives its place to
the next agent once it is unused for several times as long as grants usually are, but remains valid. An agent cannot
know when its grant lapses here, since messages may be on their way for long. The batch of a grant that has lapsed is
therefore accepted, too, once and until the agent wants another one. There are at most as many late batches at a time as
there are places.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from zeek_agent.bus.messages import GRANT_SECONDS

S = TypeVar("S", bound=Hashable)

LEEWAY_SECONDS: Final = 2.0
"""A batch may come so long after its grant has lapsed: the agent's time began when it received it."""

UNUSED_FACTOR: Final = 4.0
"""A grant may keep its place unused for so many times as long as others were, on average."""
UNUSED_SECONDS: Final = (0.25, GRANT_SECONDS)
"""Shortest and longest such time."""
UNUSED_AT_FIRST: Final = 0.25
"""The average, in seconds, before any grant has been used."""
SHARE_OF_NEW: Final = 0.1
"""Share of the last grant in the average."""


@dataclass(slots=True)
class _Grant:
    size_bytes: int
    at: float


class Credits(Generic[S]):
    """The wants and grants of all sessions; to be used in one thread.

    `may_have` tells whether a session may have credit now, which its limits decide; it is asked again later.
    """

    def __init__(
        self,
        places: int,
        per_session: int,
        may_have: Callable[[S], bool] = lambda _: True,
    ) -> None:
        self._places = places
        self._per_session = per_session
        self._may_have = may_have
        self._wants: OrderedDict[S, tuple[int, float]] = OrderedDict()
        self._grants: OrderedDict[S, _Grant] = OrderedDict()
        self._overdue: OrderedDict[S, _Grant] = OrderedDict()
        """Grants without a place any more. Both are in the order in which they were given."""
        self._usual_seconds = UNUSED_AT_FIRST
        self._unused: dict[S, int] = {}
        self._freed = asyncio.Event()
        self._received: dict[S, int] = {}
        self._received_total = 0
        self.lapsed = 0
        """Grants that were not used in time."""
        self.late = 0
        """Batches that came under a grant that had lapsed."""
        self.overdue = 0
        """Grants that gave their place to others."""
        self.granted = 0

    @property
    def waiting(self) -> int:
        """Sessions that want credit."""
        return len(self._wants)

    @property
    def used(self) -> int:
        """Places in use."""
        return len(self._grants) + self._received_total

    def oldest_want(self) -> float | None:
        """When the want was made that waits longest."""
        return min((since for _, since in self._wants.values()), default=None)

    def want(self, session: S, size_bytes: int, now: float) -> None:
        """A session wants to send a batch. It does not use an earlier grant any more."""
        self._void(session)
        since = self._wants[session][1] if session in self._wants else now
        self._wants[session] = (size_bytes, since)

    def grants(self, now: float) -> Iterator[S]:
        """Give credit to those whose turn it is. Each that is returned has GRANT_SECONDS to use it."""
        self._lapse(now)
        passed_over = 0
        while self._wants and self.used < self._places and passed_over < len(self._wants):
            session, (size_bytes, since) = self._wants.popitem(last=False)
            if self._received.get(session, 0) >= self._per_session or not self._may_have(session):
                self._wants[session] = (size_bytes, since)
                passed_over += 1
                continue
            self._grants[session] = _Grant(size_bytes, now)
            self.granted += 1
            yield session

    def use(self, session: S, size_bytes: int, now: float) -> bool:
        """A batch has come. Returns whether the session had credit for it."""
        self._lapse(now)
        if size_bytes <= self._unused.get(session, -1):
            del self._unused[session]
            self.late += 1
        elif (grant := self._grants.get(session) or self._overdue.get(session)) and size_bytes <= grant.size_bytes:
            self._void(session)
            self._usual_seconds += SHARE_OF_NEW * (now - grant.at - self._usual_seconds)
        else:
            return False
        self._received[session] = self._received.get(session, 0) + 1
        self._received_total += 1
        return True

    async def room(self, session: S, now: float) -> None:
        """Before `use`: wait while too many batches are unacknowledged for another one that is late."""
        self._lapse(now)
        while self._is_late(session) and self._received_total >= 2 * self._places:
            self._freed.clear()
            await self._freed.wait()

    def acknowledged(self, session: S) -> None:
        """A batch that used credit was acknowledged."""
        self._freed.set()
        left = self._received.get(session)
        if left is None:
            return  # Zeek was away meanwhile
        self._received_total -= 1
        if left > 1:
            self._received[session] = left - 1
        else:
            del self._received[session]

    def forget(self, session: S) -> None:
        """A session has ended. Its batches that are on their way to Zeek keep their places."""
        self._wants.pop(session, None)
        self._void(session)
        self._freed.set()

    def clear(self) -> None:
        """Zeek is away: nobody has credit, and nothing is acknowledged any more."""
        self._wants.clear()
        self._grants.clear()
        self._overdue.clear()
        self._unused.clear()
        self._freed.set()
        self._received.clear()
        self._received_total = 0

    def _is_late(self, session: S) -> bool:
        return session in self._unused or session in self._overdue

    def _void(self, session: S) -> None:
        """Forget a session's grant."""
        for grants in (self._grants, self._overdue, self._unused):
            grants.pop(session, None)

    def _lapse(self, now: float) -> None:
        shortest, longest = UNUSED_SECONDS
        patience = min(max(self._usual_seconds * UNUSED_FACTOR, shortest), longest)
        for session, grant in _older(self._grants, now - patience):
            self._overdue[session] = grant
            self.overdue += 1
        for session, grant in _older(self._overdue, now - GRANT_SECONDS - LEEWAY_SECONDS):
            self._unused[session] = grant.size_bytes
            self.lapsed += 1


def _older(grants: OrderedDict[S, _Grant], than: float) -> Iterator[tuple[S, _Grant]]:
    """Remove the grants that are older, the oldest first."""
    while grants and next(iter(grants.values())).at < than:
        yield grants.popitem(last=False)
