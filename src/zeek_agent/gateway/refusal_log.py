"""Log of what was refused, with the agent's id, at a bounded rate: an agent cannot fill the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from zeek_agent.gateway.causes import Cause
from zeek_agent.text import clipped, visible

log = logging.getLogger(__name__)

SAME_SECONDS: Final = 60.0
"""One line per agent and cause in this time."""
LINES_PER_SECOND: Final = 1.0
LINES_AT_ONCE: Final = 20
REMEMBERED: Final = 10_000


class RefusalLog:
    """`counts` are all refusals by cause."""

    def __init__(self, counts: Counter[Cause], monotonic: Callable[[], float]) -> None:
        self._counts = counts
        self._monotonic = monotonic
        self._logged: dict[tuple[Cause, str], float] = {}
        self._lines = float(LINES_AT_ONCE)
        self._since = monotonic()
        self._omitted = 0

    def note(self, cause: Cause, agent_id: str, what: str) -> None:
        """Count a refusal, and log it unless the like of it was logged a moment ago."""
        self._counts[cause] += 1
        now = self._monotonic()
        self._lines = min(self._lines + (now - self._since) * LINES_PER_SECOND, LINES_AT_ONCE)
        self._since = now
        last = self._logged.get((cause, agent_id))
        if self._lines < 1 or (last is not None and now - last < SAME_SECONDS):
            self._omitted += 1
            return
        if len(self._logged) >= REMEMBERED:
            self._logged.clear()
        self._logged[cause, agent_id] = now
        self._lines -= 1
        omitted, self._omitted = self._omitted, 0
        more = f" ({omitted:,} refusals before it were not logged)" if omitted else ""
        log.warning("refused (%s) from agent %s: %s%s", cause, visible(clipped(agent_id)), visible(clipped(what)), more)
