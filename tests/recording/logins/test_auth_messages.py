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


def encoded(name: str) -> str:
    """Backslashes as sshd writes them; it also encodes other characters, which then cannot be mistaken."""
    return name.replace("\\", "\\\\")


@given(name=names)
def test_a_user_name_cannot_pass_for_the_address(name: str) -> None:
    once, twice = encoded(name), encoded(encoded(name))
    for message in (
        f"Failed password for invalid user {once} from 192.0.2.7 port 4711 ssh2",
        f"Failed none for invalid user {once} from 192.0.2.7 port 4711 ssh2",
        f"Failed publickey for invalid user {once} from 192.0.2.7 port 4711 ssh2: {KEY}",
        f"Invalid user {once} from 192.0.2.7 port 4711",
        f"error: PAM: Authentication failure for illegal user {once} from 192.0.2.7",
        f"Connection closed by invalid user {twice} 192.0.2.7 port 4711 [preauth]",
        f"Disconnecting invalid user {twice} 192.0.2.7 port 4711: Too many authentication failures [preauth]",
    ):
        found = parse("sshd", message)
        assert found is not None, message
        assert (found.action, found.succeeded, found.user) == ("failed", False, name), message
        assert (found.remote_addr, found.remote_port) == ("192.0.2.7", None if message.startswith("error") else 4711), (
            message
        )


@given(name=names, identity=names)
def test_a_certificate_whose_text_looks_like_an_address_leaves_the_address_unknown_rather_than_wrong(
    name: str, identity: str
) -> None:
    message = (
        f"Failed publickey for invalid user {encoded(name)} from 192.0.2.7 port 4711 ssh2: "
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


@pytest.mark.parametrize(
    ("logged", "sent"),
    [
        (r"\303\274n\303\257", "ünï"),
        (r"a\\b", r"a\b"),
        (r"a\nroot\t\s\000\033[2J", "a\nroot\t \0\x1b[2J"),
        ("a\\q", "a\\q"),
    ],
)
def test_a_name_is_the_one_that_the_client_sent(logged: str, sent: str) -> None:
    """sshd encodes its messages by vis(3), and those of the process before authentication twice."""
    found = parse("sshd", f"Invalid user {logged} from 192.0.2.7 port 9")
    assert found is not None
    assert found.user == sent
    twice = logged.replace("\\", "\\\\")
    found = parse("sshd", f"Connection closed by invalid user {twice} 192.0.2.7 port 9 [preauth]")
    assert found is not None
    assert found.user == sent


@pytest.mark.parametrize(
    ("message", "user", "reason"),
    [
        ("error: PAM: Authentication failure for alice from 192.0.2.7", "alice", None),
        ("error: PAM: Have exhausted maximum number of retries for service for a from 192.0.2.7", "a", None),
        (
            "error: PAM: User not known to the underlying authentication module for illegal user x from 198.51.100.9 "
            "from 192.0.2.7",
            "x from 198.51.100.9",
            "unknown user",
        ),
    ],
)
def test_a_refusal_of_keyboard_interactive_is_a_failed_login(message: str, user: str, reason: str | None) -> None:
    found = parse("sshd", message)
    assert found is not None
    assert (found.action, found.succeeded, found.user, found.reason) == ("failed", False, user, reason)
    assert (found.remote_addr, found.remote_port, found.method) == ("192.0.2.7", None, "keyboard-interactive/pam")


def test_a_long_message_in_the_name_of_sudo_is_read_at_once() -> None:
    """Any user can write it; a pattern with several texts of unknown length would take hours."""
    fields = "TTY=x ; CHROOT=a ; PWD=b ; USER=c ; ENV=d ; "
    assert parse("sudo", "a : " + fields * 1_400) is None
    found = parse("sudo", "a : " + fields * 1_400 + "COMMAND=/bin/id")
    assert found is not None
    assert (found.reason, found.command, found.target_user) == ("ambiguous message", None, None)
    assert parse("x", "pam_unix(a:session): session opened for user x" + " by" * 2_600) is None


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "alice : HOST=h ; TTY=pts/1 ; CHROOT=/c ; PWD=/a ; b ; USER=bob ; GROUP=g ; TSID=000001 ; ENV=A=1 ; "
            "COMMAND=/bin/id ; x",
            {"target_user": "bob", "tty": "pts/1", "command": "/bin/id ; x", "succeeded": True},
        ),
        ("alice : 3 incorrect password attempts ; PWD=/ ; USER=root ; COMMAND=list", {"succeeded": False}),
        ("alice : (command continued) -x --y", {"statement": "continued", "command": "-x --y"}),
    ],
)
def test_messages_of_sudo(message: str, wanted: dict[str, object]) -> None:
    found = parse("sudo", message)
    assert found is not None
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize("rest", ["hello", "PWD=/", "problem with defaults ; PWD=/ ;", "WHAT=x ; COMMAND=id"])
def test_other_messages_of_sudo_are_not_events(rest: str) -> None:
    assert parse("sudo", f"alice : {rest}") is None
