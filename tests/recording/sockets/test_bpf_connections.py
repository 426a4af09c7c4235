"""Rows from the kernel's socket records, in orders that two CPUs can produce and that real flows rarely have."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from recording import COLUMNS, Event

from zeek_agent.bpf.records import COUNTS, SOCKET, RecordKind, SocketFlags, SocketRecord
from zeek_agent.host.linux.stamps import start_ticks
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets import bpf_connections
from zeek_agent.recording.sockets.bpf_connections import ACCEPT_TIMEOUT_NS, ConnectionTracker

LISTENER, ACCEPTOR, OTHER = 101, 102, 103
BEGUN = 5_000_000_000
BOOT_TIME = 1_000.0
EMPTY = SocketRecord._make(SOCKET.unpack(bytes(SOCKET.size)))
ADDRESS = 0xFFFF_8880_0000_1000


@pytest.fixture
def tracker() -> ConnectionTracker:
    cache = ProcessCache()
    for pid in (LISTENER, ACCEPTOR, OTHER):
        cache.begin(Process(pid, start_ticks(pid * 10**9), pid * 10**9, pid * 10**9, f"E-{pid}", f"process {pid}"))
    return ConnectionTracker(cache)


def record(kind: RecordKind, pid: int = 0, **fields: object) -> bytes:
    """A record of IPv4 between 127.0.0.1:7000 and 127.0.0.1:4000."""
    at = BEGUN if pid == 0 else max(BEGUN, pid * 10**9)
    values = {
        "kind": kind,
        "protocol": 6,
        "family": 4,
        "pid": pid,
        "started": pid * 10**9,
        "acted": at,
        "time": at,
        "local": b"\x7f\0\0\1" + bytes(12),
        "remote": b"\x7f\0\0\1" + bytes(12),
        "local_port": 7000,
        "remote_port": 4000,
        "socket": ADDRESS,
        **fields,
    }
    return SOCKET.pack(*EMPTY._replace(**values))  # type: ignore[arg-type]


def rows_of(tracker: ConnectionTracker, *records: bytes, later: bool = False) -> list[Event]:
    """The rows for these records and, if `later`, those when their time is up."""
    rows = tracker.rows(records, BOOT_TIME)
    if later:
        rows += tracker.overdue(1_000 * 10**9 + ACCEPT_TIMEOUT_NS, BOOT_TIME)
    return [{name: getattr(row, name) for name in COLUMNS["sockets_events"]} for row in rows]


def named(rows: Iterable[Event]) -> list[tuple[str, int | None, bool]]:
    return [(row["state"], row["pid"], row["listener_stands_in"]) for row in rows]


@pytest.mark.parametrize("cookie", [0, 9])
def test_an_accept_that_is_recorded_before_its_connection(tracker: ConnectionTracker, cookie: int) -> None:
    """The kernel may not have given the connection its cookie yet."""
    rows = rows_of(
        tracker,
        record(RecordKind.ACCEPTED, ACCEPTOR, cookie=cookie),
        record(RecordKind.PASSIVE, LISTENER, cookie=9),
        record(RecordKind.CLOSED, LISTENER, cookie=9),
        later=True,
    )
    assert named(rows) == [("established", ACCEPTOR, False), ("closed", ACCEPTOR, False)]
    assert {row["cookie"] for row in rows} == {9}


def test_an_accept_whose_connection_was_not_recorded_has_a_row(tracker: ConnectionTracker) -> None:
    rows = rows_of(tracker, record(RecordKind.ACCEPTED, ACCEPTOR, cookie=9), later=True)
    assert named(rows) == [("established", ACCEPTOR, False)]
    assert named(rows_of(tracker, record(RecordKind.CLOSED, LISTENER, cookie=9))) == [("closed", ACCEPTOR, False)]


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("outbound", [0, 1])
def test_the_end_of_a_flow_whose_other_records_were_lost(
    tracker: ConnectionTracker, protocol: int, outbound: int
) -> None:
    """Of an inbound flow, the kernel's owner is only a holder."""
    rows = rows_of(tracker, record(RecordKind.CLOSED, LISTENER, cookie=9, protocol=protocol, outbound=outbound))
    assert named(rows) == [("closed", LISTENER, not outbound)]


@pytest.mark.parametrize("cookie", [0, 9])
def test_the_end_of_a_connection_that_was_accepted_just_now_and_not_seen_to_come_in(
    tracker: ConnectionTracker, cookie: int
) -> None:
    """It came in before recording started."""
    rows = rows_of(
        tracker,
        record(RecordKind.ACCEPTED, ACCEPTOR, cookie=cookie),
        record(RecordKind.CLOSED, cookie=9, started=0),
        later=True,
    )
    assert named(rows) == [("established", ACCEPTOR, False), ("closed", ACCEPTOR, False)]
    assert [(row["cookie"], row["direction"]) for row in rows] == 2 * [(9, "inbound")]


@pytest.mark.parametrize("is_shared", [False, True])
def test_which_process_of_a_connection_from_before_acted_is_unknown_if_several_have_it_open(
    tracker: ConnectionTracker, is_shared: bool
) -> None:
    tracker.remember(9, Process(LISTENER, 0, 0, 0, "E", "parent"), "inbound", is_shared=is_shared)
    rows = rows_of(tracker, record(RecordKind.CLOSED, cookie=9, started=0))
    assert named(rows) == [("closed", LISTENER, is_shared)]


def test_an_accept_is_not_taken_for_that_of_a_later_socket_at_the_same_address(tracker: ConnectionTracker) -> None:
    rows = rows_of(
        tracker,
        record(RecordKind.ACCEPTED, ACCEPTOR, cookie=0),
        record(RecordKind.PASSIVE, LISTENER, cookie=10, remote_port=4001),
        record(RecordKind.ACCEPTED, OTHER, cookie=10, remote_port=4001),
        later=True,
    )
    assert {(row["remote_port"], row["pid"]) for row in rows} >= {(4001, OTHER)}
    assert (4001, ACCEPTOR) not in {(row["remote_port"], row["pid"]) for row in rows}


def test_a_subflow_that_arrives_while_its_connection_is_accepted(tracker: ConnectionTracker) -> None:
    rows = rows_of(
        tracker,
        record(RecordKind.PASSIVE, LISTENER, cookie=1, token=77),
        record(RecordKind.ACCEPTED, ACCEPTOR, token=77),
        record(RecordKind.PASSIVE, LISTENER, cookie=2, token=77, remote_port=4001),
        record(RecordKind.PASSIVE, ACCEPTOR, cookie=3, token=77, remote_port=4002, flags=SocketFlags.OWNED),
        later=True,
    )
    assert named(rows) == 3 * [("established", ACCEPTOR, False)]
    assert [(row["cookie"], row["mptcp_token"]) for row in rows] == [(1, 77), (2, 77), (3, 77)]


def test_a_subflow_of_another_connection_at_the_same_address_waits(tracker: ConnectionTracker) -> None:
    rows = rows_of(
        tracker,
        record(RecordKind.PASSIVE, LISTENER, cookie=1, token=77),
        record(RecordKind.ACCEPTED, ACCEPTOR, token=77),
        record(RecordKind.PASSIVE, LISTENER, cookie=2, token=78),
    )
    assert named(rows) == [("established", ACCEPTOR, False)]


@pytest.mark.parametrize("late", [False, True])
def test_an_mptcp_connection_that_fell_back_to_tcp_before_its_accept(tracker: ConnectionTracker, late: bool) -> None:
    """The kernel has forgotten the token; the accept tells the first subflow's cookie."""
    waiting = [record(RecordKind.PASSIVE, LISTENER, cookie=cookie, token=77, remote_port=cookie) for cookie in (1, 2)]
    before = rows_of(tracker, *waiting, later=late)
    rows = rows_of(tracker, record(RecordKind.ACCEPTED, ACCEPTOR, cookie=1), later=True)
    assert len(before) == 2 * late
    assert [(row["cookie"], row["pid"], row["correction"]) for row in rows] == [
        (1, ACCEPTOR, late),
        (2, ACCEPTOR, late),
    ]


def test_all_subflows_of_a_late_accept_are_corrected(tracker: ConnectionTracker) -> None:
    waiting = [record(RecordKind.PASSIVE, LISTENER, cookie=cookie, token=77, remote_port=cookie) for cookie in (1, 2)]
    assert named(rows_of(tracker, *waiting, later=True)) == 2 * [("established", LISTENER, True)]
    rows = rows_of(tracker, record(RecordKind.ACCEPTED, ACCEPTOR, token=77), later=True)
    assert [(row["cookie"], row["pid"], row["correction"]) for row in rows] == [
        (1, ACCEPTOR, True),
        (2, ACCEPTOR, True),
    ]


def test_of_a_kernel_workers_subflow_whose_connection_is_unknown_the_process_is_null(
    tracker: ConnectionTracker,
) -> None:
    rows = rows_of(tracker, record(RecordKind.CONNECTED, cookie=1, token=77, outbound=1))
    assert [(row["pid"], row["exe"], row["mptcp_token"]) for row in rows] == [(None, None, 77)]


def test_a_flood_of_flows_that_nobody_reads_waits_less(
    tracker: ConnectionTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_connections, "PENDING_FLOWS_MAX", 10)
    monkeypatch.setattr(bpf_connections, "SUBSTITUTED_FLOWS_MAX", 5)
    unread = {"protocol": 17, "cookie": 1, "flags": SocketFlags.UNREAD}
    flood = [record(RecordKind.RECEIVED, LISTENER, remote_port=port, **unread) for port in range(1, 31)]
    rows = rows_of(tracker, *flood)
    assert [(row["remote_port"], row["listener_stands_in"]) for row in rows] == [(port, True) for port in range(1, 21)]
    late = [record(RecordKind.READ, ACCEPTOR, protocol=17, cookie=1, remote_port=port) for port in range(1, 31)]
    rows = rows_of(tracker, *late)
    corrected = [row["remote_port"] for row in rows if row["correction"]]
    assert corrected == list(range(16, 21)), "only the newest can be corrected"
    assert [row["remote_port"] for row in rows if not row["correction"]] == list(range(21, 31))
    assert {row["pid"] for row in rows} == {ACCEPTOR}


def test_a_holder_that_has_ended_is_replaced_by_one_that_is_found_once(tracker: ConnectionTracker) -> None:
    searched: list[set[int]] = []
    holder = Process(os.getpid(), 1, 1, 1, "E-holder", "holder")

    def find(inodes: set[int]) -> dict[int, Process]:
        searched.append(inodes)
        return dict.fromkeys(inodes, holder)

    tracker._find_holders = find
    tracker._cache.exit(LISTENER, BEGUN + LISTENER * 10**9)
    at = 900 * 10**9
    for port in (1, 2):
        arrived = {"protocol": 17, "cookie": 1, "flags": SocketFlags.UNREAD, "time": at, "remote_port": port}
        rows = rows_of(tracker, record(RecordKind.RECEIVED, LISTENER, **{"socket": 4711, **arrived}), later=True)
        assert named(rows) == [("established", os.getpid(), True)]
    assert searched == [{4711}]


def test_the_process_of_a_flow_that_expired_unread_is_corrected(tracker: ConnectionTracker) -> None:
    flow = {"cookie": 9, "protocol": 17}
    assert named(
        rows_of(tracker, record(RecordKind.RECEIVED, LISTENER, flags=SocketFlags.UNREAD, **flow), later=True)
    ) == [("established", LISTENER, True)]
    expired = record(RecordKind.EXPIRED, flags=SocketFlags.COUNTED, **flow) + COUNTS.pack(BEGUN, 0, 10, 0, 1, 0)
    assert named(rows_of(tracker, expired)) == [("expired", LISTENER, True)]
    assert named(rows_of(tracker, record(RecordKind.READ, ACCEPTOR, **flow))) == [
        ("established", ACCEPTOR, False),
        ("expired", ACCEPTOR, False),
    ]
