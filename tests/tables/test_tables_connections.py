"""The table connections while connections open and close: none twice, none missing."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asking import ask
from msgspec.structs import replace

from zeek_agent.events.store import EventStore
from zeek_agent.recording.sockets.socket_event import Flow, SocketEvent, SocketState, Traffic, socket_event
from zeek_agent.tables import events
from zeek_agent.tables.connections import connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs netlink")
SO_COOKIE = 57
NOTHING: Traffic = (None, None, None, None, None, None)


@pytest.fixture
def store() -> Iterator[EventStore]:
    store = EventStore(None, events.TABLES)
    yield store
    store.close()


def flow_of(connected: socket.socket, cookie: int = 0) -> Flow:
    (local, local_port), (remote, remote_port) = connected.getsockname(), connected.getpeername()
    cookie = cookie or int.from_bytes(connected.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    protocol = 6 if connected.type == socket.SOCK_STREAM else 17
    return Flow(protocol, socket.inet_aton(local), local_port, socket.inet_aton(remote), remote_port, cookie, None)


def event(
    flow: Flow, state: SocketState, ago: float, traffic: Traffic = NOTHING, *, stands_in: bool = False
) -> SocketEvent:
    return socket_event(flow, state, "inbound", None, time=time.time() - ago, stands_in=stands_in, traffic=traffic)


def rows_of(store: EventStore, flow: Flow, *rows: SocketEvent, within: float = 3600.0) -> list[dict[str, Any]]:
    store.append("sockets_events", list(rows))
    assert store.flush()
    return [row for row in ask(connections, within, store=store) if row["cookie"] == flow.cookie]


def test_a_connection_that_ends_while_the_table_is_read_has_one_row(store: EventStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        flow = flow_of(client)
        ended = event(flow, "closed", 0.0, (5.0, 1, 2, 3, 4, None))
        (row,) = rows_of(store, flow, event(flow, "established", 5.0), ended)
    assert row["state"] == "open"


def test_an_earlier_connection_of_the_same_socket_has_its_own_row(store: EventStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        flow = flow_of(client)
        before = event(flow, "closed", 30.0, (5.0, 1, 2, 3, 4, None))
        rows = rows_of(store, flow, event(flow, "established", 35.0), before, event(flow, "established", 5.0))
    assert sorted(row["state"] for row in rows) == ["closed", "open"]


@pytest.mark.parametrize("within", [0.0, 60.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("state", ["established", "active"])
def test_an_open_datagram_flow_is_shown_whatever_the_interval(
    store: EventStore, state: SocketState, within: float
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", 9))
        flow = flow_of(client)
        (row,) = rows_of(store, flow, event(flow, state, 290.0, (10.0, 1, 2, 3, 4, None)), within=within)
        assert (row["state"], row["ended"], row["bytes_sent"]) == ("open", None, 1)
        ended = event(flow, "closed", 280.0, (20.0, 1, 2, 3, 4, None))
        rows = rows_of(store, flow, ended, within=within)
    assert [row["state"] for row in rows] == (["closed"] if within > 280 else [])


def test_a_corrected_flow_keeps_its_counts_and_has_one_row(store: EventStore) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", 9))
        flow = flow_of(client)
        begun = event(flow, "established", 100.0, stands_in=True)
        active = event(flow, "active", 50.0, (50.0, 7, 8, 1, 1, None), stands_in=True)
        active = replace(active, time=begun.time + 50.0)
        (row,) = rows_of(store, flow, begun, active, begun.corrected(None))
        assert (row["state"], row["bytes_sent"], row["began"]) == ("open", 7, pytest.approx(begun.time))
        expired = event(flow, "expired", 20.0, (80.0, 9, 9, 2, 2, None), stands_in=True)
        (row,) = rows_of(store, flow, expired, begun.corrected(None), expired.corrected(None))
        assert (row["state"], row["bytes_sent"]) == ("expired", 9)
