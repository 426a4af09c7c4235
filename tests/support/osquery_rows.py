"""Rows of the agent's tables of osquery by SQL, in osquery's dialect or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database, Lane
from zeek_agent.table import AgentView, TableContext
from zeek_agent.tables import builtin_tables


def selected(
    *statements: str, access: AccessSettings | None = None, agent: AgentView | None = None, errors: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The rows of the last of these statements, by column. `errors` are those that it reports."""

    async def run() -> list[dict[str, Any]]:
        context = TableContext(agent or NoAgent(), AccessPolicy(access or AccessSettings()))
        database = Database(builtin_tables(), context, LimitSettings())
        try:
            for statement in statements:
                result = await database.query(statement, lane=Lane.LOCAL)
        finally:
            await database.aclose()
        assert list(result.errors) == list(errors)
        return [dict(zip([column.name for column in result.columns], row, strict=True)) for row in result.rows]

    return asyncio.run(run())
