"""Statements that ended their worker process and have to rest before they run again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from zeek_agent.errors import LimitError

if TYPE_CHECKING:
    from zeek_agent.containment.usage import StatementKey
    from zeek_agent.containment.worker_process import KillCause

FIRST_SECONDS: Final = 60.0
"""A new worker costs little, but what ended one has used `limits.time` of a core."""
GROWTH: Final = 4
SECONDS_MAX: Final = 600.0
"""Longer, and an operator who corrected the cause would wait for it."""
REMEMBERED_MAX: Final = 2_000
"""A statement that rests has used seconds of a core, of which each recipient has a share: this many take hours."""


@dataclass(slots=True)
class Rest:
    """A statement does not run before `until` (monotonic seconds)."""

    until: float
    seconds: float
    cause: KillCause
    ends_at: float
    """`until` as seconds since the epoch."""
    shown: str
    """`until` as UTC, the same in each message so that a repeated error is recognized."""


class RestingStatements:
    """The rests of statements; each is longer than the one before until the statement succeeds."""

    def __init__(self, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._rests: OrderedDict[StatementKey, Rest] = OrderedDict()

    def check(self, key: StatementKey) -> None:
        """Raises LimitError for a statement that rests."""
        rest = self._rests.get(key)
        if rest is not None and rest.until > self._monotonic():
            raise LimitError(f"not run before {rest.shown}: its last run ended its worker process ({rest.cause})")

    def begin(self, key: StatementKey, cause: KillCause) -> Rest:
        """The statement has ended its worker."""
        before = self._rests.pop(key, None)
        seconds = FIRST_SECONDS if before is None else min(before.seconds * GROWTH, SECONDS_MAX)
        ends_at = self._clock() + seconds
        shown = datetime.fromtimestamp(ends_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        rest = self._rests[key] = Rest(self._monotonic() + seconds, seconds, cause, ends_at, shown)
        if len(self._rests) > REMEMBERED_MAX:
            self._rests.popitem(last=False)
        return rest

    def forget(self, key: StatementKey) -> None:
        """The statement has succeeded."""
        self._rests.pop(key, None)

    def ends_at(self, key: StatementKey) -> float | None:
        """When the statement may run again, in seconds since the epoch; None if it does not rest."""
        rest = self._rests.get(key)
        return None if rest is None or rest.until <= self._monotonic() else rest.ends_at
