"""The agent's API, version 1, both ways; and where Zeek can be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent import destination
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import Change, Query, Subscription
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import (
    Ack,
    AgentError,
    AgentHello,
    AgentShutdown,
    CancelQuery,
    Context,
    Error,
    InstallQuery,
    Message,
    ResultRow,
    ZeekHello,
    ZeekShutdown,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.frozensets(WORDS, max_size=3)
QUERIES = st.builds(
    Query,
    sql=WORDS,
    event=WORDS,
    schedule=st.none() | st.integers(0, 10**6).map(lambda milliseconds: milliseconds / 1000),
    subscription=st.none() | st.sampled_from(Subscription),
    cookie=st.none() | WORDS,
    requires_tables=NAMES,
    if_missing_tables=NAMES,
    dialect=st.none() | WORDS,
)
CONTEXTS = st.builds(
    Context,
    agent_id=WORDS,
    host_time=st.integers(0, 2**32).map(float),
    query_id=st.none() | WORDS,
    change=st.none() | st.sampled_from(Change),
    cookie=st.none() | WORDS,
)


def message(frame: str) -> Message:
    read = protocol.read_message(frame.encode())
    assert isinstance(read, Message)
    return read


@given(WORDS, WORDS, QUERIES)
def test_queries_arrive_as_they_were_sent(instance: str, query_id: str, query: Query) -> None:
    frame = protocol.install_query("/t", instance, query_id, query)
    assert protocol.zeek_event(message(frame)) == InstallQuery(instance, query_id, query)


@given(QUERIES)
def test_only_a_query_with_a_dialect_has_more_fields_than_version_1(query: Query) -> None:
    record = json.loads(protocol.query_record(query))["data"]
    assert len(record) == (7 if query.dialect is None else 8)


@given(CONTEXTS, WORDS)
def test_contexts_arrive_as_they_were_sent(context: Context, event: str) -> None:
    row = broker_json.vector([broker_json.count(1)])
    frame = protocol.event_message("/t", f"Test::{event}", protocol.context_record(context), row)
    assert protocol.agent_event(message(frame)) == ResultRow(
        f"Test::{event}", context, broker_json.Vector([broker_json.Count(1)])
    )


def test_every_other_message_arrives_as_it_was_sent() -> None:
    hello = ZeekHello("z", "9.1.0", 90100, "2.4.0")
    context = Context("H1", 5.0, "q", None, "c")
    assert protocol.zeek_event(message(protocol.zeek_hello("/t", hello))) == hello
    assert protocol.zeek_event(message(protocol.zeek_shutdown("/t", "z"))) == ZeekShutdown("z")
    assert protocol.zeek_event(message(protocol.cancel_query("/t", "z", "q"))) == CancelQuery("z", "q")
    shutdown = message(protocol.agent_shutdown(context))
    assert (shutdown.topic, protocol.agent_event(shutdown)) == ("/zeek-agent/response/all/H1", AgentShutdown(context))
    error = message(protocol.agent_error("z", context, "why"))
    assert (error.topic, protocol.agent_event(error)) == ("/zeek-agent/response/z/H1", AgentError(context, "why"))
    hello_frame = message(protocol.agent_hello(context, broker_json.vector([broker_json.string("H1")])))
    assert hello_frame.topic == "/zeek-agent/response/all/H1"
    agent_hello = protocol.agent_event(hello_frame)
    assert isinstance(agent_hello, AgentHello)
    assert agent_hello.named() == {"agent_id": "H1"}
    assert protocol.read_message(protocol.ack("e", "v")) == Ack("e", "v")
    assert protocol.read_message(protocol.error("c", "x")) == Error("c", "x")
    assert protocol.read_subscription(protocol.subscription_message(["/a", '/"'])) == ["/a", '/"']


@pytest.mark.parametrize(
    ("endpoint", "is_broker", "lacks_backend"),
    [
        ("zeromq__vm_29336_NyFZI42Jkj75eMbyK7-websocket-0", False, False),
        ("d8a7d6a2-0f0e-4a2e-9a4e-0f6f5ad1c001", True, False),
        ("d8a7d6a2-0f0e-4a2e-9a4e-0f6f5ad1c001-websocket-0", False, False),
        ("-websocket-0", False, True),
    ],
)
def test_the_acknowledgement_identifies_the_server(endpoint: str, is_broker: bool, lacks_backend: bool) -> None:
    ack = Ack(endpoint, "9")
    assert (ack.is_broker, ack.lacks_backend) == (is_broker, lacks_backend)


@pytest.mark.parametrize(
    ("version", "number"),
    [("2.0.2-8", 200020008), ("2.4.0", 200400 * 1000), ("3.1.2", 301020000), ("v2.4-0", None), ("", None)],
)
def test_package_versions_are_numbers_as_zeek_counts(version: str, number: int | None) -> None:
    expected = 204000000 if version == "2.4.0" else number
    assert ZeekHello("z", package_version=version).package_number == expected


def test_an_unknown_subscription_or_change_is_none() -> None:
    frame = protocol.install_query("/t", "z", "q", Query("s", "e", 5.0, Subscription.EVENTS))
    event = protocol.zeek_event(message(frame.replace("ZeekAgent::Events", "ZeekAgent::Dreams")))
    assert isinstance(event, InstallQuery)
    assert event.query.subscription is None


def test_events_of_others_are_ignored() -> None:
    assert protocol.zeek_event(message(protocol.event_message("/t", "Other::event"))) is None


def test_metadata_and_further_elements_are_ignored() -> None:
    frame = json.loads(protocol.zeek_shutdown("/t", "z"))
    frame["data"][2]["data"].append({"@data-type": "vector", "data": []})
    assert protocol.zeek_event(message(json.dumps(frame))) == ZeekShutdown("z")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (broker_json.count(1),),
        (broker_json.string("z"),),
        (broker_json.string("z"), broker_json.string("q")),
        (broker_json.string("z"), broker_json.string("q"), broker_json.count(1)),
        (broker_json.string("z"), broker_json.string("q"), broker_json.vector([])),
        (broker_json.string("z"), broker_json.string("q"), broker_json.vector([broker_json.NONE] * 7)),
        (broker_json.string("z"), broker_json.string("q"), broker_json.vector([broker_json.string("s")] * 7)),
    ],
    ids=range(8),
)
def test_a_malformed_query_is_refused_with_a_reason(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError):
        protocol.zeek_event(message(protocol.event_message("/t", protocol.INSTALL_QUERY, *arguments)))


@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "[]",
        '{"topic":"x"}',
        '{"topic":"x","data":[]}',
        '{"topic":"x","data":[{"@data-type":"count","data":1},{"@data-type":"count","data":5}]}',
        '{"topic":5,"data":[]}',
        '{"type":"ack","endpoint":5}',
    ],
)
def test_frames_other_than_events_are_refused(frame: str) -> None:
    with pytest.raises(ProtocolError):
        protocol.read_message(frame)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_message_or_refused(value: object) -> None:
    for frame in (value, {"topic": "/t", "data": value}, {"type": "ack", "endpoint": value}):
        try:
            protocol.read_message(json.dumps(frame))
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("zeek", "ws://zeek:27759/v1/messages/json"),
        ("zeek.example.org:9997", "ws://zeek.example.org:9997/v1/messages/json"),
        ("ws://127.0.0.1", "ws://127.0.0.1:27759/v1/messages/json"),
        ("wss://Zeek.Example:443/", "wss://zeek.example:443/v1/messages/json"),
        ("wss://proxy:443/zeek/v1/messages/json", "wss://proxy:443/zeek/v1/messages/json"),
        ("::1", "ws://[::1]:27759/v1/messages/json"),
        ("[::1]", "ws://[::1]:27759/v1/messages/json"),
        ("[fd00:0::2]:9997", "ws://[fd00::2]:9997/v1/messages/json"),
        ("wss://[::1]:9997", "wss://[::1]:9997/v1/messages/json"),
        (" zeek ", "ws://zeek:27759/v1/messages/json"),
    ],
)
def test_destinations_are_read(text: str, url: str) -> None:
    assert str(destination.parse(text)) == url
    assert str(destination.parse(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://zeek",
        "zeek:0",
        "zeek:65536",
        "zeek:port",
        "ws://",
        "ws://a b",
        "ws://u:p@zeek",
        "ws://z?x=1",
        "[::1",
        "a:1:2",
    ],
)
def test_invalid_destinations_are_refused_with_a_reason(text: str) -> None:
    with pytest.raises(UsageError, match="not a destination"):
        destination.parse(text)
