"""What an event source is: it records one kind of event by one backend. Nothing here knows SQL or Zeek."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from zeek_agent.events.past import Past

if TYPE_CHECKING:
    from zeek_agent.schema import EventRow

Sink: TypeAlias = "Callable[[str, Sequence[EventRow]], None]"
"""Takes rows of the named event table; never blocks, may be called from any thread."""


Recorded: TypeAlias = Callable[[str], Past]
"""The past of an event table with a column `cursor`."""


@dataclass(slots=True)
class Counters:
    """What a source has seen and lost since it started. `lost` is by cause: `overrun`, `decode`, `store`."""

    received: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None


class Source(ABC):
    """A recorder of events: probe it, start it with a sink, stop it.

    `kind` is the concern (`processes`, `sockets`, …): the setting `sources.<kind>` chooses among its backends, and its
    rows go to the table `<kind>_events`. `backend` is how it is done (`ebpf`, `audit`, …).
    """

    kind: str
    backend: str
    essential: bool = True
    """Whether it is worth a warning when no source of the kind works."""
    shortcoming: str | None = None
    """What it misses that the best backend of its kind records, for `doctor`; docs/sources.md has all."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.failure: str | None = None
        """Why the source has ended by itself; None while it works."""

    @abstractmethod
    def probe(self) -> str | None:
        """None when the source can work here; else why not, in one line that says what to do about it."""

    @abstractmethod
    def start(self, sink: Sink) -> None:
        """Begin to record. Raises OSError when the system refuses after all."""

    @abstractmethod
    def stop(self) -> None:
        """End recording and hand what is left to the sink. May be called twice."""

    def failed(self, reason: str) -> None:
        """Note, from any thread, that the source has ended by itself."""
        self.failure = reason

    def clean_up(self) -> None:  # noqa: B027
        """Remove what an earlier run that crashed has left in the system, also if this source is not going to start."""

    def resume(self, recorded: Recorded) -> None:  # noqa: B027
        """Look how far others or an earlier run came, before each start; for a source that can go on from there."""

    def drain(self) -> None:  # noqa: B027
        """Hand over now what the kernel holds, so that a query that follows sees it."""

    def complete(self, table: str, rows: Sequence[EventRow]) -> Sequence[EventRow]:
        """Rows that another source has recorded, with what this one knows of them; never raises, from any thread."""
        return rows
