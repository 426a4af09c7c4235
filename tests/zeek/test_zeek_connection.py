"""The connection to Zeek over a real WebSocket: life cycle, delivery, reconnecting, shutting down."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from places import TESTS
from prepared_rows import IDENTITY, columns
from prepared_rows import PreparedRows as Rows
from waiting import until
from zeek_server import BROKER_ACK, CLUSTER_ACK, Client, zeek_server

from zeek_agent.config.sections import ZeekSettings
from zeek_agent.destination import PATH
from zeek_agent.platforms.linux import Linux
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Change, Query, Report, Subscription
from zeek_agent.terminal import doctor
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.connection import ZeekConnection
from zeek_agent.zeek.lasting_connection import ConnectionState
from zeek_agent.zeek.protocol import AgentError, AgentHello, AgentShutdown, ResultRow

FAST = ZeekSettings(
    hello_interval=60.0,
    connect_timeout=2.0,
    ack_timeout=0.3,
    ping_interval=0.2,
    pong_timeout=5.0,
    reconnect_min=0.02,
    reconnect_max=0.1,
)
CAPTURE = TESTS / "captures" / "zeek-9.1-package-2.4-agent-2.3.jsonl"
CAPTURED_AGENT = "H6sCElvPqe0P8W73ADijZGY"


@dataclass
class Agent:
    """A connection with a real query runner on prepared results."""

    connection: ZeekConnection
    runner: QueryRunner
    database: Rows
    task: asyncio.Task[None]

    @property
    def state(self) -> str:
        return self.connection.status().state


@asynccontextmanager
async def agent(url: str, database: Rows | None = None, **settings: object) -> AsyncIterator[Agent]:
    rows = database or Rows()
    runner = QueryRunner(rows)  # type: ignore[arg-type]
    chosen = msgspec.structs.replace(FAST, **settings)
    connection = ZeekConnection(url, chosen, IDENTITY, rows, runner, platform=Linux())  # type: ignore[arg-type]
    task = asyncio.create_task(connection.run())
    try:
        yield Agent(connection, runner, rows, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.close()


@asynccontextmanager
async def connected(database: Rows | None = None, **settings: object) -> AsyncIterator[tuple[Agent, Client]]:
    async with zeek_server() as zeek, agent(zeek.url(), database, **settings) as one:
        client = await zeek.client()
        yield one, client


def query(sql: str = "SELECT 1", **more: Any) -> Query:
    return Query(sql, "Test::row", **more)


def cells(event: ResultRow) -> tuple[object, ...]:
    return tuple(broker_json.cells(event.columns))


def many(number: int) -> Rows:
    rows = Rows()
    rows.results["SELECT many"] = (columns("count", "text"), [(n, "x" * 400) for n in range(number)])
    return rows


async def test_subscribes_and_sends_a_hello_immediately() -> None:
    async with connected(groups=("Web",)) as (one, client):
        hello = await client.expect(AgentHello)
    assert set(client.topics) == {
        "/zeek-agent/query/host/Hagent",
        *(f"/zeek-agent/query/group/{name}" for name in ("all", "linux", "Web", "web")),
        *(f"/zeek-agent/query/group/Hagent/{name}" for name in ("all", "linux", "Web", "web")),
    }
    assert hello.named()["addresses"] == ("192.0.2.1", "fd00::1")
    assert hello.named()["uptime"] == 1.5
    assert len(hello.columns.data) == 12 + 1
    assert hello.features == {"batches", "dialects"}
    assert hello.context.query_id is not None
    assert hello.context.query_id.startswith("agent_hello_")
    assert one.connection.status().reconnects == 0


async def test_presents_one_constant_application_name_on_the_one_path() -> None:
    async with zeek_server() as zeek, agent(zeek.url()):
        await zeek.client()
    assert zeek.requests == ["/v1/messages/json"]
    assert zeek.applications[0] is not None
    assert zeek.applications[0].startswith("zeek-agent/")


async def test_old_servers_get_a_thirteenth_hello_field() -> None:
    async with zeek_server(BROKER_ACK) as zeek, agent(zeek.url()):
        hello = await (await zeek.client()).expect(AgentHello)
    assert len(hello.columns.data) == 13
    assert hello.named()["broker"] == "n/a"
    assert hello.named()["uptime"] == 1.5


@pytest.mark.parametrize("ack", [BROKER_ACK, CLUSTER_ACK])
async def test_brokers_server_gets_no_short_frames_which_is_logged_once(
    ack: protocol.Ack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with zeek_server(ack) as zeek, agent(zeek.url(), many(300)) as one:
        (await zeek.client()).abort()
        client = await zeek.client()
        await client.install("q1", query("SELECT many"))
        last = await client.expect(ResultRow, number=300)
        status = one.connection.status()
    assert cells(last) == (299, "x" * 400)
    assert status.dropped_rows == 0
    assert (status.sent_bytes >= 300 * 2048) == ack.is_broker
    assert sum("Broker's own server" in record.message for record in caplog.records) == ack.is_broker


async def test_a_zeek_that_sends_its_hello_first_gets_another_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeek_agent.zeek.session.HELLO_REPLY_SECONDS", 0.2)
    async with connected() as (_, client):
        await client.expect(AgentHello)
        await client.hello()  # an answer
        await asyncio.sleep(0.3)
        assert len(client.of(AgentHello)) == 1
        await client.hello(instance="zeek_2")  # one that missed it
        await client.expect(AgentHello, number=2)
        assert len({hello.context.query_id for hello in client.of(AgentHello)}) == 1


@pytest.mark.parametrize(
    ("name", "changed"),
    [("hostname", "renamed"), ("addresses", ("192.0.2.9",)), ("tables", ("users", "osquery_time"))],
)
async def test_a_new_host_name_new_addresses_and_tables_are_sent_immediately(
    monkeypatch: pytest.MonkeyPatch, name: str, changed: str | tuple[str, ...]
) -> None:
    monkeypatch.setattr("zeek_agent.zeek.session.HELLO_CHECK_INTERVAL_SECONDS", 0.02)
    async with connected() as (one, client):
        await client.expect(AgentHello)
        kinds, (row,) = one.database.results["SELECT * FROM zeek_agent"]
        index = protocol.HELLO_FIELDS.index("uptime")
        row = (*row[:index], 99.0, *row[index + 1 :])
        one.database.results["SELECT * FROM zeek_agent"] = (kinds, [row])
        await asyncio.sleep(0.2)
        assert len(client.of(AgentHello)) == 1, "nobody wants to hear of each second of uptime"
        index = protocol.HELLO_FIELDS.index(name)
        one.database.results["SELECT * FROM zeek_agent"] = (kinds, [(*row[:index], changed, *row[index + 1 :])])
        await client.expect(AgentHello, number=2)
        await asyncio.sleep(0.2)
    first, second = client.of(AgentHello)
    assert second.named()[name] == changed
    assert first.context.query_id == second.context.query_id


async def test_repeats_the_hello_under_one_id_until_it_reconnects() -> None:
    async with zeek_server() as zeek, agent(zeek.url(), hello_interval=0.03):
        client = await zeek.client()
        await client.expect(AgentHello, number=3)
        client.abort()
        again = await (await zeek.client()).expect(AgentHello)
    ids = {hello.context.query_id for hello in client.of(AgentHello)}
    assert len(ids) == 1
    assert again.context.query_id not in ids


async def test_runs_a_query_once_and_sends_its_row_to_the_instance() -> None:
    async with connected() as (one, client):
        await client.install("q1", query(cookie="cake\\1"))
        row = await client.expect(ResultRow)
        await until(lambda: not one.runner.installed)
    assert (row.event, cells(row)) == ("Test::row", (1,))
    assert (row.context.agent_id, row.context.query_id, row.context.cookie) == ("Hagent", "q1", "cake\\1")
    assert row.context.change is None


async def test_reports_changes_with_their_kind() -> None:
    rows = Rows()
    rows.results["SELECT things"] = (columns("text"), [("a",)])
    async with connected(rows) as (one, client):
        await client.install("q1", query("SELECT things", schedule=0.05, subscription=Subscription.DIFFERENCES))
        await until(lambda: one.runner.installed[0].runs > 0 if one.runner.installed else False)
        rows.results["SELECT things"] = (columns("text"), [("b",)])
        await client.expect(ResultRow, number=2)
    assert [(row.context.change, cells(row)) for row in client.of(ResultRow)] == [
        (Change.DELETE, ("a",)),
        (Change.ADD, ("b",)),
    ]


async def test_sub_second_schedules_are_kept() -> None:
    async with connected() as (one, client):
        await client.install("q1", query(schedule=0.5, subscription=Subscription.SNAPSHOTS))
        await client.expect(ResultRow)
        assert one.runner.installed[0].query.schedule == 0.5


async def test_a_second_query_of_the_same_id_is_ignored() -> None:
    async with connected() as (one, client):
        for _ in range(2):
            await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.install("q2", query())
        await client.expect(ResultRow, lambda row: row.context.query_id == "q2")
        await until(lambda: [installed.query_id for installed in one.runner.installed] == ["q1"])
        assert one.connection.status().queries == 1
        assert len(client.of(ResultRow)) == 2


async def test_an_instance_cancels_its_own_queries_only() -> None:
    async with connected() as (one, client):
        await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.install("q2", query(schedule=60.0, subscription=Subscription.SNAPSHOTS), "zeek_2")
        await client.expect(ResultRow, number=2)
        await client.cancel("q1", "zeek_2")
        await client.cancel("q2", "zeek_2")
        await until(lambda: len(one.runner.installed) == 1)
        assert one.runner.installed[0].query_id == "q1"
        await client.cancel("q1")
        await until(lambda: not one.runner.installed)


async def test_a_statement_that_does_not_compile_is_reported() -> None:
    async with connected() as (one, client):
        await client.install("q1", query("SELECT * FROM nowhere", cookie="c"))
        error = await client.expect(AgentError)
        await until(lambda: not one.runner.installed)
    assert error.message == (
        "could not compile query (failed to compile SQL statement: SELECT * FROM nowhere (no such table: nowhere))"
    )
    assert (error.context.query_id, error.context.cookie) == ("q1", "c")


async def test_a_failed_statement_is_reported_and_runs_again() -> None:
    async with connected() as (one, client):
        await client.install("q1", query("SELECT broken", schedule=0.05, subscription=Subscription.SNAPSHOTS))
        error = await client.expect(AgentError)
        await until(lambda: one.runner.installed[0].runs > 2)
    assert "no luck" in error.message


async def test_two_instances_get_their_own_rows_and_ends() -> None:
    async with connected() as (one, client):
        await client.hello()
        await client.hello(instance="zeek_2")
        await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.install("q2", query(schedule=60.0, subscription=Subscription.SNAPSHOTS), "zeek_2")
        await client.expect(ResultRow, number=2)
        assert one.connection.status().instances == 2
        await client.shut_down()
        await until(lambda: one.connection.status().instances == 1)
        assert [installed.query_id for installed in one.runner.installed] == ["q2"]


async def test_a_silent_instance_is_forgotten_with_its_queries() -> None:
    async with connected(instance_timeout=0.2) as (one, client):
        await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.expect(ResultRow)
        await until(lambda: one.connection.status().instances == 0)
        assert not one.runner.installed


@pytest.mark.parametrize("version", ["2.0.2-7", "1.9.9", "0.4.22"])
async def test_a_package_that_is_too_old_gets_an_error_and_is_ignored(version: str) -> None:
    async with connected() as (one, client):
        await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.expect(ResultRow)
        await client.hello(version)
        error = await client.expect(AgentError)
        await client.install("q2", query())
        await client.hello(version)
        await client.hello(instance="zeek_2")
        await until(lambda: one.connection.status().instances == 2)
        assert version in error.message
        assert not one.runner.installed
        assert len(client.of(AgentError)) == len(client.of(ResultRow)) == 1


@pytest.mark.parametrize("version", ["", "2.0.2-8", "2.4.0", "v2.4-0", "master"])
async def test_other_packages_are_served(version: str) -> None:
    async with connected() as (_, client):
        await client.hello(version)
        await client.install("q1", query())
        await client.expect(ResultRow)


async def test_a_query_with_fields_of_a_newer_zeek_is_accepted() -> None:
    record = protocol.query_record(query())
    longer = (
        record.removesuffix("]}")
        + f",{broker_json.NONE},{broker_json.boolean(True)},{broker_json.address('192.0.2.1')}]}}"
    )
    async with connected() as (_, client):
        arguments = (broker_json.string("zeek_1"), broker_json.string("q1"), longer)
        await client.send(protocol.event_message(client.topic, protocol.INSTALL_QUERY, *arguments))
        assert cells(await client.expect(ResultRow)) == (1,)


async def test_messages_to_a_group_with_a_longer_name_are_not_taken() -> None:
    async with connected(groups=("web",)) as (one, client):
        for group in ("web-db", "web"):
            topic = protocol.group_topic(group)
            await client.send(protocol.install_query(topic, "zeek_1", group, query()))
        await client.expect(ResultRow)
    assert [row.context.query_id for row in client.of(ResultRow)] == ["web"]
    assert one.database.asked.count("SELECT 1") == 1


async def test_limits_hold_on_queries_and_instances() -> None:
    settings = {"queries_max": 2, "instances_max": 2}
    async with connected(**settings) as (one, client):
        for number in range(3):
            await client.install(f"q{number}", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        error = await client.expect(AgentError)
        for number in range(3):
            await client.hello(instance=f"zeek_{number}")
        await client.install("q9", query(), "zeek_0")
        await client.expect(ResultRow, lambda row: row.context.query_id == "q9")
        await until(lambda: len(one.runner.installed) == 2)
        assert one.connection.status().instances == 2
    assert (error.context.query_id, "limit of 2 queries" in error.message) == ("q2", True)


async def test_one_shot_queries_do_not_use_up_the_limit() -> None:
    async with connected(queries_max=2) as (one, client):
        for number in range(10):
            await client.install(f"q{number}", query())
            await client.expect(ResultRow, number=number + 1)
            await until(lambda: not one.runner.installed)
    assert not client.of(AgentError)


async def test_disconnect_ends_the_queries_and_a_new_connection_starts_clean() -> None:
    async with zeek_server() as zeek, agent(zeek.url()) as one:
        client = await zeek.client()
        await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.expect(ResultRow)
        client.abort()
        await until(lambda: not one.runner.installed)
        again = await zeek.client()
        await again.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await again.expect(ResultRow)
        status = one.connection.status()
    assert (status.state, status.reconnects, status.instances) == ("connected", 1, 1)
    assert status.last_error is not None


async def test_finds_a_zeek_that_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zeek_agent")
    async with zeek_server() as zeek, agent(zeek.url()) as one:
        await zeek.client()
        port = zeek.port
        await zeek.stop()
        await until(lambda: one.connection.status().reconnects > 4)
        async with zeek_server(port=port) as restarted:
            await (await restarted.client()).expect(AgentHello)
            assert one.state == ConnectionState.CONNECTED
            await one.connection.shutdown()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "is shutting down" in warnings[0]
    assert "nothing is listening there" in warnings[1]


async def test_sends_the_shutdown_message_when_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    async with connected() as (one, client):
        await client.install("q1", query(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await client.expect(ResultRow)
        await one.connection.shutdown()
        farewell = await client.expect(AgentShutdown)
        await asyncio.wait_for(one.task, 5)
        await asyncio.wait_for(client.closed.wait(), 5)
        assert farewell.context.query_id is None
        assert one.state == ConnectionState.STOPPED
        assert not one.runner.installed
        assert client.websocket.close_code == 1000
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_stops_in_time_though_zeek_does_not_read() -> None:
    async with connected(many(50_000)) as (one, client):
        client.pause()
        await client.install("q1", query("SELECT many"))
        await until(lambda: one.connection.status().unacknowledged_bytes > 100_000)
        async with asyncio.timeout(20):
            await one.connection.shutdown()
            await one.task
        assert one.connection.status().dropped_rows > 0


async def test_stops_while_it_waits_for_the_next_attempt() -> None:
    async with agent("ws://127.0.0.1:1", reconnect_min=30.0, reconnect_max=60.0) as one:
        await until(lambda: one.state == ConnectionState.WAITING)
        await one.connection.shutdown()
        await asyncio.wait_for(one.task, 20)


async def test_delivers_every_row_of_a_large_result_in_order() -> None:
    async with connected(many(5_000)) as (one, client):
        await client.install("q1", query("SELECT many"))
        await client.expect(ResultRow, number=5_000, seconds=30)
        await until(lambda: one.connection.status().unacknowledged_bytes == 0)
        status = one.connection.status()
    assert [cells(row)[0] for row in client.of(ResultRow)] == list(range(5_000))
    assert (status.sent_rows, status.queued_rows, status.dropped_rows) == (5_000, 0, 0)
    assert status.sent_bytes > 5_000 * 400


async def test_a_small_result_does_not_wait_for_a_large_one() -> None:
    async with connected(many(20_000), window_bytes=65_536, window_bytes_max=65_536) as (_, client):
        await client.install("big", query("SELECT many"))
        await client.expect(ResultRow, lambda row: row.context.query_id == "big")
        await client.install("small", query())
        await client.expect(ResultRow, lambda row: row.context.query_id == "small")
        assert len(client.of(ResultRow, lambda row: row.context.query_id == "big")) < 10_000


async def test_the_loop_never_stalls_for_a_large_result() -> None:
    """Between two turns of the event loop, only a small part of the rows is encoded and sent."""
    async with connected(many(30_000)) as (one, client):
        await client.install("q1", query("SELECT many"))
        most = sent = 0
        while len(client.events) < 20_000:
            await asyncio.sleep(0)
            before, sent = sent, one.connection.status().sent_rows
            most = max(most, sent - before)
    assert 0 < most < 300


@pytest.mark.long
async def test_a_zeek_that_does_not_read_bounds_data_in_flight_and_gets_all_afterwards() -> None:
    rows = many(20_000)
    async with connected(rows, window_bytes=262_144) as (one, client):
        client.pause()
        await client.install("q1", query("SELECT many"))
        await until(lambda: one.connection.status().unacknowledged_bytes > 200_000)
        await asyncio.sleep(1.0)
        paused = one.connection.status()
        assert one.connection.session is not None
        buffered = one.connection.session._transport._websocket.transport.get_write_buffer_size()
        client.resume()
        await client.expect(ResultRow, number=20_000, seconds=60)
        await until(lambda: one.connection.status().queued_rows == 0)
        done = one.connection.status()
    assert paused.unacknowledged_bytes <= 262_144
    assert buffered <= 65_536
    assert paused.queued_rows > 19_000
    assert (paused.state, done.reconnects, done.dropped_rows) == ("connected", 0, 0)


async def test_a_late_pong_leaves_one_batch_in_flight_at_a_time() -> None:
    async with connected(many(400), slow_pong=0.1) as (one, client):
        await client.expect(AgentHello)
        client.pause()
        await client.install("q1", query("SELECT many"))
        await until(lambda: one.connection.status().sent_rows > 0)
        await asyncio.sleep(0.2)
        client.resume()
        await client.expect(ResultRow, number=400)
        await until(lambda: one.connection.status().unacknowledged_bytes == 0)
        assert one.connection.status().window_bytes == 0


async def test_a_dead_zeek_is_disconnected_and_the_rows_are_counted() -> None:
    async with zeek_server() as zeek, agent(zeek.url(), many(5_000), pong_timeout=0.5) as one:
        client = await zeek.client()
        client.pause()
        await client.install("q1", query("SELECT many"))
        await until(lambda: one.connection.status().reconnects == 1)
        status = one.connection.status()
        await zeek.client()
    assert status.dropped_rows == 5_000
    assert one.connection.traffic.dropped_rows == {"disconnected": 5_000}
    assert status.last_error is not None
    assert "no pong" in status.last_error


async def test_a_cancelled_delivery_is_counted() -> None:
    async with connected(many(5_000)) as (one, client):
        client.pause()
        await client.install("q1", query("SELECT many"))
        await until(lambda: one.connection.status().sent_rows > 0)
        await client.cancel("q1")
        await until(lambda: one.connection.status().dropped_rows > 0)
        assert one.connection.traffic.dropped_rows == {"cancelled": 5_000}
        assert one.connection.status().queued_rows == 0
        client.resume()
        await client.install("q2", query())
        await client.expect(ResultRow, lambda row: row.context.query_id == "q2")


async def test_survives_a_zeek_that_breaks_connections_at_random() -> None:
    chance = random.Random(7)
    async with zeek_server() as zeek, agent(zeek.url(), many(400)) as one:
        for number in range(15):
            client = await zeek.client()
            await client.install(f"q{number}", query("SELECT many"))
            await client.expect(ResultRow, number=chance.randint(1, 300))
            client.abort()
        client = await zeek.client()
        await client.install("last", query("SELECT many"))
        await client.expect(ResultRow, number=400)
        await until(lambda: not one.runner.installed)
        status = one.connection.status()
    assert status.reconnects == 15
    assert status.queued_rows == 0
    assert status.sent_rows <= 16 * 400


async def test_hostile_frames_neither_stop_nor_disturb_the_connection() -> None:
    frames: Sequence[bytes] = [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"topic":"x","@data-type":"vector","data":[' + b'{"@data-type":"vector","data":[' * 20_000,
        b'{"type":"data-message","topic":5}',
        b'{"type":"error","code":"deserialization_failed","context":"x"}',
        protocol.event_message("/zeek-agent/query/group/all", protocol.INSTALL_QUERY).encode(),
        protocol.event_message("/zeek-agent/query/group/all", protocol.INSTALL_QUERY, broker_json.count(1)).encode(),
        protocol.event_message("/zeek-agent/query/group/all", "Other::event", broker_json.count(1)).encode(),
        b'{"type":"data-message","topic":"/zeek-agent/query/group/all","data":[{"@data-type":"count","data":'
        + b"9" * 10_000
        + b"}]}",
    ]
    async with connected() as (one, client):
        for frame in frames * 3:
            await client.send(frame)
        await client.install("q1", query())
        await client.expect(ResultRow)
        assert one.connection.status().reconnects == 0


async def test_mutilated_frames_neither_stop_nor_disturb_the_connection() -> None:
    chance = random.Random(11)
    whole = protocol.install_query(protocol.group_topic("all"), "zeek_1", "q", query("SELECT nowhere")).encode()
    async with connected() as (one, client):
        for _ in range(500):
            frame = bytearray(whole)
            for _ in range(chance.randint(1, 5)):
                start = chance.randrange(len(frame))
                frame[start : start + chance.choice([0, 1, 40])] = chance.randbytes(chance.choice([0, 1, 3]))
            await client.send(bytes(frame))
        await client.install("last", query(), instance="zeek_last")
        await client.expect(ResultRow, lambda row: row.context.query_id == "last")
        assert one.connection.status().reconnects == 0


async def test_raw_control_bytes_in_a_query_are_accepted() -> None:
    rows = Rows()
    rows.results["SELECT \x01\x0b\uefff"] = (columns("text"), [("here",)])
    frame = protocol.install_query(protocol.group_topic("all"), "zeek_1", "q1", query("SELECT CONTROL")).encode()
    async with connected(rows) as (_, client):
        await client.send(frame.replace(b"CONTROL", b"\x01\\v\xff"))
        assert cells(await client.expect(ResultRow)) == ("here",)


async def test_an_oversized_message_costs_the_connection_and_no_more() -> None:
    async with zeek_server() as zeek, agent(zeek.url(), message_bytes_max=10_000) as one:
        client = await zeek.client()
        await client.send("x" * 20_000)
        client = await zeek.client()
        await client.expect(AgentHello)
        assert one.connection.status().last_error is not None


async def test_a_missing_acknowledgement_is_explained() -> None:
    async with zeek_server(None) as zeek, agent(zeek.url()) as one:
        await until(lambda: zeek.connections > 1)
        error = one.connection.status().last_error
    assert error is not None
    assert "did not acknowledge" in error
    assert "cluster backend" in error


async def test_a_zeek_without_backend_is_explained() -> None:
    async with zeek_server(protocol.Ack("-websocket-0", "9.1.0")) as zeek, agent(zeek.url()) as one:
        await until(lambda: zeek.connections > 1)
        error = one.connection.status().last_error
    assert error is not None
    assert "without a cluster backend" in error


async def test_a_collector_is_not_taken_for_the_zeek_that_it_imitates(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    collector = protocol.Ack("collector-websocket-1", "9.0.0")
    async with zeek_server(collector) as zeek, agent(zeek.url()) as one:
        await until(lambda: one.connection.status().state == "connected")
        assert one.connection.status().zeek_version is None
        assert f"connected to the collector at {zeek.url()}{PATH}" in caplog.messages
    async with zeek_server() as zeek, agent(zeek.url()) as one:
        await until(lambda: one.connection.status().state == "connected")
        assert one.connection.status().zeek_version == CLUSTER_ACK.version
        assert f"connected to Zeek at {zeek.url()}{PATH}, version {CLUSTER_ACK.version}" in caplog.messages


async def test_a_server_that_closes_without_an_answer_is_explained() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with agent(f"ws://127.0.0.1:{port}") as one:
        await until(lambda: one.connection.status().last_error is not None)
        error = one.connection.status().last_error
    server.close()
    await server.wait_closed()
    assert error is not None
    assert "100 clients" in error


@asynccontextmanager
async def answering(response: str) -> AsyncIterator[int]:
    """The port of a server that answers each request with this, as raw HTTP, and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_refused(status: int) -> None:
    async with zeek_server() as elsewhere:
        target = elsewhere.url() + PATH
        redirect = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        async with answering(redirect) as port, agent(f"ws://127.0.0.1:{port}") as one:
            await until(lambda: one.connection.status().reconnects > 1)
            error = one.connection.status().last_error
        assert elsewhere.connections == 0
    assert error is not None
    assert f"redirects to {target} (HTTP status {status}), which the agent refuses" in error
    assert "zeek.destinations" in error


async def test_a_redirect_with_a_long_target_is_reported_in_short() -> None:
    redirect = f"HTTP/1.1 302 Found\r\nLocation: ws://x/{'y' * 4000}\r\nContent-Length: 0\r\n\r\n"
    async with answering(redirect) as port, agent(f"ws://127.0.0.1:{port}") as one:
        await until(lambda: one.connection.status().last_error is not None)
        error = one.connection.status().last_error
    assert error is not None
    assert "y… (4,007 bytes) (HTTP status 302)" in error
    assert len(error) < 600


async def test_doctor_does_not_follow_a_redirect_either() -> None:
    async with zeek_server() as elsewhere:
        redirect = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url()}\r\nContent-Length: 0\r\n\r\n"
        async with answering(redirect) as port:
            checks = await asyncio.to_thread(lambda: list(doctor._zeek(f"127.0.0.1:{port}", FAST)))
        assert elsewhere.connections == 0
    assert [check.verdict for check in checks] == ["fail"]
    assert "which the agent refuses" in checks[0].found


async def test_an_unsent_hello_is_tried_again() -> None:
    rows = Rows()
    good = rows.results.pop("SELECT * FROM zeek_agent")
    async with connected(rows, hello_interval=0.05) as (_, client):
        await until(lambda: len(rows.asked) > 1)
        rows.results["SELECT * FROM zeek_agent"] = good
        await client.expect(AgentHello)


async def test_an_idle_connection_is_pinged() -> None:
    async with connected(ping_interval=0.02, pong_timeout=5.0) as (one, client):
        await client.expect(AgentHello)
        pings = 0
        original = one.connection.session.sender.send  # type: ignore[union-attr]

        async def counted(frames: Sequence[bytes]) -> Any:
            nonlocal pings
            pings += not frames
            return await original(frames)

        one.connection.session.sender.send = counted  # type: ignore[union-attr, method-assign]
        await until(lambda: pings > 3)


async def test_replays_a_conversation_with_a_real_zeek() -> None:
    """What Zeek 9.1 sent to another agent, sent to this one."""
    lines = [json.loads(line) for line in CAPTURE.read_text().splitlines()]
    spoken = [(line["from"], line["message"].replace(CAPTURED_AGENT, "Hagent")) for line in lines if "message" in line]
    theirs = [text for speaker, text in spoken if speaker == "zeek" and '"ack"' not in text]
    events = [protocol.zeek_event(protocol.read_message(text)) for text in theirs]  # type: ignore[arg-type]
    wanted = {event.query_id: event.query for event in events if isinstance(event, protocol.InstallQuery)}
    rows = Rows(tables=dict.fromkeys(["system_logs_events"]))
    for one_query in wanted.values():
        rows.results[one_query.sql] = (columns("text"), [])
    async with connected(rows) as (one, client):
        hello = await client.expect(AgentHello)
        for text in theirs:
            await client.send(text)
        await until(lambda: len(one.runner.installed) == 9 and all(each.runs for each in one.runner.installed))
        for one_query in wanted.values():
            rows.results[one_query.sql] = (columns("text"), [(one_query.sql,)])
        assert {each.query_id: each.query for each in one.runner.installed} == wanted
        assert one.connection.status().instances == 1
    assert set(client.topics) == set(json.loads(next(text for speaker, text in spoken if speaker == "agent")))
    captured = protocol.agent_event(protocol.read_message(spoken[1][1]))  # type: ignore[arg-type]
    assert isinstance(captured, AgentHello)
    assert hello.named().keys() == captured.named().keys() - {"broker"}
    for name, value in zip(protocol.HELLO_FIELDS, hello.columns.data[:12], strict=True):
        assert type(value) is type(captured.columns.data[protocol.HELLO_FIELDS_BROKER.index(name)])


async def test_reports_go_only_through_an_open_connection() -> None:
    async with connected() as (one, client):
        await client.hello()
        await until(lambda: one.connection.status().instances == 1)
        session = one.connection.session
        assert session is not None
        instance = session.instances["zeek_1"]
        client.abort()
        await until(lambda: one.connection.session is not session)
        with pytest.raises(ConnectionError):
            await instance.deliver(Report("q", query(), columns("count"), [(None, (1,))]))


async def test_a_zeek_that_pings_and_does_not_read_is_disconnected() -> None:
    async with zeek_server() as zeek, agent(zeek.url()) as one:
        client = await zeek.client()
        transport = client.websocket.transport
        transport.pause_reading()
        while (told := one.connection.status().last_error) is None:
            if not transport.is_closing():
                transport.write((b"\x89\x7d" + bytes(125)) * 1_000)
            await asyncio.sleep(0)
        assert "1008 more than 65,536 bytes of pongs were not read" in told
        transport.abort()
