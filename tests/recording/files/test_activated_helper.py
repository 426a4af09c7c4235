"""The process that watches files as systemd starts it, with the connection as its standard input."""

from __future__ import annotations

import socket
import subprocess
import sys

from zeek_agent.recording.files import watch_messages

COMMAND = (sys.executable, "-m", "zeek_agent.files_helper.__main__")


def test_a_failure_is_one_line_in_the_journal_and_the_last_message() -> None:
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own, theirs:
        own.send(b"no orders")
        done = subprocess.run(COMMAND, stdin=theirs, capture_output=True, text=True, timeout=60, check=False)
        message = watch_messages.decode(own.recv(watch_messages.PACKET_BYTES_MAX))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("cannot watch files: invalid orders")
    assert isinstance(message, watch_messages.Status)
    assert message.message in done.stderr


def test_a_start_by_hand_is_refused() -> None:
    done = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "zeek_agent.files_helper is started by zeek-agent-files.socket\n")
