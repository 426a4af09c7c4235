"""Limits on the requests of each source, such as an agent, an address or a key."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

SOURCES_MAX: Final = 20_000
"""Sources whose requests are counted; those that were counted last."""


class Limits:
    """Counts the requests of each source. A source has as many at once as its size, and regains them over time."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def permit(self, source: str, size: float, per_second: float, now: float) -> bool:
        """Whether one more request of the source is permitted, which is counted."""
        level, last = self._sources.pop(source, (size, now))
        level = min(size, level + max(0.0, now - last) * per_second)
        permitted = level >= 1
        self._sources[source] = (level - permitted, now)
        if len(self._sources) > SOURCES_MAX:
            self._sources.popitem(last=False)
        return permitted
