"""Secrets in command lines that the system log quotes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zeek_agent.masking.log_messages import masked_message
from zeek_agent.masking.masker import Masker

MASKER = Masker()


def hexadecimal(*arguments: str) -> str:
    return "\0".join(arguments).encode().hex().upper()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/mysql -phunter2 -e select",
            "alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/mysql -p*** -e select",
        ),
        ("(root) CMD (mysql -phunter2 shop)", "(root) CMD (mysql -p*** shop)"),
        (
            "alice: Executing command [USER=root] [TTY=unknown] [CWD=/] [COMMAND=/usr/bin/curl -u a:hunter2 https://x]",
            "alice: Executing command [USER=root] [TTY=unknown] [CWD=/] [COMMAND=/usr/bin/curl -u a:*** https://x]",
        ),
        ("alice ran command mysql -phunter2 as root from /home", "alice ran command mysql -p*** as root from /home"),
        ("Started /usr/bin/mysql -phunter2.", "Started /usr/bin/mysql -p***."),
        (
            "Started run-u1.service - /usr/bin/sshpass -p hunter2 ssh h.",
            "Started run-u1.service - /usr/bin/sshpass -p *** ssh h.",
        ),
        ('EXECVE argc=3 a0="mysql" a1="-phunter2" a2="shop"', 'EXECVE argc=3 a0="mysql" a1="-p***" a2="shop"'),
        (
            f'EXECVE argc=3 a0="sh" a1="-c" a2={hexadecimal("mysql -phunter2")}',
            'EXECVE argc=3 a0="sh" a1="-c" a2="mysql -p***"',
        ),
        (
            'audit: type=1309 audit(1.0:7): argc=2 a0="mysql" a1="-phunter2"',
            'audit: type=1309 audit(1.0:7): argc=2 a0="mysql" a1="-p***"',
        ),
        (f"PROCTITLE proctitle={hexadecimal('mysql', '-phunter2', 'x')}", 'PROCTITLE proctitle="mysql -p*** x"'),
    ],
)
def test_the_secret_in_a_quoted_command_line_is_masked(message: str, expected: str) -> None:
    assert masked_message(message, MASKER) == expected


@pytest.mark.parametrize(
    "message",
    [
        "",
        "Accepted password for alice from 10.0.0.1 port 2222 ssh2",
        "alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/passwd -S bob",
        "(root) CMD (run-parts /etc/cron.hourly)",
        "(root) RELOAD (crontabs/root)",
        "Started Session 3 of user alice.",
        "Mounted /boot.",
        'EXECVE argc=2 a0="ls" a1="-l"',
        'EXECVE argc=3 a0="ls" a1="" a2=""',
        'EXECVE argc=2 a0="ls" a1=2D006C00',
        "PROCTITLE proctitle=6C730000",
        f'EXECVE argc=2 a0="ls" a1={hexadecimal("a b")}',
        f"PROCTITLE proctitle={hexadecimal('ls', '-l')}",
        "PROCTITLE proctitle=ABC",
        "EXECVE argc=0",
        " ran command ",
        "(x) CMD",
        "COMMAND=",
    ],
)
def test_other_messages_stay_as_they_are(message: str) -> None:
    assert masked_message(message, MASKER) == message


def test_the_time_for_a_hostile_message_is_bounded() -> None:
    code = """
import resource
from zeek_agent.masking.log_messages import masked_message
from zeek_agent.masking.masker import Masker
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
for begin in ("COMMAND=", "(x) CMD (", "Started /", "EXECVE ", "PROCTITLE ", "x ran command "):
    for piece in ("COMMAND=", ") CMD (", " as ", 'a1="-p', "a1=AB ", "proctitle=AB", "mysql -pX;", "password=", " "):
        masked_message(begin + piece * (65_536 // len(piece)), Masker())
print("done")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("done\n", "")
