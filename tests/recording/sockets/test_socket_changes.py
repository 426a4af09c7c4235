"""Rows from successive lists of open sockets, which the tests write themselves, and from reports of closed ones."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.internet_sockets import TCP, UDP, InternetSocket, TcpState
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.sockets.socket_changes import SocketChanges

NETNS = 4_026_531_840
LISTED = InternetSocket(TCP, TcpState.SYN_SENT, bytes([10, 0, 0, 1]), 40_000, bytes([10, 0, 0, 2]), 80, 7, 0, 99)
"""A connection that is being opened."""

OUTCOMES = pytest.mark.parametrize(
    ("was_established", "states"),
    [(True, ["established", "closed"]), (False, ["failed"]), (None, ["closed"])],
    ids=["established", "failed", "not known"],
)


class Rounds:
    """Rounds of a polling source, numbered by time."""

    def __init__(self, **waiting: Any) -> None:
        self.changes = SocketChanges(lambda _: {}, Exclusions(SourceSettings()), attribution_timeout=0.0, **waiting)
        self._numbers = count(1.0)
        self.changes.seed(NETNS, [], 0.0)

    def __call__(
        self, *listed: InternetSocket, gone: InternetSocket | None = None, was_established: bool | None = None
    ) -> list[tuple[str | None, float]]:
        """One round: the sockets that the kernel lists, and one it reported as closed; state and time of its rows."""
        now = next(self._numbers)
        self.changes.update(NETNS, listed, now)
        if gone is not None:
            self.changes.destroyed(NETNS, gone, now, was_established=was_established)
        return [(row.state, row.time) for row in self.changes.collect(now)]


@pytest.mark.parametrize("misses", [0, 1, 3])
def test_an_attempt_that_vanishes_between_two_rounds_is_closed_not_failed(misses: int) -> None:
    a_round = Rounds(misses=misses)
    assert a_round(LISTED) == []
    for _ in range(misses):
        assert a_round() == []
    assert a_round() == [("closed", 2.0)]
    assert a_round() == []


@OUTCOMES
def test_the_kernel_may_report_the_outcome_of_an_attempt_later(was_established: bool | None, states: list[str]) -> None:
    """It keeps a closed socket while a packet of it waits for the peer's address."""
    a_round = Rounds(misses=1, outcome_timeout=4.0)
    a_round(LISTED)
    assert a_round() == a_round() == a_round() == []
    gone = LISTED._replace(state=TcpState.CLOSE, inode=0)
    assert a_round(gone=gone, was_established=was_established) == [(state, 2.0) for state in states]
    assert a_round() == []


def test_an_attempt_without_a_report_of_its_outcome_is_closed_after_the_timeout() -> None:
    a_round = Rounds(misses=1, outcome_timeout=4.0)
    a_round(LISTED)
    assert [a_round() for _ in range(5)] == [[], [], [], [], [("closed", 2.0)]]


def test_an_attempt_that_waits_for_its_outcome_is_closed_when_the_source_stops() -> None:
    a_round = Rounds(misses=1, outcome_timeout=4.0)
    other = LISTED._replace(remote_port=443, cookie=100)
    a_round(LISTED, other)
    a_round(other)
    a_round.changes.end_waiting(3.0)
    assert [(row.remote_port, row.state) for row in a_round.changes.collect(3.0)] == [(80, "closed")]


def test_an_attempt_to_another_peer_by_the_same_socket_is_another_one() -> None:
    a_round = Rounds(misses=1, outcome_timeout=4.0)
    a_round(LISTED)
    a_round()
    second = LISTED._replace(remote_port=443)
    assert a_round(second) == [("closed", 2.0)]
    a_round.changes.update(NETNS, [second._replace(state=TcpState.ESTABLISHED)], 4.0)
    assert [(row.remote_port, row.state) for row in a_round.changes.collect(4.0)] == [(443, "established")]


def test_an_attempt_is_closed_not_failed_when_its_network_namespace_is_gone() -> None:
    a_round = Rounds(misses=1)
    a_round(LISTED)
    a_round.changes.forget(NETNS, 2.0)
    assert [row.state for row in a_round.changes.collect(2.0)] == ["closed"]


@OUTCOMES
def test_an_attempt_ends_as_the_kernel_reports(was_established: bool | None, states: list[str]) -> None:
    a_round = Rounds(misses=1)
    a_round(LISTED)
    rows = a_round(gone=LISTED._replace(state=TcpState.CLOSE, inode=0), was_established=was_established)
    assert rows == [(state, 2.0) for state in states]
    assert a_round() == a_round() == []


@OUTCOMES
def test_an_attempt_without_a_peer_at_its_end_has_the_one_that_was_listed(
    was_established: bool | None, states: list[str]
) -> None:
    """The kernel clears the peer when a connection is reset, and when connect(2) fails."""
    a_round = Rounds(misses=1)
    a_round(LISTED)
    gone = LISTED._replace(state=TcpState.CLOSE, remote=bytes(4), remote_port=0)
    a_round.changes.destroyed(NETNS, gone, 2.0, was_established=was_established)
    rows = a_round.changes.collect(2.0)
    assert [(row.state, row.remote_addr, row.remote_port) for row in rows] == [(s, "10.0.0.2", 80) for s in states]


@OUTCOMES
def test_a_connection_that_no_round_saw_ends_as_the_kernel_reports(
    was_established: bool | None, states: list[str]
) -> None:
    a_round = Rounds(misses=1)
    rows = a_round(gone=LISTED._replace(state=TcpState.CLOSE, inode=0), was_established=was_established)
    assert rows == [(state, 1.0) for state in states]
    assert a_round() == []


def test_a_connection_that_a_round_saw_established_is_reported_once() -> None:
    a_round = Rounds(misses=1)
    a_round(LISTED)
    assert a_round(LISTED._replace(state=TcpState.ESTABLISHED)) == [("established", 2.0)]
    gone = LISTED._replace(state=TcpState.CLOSE, inode=0)
    assert a_round(gone=gone, was_established=True) == [("closed", 3.0)]
    assert a_round() == a_round() == []


def test_a_datagram_socket_with_a_peer_that_no_round_saw_was_established() -> None:
    a_round = Rounds(misses=1)
    gone = LISTED._replace(protocol=UDP, state=TcpState.CLOSE, inode=0)
    assert a_round(gone=gone, was_established=True) == [("established", 1.0), ("closed", 1.0)]


def test_a_clock_that_was_set_back_delays_no_row() -> None:
    year = 365 * 86_400.0
    changes = SocketChanges(
        lambda _: {}, Exclusions(SourceSettings()), attribution_timeout=5.0, misses=0, outcome_timeout=5.0
    )
    changes.seed(NETNS, [], 10 * year)
    unowned = LISTED._replace(state=TcpState.ESTABLISHED, inode=11, cookie=100)
    changes.update(NETNS, [LISTED, unowned], 10 * year)
    changes.update(NETNS, [unowned], 10 * year + 1)
    assert changes.collect(10 * year + 1) == []
    changes.update(NETNS, [unowned], 2.0)
    assert sorted((row.state, row.time) for row in changes.collect(2.0)) == [
        ("closed", 10 * year + 1),
        ("established", 10 * year),
    ]


def test_closed_sockets_are_forgotten_after_the_clock_was_set_back() -> None:
    changes = SocketChanges(lambda _: {}, Exclusions(SourceSettings()), attribution_timeout=0.0)
    changes.seed(NETNS, [], 1_000_000.0)
    for number in range(300):
        now = 1_000_000.0 if number == 0 else 10.0 * number
        gone = LISTED._replace(state=TcpState.CLOSE, inode=0, cookie=1_000 + number)
        changes.destroyed(NETNS, gone, now, was_established=True)
        changes.collect(now)
    assert len(changes._closed) < 100
