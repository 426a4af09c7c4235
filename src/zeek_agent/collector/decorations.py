"""What is known of each agent in addition to its rows: the rows of decorators, and counters of its results.

Both are bounded: of the agents that are known for the longest time without a new row, the state is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zeek_agent.collector.pack import Decorator
from zeek_agent.collector.pack_file import FieldEntry
from zeek_agent.collector.row_reader import row_reader
from zeek_agent.queries.subscriptions import Change
from zeek_agent.text import byte_length
from zeek_agent.zeek.protocol import ResultRow

AGENTS_MAX: Final = 10_000
VALUE_CHARACTERS_MAX: Final = 512
VALUES_BYTES_MAX: Final = 8_192
"""Of one agent; values beyond are unset."""
COUNTERS_MAX: Final = 100_000
"""Logs of agents whose results are counted."""


class Decorations:
    """The last row of each decorator, by agent."""

    def __init__(self, decorators: Iterable[Decorator] = ()) -> None:
        self._decorators = {decorator.event: decorator for decorator in decorators}
        self._readers = {
            event: row_reader([FieldEntry(name, "string") for name in decorator.names])
            for event, decorator in self._decorators.items()
        }
        self.names = tuple(dict.fromkeys(name for one in self._decorators.values() for name in one.names))
        self._unset: tuple[str | None, ...] = (None,) * len(self.names)
        self._rows: dict[str, dict[str, tuple[str | None, ...]]] = {}
        self._values: dict[str, tuple[str | None, ...]] = {}

    def __contains__(self, event: str) -> bool:
        return event in self._decorators

    def row(self, event: ResultRow) -> None:
        """Take a row of a decorator. Raises ProtocolError."""
        agent_id = event.context.agent_id
        read = self._readers[event.event](event.columns)
        row = tuple(None if text is None else text[:VALUE_CHARACTERS_MAX] for text in read)
        rows = self._rows.pop(agent_id, {})
        if event.context.change is not Change.DELETE:
            rows[event.event] = row
        elif rows.get(event.event) == row:
            del rows[event.event]
        self._rows[agent_id] = rows
        self._values[agent_id] = self._combined(rows)
        if len(self._rows) > AGENTS_MAX:
            oldest = next(iter(self._rows))
            del self._rows[oldest], self._values[oldest]

    def values(self, agent_id: str) -> tuple[str | None, ...]:
        """The values of `names` for an agent."""
        return self._values.get(agent_id, self._unset)

    def _combined(self, rows: dict[str, tuple[str | None, ...]]) -> tuple[str | None, ...]:
        values: dict[str, str | None] = {}
        for event, decorator in self._decorators.items():
            values |= zip(decorator.names, rows.get(event, (None,) * len(decorator.names)), strict=True)
        left = VALUES_BYTES_MAX
        kept: list[str | None] = []
        for name in self.names:
            text = values[name]
            left -= byte_length(text or "")
            kept.append(text if left >= 0 else None)
        return tuple(kept)


class ResultCounters:
    """How many results with changes came since the last full one, by agent and log."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[float, int]] = {}

    def of(self, row: ResultRow, path: str, *, full: bool) -> int:
        """The counter of the row's result: 0 for a full one. The rows of a result have the same time."""
        key = (row.context.agent_id, path)
        moment, number = self._counts.pop(key, (row.context.host_time, 0 if full else 1))
        if full:
            number = 0
        elif row.context.host_time != moment:
            number += 1
        self._counts[key] = row.context.host_time, number
        if len(self._counts) > COUNTERS_MAX:
            del self._counts[next(iter(self._counts))]
        return number
