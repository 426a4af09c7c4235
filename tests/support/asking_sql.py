"""Ask the built-in tables by an SQL statement, in this process."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database, Lane
from zeek_agent.host.files.reads import Omissions
from zeek_agent.table import Table, TableContext
from zeek_agent.tables import builtin_tables


class SqlAnswer(NamedTuple):
    """The rows by column, the errors of the statement, and the files that it omitted."""

    rows: list[dict[str, Any]]
    errors: list[str]
    files: Omissions


def ask_sql(sql: str, *more: Table, limits: LimitSettings | None = None, **context: Any) -> SqlAnswer:
    """The answer to one statement; `context` are arguments of `TableContext`. All files may be read but denied ones."""
    context.setdefault("access", AccessPolicy(AccessSettings(files_allow=("/**",))))

    async def ask() -> SqlAnswer:
        database = Database([*builtin_tables(), *more], TableContext(NoAgent(), **context), limits or LimitSettings())
        try:
            result = await database.query(sql, lane=Lane.LOCAL)
        finally:
            await database.aclose()
        names = [column.name for column in result.columns]
        return SqlAnswer([dict(zip(names, row, strict=True)) for row in result.rows], list(result.errors), result.files)

    return asyncio.run(ask())


def rows_of(sql: str, *more: Table, **context: Any) -> list[dict[str, Any]]:
    """The rows of a statement that has no errors."""
    answer = ask_sql(sql, *more, **context)
    assert answer.errors == []
    return answer.rows
