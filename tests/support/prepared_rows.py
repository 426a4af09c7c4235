"""A database whose statements are names of prepared results, for tests of connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.database import Result, ResultColumn, Statement
from zeek_agent.errors import SqlError
from zeek_agent.identity import Identity
from zeek_agent.schema import ZeekType

IDENTITY = Identity("Hagent", "Iinstance")
HELLO = ("Hagent", "Iinstance", "here", ("192.0.2.1", "fd00::1"), "Linux", "Debian", "Linux", "6.1", "x86_64")


def columns(*types: str) -> tuple[ResultColumn, ...]:
    return tuple(ResultColumn(f"c{index}", ZeekType.parse(name)) for index, name in enumerate(types))


@dataclass
class PreparedRows:
    """Results by statement."""

    results: dict[str, tuple[tuple[ResultColumn, ...], list[tuple[Any, ...]]]] = field(default_factory=dict)
    tables: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        types = ("text", "text", "text", "set[address]", *["text"] * 5, "count", "interval", "set[text]")
        self.results["SELECT * FROM zeek_agent"] = (columns(*types), [(*HELLO, 300000000, 1.5, ("users",))])
        self.results["SELECT 1"] = (columns("count"), [(1,)])

    async def query(self, sql: str, **_: object) -> Result:
        self.asked.append(sql)
        if sql == "SELECT broken":
            raise SqlError("no luck")
        kinds, rows = self.results[sql]
        return Result(kinds, list(rows))

    async def own_rows(self, name: str) -> Result:
        self.asked.append(name)
        if f"SELECT * FROM {name}" not in self.results:
            raise SqlError("no luck")
        kinds, rows = self.results[f"SELECT * FROM {name}"]
        return Result(kinds, list(rows))

    async def encoded(self, sql: str, encoding: object, **arguments: object) -> Result:
        """A database without worker processes."""
        return await self.query(sql, **arguments)

    async def prepare(self, sql: str, **_: object) -> Statement:
        if sql not in self.results and sql != "SELECT broken":
            raise SqlError("no such table: nowhere")
        return Statement((), frozenset())

    def check_length(self, sql: str, origin: str) -> None:
        assert len(sql) < LimitSettings().statement_bytes

    def on_change(self, callback: Callable[[], None]) -> None:
        pass
