"""The interface of event sources: each records one kind of event with one backend, independent of SQL and Zeek."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from zeek_agent.events.recording_position import RecordingPosition

if TYPE_CHECKING:
    from zeek_agent.schema import EventRow


class Sink(Protocol):
    """Accepts rows of the named event table; never blocks, may be called from any thread.

    `position` is where the source continues after these rows; it is stored together with them.
    """

    def __call__(self, table: str, rows: Sequence[EventRow], position: str | None = None, /) -> None: ...


class PositionReader(Protocol):
    """The recording position of an event table with a column `cursor`, with the cursors of its last `rows` rows."""

    def __call__(self, table: str, rows: int = 1, /) -> RecordingPosition: ...


@dataclass(slots=True)
class Counters:
    """Counts of a source's events since it started. `lost` is by cause: `overrun`, `decode`, `store`."""

    received: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class MissedTime:
    """The time since which nobody may have recorded, in seconds since the epoch.

    `entities_since` gives the processes in the rows of an event table from about that time on.
    """

    since: float
    entities_since: Callable[[str, float], frozenset[str]]


class Source(ABC):
    """A recorder of events, which is probed, started with a sink, and stopped.

    `kind` (`processes`, `sockets`, …) gives the setting `sources.<kind>`, which chooses among its backends, and the
    table `<kind>_events` of its rows. `backend` is the mechanism (`ebpf`, `audit`, …).
    """

    kind: str
    backend: str
    essential: bool = True
    """Whether to warn when no source of the kind works."""
    retry_seconds: float | None = None
    """Time after which it is tried again, if no source of its kind works; None: the same for all sources."""
    restart_after_seconds: float | None = None
    """If it fails after this time, it is started again before the next one of its kind is; None: it is not."""
    return_seconds: float | None = None
    """Interval at which it is tried while a worse one of its kind records, because what it lacked can be granted while
    the agent runs; None: it is not."""
    shortcoming: str | None = None
    """What it misses compared with the best backend of its kind, for `doctor`; see docs/sources.md for details."""
    overrun: str = "the kernel's buffer was full"
    """Why events are lost before they are read, for the log."""
    note: str | None = None
    """What to know about it while it is active, for `zeek_agent_sources`."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.missed: MissedTime | None = None
        """The time in which nobody recorded its kind, set before each start: what began then can be found at the start.
        None if that is not known."""
        self.failure: str | None = None
        """Why the source ended by itself; None while it works."""

    @abstractmethod
    def probe(self) -> str | None:
        """Why the source cannot work here, in one line with the remedy; None if it can."""

    @abstractmethod
    def start(self, sink: Sink) -> None:
        """Start recording. Raises OSError if that fails in spite of `probe`."""

    @abstractmethod
    def stop(self) -> None:
        """Stop recording and pass pending events to the sink. May be called twice."""

    def failed(self, reason: str) -> None:
        """Record, from any thread, that the source ended by itself."""
        self.failure = reason

    def clean_up(self) -> None:  # noqa: B027
        """Remove anything that a crashed run left in the system, even if this source is not started."""

    def resume(self, recorded: PositionReader) -> None:  # noqa: B027
        """Called before each start, for a source that can continue where others or an earlier run stopped."""

    def recording_since(self) -> float | None:
        """Since when it records (seconds since the epoch); None if that is when `start` returned."""
        return None

    def recorded_until(self) -> float | None:
        """Until when (seconds since the epoch) all events were passed to the sink; the last value after `stop`.

        None if no event can be missing, as with a source that resumes. Takes no lock, from any thread.
        """
        return None

    def update_counters(self) -> None:  # noqa: B027
        """Bring `counters` up to date with the kernel."""

    def losses_since(self) -> float | None:
        """Since when (seconds since the epoch) events are missing that were counted as lost since the last call.

        None if they were lost since the counters were last brought up to date.
        """
        return None

    def find_lost(self, since: float) -> None:  # noqa: B027
        """Report what began since then (seconds since the epoch), when events were lost, and is still there."""

    def drain(self) -> None:  # noqa: B027
        """Pass on events pending in the kernel, so that a subsequent query sees them."""

    def replaces(self, other: Source) -> str:
        """Why the other source of its kind is not active while this one is, for `zeek_agent_sources`."""
        return "a better one is active"

    def complete(self, table: str, rows: Sequence[EventRow]) -> Sequence[EventRow]:
        """Add this source's information to rows of another one; never raises, may be called from any thread."""
        return rows
