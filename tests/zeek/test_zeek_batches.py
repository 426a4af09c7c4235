"""Rows in batches between the agent and a package that takes them: form, acknowledgement, sending again."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_zeek_connection import Rows, agent, columns, connected
from waiting import until
from zeek_server import Client, zeek_server

from zeek_agent.database.database import Profile, ResultColumn
from zeek_agent.database.encodings import BatchesEncoding, FrameBatch
from zeek_agent.queries.subscriptions import Change, Query, Report, Subscription
from zeek_agent.schema import ZeekType
from zeek_agent.zeek import frames, protocol
from zeek_agent.zeek.protocol import ResultBatch

FEATURES = frozenset({protocol.BATCHES})


def report(rows: list[tuple[Change | None, tuple[object, ...]]], kinds: tuple[str, ...] = ("count", "text")) -> Report:
    return Report("q", Query("SELECT", protocol.ROWS), columns(*kinds), rows, "stream", "store", (10, 20))  # type: ignore[arg-type]


def split(whole: Report, rows: int, size: int, now: float = 1.0) -> Iterator[FrameBatch]:
    encoding = BatchesEncoding("/t", "Hagent", now, "q", None, rows, size, whole.store, whole.stream, *whole.window)
    return frames.batch_frames(whole.columns, whole.rows, encoding)


def taken(frame: bytes) -> ResultBatch:
    event = protocol.agent_event(protocol.read_message(frame))  # type: ignore[arg-type]
    assert isinstance(event, ResultBatch)
    return event


def encoded(kind: str, cell: object) -> object:
    text = frames.object_encoder([ResultColumn("cell", ZeekType.parse(kind))])((cell,))  # type: ignore[arg-type]
    return json.loads(text).get("cell")


@pytest.mark.parametrize(
    ("kind", "cell", "expected"),
    [
        ("count", 7, 7),
        ("bool", True, True),
        ("text", "caf\u00e9 \uefff\n\\", "caf\u00e9 \\xff\\x0a\\\\"),
        ("blob", b"\xff\x00", "\\xff\\x00"),
        ("address", "192.0.2.1", "192.0.2.1"),
        ("port", (53, "udp"), "53/udp"),
        ("time", 1795489155.123456, 1795489155.123456),
        ("interval", 0.25, 0.25),
        ("interval", math.inf, None),
        ("set[address]", ("::1", "192.0.2.1"), ["::1", "192.0.2.1"]),
        ("vector[text]", ("a\tb",), ["a\\x09b"]),
        ("record", (("c1", "x\x01"), ("c2:int", -5), ("c3", None)), {"c1": "x\\x01", "c2": -5}),
        ("text", None, None),
    ],
)
def test_cells_are_written_as_from_json_takes_them(kind: str, cell: object, expected: object) -> None:
    assert encoded(kind, cell) == expected


@given(st.lists(st.tuples(st.sampled_from([Change.ADD, Change.DELETE, None]), st.text(max_size=40)), max_size=60))
def test_no_row_is_lost_or_reordered_and_a_batch_has_one_change(rows: list[tuple[Change | None, str]]) -> None:
    whole = report([(change, (number, text)) for number, (change, text) in enumerate(rows)])
    sent = [taken(frame) for batch in split(whole, 7, 300) for frame in batch.frames]
    numbers = [row["c0"] for one in sent for row in json.loads(one.rows)]
    assert numbers == list(range(len(rows)))
    changes = [one.context.change for one in sent for _ in json.loads(one.rows)]
    assert changes == [change for change, _ in rows]
    assert [one.batch.index for one in sent] == list(range(len(sent)))
    assert [one.batch.last for one in sent] == [False] * (len(sent) - 1) + [True] * bool(sent)
    assert all(
        (one.batch.store, one.batch.stream, one.batch.low, one.batch.high) == ("store", "stream", 10, 20)
        for one in sent
    )


def test_the_same_report_is_split_the_same_way() -> None:
    whole = report([(Change.ADD, (number, "x" * (number * 37 % 90))) for number in range(200)])
    first, second = (
        [taken(frame).rows for batch in split(whole, 100, 2000, now) for frame in batch.frames] for now in (1.0, 2.0)
    )
    assert first == second
    assert all(len(rows) < 2200 for rows in first)


def many(number: int) -> Rows:
    rows = Rows()
    rows.results["SELECT many"] = (columns("count", "text"), [(n, "x" * 50) for n in range(number)])
    return rows


def wanted(**more: object) -> Query:
    return Query("SELECT many", protocol.ROWS, **more)  # type: ignore[arg-type]


async def received(client: Client, number: int) -> list[ResultBatch]:
    await client.expect(ResultBatch, number=number)
    return client.of(ResultBatch)


async def test_a_package_that_takes_batches_is_offered_all_columns_and_gets_batches() -> None:
    async with connected(many(250)) as (one, client):
        await client.hello(features=FEATURES)
        await client.install("q", wanted(cookie="c"))
        got = await received(client, 3)
        assert one.runner.installed[0].recipient.profile is Profile.FULL
        for event in got:
            await client.acknowledge(event)
        await until(lambda: not one.runner.installed)
    assert [len(json.loads(event.rows)) for event in got] == [100, 100, 50]
    assert got[0].context.cookie == "c"
    assert json.loads(got[0].rows)[1] == {"c0": 1, "c1": "x" * 50}


async def test_a_query_that_runs_once_has_an_end_also_without_rows() -> None:
    async with connected(many(0)) as (one, client):
        await client.hello(features=FEATURES)
        await client.install("q", wanted())
        (only,) = await received(client, 1)
        await client.acknowledge(only)
        await until(lambda: not one.runner.installed)
    assert (json.loads(only.rows), only.batch.index, only.batch.last) == ([], 0, True)


async def test_a_stock_package_is_offered_the_columns_of_version_2() -> None:
    async with connected(many(1)) as (one, client):
        await client.hello("2.4.0")
        await client.install("q", Query("SELECT many", "Test::row", 60.0, Subscription.SNAPSHOTS))
        await until(lambda: bool(one.runner.installed))
        assert one.runner.installed[0].recipient.profile is Profile.STOCK


async def test_a_query_continues_only_after_the_scripts_acknowledgement() -> None:
    async with connected(many(1)) as (_one, client):
        await client.hello(features=FEATURES)
        await client.install("q", wanted(schedule=0.05, subscription=Subscription.SNAPSHOTS))
        (first,) = await received(client, 1)
        await asyncio.sleep(0.15)
        assert len(client.of(ResultBatch)) == 1
        await client.acknowledge(first)
        second = (await received(client, 2))[1]
        assert second.batch.high == first.batch.high + 1


async def test_batches_that_the_script_did_not_see_are_sent_again_and_no_others() -> None:
    async with connected(many(250), script_timeout=0.2) as (one, client):
        await client.hello(features=FEATURES)
        await client.install("q", wanted())
        got = await received(client, 3)
        await client.acknowledge(got[0])
        again = (await received(client, 5))[3:]
        assert [event.batch.index for event in again] == [1, 2]
        assert [event.rows for event in again] == [event.rows for event in got[1:]]
        await client.acknowledge(again[-1])
        await until(lambda: not one.runner.installed)
        traffic = one.connection.traffic
        assert (traffic.sent_rows, traffic.queued_rows, traffic.dropped_rows.total()) == (250, 0, 0)


async def test_acknowledgements_of_something_else_change_nothing() -> None:
    async with connected(many(1)) as (one, client):
        await client.hello(features=FEATURES)
        await client.install("q", wanted(schedule=0.05, subscription=Subscription.SNAPSHOTS))
        (first,) = await received(client, 1)
        for frame in (
            protocol.rows_ack(
                client.topic, protocol.RowsAck("zeek_1", "other", first.batch.stream, first.batch.high, 0)
            ),
            protocol.rows_ack(client.topic, protocol.RowsAck("zeek_1", "q", "other", first.batch.high, 0)),
            protocol.rows_ack(client.topic, protocol.RowsAck("zeek_1", "q", first.batch.stream, 99, 0)),
            protocol.event_message(client.topic, protocol.ROWS_ACK, '{"@data-type":"count","data":1}'),
        ):
            await client.send(frame)
        await asyncio.sleep(0.1)
        assert len(client.of(ResultBatch)) == 1
        assert one.runner.installed


async def test_a_disconnect_ends_the_wait_for_an_acknowledgement() -> None:
    async with zeek_server() as zeek, agent(zeek.url(), many(1)) as one:
        client = await zeek.client()
        await client.hello(features=FEATURES)
        await client.install("q", wanted(schedule=60.0, subscription=Subscription.SNAPSHOTS))
        await received(client, 1)
        client.abort()
        await until(lambda: not one.runner.installed)
        client = await zeek.client()
        await client.hello(features=FEATURES)
        await client.install("q2", wanted())
        assert len(await received(client, 1)) == 1
