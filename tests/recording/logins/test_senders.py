"""Who may report a login in the system log: entries as the journal and syslog daemons store them."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeek_agent.host.accounts.local_accounts import LocalAccounts
from zeek_agent.recording.logins import auth_messages
from zeek_agent.recording.logins.senders import Sender, Senders
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.system_log.log_entry import SystemLogEntry

ACCEPTED = "Accepted password for root from 198.51.100.9 port 22 ssh2"
OWN_SUDO = "alice : PWD=/ ; USER=root ; COMMAND=/usr/bin/id"
OTHERS_SUDO = "bob : PWD=/ ; USER=root ; COMMAND=/usr/bin/id"
OWN_SU = "(to root) alice on pts/0"
NO_SUCH_PID = 4_194_303


@pytest.fixture
def senders(tmp_path: Path) -> Senders:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n")
    return Senders(ProcessCache(10, 10.0), LocalAccounts(passwd))


def of_journal(
    senders: Senders, tag: str, message: str, uid: int | None, exe: str | None, name: str | None = None
) -> bool | None:
    """Whether the message is verified; None if it is refused."""
    entry = SystemLogEntry(1e9, name or tag, None, message, pid=NO_SUCH_PID, uid=uid, exe=exe, identifier=tag)
    parsed = auth_messages.parse(tag, message)
    assert parsed is not None
    sender = senders.of_journal(entry, parsed, senders.process(entry.pid, entry.time))
    return None if sender is None else sender.verified


@pytest.mark.parametrize(
    ("tag", "message", "uid", "exe", "verified"),
    [
        ("sshd", ACCEPTED, 0, "/usr/sbin/sshd", True),
        ("sshd", ACCEPTED, 1000, "/usr/bin/logger", None),
        ("sshd", ACCEPTED, 1000, None, None),
        ("sshd", ACCEPTED, None, "/usr/sbin/sshd", None),
        ("sshd", ACCEPTED, 1000, "/home/alice/sshd", None),
        ("sshd", ACCEPTED, 1000, "/usr/bin/sudo", None),
        ("sshd", ACCEPTED.replace("root", "alice"), 1000, "/usr/bin/sudo", None),
        ("sudo", OWN_SUDO, 1000, "/usr/bin/sudo", True),
        ("sudo", OWN_SUDO, 1000, "/home/alice/sudo", None),
        ("sudo", OWN_SUDO, 1000, None, False),
        ("sudo", OTHERS_SUDO, 1000, "/usr/bin/sudo", None),
        ("sudo", OTHERS_SUDO, 1000, None, None),
        ("su", OWN_SU, 1000, "/usr/bin/su", True),
        ("su", "pam_unix(su:session): session opened for user root(uid=0) by bob(uid=1001)", 1000, "/usr/bin/su", None),
    ],
)
def test_the_journal_names_the_sender(
    senders: Senders, tag: str, message: str, uid: int | None, exe: str | None, verified: bool | None
) -> None:
    assert of_journal(senders, tag, message, uid, exe) is verified


def test_a_sender_that_ended_before_its_executable_was_read_still_has_a_name(senders: Senders) -> None:
    assert of_journal(senders, "sudo", OWN_SUDO, 1000, None, "sudo") is False
    assert of_journal(senders, "sudo", OWN_SUDO, 1000, None, "logger") is None


def of_file(senders: Senders, tag: str, message: str, pid: int | None) -> Sender | None:
    parsed = auth_messages.parse(tag, message)
    assert parsed is not None
    entry = SystemLogEntry(1e9, tag, None, message, pid=pid, identifier=tag)
    return senders.of_file(entry, parsed, senders.process(pid, entry.time))


def test_a_line_of_a_file_is_not_verified(senders: Senders) -> None:
    assert of_file(senders, "sshd", ACCEPTED, NO_SUCH_PID) == Sender(False, None)
    assert of_file(senders, "sudo", OWN_SUDO, None) == Sender(False, None)


def test_a_line_without_the_pid_that_its_program_writes_is_refused(senders: Senders) -> None:
    assert of_file(senders, "sshd", ACCEPTED, None) is None
