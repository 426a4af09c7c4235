"""Audit records about logins. Audit is disabled where these tests run: the records have the documented form
(user messages of audit-documentation's message dictionary), as PAM, OpenSSH, sudo and the kernel write them.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from zeek_agent.masking.masker import Masker
from zeek_agent.recording.audit.audit_records import parse_record
from zeek_agent.recording.logins import audit_messages
from zeek_agent.recording.logins.logins import AuditInput, _Parts
from zeek_agent.recording.logins.merging import SETTLE_SECONDS, LoginMerger
from zeek_agent.recording.logins.observation import Observation
from zeek_agent.recording.processes.process_cache import ProcessCache

AT = 1_700_000_000.5
NOBODY = "pid=41 uid=0 auid=4294967295 ses=4294967295"
HEAD = "pid=41 uid=0 auid=1000 ses=3 subj=unconfined"


def record(kind: int, body: str) -> bytes:
    text = f"audit(1700000000.500:42): {body}".encode()
    return struct.pack("=IHHII", 16 + len(text), kind, 0, 0, 0) + text


def message(kind: int, body: str) -> audit_messages.AuditMessage | None:
    parsed = parse_record(record(kind, body), audit_messages.KINDS)
    assert parsed is not None
    return audit_messages.parse(parsed)


def observations(*records: bytes, beside_log: bool = False) -> list[Observation]:
    found: list[Observation] = []
    source = AuditInput(_Parts(ProcessCache(10, 10.0), Masker()), lambda: beside_log)
    source._observe = lambda statements, _: found.extend(statements)
    for one in records:
        source.receive(one)
    assert not source.undecoded
    return found


SSH = 'exe="/usr/sbin/sshd" hostname=192.0.2.7 addr=192.0.2.7 terminal=ssh'


@pytest.mark.parametrize(
    ("kind", "body", "wanted"),
    [
        (
            1112,
            f"{HEAD} msg='op=login id=1000 {SSH} res=success'",
            {"action": "login", "account_uid": 1000, "session": 3, "remote_addr": "192.0.2.7", "tty": None},
        ),
        (
            1100,
            f"{NOBODY} msg='op=PAM:authentication grantors=? acct=\"alice\" {SSH} res=failed'",
            {"action": "failed", "succeeded": False, "account": "alice", "session": None, "loginuid": None},
        ),
        (
            1112,
            f"{NOBODY} msg='op=login acct=28696E76616C6964207573657229 {SSH} res=failed'",
            {"action": "failed", "account": None, "unknown_user": True},
        ),
        (
            1105,
            f"{HEAD} msg='op=PAM:session_open grantors=pam_unix acct=\"alice\" {SSH} res=success'",
            {"action": "login", "account": "alice"},
        ),
        (
            1106,
            f'{HEAD} msg=\'op=PAM:session_close grantors=pam_unix acct="root" exe="/usr/sbin/cron" hostname=? addr=? '
            "terminal=cron res=success'",
            {"action": "session_closed", "account": "root", "remote_addr": None, "tty": None},
        ),
        (
            1123,
            f'{HEAD} msg=\'cwd="/root" cmd=2F7573722F62696E2F6964202D75 exe="/usr/bin/sudo" terminal=pts/0 '
            "res=success'",
            {"action": "sudo", "command": "/usr/bin/id -u", "tty": "pts/0", "succeeded": True},
        ),
        (
            1006,
            "pid=41 uid=0 old-auid=4294967295 auid=1000 tty=(none) old-ses=4294967295 ses=3 res=1",
            {"action": None, "account_uid": 1000, "session": 3},
        ),
    ],
)
def test_records(kind: int, body: str, wanted: dict[str, Any]) -> None:
    found = message(kind, body)
    assert found is not None
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_a_name_in_hexadecimal_cannot_pass_for_a_field() -> None:
    name = "root res=success addr=198.51.100.9'"
    body = f"{NOBODY} msg='op=PAM:authentication acct={name.encode().hex()} {SSH} res=failed'"
    found = message(1100, body)
    assert found is not None
    assert (found.account, found.succeeded, found.remote_addr) == (name, False, "192.0.2.7")


def test_helpers_and_refused_sessions_are_no_events() -> None:
    checked = 'op=PAM:unix_chkpwd acct="alice" exe="/usr/sbin/unix_chkpwd" hostname=? addr=? terminal=? res=failed'
    assert message(1100, f"{HEAD} msg='{checked}'") is None
    assert message(1105, f"{HEAD} msg='op=PAM:session_open acct=\"alice\" {SSH} res=failed'") is None
    assert message(1100, f"{HEAD} msg='op=PAM:authentication acct=\"alice\" {SSH} res=success'") is None


def test_a_login_and_its_records_are_one_event() -> None:
    found = observations(
        record(1006, "pid=41 uid=0 old-auid=4294967295 auid=0 tty=(none) old-ses=4294967295 ses=3 res=1"),
        record(1105, f"pid=41 uid=0 auid=0 ses=3 msg='op=PAM:session_open acct=\"root\" {SSH} res=success'"),
        record(1112, "pid=41 uid=0 auid=0 ses=3 msg='op=login id=0 exe=\"/usr/sbin/sshd\" hostname=192.0.2.7 "
               "addr=192.0.2.7 terminal=/dev/pts/0 res=success'"),
    )  # fmt: skip
    merger = LoginMerger()
    for one in found:
        merger.observe(one, AT)
    (row,) = merger.settled(AT + SETTLE_SECONDS)
    assert (row.action, row.user, row.uid, row.session, row.tty) == ("login", "root", 0, 3, "pts/0")
    assert (row.remote_addr, row.remote_port, row.pid, row.method) == ("192.0.2.7", None, 41, None)


def test_an_unknown_user_is_one_failure_however_often_it_is_reported() -> None:
    unknown = record(1112, f"{NOBODY} msg='op=login acct=\"(invalid user)\" {SSH} res=failed'")
    tried = record(1100, f"{NOBODY} msg='op=PAM:authentication acct=\"bob\" {SSH} res=failed'")
    merger = LoginMerger()
    for one in observations(unknown, tried, unknown, unknown):
        merger.observe(one, AT)
    (row,) = merger.settled(AT + SETTLE_SECONDS)
    assert (row.action, row.user, row.reason) == ("failed", "bob", "unknown user")


def test_refusals_by_sudo_are_left_to_the_log_where_it_counts_them() -> None:
    refused = record(
        1100,
        f'{HEAD} msg=\'op=PAM:authentication acct="alice" exe="/usr/bin/sudo" hostname=? addr=? terminal=pts/0 '
        "res=failed'",
    )
    assert [one.action for one in observations(refused)] == ["sudo"]
    assert observations(refused, beside_log=True) == []


def test_secrets_in_the_command_of_sudo_are_masked() -> None:
    command = "/usr/bin/mysql --password=hunter2"
    (found,) = observations(
        record(1123, f'{HEAD} msg=\'cwd="/" cmd={command.encode().hex()} exe="/usr/bin/sudo" terminal=? res=success\'')
    )
    assert found.command == "/usr/bin/mysql --password=***"
