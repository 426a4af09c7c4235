"""Checks of agents' frames: what passes is written again, everything else is refused with its cause."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_agent import hello_record

from zeek_agent.gateway import frames, values
from zeek_agent.gateway.causes import Cause, RefusedError
from zeek_agent.gateway.frames import CheckedFrame, CheckedHello
from zeek_agent.gateway.sent_queries import ENDED_SECONDS, SentQueries, SentQuery
from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import AgentHello, Batch, Context, Message

AGENT = "HAbc"
NOW = 1_000.0
QUERIES = {
    "q_rows": SentQuery("zeek_1", protocol.ROWS, None),
    "q_event": SentQuery("zeek_1", "Things::row", "cookie"),
    "q_other": SentQuery("zeek_2", "Things::row", None),
}


def sent(**more: SentQuery) -> SentQueries:
    queries = SentQueries(100)
    for query_id, query in (QUERIES | more).items():
        queries.add(query_id, query)
        queries.heard(query.instance)
    return queries


def context(query_id: str | None = None, agent_id: str = AGENT, **more: Any) -> Context:
    return Context(agent_id, 1_700_000_000.25, query_id, **more)


def rows(
    query_id: str = "q_rows", agent_id: str = AGENT, instance: str = "zeek_1", text: str = '[{"a":1}]', index: int = 0
) -> bytes:
    batch = Batch("store", "stream", 1, 2, index, last=True)
    topic = protocol.response_topic(agent_id, instance)
    return protocol.rows(topic, context(query_id, agent_id), batch, text).encode()


def row(
    query_id: str = "q_event", event: str = "Things::row", cookie: str | None = "cookie", agent_id: str = AGENT,
    topic: str | None = None, columns: str | None = None,
) -> bytes:  # fmt: skip
    record = columns or broker_json.vector([broker_json.string("a"), broker_json.count(1)])
    written = protocol.context_record(context(query_id, agent_id, change=Change.ADD, cookie=cookie))
    return protocol.event_message(topic or protocol.response_topic(AGENT, "zeek_1"), event, written, record).encode()


def hello(agent_id: str = AGENT, named: str = AGENT, *, features: str | None = None, broker: bool = False) -> bytes:
    record = hello_record(broker=broker, agent_id=broker_json.string(named))
    if features is not None:
        record = f"{record[:-2]},{features}]}}"
    return protocol.agent_hello(context("agent_hello_1", agent_id), record).encode()


def check(raw: bytes, queries: SentQueries | None = None, now: float = NOW) -> CheckedFrame:
    checked = frames.check(raw, AGENT, queries or sent(), now)
    assert isinstance(checked, CheckedFrame)
    return checked


def checked_hello(raw: bytes) -> CheckedHello:
    checked = frames.check(raw, AGENT, sent(), NOW)
    assert isinstance(checked, CheckedHello)
    return checked


def cause(raw: bytes, queries: SentQueries | None = None, now: float = NOW) -> Cause:
    with pytest.raises(RefusedError) as refused:
        frames.check(raw, AGENT, queries or sent(), now)
    return refused.value.cause


def test_what_an_agent_writes_passes_unchanged() -> None:
    for raw in (rows(), row(), protocol.agent_shutdown(context()).encode()):
        assert check(raw).frame == raw
    error = protocol.agent_error("zeek_1", context("q_event", cookie="cookie"), "no such table: a\\b").encode()
    assert check(error).frame == error


def test_rows_are_counted() -> None:
    assert check(rows(text='[{"a":1},{"a":2}]')).rows == 2
    assert check(rows(text="[]")).rows == 0
    assert check(row()).rows == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (rows(agent_id="HOther"), Cause.AGENT),
        (row(agent_id="HOther"), Cause.AGENT),
        (row(topic=protocol.response_topic("HOther", "zeek_1")), Cause.AGENT),
        (row(topic=f"/zeek-agent/query/host/{AGENT}"), Cause.AGENT),
        (row(topic="/zeek/cluster/manager"), Cause.AGENT),
        (row(topic=protocol.response_topic(AGENT, "zeek_9")), Cause.TOPIC),
        (row(topic=protocol.response_topic(AGENT, "zeek_2")), Cause.TOPIC),
        (row(topic=protocol.response_topic(AGENT, "all")), Cause.TOPIC),
        (row(event="Things::another"), Cause.EVENT),
        (row(event="Cluster::websocket_client_added"), Cause.EVENT),
        (row("q_unsent"), Cause.QUERY),
        (row(cookie="another"), Cause.QUERY),
        (row(cookie=None), Cause.QUERY),
        (row("q_rows", cookie=None), Cause.EVENT),
        (rows("q_event"), Cause.EVENT),
        (rows("q_unsent"), Cause.QUERY),
        (rows(text="{}"), Cause.MALFORMED),
        (rows(text="[1]"), Cause.MALFORMED),
        (rows(text='[{"a":1}] []'), Cause.MALFORMED),
        (hello("HOther"), Cause.AGENT),
        (hello(named="HOther"), Cause.AGENT),
        (protocol.agent_shutdown(context(agent_id="HOther")).encode(), Cause.AGENT),
        (protocol.agent_error("zeek_1", context("q_unsent"), "x").encode(), Cause.QUERY),
        (protocol.agent_error("zeek_2", context("q_rows"), "x").encode(), Cause.TOPIC),
        (protocol.agent_left(context(), "gw1").encode(), Cause.EVENT),
        (protocol.zeek_shutdown(protocol.group_topic("all"), "zeek_1").encode(), Cause.MALFORMED),
        (protocol.ack("a", "b").encode(), Cause.MALFORMED),
        (protocol.error("a", "b").encode(), Cause.MALFORMED),
        (b"[]", Cause.MALFORMED),
        (b"\xff", Cause.MALFORMED),
        (row() + row(), Cause.MALFORMED),
        (row() + b" {}", Cause.MALFORMED),
        (row(columns=broker_json.string("no record")), Cause.MALFORMED),
        (b'{"topic":' * 2_000, Cause.MALFORMED),
    ],
)  # fmt: skip
def test_a_forged_frame_is_refused(raw: bytes, expected: Cause) -> None:
    assert cause(raw) is expected


def test_of_a_key_that_comes_twice_only_one_value_reaches_zeek() -> None:
    topic = f'"topic":{json.dumps(protocol.response_topic(AGENT, "zeek_1"))}'.encode()
    forged = row().replace(topic, b'"topic":"/zeek/cluster/manager",' + topic)
    assert check(forged).frame == row()
    inner = row().replace(b'"data":"Things::row"', b'"data":"Cluster::hello","data":"Things::row"')
    assert check(inner).frame == row()


def test_unknown_keys_and_padding_do_not_reach_zeek() -> None:
    assert check(b'{"x":{"y":[1]},' + row()[1:] + b"   ").frame == row()


def test_a_cancelled_query_may_be_answered_for_a_while() -> None:
    queries = sent()
    queries.cancel("q_event", "zeek_1", NOW)
    assert check(row(), queries, NOW + ENDED_SECONDS).frame == row()
    assert cause(row(), queries, NOW + ENDED_SECONDS + 1) is Cause.QUERY


def test_an_instance_cannot_cancel_the_query_of_another() -> None:
    queries = sent()
    queries.cancel("q_event", "zeek_2", NOW)
    assert check(row(), queries, NOW + 2 * ENDED_SECONDS).frame == row()


def test_an_agent_has_a_bounded_number_of_queries() -> None:
    queries = SentQueries(2)
    assert [queries.add(f"q{number}", QUERIES["q_rows"]) for number in range(3)] == [True, True, False]
    assert queries.add("q1", QUERIES["q_rows"]), "a query that is sent again is no further one"
    assert len(queries) == 2


def test_a_hello_gets_the_gateway_as_a_feature_and_loses_others_of_that_name() -> None:
    features = broker_json.set_of(map(broker_json.string, ["batches", "via/elsewhere"]))
    checked = checked_hello(hello(features=features))
    with_via = read_hello(checked.write(context("h2"), "gw1"))
    assert with_via.features == {"batches", "via/gw1"}
    assert with_via.context.query_id == "h2"
    assert read_hello(checked.write(context("h2"), None)).features == {"batches"}


def test_a_hello_keeps_its_fields() -> None:
    for broker in (False, True):
        raw = hello(broker=broker)
        written = checked_hello(raw).write(context("agent_hello_1"), None)
        assert written == raw


def test_a_hello_for_a_stock_zeek_is_not_given_features_by_the_gateway() -> None:
    assert checked_hello(hello(broker=True)).write(context("agent_hello_1"), "gw1") == hello(broker=True)


def test_only_the_uptime_differs_between_hellos_of_one_state() -> None:
    first = checked_hello(hello())
    later = checked_hello(hello().replace(b'"1500ms"', b'"2500ms"'))
    assert (first.fields, first.features) == (later.fields, later.features)
    assert first.uptime != later.uptime


@pytest.mark.parametrize("columns", ["[]", "short", "long"])
def test_a_hello_with_too_few_or_too_many_fields_is_refused(columns: str) -> None:
    short = broker_json.vector([broker_json.string(AGENT)] * 5)
    long = broker_json.vector([broker_json.string(AGENT)] * 33)
    record = {"[]": broker_json.vector([]), "short": short, "long": long}[columns]
    assert cause(protocol.agent_hello(context("h"), record).encode()) is Cause.MALFORMED


def read_hello(raw: bytes) -> AgentHello:
    message = protocol.read_message(raw)
    assert isinstance(message, Message)
    event = protocol.agent_event(message)
    assert isinstance(event, AgentHello)
    return event


SCALARS = st.one_of(
    st.integers(0, 2**64 - 1).map(broker_json.count),
    st.integers(-(2**63), 2**63 - 1).map(broker_json.integer),
    st.floats(allow_nan=False, allow_infinity=False).map(broker_json.real),
    st.booleans().map(broker_json.boolean),
    st.text().map(broker_json.host_text),
    st.text().map(broker_json.string),
    st.floats(-5e9, 5e9).map(broker_json.timestamp),
    st.floats(-5e9, 5e9).map(broker_json.timespan),
    st.ip_addresses().map(lambda one: broker_json.address(str(one))),
    st.tuples(st.integers(0, 65535), st.sampled_from(["tcp", "udp", "icmp", "x"])).map(broker_json.port),
    st.just(broker_json.NONE),
    st.just(broker_json.enum("Zeek::Name")),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(broker_json.vector), st.lists(inner, max_size=4).map(broker_json.set_of)
    ),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=6))
def test_rows_of_any_values_pass_unchanged(columns: list[str]) -> None:
    raw = row(columns=broker_json.vector(columns))
    assert check(raw).frame == raw


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 30))
def test_a_damaged_frame_is_refused_or_still_says_only_what_it_may(inserted: bytes, at: int, removed: int) -> None:
    raw = row()
    damaged = raw[:at] + inserted + raw[at + removed :]
    try:
        checked = frames.check(damaged, AGENT, sent(), NOW)
    except RefusedError:
        return
    assert isinstance(checked, CheckedFrame)
    document = json.loads(checked.frame)
    assert set(document) == {"type", "topic", "@data-type", "data"}
    assert document["topic"] == protocol.response_topic(AGENT, "zeek_1")
    event, arguments = document["data"][2]["data"]
    assert event == {"@data-type": "string", "data": "Things::row"}
    named, _, query_id, *_ = arguments["data"][0]["data"]
    assert (named["data"], query_id["data"]) == (AGENT, "q_event")


@given(st.text(), st.text(), st.text(), st.text())
def test_no_text_of_an_agent_changes_whom_it_names(agent_id: str, query_id: str, event: str, topic: str) -> None:
    raw = protocol.event_message(
        topic, event, protocol.context_record(context(query_id, agent_id)), broker_json.vector([])
    )
    if (agent_id, query_id, event, topic) != (
        AGENT,
        "q_event",
        "Things::row",
        protocol.response_topic(AGENT, "zeek_1"),
    ):
        assert cause(raw.encode()) in set(Cause)


@pytest.mark.parametrize(
    "value",
    [
        broker_json.Count(-1), broker_json.Count(2**64), broker_json.Integer(2**63), broker_json.Real(None),
        broker_json.Address("1.2.3"), broker_json.Address('1.2.3.4","x":"'), broker_json.Subnet("10.0.0.0/33"),
        broker_json.Subnet("10.0.0.0"), broker_json.Port("70000/tcp"), broker_json.Port("80/x"),
        broker_json.Timestamp("2020-13-01T00:00:00"), broker_json.Timestamp("0001-01-01T00:00:00"),
        broker_json.Timestamp("today"), broker_json.Timespan("1y"), broker_json.Timespan("9223372037s"),
        broker_json.EnumValue("a b"), broker_json.EnumValue('x","y":"'),
    ],
)  # fmt: skip
def test_a_value_that_zeek_would_not_read_is_refused(value: broker_json.Data) -> None:
    with pytest.raises(broker_json.ProtocolError):
        values.encode(value)


def test_subnets_and_tables_are_written_as_zeek_writes_them() -> None:
    assert values.encode(broker_json.Subnet("10.0.0.0/8")) == '{"@data-type":"subnet","data":"10.0.0.0/8"}'
    table = broker_json.TableValue([broker_json.Entry(broker_json.Count(1), broker_json.String("a"))])
    assert json.loads(values.encode(table)) == {
        "@data-type": "table",
        "data": [{"key": {"@data-type": "count", "data": 1}, "value": {"@data-type": "string", "data": "a"}}],
    }


def test_values_nested_too_deeply_are_refused() -> None:
    value: broker_json.Data = broker_json.Count(1)
    for _ in range(values.DEPTH_MAX + 1):
        value = broker_json.Vector([value])
    with pytest.raises(broker_json.ProtocolError, match="too deeply"):
        values.encode(value)
