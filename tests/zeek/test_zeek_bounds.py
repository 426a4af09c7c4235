"""What a peer may name, and how long: what is longer is refused in few words, and nothing of it is kept or logged."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from sql import Recorder, database, events
from test_zeek_connection import FAST, IDENTITY
from waiting import until
from websockets.asyncio.server import ServerConnection, serve
from zeek_server import Client, zeek_server

from zeek_agent import logbook
from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, EventSettings, LimitSettings, LogSettings
from zeek_agent.database.database import Database
from zeek_agent.errors import LimitError, SqlError, UsageError
from zeek_agent.events import delivery_states
from zeek_agent.events.store import EventStore
from zeek_agent.logbook import RecentLines
from zeek_agent.platforms.linux import Linux
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.schema import Row
from zeek_agent.table import Constraints, TableContext
from zeek_agent.terminal import doctor
from zeek_agent.zeek import broker_json, message_limits, protocol
from zeek_agent.zeek.connection import ZeekConnection
from zeek_agent.zeek.protocol import AgentError, AgentHello, ResultRow

PATIENT = msgspec.structs.replace(FAST, connect_timeout=60.0, ack_timeout=60.0, pong_timeout=600.0)
"""A busy machine takes long for messages of megabytes, the more while allocations are traced."""
TIMES = 100
LONG = "x" * 3_900_000
HALF = "x" * 1_900_000
MOST = 30_000_000
"""Bytes that may be kept of 260 messages of 3.9 MB, the traces of the test included."""


class HelloAgent:
    """The agent of the table `zeek_agent`, as it is declared for these tests."""

    id, instance, hostname = "Hagent", "Iinstance", "here"


@dataclass
class Agent:
    connection: ZeekConnection
    runner: QueryRunner
    database: Database
    ring: RecentLines


HELLO = Recorder(
    "zeek_agent",
    [
        *((name, "text") for name in ("id", "instance", "hostname")),
        ("addresses", "set[address]"),
        *((name, "text") for name in ("platform", "os_name", "kernel_name", "kernel_version", "kernel_arch")),
        ("agent_version", "count"),
        ("uptime", "interval"),
        ("tables", "set[text]"),
    ],
    [("Hagent", "I", "here", (), "Linux", "Debian", "Linux", "6", "x86_64", 30000, 1.0, ("t",))],
)


@asynccontextmanager
async def connected(path: Path, **settings: object) -> AsyncIterator[tuple[Agent, Client]]:
    """A real connection, queries, database, event store and log; `secret` is a table that may not be queried."""
    tables = [HELLO.table, Recorder("t", [("n", "count")], [(1,)]).table, events("happenings", [("n", "count")])]
    tables.append(Recorder("secret", [("n", "count")], []).table)
    policy = AccessPolicy(AccessSettings(tables_deny=("secret",)))
    store = EventStore(path / "events.db", tables, EventSettings())
    database = Database(tables, TableContext(HelloAgent(), policy), LimitSettings(), store)  # type: ignore[arg-type]
    runner = QueryRunner(database, store)
    chosen = msgspec.structs.replace(PATIENT, **settings)
    # The log as in an agent, to a file, and without the handlers of pytest, which keep all that they get.
    ring = logbook.set_up(LogSettings(file=str(path / "agent.log"), level="debug"))
    async with zeek_server() as zeek:
        connection = ZeekConnection(zeek.url(), chosen, IDENTITY, database, runner, platform=Linux())
        task = asyncio.create_task(connection.run())
        client = await zeek.client()
        await client.expect(AgentHello)
        try:
            yield Agent(connection, runner, database, ring), client
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.close()
            await database.aclose()
            store.close()


class Retained:
    """Bytes that are in use now and were not at the start."""

    def __enter__(self) -> Retained:
        gc.collect()
        tracemalloc.start()
        self._start = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()

    @property
    def bytes(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._start

    async def less_than(self, limit: int) -> None:
        """Wait until the messages under way are freed, too: the answer to a later one can overtake that."""
        await until(lambda: self.bytes < limit, 30, lambda: f"{self.bytes} bytes are kept, {limit} may be")


def query(sql: str = "SELECT n FROM t", event: str = "Test::row", **more: object) -> Query:
    return Query(sql, event, **more)  # type: ignore[arg-type]


async def still_serves(client: Client) -> None:
    """The connection is as it was: an ordinary query gets its row."""
    await client.install("ordinary", query(), instance="zeek_ordinary")
    await client.expect(ResultRow, lambda row: row.context.query_id == "ordinary")


@pytest.mark.long
async def test_hundreds_of_refused_statements_of_megabytes_take_no_memory(tmp_path: Path) -> None:
    async with connected(tmp_path) as (agent, client):
        with Retained() as retained:
            for number in range(TIMES):
                sql = f"SELECT {number} FROM nowhere WHERE n = '{LONG}'"
                await client.install(f"q{number}", query(sql))
                del sql
                await client.expect(AgentError, number=number + 1)
            await still_serves(client)
            await retained.less_than(MOST)
        assert agent.connection.status().reconnects == 0
        errors = client.of(AgentError)
        assert {error.context.query_id for error in errors} == {f"q{number}" for number in range(TIMES)}
        assert all(len(error.message) < 1_000 for error in errors)
        assert errors[7].message.startswith(
            "could not compile query (failed to compile SQL statement: SELECT 7 FROM nowhere WHERE n = 'xxx"
        )
        assert errors[7].message.endswith(
            "xxx… (3,900,034 bytes) (the statement is longer than 100000 bytes (limits.statement_bytes)))"
        )
        refused = [
            message for _, _, name, message in agent.ring.rows() if name == "zeek_agent.audit" and "nowhere" in message
        ]
        assert len(refused) == TIMES
        assert refused[0].startswith(f"refused, {agent.connection.destination}: ")
        assert all(len(message.encode()) <= 4_096 for *_, message in agent.ring.rows())


REPEATED = Subscription.SNAPSHOTS
SLOW = {"schedule": 3_600.0, "subscription": REPEATED}
TOO_LONG: dict[str, tuple[dict[str, object], str]] = {
    "event": ({"event": f"Test::{LONG}"}, "the event's name is longer than 1,024 bytes: Test::xxx"),
    "cookie": ({"cookie": LONG}, "the cookie is longer than 65,536 bytes: xxx"),
    "required table": (
        {"requires_tables": frozenset({LONG})},
        "a name in requires_tables is longer than 1,024 bytes: xxx",
    ),
    "missing table": (
        {"if_missing_tables": frozenset({LONG})},
        "a name in if_missing_tables is longer than 1,024 bytes: xxx",
    ),
    "many required tables": (
        {"requires_tables": frozenset(map(str, range(20_000)))},
        "requires_tables has 20,000 members, more than 1,000",
    ),
}


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("kind", TOO_LONG)
async def test_a_query_with_a_field_that_is_too_long_is_refused_briefly(tmp_path: Path, kind: str) -> None:
    fields, told = TOO_LONG[kind]
    async with connected(tmp_path) as (agent, client):
        frame = protocol.install_query(client.topic, client.instance, "q", query(**{**SLOW, **fields}))
        with Retained() as retained:
            for _ in range(20):
                await client.send(frame)
            await client.expect(AgentError, number=20)
            await still_serves(client)
            await retained.less_than(3_900_000)
        await until(lambda: not agent.runner.installed)
        error = client.of(AgentError)[0]
    assert error.message.startswith(f"could not install query ({told}")
    assert len(error.message) < 400
    assert (error.context.query_id, error.context.cookie) == ("q", None)
    assert kind == "many required tables" or error.message.endswith(" bytes))")


@pytest.mark.long
async def test_ids_that_are_too_long_are_not_kept_nor_repeated(tmp_path: Path) -> None:
    topic = protocol.group_topic("all")
    frames = [
        protocol.install_query(topic, "zeek_1", LONG, query(**SLOW)),
        protocol.install_query(topic, LONG, "q", query(**SLOW)),
        protocol.cancel_query(topic, "zeek_1", LONG),
        protocol.zeek_shutdown(topic, LONG),
        protocol.zeek_hello(topic, protocol.ZeekHello("zeek_1", LONG)),
        protocol.zeek_hello(topic, protocol.ZeekHello("zeek_1", "9", 9, LONG)),
        protocol.zeek_hello(topic, protocol.ZeekHello("zeek_1", "9", 9, "", frozenset({LONG}))),
        protocol.zeek_hello(topic, protocol.ZeekHello(LONG)),
        protocol.rows_ack(topic, protocol.RowsAck("zeek_1", HALF, HALF, 1, 1)),
        protocol.event_message(topic, LONG),
        protocol.install_query(LONG, "zeek_1", "q", query(**SLOW)),
        protocol.error(HALF, HALF),
        '{"type":"' + LONG + '"}',
        '{"topic":"x","data":[{"@data-type":"' + LONG + '","data":1}]}',
    ]
    async with connected(tmp_path) as (agent, client):
        with Retained() as retained:
            for frame in frames:
                await client.send(frame)
            await still_serves(client)
            await retained.less_than(3_900_000)
        session = agent.connection.session
        assert session is not None
        assert set(session.instances) == {"zeek_1", "zeek_ordinary"}
        assert session.instances["zeek_1"].hello is None
        await until(lambda: not agent.runner.installed)
        assert all(len(message.encode()) < 2_300 for *_, message in agent.ring.rows())
        assert agent.connection.status().reconnects == 0
        told = [error.message for error in client.of(AgentError)]
        assert [message.partition(":")[0] for message in told] == [
            "could not install query (the query's id is longer than 1,024 bytes",
            "could not process hello (Zeek's version is longer than 1,024 bytes",
            "could not process hello (the package's version is longer than 1,024 bytes",
            "could not process hello (a name in features is longer than 1,024 bytes",
        ]
        assert client.of(AgentError)[0].context.query_id is None


async def test_values_of_the_maximum_length_are_accepted_and_returned(tmp_path: Path) -> None:
    cookie, event, query_id = "ü" * 32_768, f"Test::{'e' * 1_018}", "q" * 1_024
    async with connected(tmp_path) as (_, client):
        await client.install(query_id, query(event=event, cookie=cookie), instance="i" * 1_024)
        row = await client.expect(ResultRow)
    assert (row.event, row.context.query_id, row.context.cookie) == (event, query_id, cookie)


async def test_statements_that_wait_for_a_table_or_a_slow_zeek_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_limits, "INSTALLED_BYTES_MAX", 2_000_000)
    async with connected(tmp_path) as (agent, client):
        for number in range(30):
            sql = f"SELECT {number} FROM t -- {'x' * 99_000}"
            never = frozenset({"never_there"})
            await client.install(f"q{number}", query(sql, requires_tables=never, **SLOW), instance=f"zeek_{number % 3}")
        await client.expect(AgentError, number=10)
        await still_serves(client)
        await until(lambda: len(agent.runner.installed) == 20)
        assert sum(len(one.query.sql) for one in agent.runner.installed) < 2_000_000
        (error, *_) = client.of(AgentError)
        assert error.message.startswith(
            "could not install query (limit of 2,000,000 bytes for the texts of all queries of this connection): "
            "SELECT 20 FROM t -- xxx"
        )
        assert len(error.message) < 1_300
        await client.cancel("q0", "zeek_0")
        await client.install("q99", query(f"SELECT 99 FROM t -- {'x' * 99_000}", **SLOW))
        await client.expect(ResultRow, lambda row: row.context.query_id == "q99")


async def test_denied_statements_are_audited_in_one_line_each(tmp_path: Path) -> None:
    async with connected(tmp_path) as (agent, client):
        with Retained() as retained:
            for number in range(100):
                await client.install(f"q{number}", query(f"SELECT {number} FROM secret -- {'x' * 90_000}"))
            await client.expect(AgentError, number=100)
            await retained.less_than(3_900_000)
        audited = [message for _, _, name, message in agent.ring.rows() if name == "zeek_agent.audit"]
        refused = [message for message in audited if message.startswith("refused")]
        asked = [message for message in audited if ": SELECT 5 FROM secret" in message]
    assert len(refused) == 100
    statement = f"SELECT 5 FROM secret -- {'x' * 90_000}"
    shown = f"{statement[:1_000]}… (90,024 bytes), SHA-256 {hashlib.sha256(statement.encode()).hexdigest()}"
    assert asked[0].endswith(shown)
    assert asked[1].endswith(f"table secret may not be queried (access.tables_deny, access.tables_allow): {shown}")


async def test_a_zeek_with_a_name_of_megabytes_is_not_stored(tmp_path: Path) -> None:
    async with zeek_server(protocol.Ack(HALF, HALF)) as zeek:
        database = Database([HELLO.table], TableContext(HelloAgent(), AccessPolicy()))  # type: ignore[arg-type]
        connection = ZeekConnection(zeek.url(), PATIENT, IDENTITY, database, QueryRunner(database))
        task = asyncio.create_task(connection.run())
        await until(lambda: connection.status().reconnects > 0)
        status = connection.status()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await database.aclose()
    assert status.last_error is not None
    assert "has a name or version of more than 1,024 bytes: xxx" in status.last_error
    assert len(status.last_error) < 1_000
    assert (status.endpoint, status.zeek_version) == (None, None)


@pytest.mark.parametrize(
    "answer", [protocol.ack("x", HALF), protocol.error(HALF, HALF)], ids=["acknowledgement", "error"]
)
async def test_doctor_truncates_text_from_a_zeek(answer: str) -> None:
    async def answer_once(websocket: ServerConnection) -> None:
        await websocket.recv()
        await websocket.send(answer)
        await websocket.wait_closed()

    async with serve(answer_once, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        (check,) = await asyncio.to_thread(lambda: list(doctor._zeek(f"127.0.0.1:{port}", PATIENT)))
    assert len(check.found) < 400


async def test_installing_new_event_queries_again_and_again_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_states, "STATES_MAX", 10)
    async with connected(tmp_path) as (agent, client):
        for number in range(30):
            wanted = query(
                "SELECT n FROM happenings", cookie=str(number), schedule=60.0, subscription=Subscription.EVENTS
            )
            await client.install(f"q{number}", wanted)
            await until(lambda: bool(agent.runner.installed) and agent.runner.installed[0].runs > 0)
            await client.cancel(f"q{number}")
            await until(lambda: not agent.runner.installed)
        assert agent.runner._store is not None
        assert agent.runner._store.delivery_states()["queries"] == 10


def test_an_error_truncates_the_text_that_caused_it() -> None:
    for kind in (SqlError, LimitError, UsageError, broker_json.ProtocolError):
        assert str(kind(f"near {LONG}")) == f"near {LONG[:1_995]}… (3,900,005 bytes)"
        assert str(kind("short")) == "short"


async def test_omitted_rows_are_reported_briefly() -> None:
    def fail(wanted: Constraints) -> Iterator[Row]:
        raise OSError(f"cannot read {LONG}")

    db = database(Recorder("t", [("n", "text")], fail))
    with pytest.raises(SqlError) as caught:
        await db.query("SELECT * FROM t")
    assert len(str(caught.value)) < 2_100
    result = await db.query(f"SELECT '{'x' * 10_000}' AS \"n:count\"")
    await db.aclose()
    assert len(result.errors) == 1
    assert len(result.errors[0]) < 300
