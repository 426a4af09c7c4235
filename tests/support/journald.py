"""A real systemd-journald of the test's own, in a mount namespace where /run and /var/log are empty at first."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.system_log.journal import Journal

JOURNALD = Path("/lib/systemd/systemd-journald")
START = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\\nReadKMsg=no\\nRateLimitBurst=0\\nMaxLevelSyslog=emerg\\n' > /run/systemd/journald.conf.d/test.conf
exec "$@"
"""


class PrivateJournal:
    """A running journald, and what it takes to write to its journal and to read it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.root = Path(f"/proc/{process.pid}/root")
        self.prefix = ("nsenter", f"--target={process.pid}", "--mount")
        """Put before a command, it runs where this journal is that of the system."""
        self.command = (*self.prefix, "journalctl")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def write(self, *fields: tuple[str, bytes | str | int], **more: bytes | str | int) -> None:
        """Log an entry with these fields, by journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
        message = b""
        for name, value in (*fields, *more.items()):
            raw = value if isinstance(value, bytes) else str(value).encode()
            message += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        self._socket.sendto(message, str(self.root / "run/systemd/journal/socket"))

    def control(self, *arguments: str) -> None:
        """Have journald do something: `--rotate`, `--flush`, `--vacuum-files=1`."""
        subprocess.run([*self.command, *arguments], check=True, capture_output=True)

    def read(self, *arguments: str) -> str:
        """What journalctl shows."""
        return subprocess.run([*self.command, *arguments], check=True, capture_output=True, text=True).stdout

    def source(self, **settings: Any) -> Journal:
        """A source of this journal, which also sees what the test itself has logged."""
        directories = [self.root / "run/log/journal", self.root / "var/log/journal"]
        return Journal(SourceSettings(**{"ignore_self": False, **settings}), self.command, directories)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def private_journal() -> Iterator[PrivateJournal]:
    """Start journald; the test is skipped by name where that is not possible."""
    for program in ("unshare", "nsenter", "journalctl", str(JOURNALD)):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    command = ["unshare", "--mount", "--net", "sh", "-c", START, "sh"]
    tried = subprocess.run([*command, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs to mount file systems: {tried.stderr.strip()}")
    with subprocess.Popen([*command, str(JOURNALD)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        journal = PrivateJournal(process)
        try:
            until_sync(lambda: bool(list(journal.root.glob("run/log/journal/*/system.journal"))))
            yield journal
        finally:
            journal.close()
            process.terminate()
