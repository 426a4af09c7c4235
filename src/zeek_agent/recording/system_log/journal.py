"""Entries of the systemd journal, from a `journalctl --follow` subprocess.

It writes the journal's export format (systemd.io/JOURNAL_EXPORT_FORMATS), which transfers any bytes unchanged, and
allows skipping a value that is too long without keeping it in memory.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final

from msgspec.structs import replace

from zeek_agent.masking.log_messages import masked_message
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.source import Source
from zeek_agent.recording.system_log.log_entry import MESSAGE_BYTES, SYSTEM_LOGS_EVENTS, SystemLogEntry, bounded
from zeek_agent.text import from_bytes

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.source import PositionReader, Sink

log = logging.getLogger(__name__)

DIRECTORIES: Final = (Path("/run/log/journal"), Path("/var/log/journal"))
MACHINE_ID: Final = Path("/etc/machine-id")
_FIELDS: Final = (
    *("MESSAGE", "PRIORITY", "SYSLOG_FACILITY", "SYSLOG_IDENTIFIER"),
    *("_COMM", "_EXE", "_PID", "_UID", "_SYSTEMD_UNIT"),
)
_READ_BYTES: Final = MESSAGE_BYTES + 128
"""A field's name and the part of its value that is kept."""
_CURSOR: Final = re.compile(r"s=[0-9a-f]+;i=[0-9a-f]+;b=[0-9a-f]+;m=[0-9a-f]+;t=[0-9a-f]+;x=[0-9a-f]+")
_FAILED_RUNS_MAX: Final = 3
"""Consecutive runs of journalctl without an entry after which the source fails."""
_STEADY_SECONDS: Final = 60.0
"""A run of this length has worked, even if nothing was logged."""
_RESTART_PAUSE_SECONDS: Final = 0.5
"""Pause before a restart, longer after each failed run."""
_STOP_TIMEOUT_SECONDS: Final = 5.0
"""Time for journalctl to end on SIGTERM, which it does at once unless it hangs."""


class Journal(Source):
    """Follows the journal of this machine. A journalctl that ends is restarted after the last entry."""

    kind = "system_logs"
    backend = "journal"

    def __init__(
        self,
        settings: SourceSettings,
        command: Sequence[str] = ("journalctl",),
        directories: Sequence[Path] = DIRECTORIES,
        machine_id: Path = MACHINE_ID,
        masker: Masker | None = None,
        *,
        matches: Sequence[str] = (),
    ) -> None:
        """`masker` masks secrets in command lines that messages quote. `matches` selects entries as for journalctl."""
        super().__init__()
        self._masker = masker or Masker()
        self._command = command
        self._directories = directories
        self._machine_id = machine_id
        self._matches = matches
        self._own = str(os.getpid()).encode() if settings.ignore_self else None
        self._cursor: str | None = None
        self._since: float | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._follower: threading.Thread | None = None

    def probe(self) -> str | None:
        if shutil.which(self._command[0]) is None:
            return f"{self._command[0]} is not installed"
        try:
            machine = self._machine_id.read_text().strip()
        except OSError as error:
            return f"cannot determine the owner of the journal: {error}"
        files = [file for directory in self._directories for file in directory.glob(f"{machine}/system*.journal")]
        if not files:
            places = " nor ".join(str(directory / machine) for directory in self._directories)
            return f"this machine has no journal: neither {places} holds one"
        if not any(os.access(file, os.R_OK) for file in files):
            return "no permission to read the system journal; it requires root or the group systemd-journal"
        return None

    def resume(self, recorded: PositionReader) -> None:
        past = recorded(SYSTEM_LOGS_EVENTS)
        if past.cursor is not None:
            self._cursor = past.cursor if _CURSOR.fullmatch(past.cursor) else None
        self._since = past.until or self._since

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._since = time.time() if self._since is None else self._since
        self._ended.clear()
        self._process = self._journalctl()
        self._follower = threading.Thread(target=self._run, args=(self._process,), name="journal", daemon=True)
        self._follower.start()

    def stop(self) -> None:
        self._ended.set()
        with self._lock:
            if self._process is not None:
                self._process.terminate()
        if self._follower is not None:
            self._follower.join(_STOP_TIMEOUT_SECONDS)
            self._follower = None

    def _journalctl(self) -> subprocess.Popen[bytes]:
        """Start journalctl at the last known entry, which it repeats: `--after-cursor` would skip an entry if that one
        no longer exists. It has its own process group, so that a signal from the agent's terminal does not end it."""
        begin = f"--since=@{self._since:.6f}" if self._cursor is None else f"--cursor={self._cursor}"
        arguments = ("--follow", "--no-tail", "--quiet", "--output=export", f"--output-fields={','.join(_FIELDS)}")
        return subprocess.Popen(
            [*self._command, *arguments, begin, *self._matches],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def _run(self, process: subprocess.Popen[bytes]) -> None:
        """Read the output of journalctl, and restart it when it ends; fail if that does not help."""
        in_vain = 0
        try:
            while True:
                begun, received = time.monotonic(), self.counters.received
                reason = self._follow(process)
                worked = self.counters.received > received or time.monotonic() - begun > _STEADY_SECONDS
                in_vain = 0 if worked else in_vain + 1
                if in_vain >= _FAILED_RUNS_MAX:
                    break
                if self._ended.wait(_RESTART_PAUSE_SECONDS * (1 + in_vain)):
                    return
                log.warning("%s; restarting it", reason)
                with self._lock:
                    if self._ended.is_set():
                        return
                    process = self._process = self._journalctl()
        except Exception as error:  # noqa: BLE001 - whatever it is, the source has ended and must be replaced
            reason = f"{type(error).__name__}: {error}"
        self.failure = reason

    def _follow(self, process: subprocess.Popen[bytes]) -> str:
        """Record entries until journalctl ends. Returns the reason."""
        complaints: deque[bytes] = deque(maxlen=1)
        assert process.stdout is not None
        assert process.stderr is not None
        listener = threading.Thread(target=complaints.extend, args=(process.stderr,), name="journalctl", daemon=True)
        listener.start()
        with process:
            for fields in read_entries(process.stdout):
                self._record(fields)
            listener.join()
        complaint = from_bytes(b"".join(complaints)).strip()
        return f"{self._command[0]} ended with status {process.returncode}" + (f" ({complaint})" if complaint else "")

    def _record(self, fields: Mapping[str, bytes]) -> None:
        try:
            entry = log_entry(fields)
        except (KeyError, ValueError) as error:
            self.counters.lost["decode"] += 1
            self.counters.last_error = f"journal entry without cursor or time: {error!r}"
            return
        before, self._cursor = self._cursor, entry.cursor
        if _place(before) == _place(self._cursor) or (self._own is not None and fields.get("_PID") == self._own):
            return
        self.counters.received += 1
        if entry.message is not None:
            entry = replace(entry, message=masked_message(entry.message, self._masker))
        self._sink(SYSTEM_LOGS_EVENTS, [entry])


def read_entries(stream: BinaryIO | IO[bytes]) -> Iterator[dict[str, bytes]]:
    """The entries of a stream in export format, with the first value of each field, truncated if it is too long.

    An incomplete last entry is omitted.
    """
    fields: dict[str, bytes] = {}
    while line := stream.readline(_READ_BYTES):
        if line == b"\n":
            yield fields
            fields = {}
            continue
        name, is_text, value = line.partition(b"=")
        if is_text:
            while not line.endswith(b"\n") and line:
                line = stream.readline(_READ_BYTES)
            value = value.removesuffix(b"\n")
        else:
            size = int.from_bytes(stream.read(8), "little")
            value = stream.read(min(size, _READ_BYTES))
            left = size + 1 - len(value)
            while left and (skipped := stream.read(min(left, _READ_BYTES))):
                left -= len(skipped)
        fields.setdefault(name.rstrip(b"\n").decode(errors="replace"), value)


def log_entry(fields: Mapping[str, bytes]) -> SystemLogEntry:
    """The row of an entry. Raises KeyError or ValueError if it has no position or time."""
    identifier = _text(fields, "SYSLOG_IDENTIFIER")
    exe = _text(fields, "_EXE")
    level = _number(fields, "PRIORITY", 7)
    message = fields.get("MESSAGE")
    return SystemLogEntry(
        time=int(fields["__REALTIME_TIMESTAMP"]) / 1e6,
        process=_text(fields, "_COMM") or exe or identifier,
        level=None if level is None else str(level),
        message=None if message is None else from_bytes(bounded(message)),
        pid=_number(fields, "_PID"),
        uid=_number(fields, "_UID"),
        exe=exe,
        unit=_text(fields, "_SYSTEMD_UNIT"),
        identifier=identifier,
        facility=_number(fields, "SYSLOG_FACILITY", 127),
        cursor=fields["__CURSOR"].decode("ascii"),
    )


def _text(fields: Mapping[str, bytes], name: str) -> str | None:
    value = fields.get(name)
    return from_bytes(value) if value else None


def _number(fields: Mapping[str, bytes], name: str, largest: int = 2**32 - 1) -> int | None:
    """A field's number; None for anything else, because programs can set some fields themselves."""
    value = fields.get(name, b"")
    number = int(value) if len(value) <= 10 and value.isdigit() else None
    return number if number is not None and number <= largest else None


def _place(cursor: str | None) -> str | None:
    """The part of a cursor that stays the same when the journal moves from /run to /var: boot, times and a hash."""
    return None if cursor is None else cursor.partition(";b=")[2]
