"""Logins at a real sshd, su and sudo, recorded by the real agent: each event once, whichever sources there are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from running_agent import RunningAgent, started
from ssh_host import PASSWORD, UID, USER, SshHost, audit_enabled, ssh_host
from waiting import until_sync

from zeek_agent.errors import ZeekAgentError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to start sshd in namespaces"
)

LOGIN = ("login", "success", USER, None)
LOGOUT = ("logout", "success", USER, None)
FAILED = ("failed", "failure", USER, None)
UNKNOWN = ("failed", "failure", "nobodyhere", None)
SU = ("su", "success", "root", USER)
SU_CLOSED = ("session_closed", "success", "root", USER)
SU_FAILED = ("su", "failure", USER, "root")
SUDO = ("sudo", "success", USER, "root")
SUDO_CLOSED = ("session_closed", "success", USER, "root")
SUDO_FAILED = ("sudo", "failure", USER, "root")
Summary = tuple[str, str, str | None, str | None]


def before(host: SshHost) -> None:
    """Log in with a key and a terminal, and fail twice with a password."""
    host.ssh("-tt", "true", key="key")
    host.ssh(password="wrong", attempts=2)


def meanwhile(host: SshHost) -> None:
    """Log in with a password, and run sudo."""
    host.ssh(password="right")
    host.run_as_user("sudo", "-S", "/usr/bin/cat", "--password=hunter2", input=f"{PASSWORD}\n")
    host.run_as_user("sudo", "-S", "/usr/bin/id", input=f"{PASSWORD}\n")


def after(host: SshHost) -> None:
    """Fail with a key and with an unknown user, succeed and fail with su, fail with sudo."""
    host.ssh(key="other_key")
    host.ssh(user="nobodyhere", password="wrong", attempts=2)
    host.run("su", USER, "-c", "true")
    host.run_as_user("su", "root", "-c", "true", input="bad\n")
    host.run_as_user("sudo", "-k", "-S", "/usr/bin/id", input="bad\nbad\nbad\n")


EVENTS_BEFORE = [LOGIN, LOGOUT, FAILED, FAILED]
EVENTS_MEANWHILE = [LOGIN, LOGOUT, SUDO_FAILED, SUDO, SUDO_CLOSED]
EVENTS_AFTER = [FAILED, UNKNOWN, UNKNOWN, SU, SU_CLOSED, SU_FAILED, SUDO_FAILED]


def answers(agent: RunningAgent) -> bool:
    try:
        return bool(agent.query("SELECT id FROM zeek_agent"))
    except (ZeekAgentError, OSError):
        return False


def rows(agent: RunningAgent) -> list[dict[str, Any]]:
    """What concerns the test's users; other logins of the machine are none of its business."""
    return agent.query(
        f"SELECT * FROM logins_events WHERE ('{USER}' IN (user, target_user) OR user = 'nobodyhere' "
        f"OR (user IS NULL AND process = 'sudo')) AND (uid IS NULL OR uid IN (0, {UID})) ORDER BY time, seq"
    )


def summary(found: list[dict[str, Any]]) -> list[Summary]:
    return sorted(((row["action"], row["outcome"], row["user"], row["target_user"]) for row in found), key=repr)


def expect(agent: RunningAgent, wanted: list[Summary]) -> list[dict[str, Any]]:
    """Wait until there is a row for each event, and then for one login more, so that a row too many would be there."""
    until_sync(lambda: len(rows(agent)) >= len(wanted), 30, lambda: f"{summary(rows(agent))}")
    found = rows(agent)
    assert summary(found) == sorted(wanted, key=repr), "\n".join(map(str, found))
    return found


@pytest.mark.parametrize(
    "crash", [pytest.param(False, id="stopped"), pytest.param(True, id="killed", marks=pytest.mark.soak)]
)
def test_each_event_is_recorded_once_from_the_journal_and_everything_else_over_a_restart(
    crash: bool, tmp_path: Path
) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", "journal") as host:
        host.start_sshd()
        with started(directory, prefix=host.prefix) as agent:
            until_sync(lambda: answers(agent), 60)
            before(host)
            if crash:
                agent.kill()
            else:
                agent.stop()
        meanwhile(host)
        with started(directory, prefix=host.prefix) as agent:
            until_sync(lambda: answers(agent), 60)
            after(host)
            found = expect(agent, EVENTS_BEFORE + EVENTS_MEANWHILE + EVENTS_AFTER)
            check_values(found, crash)
            assert not agent.query("SELECT * FROM zeek_agent_gaps WHERE source = 'logins'")


def check_values(found: list[dict[str, Any]], crash: bool) -> None:
    """The kernel's session is lost if the process events of it were."""
    by_key, by_password = [row for row in found if row["action"] == "login"]
    assert (by_key["method"], by_key["tty"].partition("/")[0]) == ("publickey", "pts")
    assert (by_password["method"], by_password["tty"]) == ("password", None)
    for login in (by_key, by_password):
        assert (login["remote_addr"], login["uid"], login["process"]) == ("127.0.0.1", UID, "sshd")
        assert login["remote_port"] > 1024
    assert crash or by_key["session"] is not None
    assert crash or by_key["entity_id"] is not None
    logout = next(row for row in found if row["action"] == "logout")
    assert [logout[name] for name in ("pid", "session", "remote_port", "tty")] == [
        by_key[name] for name in ("pid", "session", "remote_port", "tty")
    ]
    refused, command = [row for row in found if row["action"] == "sudo"][:2]
    assert (refused["command"], refused["reason"]) == ("/usr/bin/cat --password=***", "command not allowed")
    assert command["command"] == "/usr/bin/id"
    unknown = [row for row in found if row["user"] == "nobodyhere"]
    assert {(row["uid"], row["reason"], row["method"]) for row in unknown} == {(None, "unknown user", "password")}
    assert all(row["verified"] for row in found if row["action"] not in {"su", "sudo", "session_closed"})


@pytest.mark.soak
@pytest.mark.parametrize(
    ("log", "backend"), [("journal", "auto"), ("syslog", "auto"), ("journal", "journal"), ("syslog", "syslog")]
)
def test_each_event_is_recorded_once_with_the_delays_of_pam(log: Any, backend: str, tmp_path: Path) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", log, delays=True) as host:
        host.start_sshd()
        with started(directory, prefix=host.prefix, settings={"sources.logins": backend}) as agent:
            until_sync(lambda: answers(agent), 60)
            for part in (before, meanwhile, after):
                part(host)
            wanted = EVENTS_BEFORE + EVENTS_MEANWHILE + EVENTS_AFTER
            if log == "syslog":  # there, the end of a sudo has no process, so it names no user
                wanted = [("session_closed", "success", None, "root") if one == SUDO_CLOSED else one for one in wanted]
            expect(agent, wanted)


@pytest.mark.soak
@pytest.mark.parametrize("log", ["journal", "syslog"])
def test_a_user_cannot_forge_a_login(log: Any, tmp_path: Path) -> None:
    """What logger(1) can write in the name of sshd is refused, or not verified where the log has no other proof."""
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", log) as host:
        host.start_sshd()
        with started(directory, prefix=host.prefix) as agent:
            until_sync(lambda: answers(agent), 60)
            message = f"Accepted password for {USER} from 198.51.100.9 port 22 ssh2"
            for tag in ("sshd", "sshd[1]", f"sshd[{agent.pid}]", "sshd[4194303]"):
                host.run_as_user("logger", "-t", tag, "-p", "auth.info", message)
            host.run_as_user("logger", "--id", "-t", "sshd", "-p", "auth.info", message)
            host.run_as_user("logger", "-t", "su", "-p", "auth.info", f"(to {USER}) root on pts/0")
            host.ssh(key="key")
            found = expect(agent, [LOGIN, LOGOUT] if log == "journal" else [LOGIN, LOGOUT, SU])
            assert {row["remote_addr"] for row in found if row["action"] == "login"} == {"127.0.0.1"}
            assert [row["action"] for row in found if not row["verified"]] == ([] if log == "journal" else ["su"])
            (source,) = agent.query("SELECT * FROM zeek_agent_sources WHERE source = 'logins' AND active")
            assert "were not from the program that they name" in source["last_error"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("backend", "wanted"),
    [("wtmp", [LOGIN, FAILED, FAILED, UNKNOWN, UNKNOWN]), ("kernel", [LOGIN, LOGOUT])],
)
def test_a_source_alone_has_what_it_can_know(backend: str, wanted: list[Summary], tmp_path: Path) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", "none") as host:
        host.start_sshd()
        with started(directory, prefix=host.prefix, settings={"sources.logins": backend}) as agent:
            until_sync(lambda: answers(agent), 60)
            before(host)
            host.ssh(user="nobodyhere", password="wrong", attempts=2)
            found = expect(agent, wanted)
            known = {"kernel": {"session", "entity_id", "uid"}, "wtmp": {"remote_addr"}}[backend]
            unknown = {"kernel": {"remote_addr", "tty", "method"}, "wtmp": {"remote_port", "method", "session"}}[
                backend
            ]
            assert all(row[name] is not None for row in found for name in known)
            assert all(row[name] is None for row in found for name in unknown)
            assert all(row["source"] in {"wtmp", "btmp", "kernel"} for row in found)


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["auto", "audit"])
def test_each_event_is_recorded_once_by_audit(backend: str, tmp_path: Path) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", "journal", delays=True) as host, audit_enabled():
        host.start_sshd()
        # Audit sends its records to the first network namespace only.
        with started(directory, prefix=host.prefix[:3], settings={"sources.logins": backend}) as agent:
            until_sync(lambda: answers(agent), 60)
            for part in (before, meanwhile, after):
                part(host)
            wanted = EVENTS_BEFORE + EVENTS_MEANWHILE + EVENTS_AFTER
            if backend == "audit":  # its records do not name the user that a refused sudo was to become
                wanted = [("sudo", "failure", USER, None) if one == SUDO_FAILED else one for one in wanted]
            found = expect(agent, wanted)
            assert {row["tty"] for row in found} == {None, found[0]["tty"]}
            assert {row["process"] for row in found} == {"sshd", "su", "sudo"}
            assert all("audit" in row["source"] or row["action"] == "su" for row in found)
            failed = [row for row in found if row["action"] == "failed"]
            if backend == "auto":
                assert all(row["remote_port"] for row in failed)
                assert [row["method"] for row in failed].count("password") == 4


@pytest.mark.soak
@pytest.mark.parametrize("log", ["journal", "syslog"])
def test_a_failed_login_is_one_event_whatever_the_name(log: Any, tmp_path: Path) -> None:
    """sshd encodes names, and btmp and audit cut them off."""
    names = ["ünï", r"a\\b", "u" * 80, "Accepted password for root from 198.51.100.9 port 22 ssh2", " x "]
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", log) as host, audit_enabled():
        host.start_sshd()
        with started(directory, prefix=host.prefix[:3]) as agent:
            until_sync(lambda: answers(agent), 60)
            for name in names:
                host.ssh(user=name, password="wrong")
            host.ssh(key="key")
            expect(agent, [LOGIN, LOGOUT])
            found = agent.query("SELECT * FROM logins_events WHERE action = 'failed' ORDER BY time")
            assert [row["user"] for row in found] == names
            assert {(row["method"], row["remote_addr"], row["verified"]) for row in found} == {
                ("password", "127.0.0.1", True)
            }


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["auto", "journal", "audit"])
def test_each_refusal_of_keyboard_interactive_is_an_event(backend: str, tmp_path: Path) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", "journal", delays=True) as host, audit_enabled():
        host.start_sshd("KbdInteractiveAuthentication yes")
        with started(directory, prefix=host.prefix[:3], settings={"sources.logins": backend}) as agent:
            until_sync(lambda: answers(agent), 60)
            host.ssh(password="right", method="keyboard-interactive")
            host.ssh(password="wrong", method="keyboard-interactive", attempts=2)
            found = expect(agent, [LOGIN, LOGOUT, FAILED, FAILED])
            if backend != "audit":
                assert {row["method"] for row in found if row["action"] != "logout"} == {"keyboard-interactive/pam"}


@pytest.mark.soak
def test_the_sessions_that_exist_now(tmp_path: Path) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    with ssh_host(tmp_path / "host", "none") as host:
        host.start_sshd()
        with started(directory, prefix=host.prefix) as agent:
            until_sync(lambda: answers(agent), 60)
            waiting = host.start_ssh("-tt", "sleep 60", key="key")
            try:
                (row,) = until_sync(
                    lambda: agent.query(f"SELECT * FROM logins WHERE user = '{USER}' AND tty LIKE 'pts/%'"), 30
                )
                assert (row["uid"], row["process"], row["source"]) == (UID, "sshd", "proc")
                pids = agent.query(f"SELECT pid FROM processes WHERE session = {row['session']} AND name = 'sleep'")
                assert len(pids) == 1
            finally:
                waiting.kill()
                waiting.wait()
