"""Clients that send what no agent should: each is an error of its own message, and nothing else."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_agent import PACK, SETTINGS, THING, agent_of, collecting, hello_record, read
from waiting import until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from zeek_log import Clock, parse_log

from zeek_agent.collector import intake, server
from zeek_agent.collector.agents import Agents
from zeek_agent.collector.hosts import Hosts, Peer
from zeek_agent.collector.intake import Intake
from zeek_agent.collector.log_files import LogDirectory
from zeek_agent.collector.server import Collector, CollectorLimits
from zeek_agent.destination import PATH
from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import Context


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
    "unknown event": message("Evil::event", CONTEXT, broker_json.vector(THING)),
    "unknown event of the API": message("ZeekAgentAPI::agent_hello_v2", CONTEXT, broker_json.vector([])),
    "no arguments": message("Collector::things"),
    "no columns": message("Collector::things", CONTEXT),
    "context of the wrong shape": message(
        "Collector::things", broker_json.vector([broker_json.count(1)]), broker_json.vector(THING)
    ),
    "context that is no record": message("Collector::things", broker_json.count(1), broker_json.vector(THING)),
    "too few values": message("Collector::things", CONTEXT, broker_json.vector(THING[:4])),
    "a number for a string": message(
        "Collector::things", CONTEXT, broker_json.vector([broker_json.count(1), *THING[1:]])
    ),
    "an integer for a count": message(
        "Collector::things", CONTEXT, broker_json.vector([THING[0], broker_json.integer(1), *THING[2:]])
    ),
    "a required value that is unset": message(
        "Collector::things", CONTEXT, broker_json.vector([broker_json.NONE, *THING[1:]])
    ),
    "a time that is none": message(
        "Collector::things",
        CONTEXT,
        broker_json.vector([*THING[:2], '{"@data-type":"timestamp","data":"yesterday"}', *THING[3:]]),
    ),
    "a set of the wrong type": message(
        "Collector::things",
        CONTEXT,
        broker_json.vector([*THING[:3], broker_json.set_of([broker_json.count(1)]), *THING[4:]]),
    ),
    "a set with a hole": message(
        "Collector::things",
        CONTEXT,
        broker_json.vector([*THING[:3], broker_json.set_of([broker_json.NONE]), *THING[4:]]),
    ),
    "a record that is too short": message(
        "Collector::things", CONTEXT, broker_json.vector([*THING[:4], broker_json.vector([broker_json.string("key")])])
    ),
    "hello of the wrong types": message(
        "ZeekAgentAPI::agent_hello_v1", CONTEXT, broker_json.vector([broker_json.count(1)] * 12)
    ),
    "hello with a bad address": message(
        "ZeekAgentAPI::agent_hello_v1",
        CONTEXT,
        hello_record(addresses=broker_json.set_of(['{"@data-type":"address","data":"a\\tb"}'])),
    ),
    "hello with a bad agent id": message(
        "ZeekAgentAPI::agent_hello_v1", protocol.context_record(Context("../x\n", 0.0, "q")), hello_record()
    ),
    "hello without a query id": message(
        "ZeekAgentAPI::agent_hello_v1", protocol.context_record(Context("HAbc", 0.0)), hello_record()
    ),
    "error of an agent with a bad id": message(
        "ZeekAgentAPI::agent_error_v1", protocol.context_record(Context("x" * 129, 0.0)), broker_json.string("what")
    ),
    "row of an agent with a bad id": message(
        "Collector::things", protocol.context_record(Context("x" * 1_000_000, 0.0, "q")), broker_json.vector(THING)
    ),
    "hello with a long query id": message(
        "ZeekAgentAPI::agent_hello_v1", protocol.context_record(Context("HAbc", 0.0, "q" * 1_025)), hello_record()
    ),
    "hello with a long host name": message("ZeekAgentAPI::agent_hello_v1", CONTEXT, hello_record(hostname="h" * 1_025)),
    "error that is no text": message("ZeekAgentAPI::agent_error_v1", CONTEXT, broker_json.count(1)),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_message_only_causes_an_error(
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


@pytest.mark.parametrize("first", ['{"a": 1}', "[1]", "nonsense", "[" * 5000, '["x"'])
async def test_a_first_message_other_than_a_subscription_is_refused(tmp_path: Path, first: str) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.send(first)
        assert (await agent.error()).code == "deserialization_failed"
        with pytest.raises(ConnectionClosed):
            await agent.receive()
        assert collector.stats.refused == 1


@pytest.mark.parametrize(
    ("topics", "told"),
    [
        (["/" + "x" * 1_000_000], "a topic is longer than 1,024 bytes: /xxx"),
        ([f"/{number}/{'x' * 1_000}" for number in range(200)], "subscriptions of more than 131,072 bytes"),
    ],
)
async def test_topics_that_are_too_long_are_refused(tmp_path: Path, topics: list[str], told: str) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.send(protocol.subscription_message(topics))
        assert (await agent.error()).code == "deserialization_failed"
        await until(lambda: collector.stats.connections == 0)
    [line] = read(tmp_path, "reporter")
    assert told in line["message"]
    assert len(line["message"]) < 400


async def test_long_errors_of_an_agent_are_truncated_but_name_it(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        frame = protocol.agent_error(collector.instance, Context("HAbc", 0.0), "x" * 1_000_000)
        await agent.send(frame)
        await until(lambda: collector.stats.agent_errors == 1)
    [line] = read(tmp_path, "reporter")
    assert line["message"].endswith("xxx… (1,000,000 bytes) [HAbc]")


async def test_a_message_that_is_too_large_ends_the_connection_of_its_sender_only(tmp_path: Path) -> None:
    limits = CollectorLimits(message_bytes=10_000)
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
            protocol.response_topic("HAbc", collector.instance), "Collector::things", CONTEXT, broker_json.vector(THING)
        ).encode()
        await agent.send(raw.replace(b"a thing", b"a\nthing\t\x00\xff"))
        await until(lambda: collector.stats.rows == 1)
    assert rb"a\x0athing\x09\x00\xff" in (tmp_path / "things.log").read_bytes()


async def test_connections_and_agents_are_limited(tmp_path: Path) -> None:
    limits = CollectorLimits(connections=2, agents=1)
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


async def test_a_hello_that_cannot_be_logged_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL_SECONDS", 0.02)
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector) as agent:
        await agent.join()
        [before] = collector.stats.agents
        await agent.hello(addresses=broker_json.set_of(['{"@data-type":"address","data":"nowhere"}']))
        assert (await agent.error()).code == "deserialization_failed"
        await agent.hello(hostname="x" * 100_000)
        assert (await agent.error()).code == "deserialization_failed"
        assert collector.stats.agents == (before,)
        clock.now += SETTINGS.agent_timeout
        await until(lambda: collector.stats.agents == ())
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join", "offline"]


scalars = st.one_of(
    st.text(max_size=20).map(broker_json.string),
    st.integers(-(2**70), 2**70).map(lambda number: f'{{"@data-type":"count","data":{number}}}'),
    st.integers(-(2**70), 2**70).map(lambda number: f'{{"@data-type":"integer","data":{number}}}'),
    st.floats().map(lambda number: f'{{"@data-type":"real","data":{number}}}'),
    st.sampled_from(["address", "subnet", "port", "timestamp", "timespan", "enum-value", "boolean", "none", "what"])
    .flatmap(lambda kind: st.tuples(st.just(kind), st.text(max_size=20)))
    .map(lambda pair: f'{{"@data-type":"{pair[0]}","data":{broker_json.quoted(pair[1])}}}'),
    st.just(CONTEXT),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=13).flatmap(
        lambda members: st.sampled_from([broker_json.vector(members), broker_json.set_of(members)])
    ),
    max_leaves=20,
)


@pytest.mark.long
async def test_the_longest_values_are_taken(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.result(broker_json.host_text(b"\x01\xff" * 2**20), event="Collector::things_events")
        await until(lambda: collector.stats.rows == 1)
    [line] = read(tmp_path, "things-events")
    assert line["name"] == "\\x01\\xff" * 2**20


async def test_a_client_that_never_subscribes_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OPENING_TIMEOUT_SECONDS", 0.05)
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        assert (await agent.error()).context == "no subscription in time"
        with pytest.raises(ConnectionClosed):
            await agent.receive()
        await until(lambda: collector.stats.connections == 0)


any_text = st.text(max_size=20).map(broker_json.string)
things = st.tuples(
    any_text,
    st.integers(0, 2**64).map(lambda number: f'{{"@data-type":"count","data":{number}}}'),
    st.floats(-1e11, 1e11).map(broker_json.timestamp),
    st.lists(any_text, max_size=3).map(broker_json.set_of),
    st.tuples(any_text, st.floats().map(broker_json.real)).map(broker_json.vector),
).map(lambda columns: [broker_json.vector(columns)])
events = st.sampled_from(
    [
        "Collector::things",
        "Collector::things_events",
        protocol.AGENT_HELLO,
        protocol.AGENT_SHUTDOWN,
        protocol.AGENT_ERROR,
    ]
)


@given(events, st.one_of(things, st.lists(values, max_size=3)), st.booleans())
def test_any_message_is_logged_completely_or_refused(event: str, arguments: list[str], honest: bool) -> None:
    """No exception but ProtocolError, and lines that a reader of logs can take apart."""
    with TemporaryDirectory() as place:
        say_and_read(Path(place), event, [CONTEXT, *arguments] if honest else arguments)


def say_and_read(place: Path, event: str, arguments: list[str]) -> None:
    directory = LogDirectory(place)
    taker = Intake(PACK, directory, Agents(timeout_seconds=1, limit=10), Hosts(limit=10))
    frame = protocol.event_message("/x", event, *arguments)
    with suppress(ProtocolError):
        agent = taker.handle(protocol.agent_event(protocol.read_message(frame)))
        if agent is not None:
            taker.hello(agent, Peer())
    directory.close()
    for file in directory.files.values():
        written = place / f"{file.path}.log"
        assert len(parse_log(written.read_bytes()) if file.rows else []) == file.rows


# Memory


REQUEST = (
    f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\nX-Application-Name: x\r\n\r\n"
).encode()


async def opened_raw(collector: Collector, *frames: bytes) -> asyncio.StreamWriter:
    """A client on a plain socket that subscribes, sends these bytes and reads nothing beyond the handshake."""
    reader, writer = await asyncio.open_connection(*collector.address)
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(raw_frame(0x81, b'["/x"]'))
    await reader.readexactly(2)  # the acknowledgement has begun
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for frame in frames:
        writer.write(frame)
    return writer


def raw_frame(first: int, payload: bytes, length: int | None = None) -> bytes:
    """A masked frame; `length` is what its header announces."""
    return (
        bytes([first, 0x80 | 127]) + struct.pack(">Q", len(payload) if length is None else length) + bytes(4) + payload
    )


async def test_unfinished_messages_take_no_more_than_the_pool_and_the_largest_is_closed_first(tmp_path: Path) -> None:
    mib = 2**20
    limits = CollectorLimits(unread_bytes=4 * mib)
    async with collecting(tmp_path, limits=limits) as collector, agent_of(collector) as agent:
        await agent.join()
        held = [await opened_raw(collector, raw_frame(0x81, bytes(n * mib), 30 * mib)) for n in (1, 3)]
        await until(lambda: collector.stats.unread_bytes == 3 * mib)
        held.append(await opened_raw(collector, raw_frame(0x81, bytes(4 * mib), 30 * mib)))
        await until(lambda: collector.stats.refused == 1)
        held += [await opened_raw(collector, raw_frame(0x81, bytes(4 * mib), 30 * mib)) for _ in range(3)]
        await until(lambda: collector.stats.refused >= 3)
        assert collector.stats.unread_bytes <= 4 * mib
        await agent.result(broker_json.string("x" * mib), *THING[1:])
        await until(lambda: collector.stats.rows == 1)
        for writer in held:
            writer.close()
        await until(lambda: collector.stats.connections == 1)
        assert collector.stats.unread_bytes == 0
    assert {"1013"} == {line["message"].split(": ")[1].split()[0] for line in read(tmp_path, "reporter")}


async def test_messages_that_wait_to_be_read_count_too(tmp_path: Path) -> None:
    async with collecting(tmp_path, limits=CollectorLimits(unread_bytes=2**20)) as collector:
        written = asyncio.Event()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collector, "_wait_for_disk", lambda client: written.wait())
            writer = await opened_raw(collector, raw_frame(0x81, b"nonsense"), *[raw_frame(0x81, bytes(2**20))] * 3)
            try:
                await until(lambda: writer.transport.is_closing() or not collector._memory.connections)
                assert collector.stats.unread_bytes == 0
            finally:
                written.set()
                writer.close()
        await until(lambda: collector.stats.connections == 0)
        assert collector.stats.messages == 0
    assert "1013 no memory for" in read(tmp_path, "reporter")[-1]["message"]


@pytest.mark.parametrize(
    "flood",
    [
        raw_frame(0x81, b'["a"' + b',"a"' * 500_000 + b"]"),
        raw_frame(0x01, b"[") + raw_frame(0x00, b"          ") * 4_000,
    ],
    ids=["a long message", "many fragments"],
)
async def test_a_client_that_has_not_subscribed_gets_little_memory(tmp_path: Path, flood: bytes) -> None:
    async with collecting(tmp_path) as collector:
        reader, writer = await asyncio.open_connection(*collector.address)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(flood)
        await until(lambda: collector.stats.refused == 1 and collector.stats.connections == 0)
        writer.close()
    [line] = read(tmp_path, "reporter")
    assert line["message"].endswith("1009 more than 1,048,576 bytes before a subscription")


async def test_an_endless_request_is_refused(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector:
        reader, writer = await asyncio.open_connection(*collector.address)
        writer.write(f"GET {PATH} HTTP/1.1\r\n".encode() + f"A: {'x' * 8_000}\r\n".encode() * 3)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: collector.stats.refused == 1)
    [line] = read(tmp_path, "reporter")
    assert line["message"] == "an HTTP request of more than 16,384 bytes"


async def test_connections_that_never_end_their_request_are_limited(tmp_path: Path) -> None:
    async with collecting(tmp_path, limits=CollectorLimits(connections=1)) as collector:
        silent = [await asyncio.open_connection(*collector.address) for _ in range(3)]
        await until(lambda: collector.stats.refused == 1)
        with suppress(ConnectionResetError):
            assert await silent[2][0].read() == b""
        for _, writer in silent:
            writer.close()
    [line] = read(tmp_path, "reporter")
    assert line["message"] == "more than 2 connections"


async def test_a_client_that_pings_and_does_not_read_is_closed(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        writer = await opened_raw(collector)
        ping = raw_frame(0x89, bytes(125)) * 10_000
        with suppress(ConnectionError):
            while collector.stats.refused == 0:
                writer.write(ping)
                await writer.drain()
        await until(lambda: collector.stats.connections == 1)
        writer.close()
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
    [line] = read(tmp_path, "reporter")
    assert line["message"].endswith("1008 more than 65,536 bytes of pongs were not read")


async def test_as_many_pings_of_a_client_that_reads_are_answered(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        for _ in range(200):
            pongs = [await agent.connection.ping() for _ in range(20)]
            await asyncio.gather(*pongs)
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        assert collector.stats.refused == 0


async def test_a_refused_message_is_not_kept_while_its_sender_does_not_read(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        kept: list[weakref.ref[Any]] = []

        class KeptError(ProtocolError):
            """An error that can be watched; its traceback holds the message."""

            def __init__(self, message: str) -> None:
                super().__init__(message)
                kept.append(weakref.ref(self))

        def refused(_: bytes) -> Any:
            raise KeptError("no")

        answered, read = asyncio.Event(), asyncio.Event()

        async def unread(*_: object) -> None:
            answered.set()
            await read.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "read_message", refused)
            [client] = collector._clients
            patch.setattr(client.connection, "send", unread)
            await agent.send("x" * 1_000)
            async with asyncio.timeout(5):
                await answered.wait()
            try:
                assert [reference() for reference in kept] == [None]
            finally:
                read.set()


def test_data_of_an_unset_value_is_not_read() -> None:
    """26 bytes of memory for each byte of `[],[],…`, of which nothing is used."""
    raw = b'{"topic":"/x","@data-type":"vector","data":[{"@data-type":"none","data":[' + b"[]," * 100_000 + b"[]]}]}"
    tracemalloc.start()
    try:
        with suppress(ProtocolError):
            protocol.read_message(raw)
        assert tracemalloc.get_traced_memory()[1] < len(raw)
    finally:
        tracemalloc.stop()


def test_a_very_long_message_is_not_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_json, "REPAIR_BYTES_MAX", 1_000)
    loose = '{{"topic":"/x","@data-type":"vector","data":[{{"@data-type":"string","data":"\x01{}"}}]}}'
    with pytest.raises(ProtocolError, match="not an event"):
        protocol.read_message(loose.format("x" * 800))
    with pytest.raises(ProtocolError, match=r"cannot read message of 1,\d\d\d bytes"):
        protocol.read_message(loose.format("x" * 1_000))


async def test_made_up_ids_of_ended_connections_do_not_keep_agents_out(tmp_path: Path) -> None:
    limits = CollectorLimits(agents=4)
    async with collecting(tmp_path, limits=limits) as collector:
        async with agent_of(collector, "HOld") as old:
            await old.join()
            for number in range(8):
                async with agent_of(collector, f"HMade{number}") as made_up:
                    await made_up.join()
                await until(lambda number=number: collector.stats.connected == {"HOld"})
            async with agent_of(collector, "HNew") as agent:
                await agent.join()
                assert collector.stats.connected == {"HOld", "HNew"}
        assert len(collector.stats.agents) == 4
    states = Counter(line["type_"] for line in read(tmp_path, "zeek-agent") if line["hid"].startswith("HMade"))
    assert states == {"join": 8, "offline": 6}


async def test_a_connection_that_makes_up_ids_does_not_keep_agents_out(tmp_path: Path) -> None:
    limits = CollectorLimits(agents=4)
    async with collecting(tmp_path, limits=limits) as collector, agent_of(collector, "HOld") as old:
        await old.join()
        async with agent_of(collector, "HFlood0") as flood:
            await flood.join()
            for number in range(1, 3):
                flood.id = f"HFlood{number}"
                await flood.hello()
            await until(lambda: len(collector.stats.agents) == 4)
            async with agent_of(collector, "HNew") as agent:
                await agent.join()
                await until(lambda: collector.stats.connected == {"HOld", "HNew"})
                await flood.connection.wait_closed()
        assert flood.connection.close_code == 1013
    [line] = read(tmp_path, "reporter")
    assert line["message"].endswith(": 1013 too many agents, of which this connection has 3")
