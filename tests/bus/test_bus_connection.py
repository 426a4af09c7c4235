"""An agent's sessions on a bus, with a scripted gateway on a real NATS server."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from certificates import make_certificates
from nats_accounts import Accounts
from nats_server import NatsServer, nats_server
from prepared_rows import IDENTITY, PreparedRows, columns
from scripted_gateway import BusClient, scripted_gateway
from waiting import until

from zeek_agent import destination
from zeek_agent.bus import credentials, link, messages, subjects
from zeek_agent.bus.cluster import turn
from zeek_agent.bus.cluster_places import CLUSTERS_MAX
from zeek_agent.bus.connection import BusConnection
from zeek_agent.bus.credentials import BusFiles
from zeek_agent.bus.messages import Beacon, Refusal
from zeek_agent.bus.session import BusTransport, Times
from zeek_agent.bus.subjects import ROAMING, Address, Down
from zeek_agent.config.sections import BusSettings, BusTlsSettings, ZeekSettings
from zeek_agent.errors import UsageError
from zeek_agent.platforms.linux import Linux
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.connection_errors import UnusableError
from zeek_agent.zeek.protocol import AgentError, AgentHello, AgentShutdown, ResultBatch, ResultRow

FAST = ZeekSettings(hello_interval=60.0, reconnect_min=0.02, reconnect_max=0.1, script_timeout=60.0)
TIMES = Times(beat=0.2, silence=20.0, hello=2.0, grant=10.0, probe=0.5, tick=0.05, uninvited=60.0, server=5.0)


@dataclass
class Agent:
    """A connection with a real query runner on prepared results."""

    connection: BusConnection
    runner: QueryRunner
    task: asyncio.Task[None]

    def row(self, name: str = "nats:main") -> Any:
        """The row of `zeek_agent_connections` with that destination, or None."""
        return next((one for one in self.connection.statuses() if one.destination == name), None)


@asynccontextmanager
async def agent(
    *urls: str,
    rows: PreparedRows | None = None,
    bus: BusSettings = BusSettings(),  # noqa: B008 - frozen
    times: Times = TIMES,
    **settings: object,
) -> AsyncIterator[Agent]:
    runner = QueryRunner(database := rows or PreparedRows())  # type: ignore[arg-type]
    connection = BusConnection(
        destination.parse_all(urls)[0],
        bus,
        BusFiles(Path(bus.credentials) if bus.credentials else None, bus.tls),
        msgspec.structs.replace(FAST, **settings),
        IDENTITY,
        database,  # type: ignore[arg-type]
        runner,
        times=times,
        platform=Linux(),
    )
    task = asyncio.create_task(connection.run())
    try:
        yield Agent(connection, runner, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "hub") as started:
        yield started


def query(sql: str = "SELECT 1", event: str = "Test::row", **more: Any) -> Query:
    return Query(sql, event, **more)


def many(number: int, size: int = 400) -> PreparedRows:
    rows = PreparedRows()
    rows.results["SELECT many"] = (columns("count", "text"), [(n, "x" * size) for n in range(number)])
    return rows


def numbers(client: BusClient, query_id: str) -> list[int]:
    """First cells of the rows of a query that arrived."""
    found = client.of(ResultRow, lambda row: row.context.query_id == query_id)
    return [int(broker_json.cells(row.columns)[0]) for row in found]  # type: ignore[call-overload]


async def acknowledge_all(client: BusClient) -> None:
    """Do what our package's script does, until cancelled."""
    done = 0
    while True:
        batches = client.of(ResultBatch)
        for event in batches[done:]:
            await client.acknowledge(event)
        done = len(batches)
        await asyncio.sleep(0.005)


async def test_an_agent_says_hello_and_is_asked_over_the_bus(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url, groups=("Web",)) as one:
        client = await gateway.client()
        hello = await client.expect(AgentHello)
        await client.hello()
        await client.install("q1", query())
        row = await client.expect(ResultRow)
        status = one.row()
    assert client.greeting is not None
    assert (client.greeting.instance, client.greeting.groups) == (IDENTITY.instance, ("Web", "linux"))
    assert hello.context.agent_id == row.context.agent_id == IDENTITY.agent
    assert row.context.query_id == "q1"
    assert (status.state, status.instances, status.zeek_version) == ("connected", 1, gateway.ack.version)
    assert client.violations == []


async def test_a_server_that_does_not_pass_the_agents_site_is_named_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It passes on beacons, but there is no listener for hellos."""
    monkeypatch.setattr("zeek_agent.bus.link.random.sample", lambda servers, _: list(servers))
    with nats_server(tmp_path / "leaf-ber") as foreign, nats_server(tmp_path / "hub") as hub:
        urls = f"{foreign.url},{hub.url.removeprefix('nats://')}"
        async with (
            scripted_gateway(foreign.url) as deaf,
            scripted_gateway(hub.url, name="gw2") as gateway,
        ):
            await deaf.leave()
            async with agent(urls) as one:
                client = asyncio.create_task(gateway.client())
                while not client.done():
                    await deaf.beacon()
                    await asyncio.sleep(0.1)
                await until(lambda: one.connection.clusters and one.connection.clusters[0].session)
    assert (
        f"{foreign.url.removeprefix('nats://')} (leaf-ber) does not pass on hellos of agents of site roaming"
        in caplog.text
    )
    assert "though gateways of cluster main are heard there" in caplog.text


async def test_the_only_server_is_kept_even_if_it_does_not_pass_the_agents_site(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url) as one:
        await gateway.leave()
        while "does not pass on hellos" not in caplog.text:
            await gateway.beacon()
            await asyncio.sleep(0.1)
        (bus,) = [row for row in one.connection.statuses() if row.destination == server.url]
        assert "does not pass on hellos of agents of site roaming" in (bus.last_error or "")
        assert bus.reconnects == 0


async def test_a_gateway_that_starts_later_is_found_by_its_beacon(server: NatsServer) -> None:
    async with agent(server.url) as one:
        await until(lambda: one.connection.statuses()[0].endpoint)
        (status,) = one.connection.statuses()
        assert (status.destination, status.state) == (f"{server.url}", "connecting")
        async with scripted_gateway(server.url) as gateway:
            await (await gateway.client()).expect(AgentHello)
            assert gateway.asked == 0


async def test_a_gateway_that_is_there_is_found_without_a_beacon(server: NatsServer) -> None:
    async with scripted_gateway(server.url, beacons=False) as gateway, agent(server.url):
        await (await gateway.client()).expect(AgentHello)
        assert gateway.asked == 1


async def test_messages_that_follow_the_welcome_at_once_are_handled(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway:
        hello = protocol.zeek_hello(protocol.host_topic(IDENTITY.agent), protocol.ZeekHello("zeek_1", "9.1"))
        install = protocol.install_query(protocol.host_topic(IDENTITY.agent), "zeek_1", "q1", query())
        sent: list[asyncio.Task[None]] = []

        def send_before_welcome(client: BusClient) -> None:
            async def send() -> None:
                for frame in (hello, install):
                    await client.send(frame)

            sent.append(asyncio.get_running_loop().create_task(send()))

        gateway.prepare = send_before_welcome
        async with agent(server.url):
            await (await gateway.client()).expect(ResultRow)


async def test_large_reports_wait_for_grants_and_arrive_in_order(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=many(3_000)) as one:
        client = await gateway.client()
        await client.install("q1", query("SELECT many"))
        await client.expect(ResultRow, number=3_000)
        await until(lambda: one.row().queued_rows == 0 and one.row().unacknowledged_bytes == 0)
        assert one.row().dropped_rows == 0
    assert numbers(client, "q1") == list(range(3_000))
    assert len(client.wants) >= 10
    assert client.violations == []


async def test_without_a_grant_nothing_large_is_sent_and_the_wish_is_repeated(server: NatsServer) -> None:
    quick = Times(beat=0.2, silence=20.0, hello=2.0, grant=0.2, probe=0.5, tick=0.05, uninvited=60.0, server=5.0)
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=many(100), times=quick) as one:
        client = await gateway.client()
        client.grants = False
        await client.install("q1", query("SELECT many"))
        await until(lambda: len(client.wants) >= 3)
        assert numbers(client, "q1") == []
        assert one.row().queued_rows == 100
        assert client.wants[0].bytes > messages.SMALL_BATCH_BYTES
        client.grants = True
        await client.grant()
        await client.expect(ResultRow, number=100)
    assert numbers(client, "q1") == list(range(100))
    assert client.violations == []


async def test_small_reports_overtake_a_large_one_that_waits(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=many(2_000)):
        client = await gateway.client()
        client.grants = False
        await client.install("bulk", query("SELECT many"))
        await until(lambda: client.wants)
        await client.install("claims", query())
        await client.expect(ResultRow, lambda row: row.context.query_id == "claims")
        assert numbers(client, "bulk") == []
        client.acknowledges = False
        await client.install("held", query())
        await client.expect(ResultRow, lambda row: row.context.query_id == "held")
        await client.install("behind", query())  # nothing goes unasked while a batch is not acknowledged
        await asyncio.sleep(0.3)
        assert numbers(client, "behind") == []
        client.acknowledges = client.grants = True
        await client.grant()
        await client.expect(ResultRow, number=2_003)
    assert numbers(client, "bulk") == list(range(2_000))
    assert client.events.index(client.of(ResultRow, lambda row: row.context.query_id == "behind")[0]) < 10
    assert client.violations == []


async def test_an_acknowledgement_can_bring_the_next_grant(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=many(600)):
        client = await gateway.client()
        client.grants = client.acknowledges = False
        await client.expect(AgentHello)
        await client.ack(1)
        await client.install("bulk", query("SELECT many"))
        await until(lambda: client.wants)
        await client.grant()
        await until(lambda: len(client.batches) == 2 and len(client.wants) == 2)
        await client.ack(2, grant=True)
        await until(lambda: len(client.batches) == 3)
    assert client.violations == []


async def test_a_grant_lapses_that_comes_too_late_to_be_used(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=many(100)) as one:
        client = await gateway.client()
        client.grants = False
        await client.install("bulk", query("SELECT many"))
        await until(lambda: client.wants)
        await client.cancel("bulk")
        await until(lambda: one.row().queued_rows == 0)
        await client.grant(0.2)
        await asyncio.sleep(0.3)
        await client.install("again", query("SELECT many"))
        await until(lambda: len(client.wants) == 2)
        assert numbers(client, "again") == []
        client.grants = True
        await client.grant()
        await client.expect(ResultRow, number=100)
    assert client.violations == []


@pytest.mark.parametrize("event", [protocol.ROWS, "Test::row"])
async def test_a_row_that_is_too_long_is_left_out_with_an_error(server: NatsServer, event: str) -> None:
    rows = PreparedRows()
    long = "y" * messages.BATCH_BYTES_MAX
    rows.results["SELECT long"] = (columns("count", "text"), [(1, "a"), (2, long), (3, "c")])
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=rows) as one:
        client = await gateway.client()
        await client.hello(features=frozenset({protocol.BATCHES}))
        acknowledging = asyncio.create_task(acknowledge_all(client))
        repeated = query("SELECT long", event, schedule=0.1, subscription=Subscription.SNAPSHOTS)
        await client.install("q1", repeated)
        error = await client.expect(AgentError, number=2)
        await until(lambda: one.runner.installed[0].runs >= 3)
        acknowledging.cancel()
        if event == protocol.ROWS:
            found = [batch.rows for batch in client.of(ResultBatch, lambda each: each.context.query_id == "q1")][:3]
            assert found == ['[{"c0":1,"c1":"a"}]', "[]", '[{"c0":3,"c1":"c"}]']
        else:
            assert numbers(client, "q1")[:4] == [1, 3, 1, 3]
        assert one.row().dropped_rows >= 2
    assert error.context.query_id == "q1"
    assert "a row of 787," in error.message
    assert "is left out" in error.message
    assert client.violations == []


async def test_rows_wait_while_the_gateway_has_no_zeek(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=many(100)) as one:
        client = await gateway.client()
        client.acknowledges = False
        await client.hello()
        await client.install("q1", query("SELECT 1", schedule=0.05, subscription=Subscription.SNAPSHOTS))
        await client.expect(ResultRow)
        assert len(one.runner.installed) == 1
        await client.gone()
        await until(lambda: not one.runner.installed)
        assert (one.row().state, one.row().last_error) == ("waiting", "the gateway has lost Zeek")
        before = len(client.of(AgentHello))
        client.acknowledges = True
        await client.back(version="9.9.9")
        await client.install("q2", query("SELECT many"))
        await client.expect(AgentHello, number=before + 1)
        await client.expect(ResultRow, lambda row: row.context.query_id == "q2", number=100)
        assert (one.row().state, one.row().zeek_version) == ("connected", "9.9.9")
    assert numbers(client, "q2") == list(range(100))
    assert len(gateway.greetings) == 1
    assert client.violations == []


async def test_a_session_that_the_gateway_ends_is_followed_by_another(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url) as one:
        client = await gateway.client()
        await client.expect(AgentHello)
        await client.again(reason="it is being tested")
        other = await gateway.client()
        await other.expect(AgentHello)
        assert "ended the session: it is being tested" in one.row().last_error
    assert other.session != client.session
    assert other.batches[0][0] == 1


async def test_another_gateway_takes_over_from_one_that_is_gone(server: NatsServer) -> None:
    async with scripted_gateway(server.url, name="gw2", beacons=False) as second, agent(server.url) as one:
        await second.leave()
        async with scripted_gateway(server.url) as first:
            await (await first.client()).expect(AgentHello)
            await second.start()
        await (await second.client()).expect(AgentHello)
        assert "is gone" in one.row().last_error


async def test_a_batch_that_no_gateway_receives_ends_the_session_at_once(server: NatsServer) -> None:
    slow = Times(beat=60.0, silence=200.0, probe=200.0, tick=60.0)
    async with scripted_gateway(server.url, name="gw2", beacons=False) as second, agent(server.url, times=slow) as one:
        await second.leave()
        async with scripted_gateway(server.url) as first:
            client = await first.client()
            await client.install("q1", query(schedule=0.05, subscription=Subscription.SNAPSHOTS))
            await client.expect(ResultRow)
            await second.start()
        await (await second.client()).expect(AgentHello)
        assert "is gone" in one.row().last_error


async def test_an_agent_moves_when_a_beacon_names_its_gateway_as_gone(server: NatsServer) -> None:
    slow = Times(beat=60.0, silence=200.0)
    async with scripted_gateway(server.url) as gateway, agent(server.url, times=slow):
        client = await gateway.client()
        await client.expect(AgentHello)
        for gone, subject in (("gw2", "main"), ("gw1", "other"), ("gw1", "main")):
            beacon = messages.encode(Beacon("gw3", gone=gone))
            await gateway.link.publish(subjects.all_agents(subject), beacon)
        await (await gateway.client()).expect(AgentHello)
        assert client.session != list(gateway.sessions)[-1]


async def test_a_silent_gateway_is_left(server: NatsServer) -> None:
    times = Times(beat=0.2, silence=3.0, hello=5.0, probe=0.2, tick=0.1, uninvited=0.1, server=5.0)
    async with scripted_gateway(server.url) as gateway, agent(server.url, times=times) as one:
        client = await gateway.client()
        await client.expect(AgentHello)
        gateway.sessions.clear()
        await gateway.client()
        assert "has been silent for" in one.row().last_error


async def test_pings_are_answered_even_if_there_are_too_many(server: NatsServer) -> None:
    slow = Times(beat=60.0, silence=200.0, tick=60.0)
    async with scripted_gateway(server.url) as gateway, agent(server.url, times=slow):
        client = await gateway.client()
        await client.expect(AgentHello)
        await client.ping()
        await until(lambda: client.beats == 1)
        for _ in range(1_000):
            await client.ping()
        await until(lambda: client.beats >= 2)
        await asyncio.sleep(0.5)
    assert client.beats < 10


async def test_a_refused_agent_comes_again_when_a_beacon_invites_it(server: NatsServer) -> None:
    async with scripted_gateway(server.url, beacons=False) as gateway:
        gateway.refusal = Refusal("another has this id", 3600.0)
        async with agent(server.url) as one:
            await until(
                lambda: (
                    "another has this id" in (one.connection.clusters[0].status().last_error or "")
                    if one.connection.clusters
                    else None
                )
            )
            greetings = len(gateway.greetings)
            await asyncio.sleep(0.3)
            assert len(gateway.greetings) == greetings
            gateway.refusal = None
            await gateway.beacon()
            await (await gateway.client()).expect(AgentHello)


async def test_agents_of_an_outage_come_back_spread_by_their_ids(server: NatsServer) -> None:
    turns = sorted(turn(f"H{random.randrange(2**64):x}") for _ in range(1_000))
    assert all(0 <= one < 1 for one in turns)
    assert max(abs(one - (rank + 0.5) / 1_000) for rank, one in enumerate(turns)) < 0.1
    async with scripted_gateway(server.url, beacons=False) as gateway:
        gateway.answers = False
        times = Times(hello=2.0, uninvited=60.0)
        async with agent(server.url, times=times, bus=BusSettings(clusters=("main",))):
            await until(lambda: gateway.greetings)
            gateway.answers = True
            await gateway.beacon(1.0 / turn(IDENTITY.agent))  # its turn is after a second
            with pytest.raises(TimeoutError):
                await gateway.client(0.5)
            await gateway.client()


async def test_only_named_clusters_get_a_session(server: NatsServer) -> None:
    bus = BusSettings(clusters=("main",))
    async with (
        scripted_gateway(server.url, "main") as wanted,
        scripted_gateway(server.url, "other", "gw2") as other,
        agent(server.url, bus=bus),
    ):
        await (await wanted.client()).expect(AgentHello)
        await other.beacon()
        await asyncio.sleep(0.2)
    assert other.greetings == []


async def test_invented_clusters_do_not_keep_out_one_that_serves_the_agent(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zeek_agent.bus.cluster_places.TRIAL_SECONDS", 0.5)
    async with scripted_gateway(server.url, "hostile", "gw9", beacons=False) as hostile, agent(server.url) as one:
        await until(lambda: hostile.asked)
        invented = [f"c{number}" for number in range(200)]
        for name in invented:
            await hostile.link.publish(
                subjects.who_replies(Address(ROAMING, IDENTITY.agent)), messages.encode(Beacon("gw9", cluster=name))
            )
            await hostile.link.publish(subjects.all_agents(name), messages.encode(Beacon("gw9")))
        await until(lambda: len(one.connection.clusters) == CLUSTERS_MAX)
        async with scripted_gateway(server.url, "main") as gateway:
            await asyncio.sleep(0.6)
            await gateway.beacon()
            await (await gateway.client()).expect(AgentHello)
            await hostile.link.publish(subjects.all_agents("another"), messages.encode(Beacon("gw9")))
            await until(lambda: "another" in {cluster.name for cluster in one.connection.clusters})
            assert len(one.connection.clusters) == CLUSTERS_MAX
            assert one.row("nats:main").state == "connected"
    warnings = [text for text in caplog.messages if "too many clusters on the bus" in text]
    assert 1 <= len(warnings) <= 4


async def test_clusters_have_sessions_and_recipients_of_their_own(server: NatsServer) -> None:
    async with (
        scripted_gateway(server.url, "a", "gw1") as first,
        scripted_gateway(server.url, "b", "gw2") as second,
        agent(server.url) as one,
    ):
        clients = [await first.client(), await second.client()]
        for client in clients:
            await client.install(f"q-{client.session}", query(schedule=60, subscription=Subscription.SNAPSHOTS))
            await client.expect(ResultRow)
        recipients = {each.recipient.identity for each in one.runner.installed}
        assert recipients == {"nats:a", "nats:b"}
        assert {status.destination for status in one.connection.statuses()} == recipients
        await clients[0].gone()
        await until(lambda: len(one.runner.installed) == 1)
        assert one.row("nats:b").state == "connected"


async def test_a_stop_is_announced_to_every_cluster(server: NatsServer) -> None:
    async with (
        scripted_gateway(server.url, "a", "gw1") as first,
        scripted_gateway(server.url, "b", "gw2") as second,
        agent(server.url) as one,
    ):
        clients = [await first.client(), await second.client()]
        for client in clients:
            await client.hello(instance=f"zeek_{client.session}")
            await client.expect(AgentHello)
        await until(lambda: all(status.instances for status in one.connection.statuses()))
        instances = await one.connection.shutdown()
        for client in clients:
            await client.expect(AgentShutdown)
            await until(lambda client=client: client.byes == 1)  # type: ignore[misc]
        await asyncio.wait_for(one.task, 5)
    assert set(instances) == {f"zeek_{client.session}" for client in clients}


async def test_ten_queries_get_their_rows(server: NatsServer) -> None:
    rows = many(500)
    for number in range(10):
        rows.results[f"SELECT {number}"] = (columns("count"), [(number,)] * 50)
    async with scripted_gateway(server.url) as gateway, agent(server.url, rows=rows) as one:
        client = await gateway.client()
        await client.install("many", query("SELECT many"))
        for number in range(10):
            await client.install(
                f"q{number}", query(f"SELECT {number}", schedule=0.05, subscription=Subscription.SNAPSHOTS)
            )
        for number in range(10):
            await client.expect(ResultRow, lambda row, n=number: row.context.query_id == f"q{n}", number=500)  # type: ignore[misc]
        await until(lambda: len(numbers(client, "many")) == 500)
        assert one.row().queries == 10
    assert all(set(numbers(client, f"q{number}")) == {number} for number in range(10))
    assert client.violations == []


HOSTILE = (
    (Down.ACK, b""),
    (Down.ACK, b'{"number": 10000}'),
    (Down.ACK, b'{"number": -1}'),
    (Down.ACK, b'{"number": 1e400}'),
    (Down.ACK, b"[" * 10_000),
    (Down.ACK, b"x" * (messages.CONTROL_BYTES_MAX + 1)),
    (Down.GRANT, b"\xff"),
    (Down.GRANT, b'{"seconds": 1e9}'),
    (Down.BACK, b"{}"),
    (Down.BACK, b'{"gateway": "gw1", "session": "x.>", "endpoint": "e", "version": "v"}'),
    (Down.BACK, b'{"gateway": "gw2", "session": "s1", "endpoint": "e", "version": "v"}'),
    (Down.AGAIN, b'{"seconds": -1}'),
    (Down.FRAME, b""),
    (Down.FRAME, b"\x00\xff" * 100),
    (Down.FRAME, b"{" * 100_000),
    (Down.FRAME, b'{"type": "ack", "endpoint": "e", "version": "v"}'),
    (Down.FRAME, protocol.install_query("/zeek-agent/query/host/another", "z", "q", Query("SELECT 1", "E")).encode()),
    (Down.FRAME, b"[" + b"1," * 500_000 + b"1]"),
)


async def test_bad_messages_of_a_gateway_are_skipped(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url) as one:
        client = await gateway.client()
        await client.expect(AgentHello)
        for kind, payload in HOSTILE:
            await client.publish(kind, payload)
            await client.publish(kind, payload, session="elsewhere")
        for subject in (
            "za.v1.dn.roaming.Hagent.s1.unknown",
            "za.v1.all.main",
            "za.v1.all.%FF",
            "za.v1.dn.roaming.Hagent.r.who",
        ):
            await gateway.link.publish(subject, b"{}")
        await client.install("q1", query())
        await client.expect(ResultRow)
        assert one.row().state == "connected"
        await until(lambda: not one.runner.installed)
    assert len(gateway.greetings) == 1
    assert "skipped a message" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_flood_of_frames_harms_nothing(server: NatsServer) -> None:
    async with scripted_gateway(server.url) as gateway, agent(server.url) as one:
        client = await gateway.client()
        await client.expect(AgentHello)
        hello = protocol.zeek_hello(client.topic, protocol.ZeekHello("zeek_1", "9.1")).encode()
        for number in range(20):
            await client.publish(Down.FRAME, hello.ljust(900_000))
            for _ in range(500):
                await client.publish(Down.FRAME, hello)
                await client.publish(Down.GRANT, b'{"seconds": 5.0}')
                await client.publish(Down.GRANT, b"{", session=f"elsewhere{number}")
            await gateway.link.flush()
        await client.install("q1", query())
        await client.expect(ResultRow)
        assert one.row().instances == 1


def test_frames_that_the_agent_does_not_handle_are_bounded() -> None:
    transport = BusTransport(None, 0, lambda: None)  # type: ignore[arg-type,return-value]
    for _ in range(16):
        transport.add(bytes(1024 * 1024))
    with pytest.raises(UnusableError, match="faster than the agent handles them"):
        transport.add(b"x")
    transport = BusTransport(None, 0, lambda: None)  # type: ignore[arg-type,return-value]
    for _ in range(10_000):
        transport.add(b"")
    with pytest.raises(UnusableError):
        transport.add(b"")


async def test_welcomes_that_are_not_usable_are_refused(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_gateway(server.url) as gateway:
        answers = iter(
            [
                b"nonsense",
                messages.encode(gateway.welcome("a.b")),
                messages.encode(gateway.welcome("r")),
                messages.encode(gateway.welcome("s", version="v" * 1025)),
                messages.encode(gateway.welcome("s", endpoint="-websocket-1")),
            ]
        )

        async def answer(message: Any) -> None:
            await gateway.link.publish(message.reply, next(answers, b""))

        await gateway.leave()
        await gateway.link.subscribe(subjects.hello("main"), answer)
        async with agent(server.url) as one:
            await until(lambda: caplog.text.count("answers the agent's hello with something else") >= 4)
            await until(lambda: "without a cluster backend" in caplog.text)
            assert not any(cluster.session for cluster in one.connection.clusters)


async def test_the_other_server_is_used_when_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link.random, "sample", lambda servers, _: list(servers))
    with nats_server(tmp_path / "a", 'cluster { name: "c", listen: "127.0.0.1:-1" }') as first:
        route = re.search(r"Listening for route connections on (\S+)", first.log)
        assert route is not None
        joins = f'cluster {{ name: "c", listen: "127.0.0.1:-1", routes: ["nats-route://{route[1]}"] }}'
        with nats_server(tmp_path / "b", joins) as second:
            await until(lambda: "Route connection created" in second.log)
            async with (
                scripted_gateway(second.url) as gateway,
                agent(f"{first.url},127.0.0.1:{second.port}") as one,
            ):
                await (await gateway.client()).expect(AgentHello)
                first.kill()
                client = await gateway.client()
                await client.install("q1", query())
                await client.expect(ResultRow)
                assert "connection to the bus lost" in str(one.connection.status().last_error)
                assert one.connection.status().endpoint == f"127.0.0.1:{second.port}"


async def test_a_server_that_wants_tls_gets_it(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    wanted = f'tls {{ cert_file: "{certificates.path("server.pem")}", key_file: "{certificates.path("server.key")}" }}'
    with nats_server(tmp_path / "hub", wanted) as server:
        tls = BusTlsSettings(ca_file=certificates.ca)
        url = f"tls+nats://127.0.0.1:{server.port}"
        async with agent(url, bus=BusSettings(tls=tls)) as one:
            await until(lambda: one.connection.statuses()[0].endpoint)
        async with agent(url) as stranger:
            await until(lambda: stranger.connection.statuses()[0].last_error)
            assert "bus.tls.ca_file" in str(stranger.connection.statuses()[0].last_error)


async def test_a_server_without_tls_gets_nothing_of_an_agent_that_demands_it(server: NatsServer) -> None:
    async with agent(f"tls+nats://127.0.0.1:{server.port}") as one:
        await until(lambda: one.connection.statuses()[0].last_error)
        assert "does not require TLS" in str(one.connection.statuses()[0].last_error)
        assert one.connection.statuses()[0].endpoint is None


async def test_a_bus_without_servers_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with agent("nats://127.0.0.1:1") as one:
        await until(lambda: one.connection.statuses()[0].reconnects >= 3)
        (status,) = one.connection.statuses()
    assert status.state in {"waiting", "connecting"}
    assert "127.0.0.1:1" in str(status.last_error)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[NatsServer, Accounts]]:
    accounts = Accounts()
    with nats_server(tmp_path / "secured", accounts.configuration) as started:
        yield started, accounts


async def test_credentials_permit_a_session(secured: tuple[NatsServer, Accounts], tmp_path: Path) -> None:
    server, accounts = secured
    file = tmp_path / "agent.creds"
    file.write_text(accounts.agent(IDENTITY.agent))
    bus = BusSettings(credentials=str(file))
    async with (
        scripted_gateway(server.url, credentials=accounts.anybody()) as gateway,
        agent(server.url, bus=bus) as one,
    ):
        client = await gateway.client()
        await client.install("q1", query())
        await client.expect(ResultRow)
        assert one.connection.status().last_error is None


@pytest.mark.parametrize("which", ["none", "missing", "nonsense", "expired", "of another account"])
async def test_wrong_credentials_are_reported_and_tried_again(
    secured: tuple[NatsServer, Accounts], tmp_path: Path, which: str
) -> None:
    server, accounts = secured
    file = tmp_path / "agent.creds"
    if which != "missing":
        file.write_text(
            {
                "none": "",
                "nonsense": "certainly no credentials",
                "expired": accounts.agent(IDENTITY.agent, exp=int(time.time()) - 10),
                "of another account": Accounts().agent(IDENTITY.agent),
            }[which]
        )
    bus = BusSettings(credentials=None if which == "none" else str(file))
    async with (
        scripted_gateway(server.url, credentials=accounts.anybody()) as gateway,
        agent(server.url, bus=bus) as one,
    ):
        error = await until(lambda: one.connection.status().last_error)
        assert re.search("enroll|cannot read the credentials", error)
        file.write_text(accounts.agent(IDENTITY.agent))
        if which != "none":
            await (await gateway.client()).expect(AgentHello)
        else:
            assert gateway.greetings == []


async def test_credentials_of_another_agent_are_of_no_use(
    secured: tuple[NatsServer, Accounts], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, accounts = secured
    file = tmp_path / "agent.creds"
    file.write_text(accounts.agent("Hanother"))
    async with scripted_gateway(server.url, credentials=accounts.anybody()) as gateway:
        async with agent(server.url, bus=BusSettings(credentials=str(file), clusters=("main",))) as one:
            await until(lambda: one.connection.status().last_error)
            await until(lambda: "permissions violation" in caplog.text.lower())
        assert gateway.greetings == []


async def test_an_agent_speaks_from_the_site_of_its_credentials_and_shows_its_token(
    secured: tuple[NatsServer, Accounts], tmp_path: Path
) -> None:
    """Also when it was enrolled at another site while it was running."""
    server, accounts = secured
    file = tmp_path / "agent.creds"
    file.write_text(accounts.agent(IDENTITY.agent, site="fra"))
    async with agent(server.url, bus=BusSettings(credentials=str(file))) as one:
        for site in ("fra", "Oslo-1", ""):
            file.write_text(written := accounts.agent(IDENTITY.agent, site=site))
            server.kill()
            server.start_again()
            async with scripted_gateway(server.url, credentials=accounts.anybody()) as gateway:
                client = await gateway.client()
                await client.expect(AgentHello)
                assert client.address == (site or "roaming", IDENTITY.agent)
                assert client.greeting is not None
                assert client.greeting.token == written.splitlines()[1]
                await until(lambda: one.row().state == "connected")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"site": "a b"}, "does not name one site: a b"),
        ({"groups": 200}, "has 1[0-9],[0-9]{3} characters, 8,192 at most"),
    ],
)
def test_credentials_that_no_gateway_would_accept_are_not_used(
    tmp_path: Path, given: dict[str, Any], fault: str
) -> None:
    file = tmp_path / "agent.creds"
    file.write_text(Accounts().agent("Hx", **given))
    with pytest.raises(UsageError, match=fault):
        credentials.user(BusFiles(file, BusTlsSettings()), "Hx")
    text = Accounts().agent("Hx", site="fra")
    with pytest.raises(UsageError, match="does not name one site: fra, ber"):
        credentials.Claims(nats=credentials._NatsClaims(("site:fra", "site:ber"))).site  # noqa: B018
    assert credentials.claims(text).site == "fra"
