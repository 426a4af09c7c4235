"""Ask a table without a database: as SQL would, but with the constraints in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.contract import NoAgent
from zeek_agent.events import reading
from zeek_agent.events.store import EventStore
from zeek_agent.host.files.reads import FileReads
from zeek_agent.schema import Row
from zeek_agent.table import Constraints, Table, TableContext


class Agent(NoAgent):
    """An agent that has just started, with recorded events if it has a store."""

    def __init__(self, store: EventStore | None = None) -> None:
        super().__init__()
        self.store = store

    def recorded(
        self,
        sql: str,
        bindings: Sequence[int | float | str | None] = (),
        check: Callable[[], None] = lambda: None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Iterable[Row]:
        return reading.iterate_events(self.store.uri, sql, bindings, check, functions) if self.store else ()


READS_ALL = AccessPolicy(AccessSettings(files_allow=("/**",)))
"""Contents of all files but the denied ones: what files a test makes are on no list."""


def ask(
    table: Table,
    *parameters: Any,
    columns: Iterable[str] | None = None,
    access: AccessPolicy = READS_ALL,
    reads: FileReads | None = None,
    check: Callable[[], None] = lambda: None,
    store: EventStore | None = None,
    **equal: Any,
) -> list[dict[str, Any]]:
    """The table's rows as dictionaries; `equal` holds what `WHERE column = value` or `column IN (…)` would."""
    given = {parameter.name: parameter.default for parameter in table.parameters}
    given.update(zip(given, parameters, strict=False))
    names = [column.name for column in table.columns]
    wanted = Constraints(
        TableContext(Agent(store), access, reads or FileReads()),
        given,
        {name: frozenset(values if isinstance(values, list) else [values]) for name, values in equal.items()},
        frozenset(names if columns is None else columns),
        check,
    )
    return [dict(zip(names, row, strict=True)) for row in table.rows(wanted)]
