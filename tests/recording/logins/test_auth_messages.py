"""Messages about logins, with user names that their senders chose to be mistaken for other parts of the message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.recording.logins.auth_messages import parse

KEY = "ED25519 SHA256:" + "a" * 43


@pytest.mark.parametrize(
    ("program", "message", "wanted"),
    [
        (
            "sshd",
            f"Accepted publickey for alice from 192.0.2.7 port 48812 ssh2: {KEY}",
            {
                "action": "login",
                "user": "alice",
                "remote_addr": "192.0.2.7",
                "remote_port": 48812,
                "method": "publickey",
            },
        ),
        (
            "sshd-session",
            "Accepted password for alice from fe80::1%eth0 port 1 ssh2",
            {"action": "login", "user": "alice", "remote_addr": "fe80::1", "remote_port": 1, "method": "password"},
        ),
        (
            "sshd",
            "Failed password for root from ::ffff:192.0.2.7 port 22 ssh2",
            {"action": "failed", "user": "root", "remote_addr": "192.0.2.7", "reason": None},
        ),
        (
            "sshd",
            "Connection closed by authenticating user alice 192.0.2.7 port 9 [preauth]",
            {"action": "failed", "user": "alice", "remote_port": 9, "reason": "closed before authentication"},
        ),
        (
            "sshd",
            "User alice from 192.0.2.7 not allowed because account is locked",
            {"action": "failed", "user": "alice", "remote_addr": None, "reason": "account is locked"},
        ),
        (
            "CRON",
            "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)",
            {"action": "session_opened", "user": "root", "user_uid": 0},
        ),
        (
            "su",
            "pam_unix(su-l:session): session opened for user root(uid=0) by alice(uid=1000)",
            {"action": "su", "user": "alice", "user_uid": 1000, "target_user": "root"},
        ),
        (
            "su",
            "pam_unix(su:session): session closed for user root",
            {"action": "session_closed", "target_user": "root"},
        ),
        ("su", "FAILED SU (to root) alice on pts/3", {"action": "su", "succeeded": False, "tty": "pts/3"}),
        ("su", "Successful su for root by alice", {"action": "su", "user": "alice", "target_user": "root"}),
        (
            "sudo",
            "   alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/id -u",
            {"action": "sudo", "user": "alice", "tty": "pts/0", "target_user": "root", "command": "/usr/bin/id -u"},
        ),
        (
            "sudo",
            "   alice : user NOT in sudoers ; PWD=/ ; USER=root ; COMMAND=/usr/bin/id",
            {"succeeded": False, "reason": "user NOT in sudoers", "command": "/usr/bin/id"},
        ),
        (
            "login",
            "FAILED LOGIN (1) on '/dev/tty1' FOR 'alice', Authentication failure",
            {"action": "failed", "user": "alice", "tty": "tty1"},
        ),
        (
            "gdm-password]",
            "pam_unix(gdm-password:auth): authentication failure; logname= uid=0 euid=0 tty=/dev/tty1 ruser= rhost=  "
            "user=alice",
            {"action": "failed", "user": "alice", "method": "gdm-password", "tty": "tty1"},
        ),
        (
            "sshd",
            "message repeated 2 times: [ Failed password for root from 192.0.2.7 port 22 ssh2]",
            {"action": "failed", "count": 2},
        ),
    ],
)
def test_messages(program: str, message: str, wanted: dict[str, object]) -> None:
    found = parse(program, message)
    assert found is not None
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "message",
    [
        "Received disconnect from 192.0.2.7 port 48812:11: disconnected by user",
        "Disconnected from user alice 192.0.2.7 port 48812",
        "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.7  user=root",
        "error: maximum authentication attempts exceeded for root from 192.0.2.7 port 1 ssh2 [preauth]",
        "Accepted",
        "",
    ],
)
def test_messages_that_report_no_event_of_their_own(message: str) -> None:
    assert parse("sshd", message) is None


names = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            [
                *(
                    "root",
                    "invalid user ",
                    " from 198.51.100.9",
                    " port 22",
                    " ssh2",
                    ": ",
                    KEY,
                    " [preauth]",
                    "Accepted ",
                ),
                *(
                    " for ",
                    "198.51.100.9",
                    ": RSA-CERT ID x (serial 0) CA RSA SHA256:x",
                    "\n",
                    "message repeated 2 times: [",
                ),
            ]
        ),
        max_size=8,
    ).map("".join),
)


@given(name=names)
def test_a_user_name_cannot_pass_for_the_address(name: str) -> None:
    for message in (
        f"Failed password for invalid user {name} from 192.0.2.7 port 4711 ssh2",
        f"Failed none for invalid user {name} from 192.0.2.7 port 4711 ssh2",
        f"Failed publickey for invalid user {name} from 192.0.2.7 port 4711 ssh2: {KEY}",
        f"Invalid user {name} from 192.0.2.7 port 4711",
        f"Connection closed by invalid user {name} 192.0.2.7 port 4711 [preauth]",
        f"Disconnecting invalid user {name} 192.0.2.7 port 4711: Too many authentication failures [preauth]",
    ):
        found = parse("sshd", message)
        assert found is not None, message
        assert (found.action, found.succeeded, found.user) == ("failed", False, name), message
        assert (found.remote_addr, found.remote_port) == ("192.0.2.7", 4711), message


@given(name=names, identity=names)
def test_a_certificate_whose_text_looks_like_an_address_leaves_the_address_unknown_rather_than_wrong(
    name: str, identity: str
) -> None:
    message = (
        f"Failed publickey for invalid user {name} from 192.0.2.7 port 4711 ssh2: "
        f"RSA-CERT ID {identity} (serial 7) CA RSA SHA256:{'b' * 43}"
    )
    found = parse("sshd", message)
    assert found is None or (found.succeeded is False and found.remote_addr in {"192.0.2.7", None}), message
    assert found is None or found.user in {name, None}, message


@given(directory=names, command=names)
def test_a_directory_cannot_pass_for_the_command_of_sudo(directory: str, command: str) -> None:
    for crafted in (directory, f"{directory} ; USER=root ; COMMAND=/usr/bin/true"):
        message = f"   alice : TTY=pts/0 ; PWD=/{crafted} ; USER=bob ; COMMAND={command}"
        found = parse("sudo", message)
        assert found is not None
        assert found.user == "alice"
        assert (found.target_user, found.command) in {("bob", command), (None, None)}, message


@given(program=st.sampled_from(["sshd", "su", "sudo", "login", "CRON", "x"]), message=names)
def test_any_text_is_read_without_an_error(program: str, message: str) -> None:
    parse(program, message)
