"""Merging: one event has one row, whichever sources report it, in whatever order, and over a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.recording.logins.login_event import LoginEvent
from zeek_agent.recording.logins.merging import REMEMBERED_MAX, SETTLE_SECONDS, LoginMerger
from zeek_agent.recording.logins.observation import Observation

AT = 1_700_000_000.0


def statement(source: str, what: str, **more: Any) -> Observation:
    return Observation(more.pop("time", AT), source, what, more.pop("action", "login"), **more)


ACCEPTED = statement("journal", "accepted", user="alice", uid=1000, pid=7, remote_addr="192.0.2.7", remote_port=50_000)
SESSION = statement("journal", "session", user="alice", uid=1000, pid=7)
KERNEL = statement("kernel", "session", uid=1000, user="alice", pid=7, other_pid=8, session=3, entity_id="e7")
AUDIT = statement("audit", "1105", user="alice", uid=1000, pid=7, session=3, tty="pts/0")
LOGINUID = statement("audit", "loginuid", user="alice", uid=1000, pid=7, session=3)
WTMP = statement("wtmp", "login", user="alice", pid=8, tty="pts/0", merges_by_user=True)
EVERYTHING = (ACCEPTED, SESSION, KERNEL, AUDIT, LOGINUID, WTMP)


def merged(*statements: Observation) -> list[LoginEvent]:
    merger = LoginMerger()
    for number, one in enumerate(statements):
        merger.observe(one.copy(), AT + number / 100)
    assert merger.settled(AT + 0.5) == []
    return merger.settled(AT + SETTLE_SECONDS + 1)


@given(st.permutations(EVERYTHING))
def test_a_login_that_all_sources_report_is_one_row(order: list[Observation]) -> None:
    (row,) = merged(*order)
    assert (row.user, row.uid, row.session, row.entity_id) == ("alice", 1000, 3, "e7")
    assert (row.remote_addr, row.remote_port, row.tty, row.pid) == ("192.0.2.7", 50_000, "pts/0", 7)
    assert (row.action, row.outcome, row.source) == ("login", "success", "audit,journal,kernel,wtmp")


def test_each_wrong_password_in_a_connection_is_an_event() -> None:
    failed = statement("journal", "failed", action="failed", succeeded=False, user="alice", pid=7)
    audit = replace(failed, source="audit", statement="1100")
    btmp = replace(failed, source="btmp", statement="refused", merges_by_user=True)
    rows = merged(failed, audit, failed, btmp, audit, btmp)
    assert [row.source for row in rows] == ["audit,btmp,journal"] * 2


def test_logins_of_two_connections_stay_apart() -> None:
    other = {"pid": 17, "other_pid": None, "session": None, "entity_id": None, "remote_port": None}
    rows = merged(ACCEPTED, replace(KERNEL, **other), SESSION, replace(ACCEPTED, pid=27, remote_port=50_001))
    assert [row.pid for row in rows] == [7, 17, 27]


def test_a_statement_that_contradicts_the_kernel_does_not_join_its_event() -> None:
    forged = statement("syslog", "accepted", user="root", uid=0, pid=7, verified=False)
    rows = merged(KERNEL, forged)
    assert [(row.user, row.verified) for row in rows] == [("alice", True), ("root", False)]


def test_an_unverified_line_is_verified_by_the_kernel() -> None:
    (row,) = merged(replace(ACCEPTED, source="syslog", verified=False), KERNEL)
    assert row.verified
    (row,) = merged(replace(ACCEPTED, source="syslog", verified=False))
    assert not row.verified


def test_an_unknown_user_is_reported_once_for_each_attempt() -> None:
    """sshd logs the name, then each attempt, then the end; btmp has one record more than there are attempts."""
    invalid = statement("journal", "invalid", action="failed", succeeded=False, user="x", pid=7, repeats=True)
    failed = replace(invalid, statement="failed", repeats=False, method="password", time=AT + 3)
    left = replace(invalid, statement="left", time=AT + 9)
    btmp = replace(invalid, source="btmp", merges_by_user=True)
    refused = replace(btmp, statement="refused", repeats=False, time=AT + 3)
    second = [replace(one, time=AT + 6) for one in (failed, refused)]
    merger = LoginMerger()
    rows = []
    for one in (invalid, btmp, refused, failed, *second, left):
        merger.observe(one.copy(), one.time)
        rows += merger.settled(one.time + 0.1)
    rows += merger.settled(AT + 60)
    assert [(row.method, row.source) for row in rows] == [("password", "btmp,journal")] * 2


def test_the_end_of_a_session_has_the_facts_of_its_beginning() -> None:
    closed = statement("journal", "closed", action="logout", user="alice", pid=7, time=AT + 1)
    begin, end = merged(ACCEPTED, WTMP, KERNEL, closed)
    assert (begin.action, end.action) == ("login", "logout")
    assert (end.remote_addr, end.remote_port, end.tty, end.session) == ("192.0.2.7", 50_000, "pts/0", 3)


def test_the_end_of_another_users_session_with_that_pid_has_none() -> None:
    closed = statement("journal", "closed", action="logout", user="bob", pid=7, time=AT + 1)
    _, end = merged(ACCEPTED, closed)
    assert (end.remote_addr, end.session) == (None, None)


def test_pending_events_are_bounded() -> None:
    merger = LoginMerger()
    for number in range(REMEMBERED_MAX + 500):
        merger.observe(replace(ACCEPTED, pid=number + 10), AT)
    assert len(merger.settled(AT)) == 500
    assert len(merger.settled(AT + SETTLE_SECONDS)) == REMEMBERED_MAX


@given(
    lines=st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["accepted", "session", "closed"])), max_size=30),
    stops=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=4),
)
def test_over_restarts_and_crashes_no_event_of_a_log_is_lost_or_repeated(
    lines: list[tuple[int, str]], stops: list[tuple[int, bool]]
) -> None:
    """The log is read from the position of the last stored row on; a crash loses the rows that are not stored."""
    log = []
    for number, (pid, what) in enumerate(lines):
        action = "logout" if what == "closed" else "login"
        log.append(statement("journal", what, action=action, user="alice", pid=pid, time=AT + number))

    def run(stops: list[tuple[int, bool]]) -> list[tuple[float, str, int | None]]:
        stored: list[LoginEvent] = []
        merger, position, until = LoginMerger(), 0, dict(stops)
        now = AT
        while position < len(log):
            now = max(now, log[position].time)
            merger.observe(log[position].copy(), now, str(position))
            stored += merger.settled(now)
            position += 1
            crashed = until.pop(position, None)
            if crashed is not None:
                stored += [] if crashed else merger.settled(now, at_end=True)
                merger = LoginMerger()
                positions = merger.resume([row.cursor for row in reversed(stored)], now)
                position = int(positions["journal"]) + 1 if "journal" in positions else 0
        stored += merger.settled(now + 1_000)
        return sorted((row.time, row.action, row.pid) for row in stored)

    assert run(stops) == run([])


@pytest.mark.parametrize("kernel_first", [False, True])
def test_a_session_whose_first_process_is_not_known_joins_the_log_without_naming_another_process(
    kernel_first: bool,
) -> None:
    child = replace(KERNEL, pid=8, other_pid=7, entity_id="e8", process="sshd", merges_by_user=True)
    (row,) = merged(*([child, ACCEPTED] if kernel_first else [ACCEPTED, child]))
    assert (row.pid, row.entity_id, row.session) == (7, None, 3)


def test_a_name_that_a_source_cuts_off_is_the_same_name() -> None:
    name = "x" * 80
    failed = statement("journal", "failed", action="failed", succeeded=False, user=name, pid=7)
    btmp = replace(failed, source="btmp", statement="refused", user=name[:32], merges_by_user=True)
    for order in ((failed, btmp), (btmp, failed)):
        (row,) = merged(*order)
        assert (row.user, row.source) == (name, "btmp,journal")
    assert len(merged(failed, replace(btmp, user=name[:31]))) == 2


def test_the_time_is_that_of_the_source_with_fractions_of_seconds() -> None:
    closed = statement("syslog", "closed", action="logout", user="alice", pid=7, time=AT)
    ended = replace(closed, source="kernel", statement="ended", time=AT + 0.31)
    for order in ((closed, ended), (ended, closed)):
        (row,) = merged(*order)
        assert row.time == AT + 0.31


def test_a_refused_su_has_the_user_who_ran_it_though_btmp_names_the_other_one() -> None:
    su = statement("journal", "su", action="su", succeeded=False, user="bob", uid=9, target_user="root", pid=7)
    btmp = statement("btmp", "refused", action="failed", succeeded=False, user="root", pid=7, merges_by_user=True)
    for order in ((su, btmp), (btmp, su)):
        (row,) = merged(*order)
        assert (row.action, row.user, row.target_user) == ("su", "bob", "root")


def test_a_refusal_that_audit_reports_waits_for_the_log() -> None:
    """PAM waits for two seconds after it reported the refusal to audit, and before sshd logs it."""
    audit = statement("audit", "1100", action="failed", succeeded=False, user="alice", pid=7, awaits_log=True)
    btmp = replace(audit, source="btmp", statement="refused", merges_by_user=True, awaits_log=False)
    log = replace(audit, source="journal", statement="failed", method="password", time=AT + 2.2, awaits_log=False)
    merger = LoginMerger()
    merger.observe(audit, AT)
    merger.observe(btmp, AT + 2)
    assert merger.settled(AT + 2.1) == []
    merger.observe(log, AT + 2.2)
    (row,) = merger.settled(AT + 2.2)
    assert (row.method, row.source) == ("password", "audit,btmp,journal")


COMMAND = statement("journal", "command", action="sudo", user="alice", pid=7, command="/bin/echo")


def test_the_parts_of_a_long_command_are_one_command_with_its_secrets_masked() -> None:
    word = "w" * (958 - len("alice"))
    merger = LoginMerger(lambda line: line.replace("--password hunter2", "--password ***"))
    for part in (None, f"{word}", "w --password", "hunter2"):
        one = COMMAND if part is None else replace(COMMAND, statement="continued", command=part, repeats=True)
        merger.observe(one.copy(), AT)
    (row,) = merger.settled(AT + SETTLE_SECONDS)
    assert row.command == f"/bin/echo {word}w --password ***"


def test_the_command_is_that_of_the_log_unless_it_is_ambiguous() -> None:
    audit = replace(COMMAND, source="audit", statement="1123", command="echo")
    ambiguous = replace(COMMAND, command=None, reason="ambiguous message")
    for order in ((audit, COMMAND), (COMMAND, audit)):
        (row,) = merged(*order)
        assert (row.command, row.reason) == ("/bin/echo", None)
    for order in ((audit, ambiguous), (ambiguous, audit)):
        (row,) = merged(*order)
        assert (row.command, row.reason) == ("echo", None)


def test_a_command_that_sudo_repeats_with_its_exit_status_is_not_another_one() -> None:
    closed = replace(COMMAND, statement="closed", action="session_closed", command=None, time=AT + 1)
    repeated = replace(COMMAND, command="/bin/echo ; EXIT=1", time=AT + 1)
    assert [row.command for row in merged(COMMAND, closed, repeated)] == ["/bin/echo", None]


def test_the_end_of_a_connection_is_not_taken_for_that_of_an_earlier_one_with_its_process_id() -> None:
    failed = statement("journal", "failed", action="failed", succeeded=False, user="alice", pid=7, remote_port=1)
    left = replace(failed, statement="left", repeats=True, user="bob")
    assert [row.user for row in merged(failed, left)] == ["alice"]
    assert [row.user for row in merged(failed, replace(left, remote_port=2))] == ["alice", "bob"]


def test_a_statement_that_came_after_its_row_was_written_is_known_after_a_restart() -> None:
    session = replace(ACCEPTED, statement="session")
    first, second = LoginMerger(), LoginMerger()
    first.observe(ACCEPTED.copy(), AT, "1")
    rows = first.settled(AT + SETTLE_SECONDS)
    first.observe(session.copy(), AT + 3, "2")
    first.observe(replace(ACCEPTED, user="bob", uid=1001, pid=9), AT + 3, "3")
    rows += first.settled(AT + 9)
    assert second.resume([row.cursor for row in reversed(rows)], AT + 10) == {"journal": "3"}
    second.observe(session.copy(), AT + 10, "4")
    assert [row.user for row in second.settled(AT + 20)] == ["alice"]
