"""The collector over a real WebSocket, with a scripted agent."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_log_writer import parse_header, parse_log
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from zeek_agent.collector import intake, pack, server
from zeek_agent.collector.pack import Pack
from zeek_agent.collector.server import Collector, Limits
from zeek_agent.config import CollectorSettings
from zeek_agent.errors import UsageError
from zeek_agent.queries import Change
from zeek_agent.zeek import data, protocol
from zeek_agent.zeek.protocol import Context, InstallQuery, Message, ZeekHello, ZeekShutdown

DATA = Path(__file__).parent / "data"
SETTINGS = CollectorSettings(listen="127.0.0.1:0")

PACK = pack.parse(
    """
    [logs.things]
    fields = [
      { name = "name", type = "string", optional = false },
      { name = "size", type = "count" },
      { name = "at", type = "time" },
      { name = "tags", type = "set[string]" },
      { name = "part.key", type = "string" },
      { name = "part.value", type = "double" },
    ]

    [logs.things-events]
    change = false
    fields = [{ name = "name", type = "string" }]

    [[queries]]
    log = "things"
    sql = "SELECT * FROM things"

    [[queries]]
    log = "things-events"
    sql = "SELECT name FROM things_events"
    subscription = "Events"
    schedule = 0.5
    requires_tables = ["things_events"]
    groups = ["Linux"]
    """,
    "test",
)


class Clock:
    def __init__(self, now: float = 1_800_000_000.25) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Agent:
    """The agent's side, message by message."""

    def __init__(self, connection: ClientConnection, collector: Collector, agent_id: str) -> None:
        self.connection = connection
        self.collector = collector
        self.id = agent_id
        self.hello_id = f"agent_hello_{agent_id}"

    async def subscribe(self) -> protocol.Ack:
        await self.send(protocol.subscription_message(protocol.subscriptions(self.id, (), "linux")))
        acknowledgement = protocol.read_message(await self.receive())
        assert isinstance(acknowledgement, protocol.Ack)
        return acknowledgement

    async def send(self, frame: str | bytes) -> None:
        await self.connection.send(frame)

    async def receive(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.connection.recv(decode=False)

    async def event(self) -> protocol.ZeekEvent | None:
        message = protocol.read_message(await self.receive())
        assert isinstance(message, Message), message
        return protocol.zeek_event(message)

    async def error(self) -> protocol.Error:
        answer = protocol.read_message(await self.receive())
        assert isinstance(answer, protocol.Error)
        return answer

    async def hello(self, **fields: Any) -> None:
        await self.send(protocol.agent_hello(Context(self.id, time.time(), self.hello_id), hello_record(**fields)))

    async def join(self) -> list[protocol.ZeekEvent | None]:
        """Say hello and take what an agent that joins is sent."""
        await self.subscribe()
        await self.hello()
        return [await self.event() for _ in range(1 + len(PACK.queries))]

    async def result(self, *columns: str, event: str = "Collector::things", change: Change | None = Change.ADD) -> None:
        context = Context(self.id, time.time(), "za_x", change)
        topic = protocol.response_topic(self.id, self.collector.instance)
        await self.send(protocol.event_message(topic, event, protocol.context_record(context), data.vector(columns)))


def hello_record(hostname: str = "vm", broker: bool = False, **changed: str) -> str:
    """The encoded columns of a hello."""
    fields = {
        "agent_id": data.string("ignored"),
        "instance_id": data.string("I1"),
        "hostname": data.string(hostname),
        "addresses": data.set_of([data.address("192.0.2.2"), data.address("fd00::2")]),
        "platform": data.string("Linux"),
        "os_name": data.string("Debian GNU/Linux 12 (bookworm)"),
        "kernel_name": data.string("Linux"),
        "kernel_version": data.string("6.1"),
        "kernel_arch": data.string("x86_64"),
        "agent_version": data.count(300_000_000),
        "broker": data.string("n/a"),
        "uptime": data.timespan(1.5),
        "tables": data.set_of([data.string("things")]),
    }
    if not broker:
        del fields["broker"]
    return data.vector((fields | changed).values())


THING = (
    data.string("a thing"),
    data.count(7),
    data.timestamp(1_795_489_125.25),
    data.set_of([data.string("x,y"), data.string("")]),
    data.vector([data.string("key"), data.real(0.5)]),
)


@asynccontextmanager
async def collecting(
    logs: Path, *, settings: CollectorSettings = SETTINGS, given: Pack = PACK, **options: Any
) -> AsyncIterator[Collector]:
    from msgspec.structs import replace

    collector = Collector(replace(settings, logs=str(logs)), given, **options)
    await collector.start()
    try:
        yield collector
    finally:
        await collector.stop()


@asynccontextmanager
async def agent_of(collector: Collector, agent_id: str = "HAbc", path: str = protocol.PATH, **headers: str) -> Any:
    host, port = collector.address
    async with connect(f"ws://{host}:{port}{path}", additional_headers=headers, compression=None) as connection:
        yield Agent(connection, collector, agent_id)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def read(logs: Path, name: str) -> list[dict[str, Any]]:
    content = (logs / f"{name}.log").read_bytes()
    return [dict(zip(parse_header(content)["#fields"], record, strict=True)) for record in parse_log(content)]


async def test_it_answers_the_subscription_as_zeek_does(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as first, agent_of(collector) as second:
        acknowledged = await first.subscribe()
        assert acknowledged.endpoint == "collector-websocket-0"
        assert acknowledged.version == "9.0.0"
        assert not acknowledged.is_broker
        assert not acknowledged.lacks_backend
        assert (await second.subscribe()).endpoint == "collector-websocket-1"


async def test_another_path_is_refused(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector, path="/v1/messages/json/") as agent:
        assert (await agent.error()).code == "invalid_uri"
        with pytest.raises(ConnectionClosed) as closed:
            await agent.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_a_bad_application_name_is_refused(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector:
        async with agent_of(collector, **{"X-Application-Name": "zeek-agent/3.0"}) as agent:
            await agent.subscribe()
        async with agent_of(collector, **{"X-Application-Name": "no spaces"}) as agent:
            assert (await agent.error()).code == "invalid_application_name"
            with pytest.raises(ConnectionClosed):
                await agent.receive()


@pytest.mark.parametrize("first", ['{"a": 1}', "[1]", "nonsense", "[" * 5000, '["x"'])
async def test_a_first_message_that_is_no_subscription_is_refused(tmp_path: Path, first: str) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.send(first)
        assert (await agent.error()).code == "deserialization_failed"
        with pytest.raises(ConnectionClosed):
            await agent.receive()
        assert collector.stats.refused == 1


async def test_an_agent_that_joins_gets_a_hello_and_the_queries(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello()
        frames = [protocol.read_message(await agent.receive()) for _ in range(3)]
        topics = [frame.topic for frame in frames if isinstance(frame, Message)]
        assert topics == [
            "/zeek-agent/query/host/HAbc",
            "/zeek-agent/query/group/HAbc/all",
            "/zeek-agent/query/group/HAbc/linux",
        ]
        hello, *installs = [protocol.zeek_event(frame) for frame in frames if isinstance(frame, Message)]
        assert hello == ZeekHello(collector.instance, "9.0.0", 90000, "")
        assert all(isinstance(install, InstallQuery) for install in installs)
        assert [install.query for install in installs] == [entry.query for entry in PACK.queries]
        assert len({install.query_id for install in installs}) == 2
        assert all(install.query_id.startswith("za_") for install in installs)
        assert {install.instance for install in installs} == {collector.instance}
        assert collector.stats.connected == {"HAbc"}


async def test_instance_ids_differ_from_start_to_start(tmp_path: Path) -> None:
    first, second = Collector(SETTINGS, PACK), Collector(SETTINGS, PACK)
    assert first.instance.startswith("zeek_")
    assert first.instance != second.instance


async def test_rows_become_log_lines(tmp_path: Path) -> None:
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.result(*THING)
        await agent.result(*THING[:1], *[data.NONE] * 4, change=Change.DELETE)
        await agent.result(data.string("it\nhappened"), event="Collector::things_events", change=Change.ADD)
        await agent.result(*THING, data.count(5), change=None)
        await until(lambda: collector.stats.rows == 4)
    leading = {"t": 1_800_000_000.25, "hid": "HAbc", "host": "vm"}
    thing = {
        "name": "a thing",
        "size": 7,
        "at": 1_795_489_125.25,
        "tags": ("x,y", ""),
        "part.key": "key",
        "part.value": 0.5,
    }
    assert read(tmp_path, "things") == [
        leading | {"change": "new"} | thing,
        leading | {"change": "gone"} | dict.fromkeys(thing) | {"name": "a thing"},
        leading | {"change": None} | thing,
    ]
    assert read(tmp_path, "things-events") == [leading | {"name": "it\nhappened"}]
    assert {log.path: log.rows for log in collector.stats.logs} == {
        "things": 3,
        "things-events": 1,
        "zeek-agent": 1,
        "reporter": 0,
    }


async def test_logs_grow_within_a_second_or_so(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.result(*THING)
        await until((tmp_path / "things.log").exists)
        await until(lambda: len(read(tmp_path, "things")) == 1)


async def test_json_logs(tmp_path: Path) -> None:
    from msgspec.structs import replace

    settings = replace(SETTINGS, format="json")
    async with collecting(tmp_path, settings=settings, clock=Clock()) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
    assert json.loads((tmp_path / "things.log").read_text()) == {
        "t": 1_800_000_000.25,
        "hid": "HAbc",
        "host": "vm",
        "change": "new",
        "name": "a thing",
        "size": 7,
        "at": 1_795_489_125.25,
        "tags": ["x,y", ""],
        "part.key": "key",
        "part.value": 0.5,
    }


async def test_the_life_of_an_agent_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL", 0.02)
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector:
        async with agent_of(collector) as agent:
            await agent.join()
            clock.now += 60
            await agent.hello(hostname="renamed")
            await until(lambda: collector.stats.messages == 2)
        async with agent_of(collector) as again:
            again.hello_id = "agent_hello_other"
            assert len(await again.join()) == 3
            await again.send(protocol.agent_shutdown(Context("HAbc", time.time())))
            await until(lambda: collector.stats.messages == 4)
        clock.now += SETTINGS.agent_timeout
        await until(lambda: collector.stats.agents == ())
    lines = read(tmp_path, "zeek-agent")
    assert [line["type_"] for line in lines] == ["join", "update", "reconnect", "shutdown", "offline"]
    assert lines[1] == {
        "ts": 1_800_000_060.25,
        "type_": "update",
        "hid": "HAbc",
        "hostname": "renamed",
        "addresses": ("192.0.2.2", "fd00::2"),
        "version": 300_000_000,
        "uptime": 1.5,
        "platform": "Linux",
        "os_name": "Debian GNU/Linux 12 (bookworm)",
    }


async def test_rows_keep_an_agent_from_going_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL", 0.02)
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector) as agent:
        await agent.join()
        for _ in range(3):
            clock.now += SETTINGS.agent_timeout * 0.6
            await agent.result(*THING)
            await until(lambda: collector.stats.agents[0].last_seen == clock.now)
        assert [line.id for line in collector.stats.agents] == ["HAbc"]
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join"]


async def test_a_hello_with_the_broker_field_is_understood(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello(broker=True)
        assert isinstance(await agent.event(), ZeekHello)
    assert read(tmp_path, "zeek-agent")[0]["uptime"] == 1.5


async def test_a_host_is_unknown_until_its_hello_and_goes_by_its_address_without_a_name(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.result(*THING)
        await agent.hello(hostname="")
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 2)
    assert [line["host"] for line in read(tmp_path, "things")] == ["<unknown>", "192.0.2.2"]


async def test_a_hello_that_cannot_be_logged_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL", 0.02)
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector) as agent:
        await agent.join()
        [before] = collector.stats.agents
        await agent.hello(addresses=data.set_of(['{"@data-type":"address","data":"nowhere"}']))
        assert (await agent.error()).code == "deserialization_failed"
        await agent.hello(hostname="x" * 100_000)
        assert (await agent.error()).code == "deserialization_failed"
        assert collector.stats.agents == (before,)
        clock.now += SETTINGS.agent_timeout
        await until(lambda: collector.stats.agents == ())
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join", "offline"]


async def test_hellos_are_broadcast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HELLO_INTERVAL", 0.05)
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        message = protocol.read_message(await agent.receive())
        assert isinstance(message, Message)
        assert message.topic == "/zeek-agent/query/group/all"
        assert protocol.zeek_event(message) == ZeekHello(collector.instance, "9.0.0", 90000, "")


async def test_stopping_cancels_the_queries_and_says_goodbye(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        installed = {event.query_id for event in await agent.join() if isinstance(event, InstallQuery)}
        await collector.stop()
        cancelled = [await agent.event() for _ in range(2)]
        assert {getattr(event, "query_id", None) for event in cancelled} == installed
        assert await agent.event() == ZeekShutdown(collector.instance)
        with pytest.raises(ConnectionClosed) as closed:
            await agent.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


async def test_agents_are_kept_apart(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector:
        async with agent_of(collector, "HOne") as one, agent_of(collector, "HTwo") as two:
            await one.join()
            await two.join()
            await one.result(*THING)
            await two.result(*THING)
            await until(lambda: collector.stats.rows == 2)
            assert collector.stats.connected == {"HOne", "HTwo"}
            assert collector.stats.connections == 2
            await one.connection.ping()
            with pytest.raises(TimeoutError):  # what was sent to the other did not reach this one
                await asyncio.wait_for(one.connection.recv(), 0.1)
        await until(lambda: collector.stats.connections == 0)
        assert collector.stats.connected == frozenset()
    assert {line["hid"] for line in read(tmp_path, "things")} == {"HOne", "HTwo"}


async def test_an_error_of_an_agent_is_reported(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.send(
            protocol.agent_error(collector.instance, Context("HAbc", 0.0), "no such table: \x1b[31mthings")
        )
        await until(lambda: collector.stats.agent_errors == 1)
    [line] = read(tmp_path, "reporter")
    assert line["level"] == "Reporter::ERROR"
    assert line["message"] == "error from Zeek Agent: no such table: \\x1b[31mthings [HAbc]"


def message(event: str, *arguments: str) -> Callable[[Collector], str]:
    return lambda collector: protocol.event_message(
        protocol.response_topic("HAbc", collector.instance), event, *arguments
    )


CONTEXT = protocol.context_record(Context("HAbc", 0.0, "q", Change.ADD))
HOSTILE: dict[str, Callable[[Collector], str | bytes]] = {
    "no JSON": lambda _: "nonsense",
    "empty": lambda _: b"",
    "bytes": lambda _: b"\xff\xfe\x00",
    "an array": lambda _: "[]",
    "an ack": lambda _: protocol.ack("x", "y"),
    "an error": lambda _: protocol.error("x", "y"),
    "no topic": lambda _: '{"@data-type":"vector","data":[]}',
    "not an event": lambda _: '{"topic":"/zeek-agent/response/all/x","@data-type":"vector","data":[]}',
    "deep nesting": lambda _: (
        '{"topic":"/x","@data-type":"vector","data":' + '[{"@data-type":"vector","data":' * 20_000
    ),
    "deep and closed": lambda _: '{"topic":"/x","data":' + "[" * 50_000 + "]" * 50_000 + "}",
    "unknown event": message("Evil::event", CONTEXT, data.vector(THING)),
    "unknown event of the API": message("ZeekAgentAPI::agent_hello_v2", CONTEXT, data.vector([])),
    "no arguments": message("Collector::things"),
    "no columns": message("Collector::things", CONTEXT),
    "context of the wrong shape": message("Collector::things", data.vector([data.count(1)]), data.vector(THING)),
    "context that is no record": message("Collector::things", data.count(1), data.vector(THING)),
    "too few values": message("Collector::things", CONTEXT, data.vector(THING[:4])),
    "a number for a string": message("Collector::things", CONTEXT, data.vector([data.count(1), *THING[1:]])),
    "an integer for a count": message(
        "Collector::things", CONTEXT, data.vector([THING[0], data.integer(1), *THING[2:]])
    ),
    "a required value that is unset": message("Collector::things", CONTEXT, data.vector([data.NONE, *THING[1:]])),
    "a time that is none": message(
        "Collector::things",
        CONTEXT,
        data.vector([*THING[:2], '{"@data-type":"timestamp","data":"yesterday"}', *THING[3:]]),
    ),
    "a set of the wrong type": message(
        "Collector::things", CONTEXT, data.vector([*THING[:3], data.set_of([data.count(1)]), *THING[4:]])
    ),
    "a set with a hole": message(
        "Collector::things", CONTEXT, data.vector([*THING[:3], data.set_of([data.NONE]), *THING[4:]])
    ),
    "a record that is too short": message(
        "Collector::things", CONTEXT, data.vector([*THING[:4], data.vector([data.string("key")])])
    ),
    "hello of the wrong types": message("ZeekAgentAPI::agent_hello_v1", CONTEXT, data.vector([data.count(1)] * 12)),
    "hello with a bad address": message(
        "ZeekAgentAPI::agent_hello_v1",
        CONTEXT,
        hello_record(addresses=data.set_of(['{"@data-type":"address","data":"a\\tb"}'])),
    ),
    "hello with a bad agent id": message(
        "ZeekAgentAPI::agent_hello_v1", protocol.context_record(Context("../x\n", 0.0, "q")), hello_record()
    ),
    "hello without a query id": message(
        "ZeekAgentAPI::agent_hello_v1", protocol.context_record(Context("HAbc", 0.0)), hello_record()
    ),
    "error that is no text": message("ZeekAgentAPI::agent_error_v1", CONTEXT, data.count(1)),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_message_is_an_error_and_nothing_else(
    tmp_path: Path, hostile: Callable[[Collector], str | bytes]
) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.result(*THING)
        await agent.send(hostile(collector))
        assert (await agent.error()).code == "deserialization_failed"
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 2)
        assert collector.stats.refused == 1
        assert [held.id for held in collector.stats.agents] == ["HAbc"]
    assert len(read(tmp_path, "things")) == 2
    [line] = read(tmp_path, "reporter")
    assert "\n" not in line["message"]
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join"]


async def test_a_message_for_another_instance_is_ignored(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        topic = protocol.response_topic("HAbc", "zeek_other")
        await agent.send(protocol.event_message(topic, "Collector::things", CONTEXT, data.vector(THING)))
        await until(lambda: collector.stats.ignored == 1)
        assert (collector.stats.rows, collector.stats.refused) == (0, 0)


async def test_a_message_that_is_too_large_ends_the_connection_of_its_sender_only(tmp_path: Path) -> None:
    limits = Limits(message_bytes=10_000)
    async with collecting(tmp_path, limits=limits) as collector, agent_of(collector) as agent:
        await agent.join()
        async with agent_of(collector, "HBig") as other:
            await other.subscribe()
            await other.send("x" * 20_000)
            with pytest.raises(ConnectionClosed) as closed:
                await other.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        await until(lambda: collector.stats.refused == 1)
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)


async def test_connections_and_agents_are_limited(tmp_path: Path) -> None:
    limits = Limits(connections=2, agents=1)
    async with collecting(tmp_path, limits=limits) as collector, agent_of(collector, "HOne") as one:
        await one.join()
        async with agent_of(collector, "HTwo") as two:
            await two.subscribe()
            await two.hello()
            assert (await two.error()).code == "deserialization_failed"
            with pytest.raises(InvalidStatus):
                async with agent_of(collector, "HThree"):
                    pass
        await until(lambda: collector.stats.connections == 1)
        async with agent_of(collector, "HTwo") as again:
            await again.subscribe()
            assert [held.id for held in collector.stats.agents] == ["HOne"]


async def test_a_flood_of_errors_does_not_fill_the_disk(tmp_path: Path) -> None:
    async with collecting(tmp_path, clock=(clock := Clock())) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        for _ in range(200):
            await agent.send("nonsense")
        for _ in range(200):
            assert (await agent.error()).code == "deserialization_failed"
        clock.now += 1
        await agent.send("nonsense")
        await until(lambda: collector.stats.refused == 201)
    lines = read(tmp_path, "reporter")
    assert len(lines) == intake.REPORTS_PER_SECOND + 1
    assert lines[-1]["message"].endswith("(and 180 more messages before this one)")


async def test_control_characters_in_messages_stay_in_one_line(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        raw = protocol.event_message(
            protocol.response_topic("HAbc", collector.instance), "Collector::things", CONTEXT, data.vector(THING)
        ).encode()
        await agent.send(raw.replace(b"a thing", b"a\nthing\t\x00\xff"))
        await until(lambda: collector.stats.rows == 1)
    assert rb"a\x0athing\x09\x00\xff" in (tmp_path / "things.log").read_bytes()


async def test_a_port_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
    from msgspec.structs import replace

    async with collecting(tmp_path / "one") as collector:
        host, port = collector.address
        settings = replace(SETTINGS, listen=f"{host}:{port}", logs=str(tmp_path / "two"))
        with pytest.raises(UsageError, match=f"cannot listen on {host}:{port}: "):
            await Collector(settings, PACK).start()


async def test_only_an_address_beyond_loopback_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(tmp_path / "one") as collector:
        assert collector.warning is None
    with caplog.at_level(logging.WARNING, "zeek_agent.collector"):
        async with collecting(tmp_path / "two", settings=CollectorSettings(listen="0.0.0.0:0")) as collector:
            assert collector.warning is not None
    assert "anyone who can reach the port can feed these logs" in caplog.text


async def test_ipv6_can_be_listened_on(tmp_path: Path) -> None:
    async with collecting(tmp_path, settings=CollectorSettings(listen="[::1]:0")) as collector:
        assert collector.address[0] == "::1"
        assert collector.warning is None


async def test_a_disk_that_fails_holds_no_agent_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL", 0.02)
    place = tmp_path / "logs"
    place.write_text("in the way")
    with caplog.at_level(logging.INFO, "zeek_agent.collector"):
        async with collecting(place) as collector, agent_of(collector) as agent:
            await agent.join()
            await agent.result(*THING)
            await until(lambda: collector.stats.disk_errors > 2)
            assert collector.stats.disk_error is not None
            place.unlink()
            await until(lambda: collector.stats.disk_error is None)
            assert len(read(place, "things")) == 1
    assert "logs are written again" in caplog.text


async def test_a_slow_disk_holds_agents_back_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BACKLOG_BYTES", 1000)
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        for _ in range(100):
            await agent.result(*THING)
        await until(lambda: collector.stats.rows == 100)
    assert len(read(tmp_path, "things")) == 100


async def test_stopping_does_not_wait_for_agents_that_are_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BACKLOG_BYTES", 0)
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        for _ in range(50):
            await agent.result(*THING)
        await until(lambda: collector.stats.rows > 0)
        async with asyncio.timeout(5):
            await collector.stop()
    assert len(read(tmp_path, "things")) == collector.stats.rows


async def test_a_client_that_speaks_no_websocket_is_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(tmp_path) as collector:
        reader, writer = await asyncio.open_connection(*collector.address)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert await reader.read() != b"x"
        writer.close()
        await writer.wait_closed()
    assert "Traceback" not in caplog.text


async def test_the_messages_of_a_real_agent_give_the_logs_that_zeek_wrote(tmp_path: Path) -> None:
    """The C++ agent's side of the captured conversation; a row is received when the captured log says so."""
    conversation = [
        json.loads(line) for line in (DATA / "zeek-9.1-package-2.4-agent-2.3.jsonl").read_text().splitlines()
    ]
    received = [line["message"] for line in conversation if line["from"] == "agent" and "message" in line]
    wrote = {path.stem: read(DATA / "zeek-logs", path.stem) for path in (DATA / "zeek-logs").glob("*.log")}
    moments = {name: iter([record.get("t", record.get("ts")) for record in records]) for name, records in wrote.items()}
    given = pack.load()
    clock = Clock()
    async with collecting(tmp_path, given=given, clock=clock) as collector, agent_of(collector) as agent:
        await agent.send(received[0])
        await agent.receive()
        for count, text in enumerate(received[1:], start=1):
            event = protocol.read_message(text)
            assert isinstance(event, Message)
            log = given.logs.get(event.event)
            clock.now = next(moments[log.path if log else "zeek-agent"])
            await agent.send(text.replace("zeek_LYLwI26Jm7LXIKG77", collector.instance))
            await until(lambda count=count: collector.stats.messages == count)
        assert collector.stats.refused == 0
    for name in wrote:
        assert canonical(tmp_path / f"{name}.log") == canonical(DATA / "zeek-logs" / f"{name}.log"), name


def canonical(path: Path) -> list[bytes]:
    """The lines but for the times of opening and closing; sets in one order, as Zeek's is that of a hash."""
    content = path.read_bytes().replace(b"192.0.2.2,fd00::2", b"fd00::2,192.0.2.2")
    return [line for line in content.split(b"\n") if not line.startswith((b"#open", b"#close"))]
