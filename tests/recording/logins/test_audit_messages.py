"""Audit records about logins, as PAM, OpenSSH, sudo and the kernel write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from zeek_agent.masking.masker import Masker
from zeek_agent.recording.audit.audit_records import parse_record
from zeek_agent.recording.logins import audit_messages
from zeek_agent.recording.logins.logins import AuditInput, _Parts
from zeek_agent.recording.logins.merging import SETTLE_SECONDS, LoginMerger
from zeek_agent.recording.logins.observation import Observation
from zeek_agent.recording.processes.process import Process
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


def observations(*records: bytes, beside_log: bool = False, known: Sequence[Process] = ()) -> list[Observation]:
    found: list[Observation] = []
    cache = ProcessCache(10, 10.0)
    for process in known:
        cache.begin(process)
    source = AuditInput(_Parts(cache, Masker()), lambda: beside_log)
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


def test_a_wrong_password_for_sudo_is_reported_by_the_command_that_it_refuses() -> None:
    refused = record(
        1100,
        f'{HEAD} msg=\'op=PAM:authentication acct="alice" exe="/usr/bin/sudo" hostname=? addr=? terminal=pts/0 '
        "res=failed'",
    )
    assert observations(refused) == []
    command = record(1123, f'{HEAD} msg=\'cwd="/" cmd="id" exe="/usr/bin/sudo" terminal=pts/0 res=failed\'')
    (found,) = observations(refused, refused, command)
    assert (found.action, found.succeeded, found.command, found.target_user) == ("sudo", False, "id", None)


def test_secrets_in_the_command_of_sudo_are_masked() -> None:
    command = "/usr/bin/mysql --password=hunter2"
    (found,) = observations(
        record(1123, f'{HEAD} msg=\'cwd="/" cmd={command.encode().hex()} exe="/usr/bin/sudo" terminal=? res=success\'')
    )
    assert found.command == "/usr/bin/mysql --password=***"


@pytest.mark.parametrize(
    ("terminal", "wanted"), [("sshd", None), ("ssh", None), ("/dev/pts/3", "pts/3"), ("tty1", "tty1"), ("cron", None)]
)
def test_names_of_services_are_not_terminals(terminal: str, wanted: str | None) -> None:
    found = message(1112, f'{NOBODY} msg=\'op=login acct="a" exe="/usr/sbin/sshd" terminal={terminal} res=failed\'')
    assert found is not None
    assert found.tty == wanted


def child(pid: int, ppid: int, name: str) -> Process:
    long_ago = -(10**18)
    return Process(pid, pid, long_ago, long_ago, f"e{pid}", name, ppid=ppid)


def test_a_process_whose_exec_was_not_read_yet_has_the_name_of_the_program_that_reports() -> None:
    body = f'{HEAD} msg=\'cwd="/" cmd="id" exe="/usr/bin/sudo" terminal=? res=success\''
    (found,) = observations(record(1123, body), known=[child(41, 1, "python")])
    assert (found.process, found.entity_id) == ("sudo", "e41")


def test_a_child_of_sshd_that_runs_pam_is_not_another_login() -> None:
    """keyboard-interactive: the child reports the refusal by PAM, and its parent that of the login."""
    family = [child(7, 1, "sshd"), child(40, 7, "sshd"), child(41, 40, "sshd")]
    by_child = record(1100, f"{NOBODY} msg='op=PAM:authentication acct=\"alice\" {SSH} res=failed'")
    by_parent = record(1112, f"{NOBODY} msg='op=login acct=\"alice\" {SSH} res=failed'".replace("pid=41", "pid=40"))
    merger = LoginMerger()
    for one in observations(by_child, by_parent, known=family):
        merger.observe(one, AT)
    (row,) = merger.settled(AT + SETTLE_SECONDS)
    assert (row.pid, row.entity_id, row.user) == (40, "e40", "alice")
