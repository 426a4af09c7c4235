"""Compiles the statements of packs against the declared tables, without running them."""

from __future__ import annotations

import re
from typing import Any, Final

from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.results import Statement
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.errors import SqlError
from zeek_agent.table import Table, TableContext
from zeek_agent.tables import builtin_tables, plugin_tables

PLATFORMS: Final = ("linux", "darwin", "win32")

_NO_STATEMENT: Final = re.compile(r"(?>[\s;]|--[^\n]*|/\*.*?(?:\*/|\Z))*+", re.DOTALL)
"""Blanks, semicolons and comments, which may follow a statement."""

_NO_AGENT: Final[Any] = None
"""Compiling a statement reads no table, so that no agent is needed."""


class Statements:
    """Compiles statements against the built-in tables of all platforms and those of plug-ins."""

    def __init__(self) -> None:
        self._limits = LimitSettings()
        self._catalog = Catalog.of(1, declared_tables())
        self._connections: dict[Profile, SqlConnection] = {}
        self._compiled: dict[tuple[str, Profile], Statement] = {}

    def compile(self, sql: str, profile: Profile) -> Statement:
        """The statement's columns and tables. Raises SqlError or a subclass, also for more than one statement."""
        if (known := self._compiled.get((sql, profile))) is not None:
            return known
        connection = self._connections.get(profile)
        if connection is None:
            context = TableContext(_NO_AGENT)
            connection = SqlConnection(
                self._catalog, profile, context=context, limits=self._limits, scans=SharedScans()
            )
            self._connections[profile] = connection
        statement = connection.compile(sql, Run(self._limits))
        if not _NO_STATEMENT.fullmatch(sql[len(statement.text) :]):
            raise SqlError("only one statement at a time")
        self._compiled[sql, profile] = statement
        return statement

    def is_events(self, table: str) -> bool:
        """Whether it is an event table."""
        return self._catalog.tables[table].kind == "events"

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def declared_tables() -> list[Table]:
    """The built-in tables of all platforms, and those of plug-ins."""
    found = {
        table.name: table for platform in PLATFORMS for table in (*builtin_tables(platform), *plugin_tables(platform))
    }
    return list(found.values())
