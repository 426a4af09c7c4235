"""Access rules that change while statements run and while their rows are read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from recipients import NobodysAgent
from waiting import until
from workers import contained

from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import AccessSettings, EventSettings, LimitSettings
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.encoded_result import EncodedResult
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.worker_process import WorkerState
from zeek_agent.database.encodings import ControlEncoding
from zeek_agent.errors import AccessDeniedError, RevokedError
from zeek_agent.events.store import EventStore
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables

ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT name, (SELECT count(*) FROM n) FROM {}"
)
LIMITS = LimitSettings(time=60)


def change(database: ContainedDatabase, *, concerns_rows: bool = False, **rules: tuple[str, ...]) -> None:
    """Have other access rules, here and in workers that start afterwards."""
    config = Config(access=AccessSettings(**rules), limits=LIMITS)
    setup = msgspec.structs.replace(database.pool._setup, config=msgspec.msgpack.encode(config))
    context = TableContext(NobodysAgent(), AccessPolicy(config.access))
    database.reconfigure(context, LIMITS, setup, concerns_rows=concerns_rows)


def busy(database: ContainedDatabase) -> list[int]:
    return [one.pid for one in database.pool.processes if one.state is WorkerState.BUSY and one.statements > 1]


async def encoded(database: ContainedDatabase, sql: str) -> EncodedResult:
    return await database.encoded(sql, ControlEncoding())


async def read(result: EncodedResult) -> int:
    """The number of its rows."""
    try:
        return sum([batch.rows async for batch in result.batches()])
    finally:
        result.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[ContainedDatabase]:
    store = EventStore(tmp_path / "events.db", builtin_tables(), EventSettings())
    try:
        async with contained(tmp_path, store, LIMITS) as made:
            yield made
    finally:
        store.close()


async def test_a_running_statement_is_run_again_by_the_new_rules(database: ContainedDatabase) -> None:
    running = asyncio.create_task(encoded(database, ENDLESS.format("users LIMIT 1")))
    await until(lambda: busy(database))
    change(database, tables_deny=("users",))
    with pytest.raises(AccessDeniedError, match="users"):
        await running


async def test_a_running_statement_whose_tables_stay_permitted_goes_on(database: ContainedDatabase) -> None:
    running = asyncio.create_task(encoded(database, ENDLESS.format("users LIMIT 1")))
    before = await until(lambda: busy(database))
    change(database, tables_deny=("sockets",))
    await asyncio.sleep(0.3)
    assert busy(database) == before
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("rules", "concerns_rows"),
    [({"tables_deny": ("users",)}, False), ({"tables_allow": ("sockets",)}, False), ({}, True)],
)
async def test_rows_of_a_result_are_not_read_any_more(
    database: ContainedDatabase, rules: dict[str, tuple[str, ...]], concerns_rows: bool
) -> None:
    result = await encoded(database, "SELECT name FROM users")
    change(database, concerns_rows=concerns_rows, **rules)
    with pytest.raises(RevokedError):
        await read(result)


async def test_a_result_that_is_being_read_ends_with_the_reason(database: ContainedDatabase) -> None:
    result = await encoded(database, "SELECT printf('%99999s', name) FROM json_each('[1,2,3,4]'), users")
    batches = result.batches()
    await anext(batches)
    change(database, tables_deny=("users",))
    with pytest.raises(RevokedError):
        await anext(batches)
    result.close()


async def test_permitted_rows_are_still_read(database: ContainedDatabase) -> None:
    """Events are stored as they were masked, so that rules on files and masking do not concern their rows."""
    users = await encoded(database, "SELECT name FROM users")
    events = await encoded(database, "SELECT count(*) FROM processes_events_history")
    change(database, tables_deny=("sockets",))
    assert await read(users) > 0
    change(database, concerns_rows=True)
    assert await read(events) == 1


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("rule", "sql"),
    [
        ("processes_events.pid", "SELECT count(*), max(pid) FROM processes_events"),
        ("processes_events.pid", "SELECT count(*), max(pid) FROM processes_events_history"),
        ("processes_events_history.p*", "SELECT count(*), max(pid) FROM processes_events"),
    ],
)
async def test_events_whose_columns_are_denied_now_are_not_read_any_more(
    database: ContainedDatabase, rule: str, sql: str
) -> None:
    result = await encoded(database, sql)
    unconcerned = await encoded(database, "SELECT count(*) FROM sockets_events")
    change(database, concerns_rows=True, columns_deny=(rule,))
    with pytest.raises(RevokedError):
        await read(result)
    assert await read(unconcerned) == 1
    under_the_rule = await encoded(database, sql)
    change(database, concerns_rows=True)
    assert await read(under_the_rule) == 1


async def test_a_running_statement_on_events_is_run_again_without_a_denied_column(
    database: ContainedDatabase,
) -> None:
    def reading() -> list[int]:
        workers = database.pool.processes
        return [one.pid for one in workers if one.kind is WorkerClass.EVENTS and one.state is WorkerState.BUSY]

    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*), {} FROM n"
    sql = endless.format("(SELECT max(pid) FROM processes_events)")
    running = asyncio.create_task(encoded(database, sql))
    before = await until(reading)
    change(database, concerns_rows=True, columns_deny=("processes_events.pid",))
    await until(lambda: reading() and reading() != before)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.long
async def test_statements_give_their_whole_result_or_a_reason_while_rules_change(database: ContainedDatabase) -> None:
    chance = random.Random(14)
    ended = asyncio.Event()
    whole = 0

    async def ask() -> None:
        nonlocal whole
        while not ended.is_set():
            with suppress(RevokedError):
                assert await read(await encoded(database, f"SELECT * FROM users LIMIT 5 -- {chance.random()}")) == 5
                whole += 1

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for _ in range(20):
        await asyncio.sleep(chance.random() / 20)
        change(database, concerns_rows=True)
    await until(lambda: whole > 0, 20)
    ended.set()
    await asyncio.gather(*asking)
