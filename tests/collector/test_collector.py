"""The collector over a real WebSocket, with a scripted agent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from scripted_agent import PACK, SETTINGS, THING, agent_of, collecting, read
from waiting import until
from websockets.exceptions import ConnectionClosed
from zeek_log import CAPTURED, Clock

from zeek_agent.collector import pack, server, summary
from zeek_agent.collector.server import Collector
from zeek_agent.config.server_sections import CollectorSettings
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Context, InstallQuery, Message, ZeekHello, ZeekShutdown

CONVERSATION = CAPTURED.parent / "zeek-9.1-package-2.4-agent-2.3.jsonl"


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
        await agent.result(*THING[:1], *[broker_json.NONE] * 4, change=Change.DELETE)
        await agent.result(broker_json.string("it\nhappened"), event="Collector::things_events", change=Change.ADD)
        await agent.result(*THING, broker_json.count(5), change=None)
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


SPLIT = """
[logs.things]
fields = [
  { name = "name", type = "string" },
  { name = "tags", type = "set[string]", optional = false },
  { name = "part.key", type = "string" },
  { name = "part.value", type = "string" },
  { name = "size", type = "count" },
]

[[queries]]
log = "things"
sql = "SELECT name, tags FROM things"
batch_sql = "SELECT name, tags, part, size FROM things"
"""


async def test_rows_of_agents_without_batches_may_end_before_the_optional_fields(tmp_path: Path) -> None:
    given = pack.parse(SPLIT, "test")
    part = broker_json.vector([broker_json.string("k"), broker_json.string("v")])
    cells = (broker_json.string("a"), broker_json.set_of([broker_json.string("x")]), part, broker_json.count(7))
    async with collecting(tmp_path, given=given) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello()
        for number in (1, 2, 3, 4, 0):
            await agent.result(*cells[:number])
        await until(lambda: collector.stats.messages == 6)
    logged = [list(line.values())[4:] for line in read(tmp_path, "things")]
    assert logged == [["a", ("x",), None, None, None], ["a", ("x",), "k", "v", None], ["a", ("x",), "k", "v", 7]]
    refused = [line["message"] for line in read(tmp_path, "reporter")]
    assert len(refused) == 2
    assert "row has 1 values instead of 4" in refused[0]


async def test_the_log_of_agents_names_their_run_and_features(tmp_path: Path) -> None:
    features = broker_json.set_of([broker_json.string("batches"), broker_json.string("another")])
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello(features=features)
        await agent.hello(broker=True)
        await until(lambda: collector.stats.messages == 2)
    first, second = read(tmp_path, "zeek-agent")
    assert (first["instance"], first["features"]) == ("I1", ("another", "batches"))
    assert (second["instance"], second["features"]) == ("I1", None), "the tables of an old agent are not its features"


async def test_logs_grow_within_a_second_or_so(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await agent.result(*THING)
        await until((tmp_path / "things.log").exists)
        await until(lambda: len(read(tmp_path, "things")) == 1)


async def test_json_logs(tmp_path: Path) -> None:
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
    monkeypatch.setattr(server, "FLUSH_INTERVAL_SECONDS", 0.02)
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
        "instance": "I1",
        "features": None,
    }


async def test_rows_keep_an_agent_from_going_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL_SECONDS", 0.02)
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector) as agent:
        await agent.join()
        for _ in range(3):
            clock.now += SETTINGS.agent_timeout * 0.6
            await agent.result(*THING)
            await until(lambda: collector.stats.agents[0].last_seen == clock.now)
        assert [line.id for line in collector.stats.agents] == ["HAbc"]
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join"]


@pytest.mark.parametrize("days", [3, 3650, -3650])
async def test_a_step_of_the_clock_calls_no_agent_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL_SECONDS", 0.02)
    clock, monotonic = Clock(), Clock(1_000.0)
    async with collecting(tmp_path, clock=clock, monotonic=monotonic) as collector, agent_of(collector) as agent:
        await agent.join()
        clock.now += days * 86_400
        monotonic.now += SETTINGS.agent_timeout - 1
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        monotonic.now += SETTINGS.agent_timeout - 1
        await asyncio.sleep(0.1)
        assert [known.id for known in collector.stats.agents] == ["HAbc"]
        monotonic.now += 1
        await until(lambda: collector.stats.agents == ())
    lines = read(tmp_path, "zeek-agent")
    assert [line["type_"] for line in lines] == ["join", "offline"]
    assert lines[1]["ts"] - lines[0]["ts"] == days * 86_400, "a line has the time of the day"


@pytest.mark.parametrize("days", [3, 3650, -3650])
async def test_a_step_of_the_clock_changes_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    monkeypatch.setattr(summary, "LINE_INTERVAL_SECONDS", 0.5)
    written = io.StringIO()
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        shown = asyncio.create_task(summary.show(collector, written))
        await asyncio.sleep(0.1)
        for _ in range(10):
            await agent.result(*THING)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + days * 86_400)
        await until(lambda: "/s" in written.getvalue())
        shown.cancel()
    rate = float(written.getvalue().partition("/s")[0].rpartition(" ")[2])
    assert 0 < rate <= 25


async def test_a_hello_with_the_broker_field_is_understood(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.hello(broker=True)
        assert isinstance(await agent.event(), ZeekHello)
    assert read(tmp_path, "zeek-agent")[0]["uptime"] == 1.5


async def test_a_host_is_unknown_until_its_hello_and_shown_by_address_without_a_name(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        await agent.result(*THING)
        await agent.hello(hostname="")
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 2)
    assert [line["host"] for line in read(tmp_path, "things")] == ["<unknown>", "192.0.2.2"]


async def test_hellos_are_broadcast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HELLO_INTERVAL_SECONDS", 0.05)
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.subscribe()
        message = protocol.read_message(await agent.receive())
        assert isinstance(message, Message)
        assert message.topic == "/zeek-agent/query/group/all"
        assert protocol.zeek_event(message) == ZeekHello(collector.instance, "9.0.0", 90000, "")


async def test_stopping_cancels_queries_and_sends_the_shutdown_message(tmp_path: Path) -> None:
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


async def test_a_message_for_another_instance_is_ignored(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        topic = protocol.response_topic("HAbc", "zeek_other")
        context = protocol.context_record(Context("HAbc", 0.0))
        await agent.send(protocol.event_message(topic, "Collector::things", context, broker_json.vector(THING)))
        await until(lambda: collector.stats.ignored == 1)
        assert (collector.stats.rows, collector.stats.refused) == (0, 0)


async def test_a_port_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
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
    assert "anyone who can reach the port can write to these logs" in caplog.text


async def test_ipv6_can_be_listened_on(tmp_path: Path) -> None:
    async with collecting(tmp_path, settings=CollectorSettings(listen="[::1]:0")) as collector:
        assert collector.address[0] == "::1"
        assert collector.warning is None


async def test_a_disk_that_fails_holds_no_agent_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL_SECONDS", 0.02)
    place = tmp_path / "logs"
    place.write_text("in the way")
    with caplog.at_level(logging.INFO, "zeek_agent.collector"):
        async with collecting(place) as collector, agent_of(collector) as agent:
            assert f"cannot write {place}: " in caplog.text
            await agent.join()
            await agent.result(*THING)
            await until(lambda: collector.stats.disk_errors > 2)
            assert collector.stats.disk_error is not None
            place.unlink()
            await until(lambda: collector.stats.disk_error is None)
            assert len(read(place, "things")) == 1
    assert "logs are writable again" in caplog.text


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


async def test_stopping_does_not_wait_for_an_agent_that_is_held_back_after_the_last_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that flushes writes the records of hosts last, and an agent can begin to wait meanwhile."""
    monkeypatch.setattr(server, "BACKLOG_BYTES", 0)
    is_writing, may_end = asyncio.Event(), asyncio.Event()

    async def write(*, everything: bool = False) -> None:
        is_writing.set()
        if not everything:
            await may_end.wait()

    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        monkeypatch.setattr(collector._records, "write", write)
        await agent.join()
        for _ in range(50):
            await agent.result(*THING)
        await is_writing.wait()
        await until(lambda: any(client.waits_for_disk for client in collector._clients))
        async with asyncio.timeout(5):
            stopping = asyncio.create_task(collector.stop())
            await asyncio.sleep(0)
            may_end.set()
            await stopping
    assert len(read(tmp_path, "things")) == collector.stats.rows


async def test_a_client_without_websocket_causes_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with collecting(tmp_path) as collector:
        reader, writer = await asyncio.open_connection(*collector.address)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert await reader.read() != b"x"
        writer.close()
        await writer.wait_closed()
    assert "Traceback" not in caplog.text


async def test_the_messages_of_a_real_agent_give_the_logs_that_zeek_wrote(tmp_path: Path) -> None:
    """The C++ agent's side of the captured conversation; a row is received when the captured log says so."""
    conversation = [json.loads(line) for line in CONVERSATION.read_text().splitlines()]
    received = [line["message"] for line in conversation if line["from"] == "agent" and "message" in line]
    wrote = {path.stem: read(CAPTURED, path.stem) for path in CAPTURED.glob("*.log")}
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
        stock = canonical(CAPTURED / f"{name}.log")
        number = next(len(line) for line in stock if line[0] == b"#fields") - 1
        ours = canonical(tmp_path / f"{name}.log")
        assert [line[: number + line[0].startswith(b"#")] for line in ours] == stock, name
        further = {cell for line in ours if not line[0].startswith(b"#") for cell in line[number:]}
        assert name == "zeek-agent" or further <= {b"-"}, "this agent sends only the stock package's fields"


def canonical(path: Path) -> list[list[bytes]]:
    """The cells of the lines but for times of opening and closing; sets in one order, as Zeek's is that of a hash."""
    content = path.read_bytes().replace(b"192.0.2.2,fd00::2", b"fd00::2,192.0.2.2")
    lines = [line for line in content.split(b"\n") if not line.startswith((b"#open", b"#close"))]
    return [line.split(b"\t") for line in lines]
