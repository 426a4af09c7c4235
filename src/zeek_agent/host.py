"""What a table may ask of its surroundings, besides the system: the clock, access rules, the agent's own state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from zeek_agent.access import AccessPolicy
from zeek_agent.host.files.reads import FileReads

if TYPE_CHECKING:
    from zeek_agent.schema import Row, Table


class AgentView(Protocol):
    """The running agent as tables show it. The methods from `connections` on yield rows of the table that they are
    named after.
    """

    id: str
    instance: str
    hostname: str

    def uptime(self) -> float:
        """Seconds since the agent started."""
        ...

    def tables(self) -> Iterable[Table]:
        """The tables that can be asked now."""
        ...

    def recorded(
        self, sql: str, bindings: Sequence[int | float | str | None] = (), check: Callable[[], None] = lambda: None
    ) -> Sequence[Row]:
        """The rows of a statement on the event store, which holds all that has happened until now; none without one.

        `check` ends a statement that takes too long, by raising.
        """
        ...

    def connections(self) -> Iterable[Row]: ...

    def queries(self) -> Iterable[Row]: ...

    def sources(self) -> Iterable[Row]: ...

    def gaps(self) -> Iterable[Row]: ...

    def log(self) -> Iterable[Row]: ...

    def config(self) -> Iterable[Row]: ...


@dataclass(frozen=True, slots=True)
class Host:
    """Handed to every table with the constraints of the statement."""

    agent: AgentView
    access: AccessPolicy = field(default_factory=AccessPolicy)
    reads: FileReads = field(default_factory=FileReads)
    """The statement's budget for reading files, and what it had to leave out."""
    clock: Callable[[], float] = time.time
    proc: str = "/proc"
