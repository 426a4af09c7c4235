"""The running program between Zeek and osquery: queries of Zeek read osquery's tables, and follow when they go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from osqueryd import Osqueryd, usual_tables
from running_agent import running
from waiting import until
from zeek_server import zeek_server

from zeek_agent.queries.subscriptions import Change, Query, Subscription
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.protocol import HELLO_FIELDS, AgentHello, ResultRow

JOIN = "SELECT p.pid, u.username, u.shell FROM processes p JOIN people u ON u.uid = p.uid WHERE p.pid = {pid}"


def tables_of(hello: AgentHello) -> set[str]:
    cells = dict(zip(HELLO_FIELDS, broker_json.cells(hello.columns), strict=False))
    return set(cells["tables"])  # type: ignore[arg-type]


@pytest.mark.long
async def test_a_scheduled_join_reports_differences_and_pauses_while_osquery_is_away(tmp_path: Path) -> None:
    tables = usual_tables()
    uid, pid = os.getuid(), os.getpid()
    tables["people"] = tables["users"]
    tables["people"].rows = [(uid, 0, "me", "", "/", "/bin/sh", None)]
    settings = {"osquery.socket": tmp_path / "osquery.em", "osquery.refresh": 0.2, "zeek.hello_interval": 0.5}
    query = Query(
        JOIN.format(pid=pid),
        "Test::row",
        schedule=0.3,
        subscription=Subscription.DIFFERENCES,
        requires_tables=frozenset({"people"}),
    )
    osquery = Osqueryd(tmp_path / "osquery.em", tables)
    async with zeek_server() as zeek:
        settings["zeek.destinations"] = f'["{zeek.url()}"]'
        async with running(tmp_path, settings=settings) as agent:
            client = await zeek.client()
            await client.hello()
            await client.install("q1", query)
            await client.expect(AgentHello)

            async def installed(**wanted: object) -> None:
                async def fits() -> bool:
                    (row,) = await agent.ask("SELECT state, runs > 0 AS ran FROM zeek_agent_queries WHERE id = 'q1'")
                    return wanted.items() <= row.items()

                await until(fits, complaint=f"not {wanted}")

            async def expect(change: Change, number: int) -> tuple[object, ...]:
                row = await client.expect(ResultRow, lambda row: row.context.change is change, number=number)
                return tuple(broker_json.cells(row.columns))

            await installed(state="waiting")
            with osquery:
                await installed(state="running", ran=1)
                hello = await client.expect(AgentHello, lambda hello: "people" in tables_of(hello))
                assert "osquery_people" not in tables_of(hello)
                osquery.tables["people"].rows = [(uid, 0, "me", "", "/", "/bin/zsh", None)]
                assert await expect(Change.DELETE, 1) == (pid, "me", "/bin/sh")
                assert await expect(Change.ADD, 1) == (pid, "me", "/bin/zsh")
                (source,) = await agent.ask("SELECT * FROM zeek_agent_sources WHERE source = 'osquery'")
                assert source["active"]
            await installed(state="waiting")
            (source,) = await agent.ask("SELECT * FROM zeek_agent_sources WHERE source = 'osquery'")
            assert not source["active"]
            await client.expect(AgentHello, lambda hello: "people" not in tables_of(hello), number=2)
            osquery.tables["people"].rows = [(uid, 0, "you", "", "/", "/bin/zsh", None)]
            with osquery:
                assert await expect(Change.DELETE, 2) == (pid, "me", "/bin/zsh")
                assert await expect(Change.ADD, 2) == (pid, "you", "/bin/zsh")
