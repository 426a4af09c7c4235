"""docs/troubleshooting.md has an entry for every message of the agent, and none for messages that no longer exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from places import ROOT
from source_messages import HOLE, Message, Source

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
SOURCE = ROOT / "src/zeek_agent"

OF_AN_ERROR: Final = re.compile(
    r"-?\w*(code|number|fd)|(self\.)?pid|path|protocol|name|.*\b(error|os\.strerror)\b.*", re.DOTALL
)
"""Relays of another exception, which is found where it is made, or of an error of the operating system."""

MODULE: Final = """
log = logging.getLogger("zeek_agent.test")

def run(self, path, level, error):
    if path:
        raise UsageError(f"cannot open {path}: {error}")
    log.warning("a warning of %d bytes", 3)
    log.log(level, "at a level")
    log.log(logging.DEBUG if path else logging.INFO, "not for the operator")
    log.info("not for the operator")
    self.last_error = f"the last error of {path}"
    self._post_error(path, f"to Zeek, {path}")
    message = "neither text nor bytes" if path else "an alternative"
    raise SqlError(message)

def probe():
    return "a reason of probe"

def refuse(text):
    raise LimitError(text)

def use(most):
    refuse(f"passed as {most} to it")
    raise OSError(7, made())
    raise LimitError(errors.LIMIT.format(most=most))
    raise SqlError("joined " + f"to {most}")

def made():
    return "made by a function"
"""

LETTERS_MIN: Final = 12

RELAYED: Final = {
    "terminal/config_check.py: found.text",
    "access.py: reason.decode(errors='replace') if isinstance(reason, bytes) else str(reason)",  # of RE2
    "agent.py: warning",  # of loading.py and config_check.py
    "bus/connection.py: f' ({times} times)' * (times > 1)",
    "bus/link.py: causes[-1]",  # of the library
    "bus/sender.py: cause",  # of session.py
    "bus/sender.py: self._cause",
    "bus/session.py: f' ({times} times)' * (times > 1)",
    "collector/clients.py: held",  # for collector/server.py, which reports it
    "collector/embedded.py: message.text",  # of the collector's process
    "collector/intake.py: text",  # of a ProtocolError
    "collector/receive_memory.py: self.protocol.close_rcvd",
    "collector/server.py: str(self._logs.last_error)",  # of log_files.py
    "collector/server.py: self.warning",
    "collector/tls.py: exposure",
    "collector/zeek_logs.py: f'{place}: {misfit(path, len(columns), list(selected))}'",  # of columns.py
    "containment/worker_process.py: clipped(line.text, LINE_CHARACTERS)",  # log lines of a worker
    "containment/worker_process.py: clipped(message.reason, ERROR_CHARACTERS)",  # of an error in a worker
    "control/messages.py: f'{frame.kind}: {frame.message}'",  # of an error in the agent
    "database/sandbox.py: self._cancelled",  # of worker_process.py
    "database/sql_connection.py: message",  # of SQLite
    "database/sql_connection.py: self.missing",
    "gateway/zeek_side.py: f' ({times} times)' * (times > 1)",
    "events/conversions.py: 'negative'",  # a part of others
    "host/files/gate.py: cause",  # of hazards.py
    "host/files/key_properties.py: 'truncated'",  # a part of others
    "host/files/reads.py: omission.value",
    "host/programs.py: ctypes.get_errno()",
    "host/programs.py: f'{program} {how}'",
    "logbook.py: warning",  # of loading.py
    "database/lookups.py: self._module.requirement",
    "database/lookups.py: self.module.requirement",
    "database/lookups.py: self.requirement",
    "recording/bpf_objects.py: failure",  # of libbpf.py
    "recording/files/fanotify_files.py: self.failure",
    "recording/followed/followed_table.py: '; '.join([*lost, *self._notes.texts()]) or None",
    "recording/logins/logins.py: '; '.join((f'{name}: {reason}' for name, reason in reasons.items()))",
    "recording/logins/logins.py: f'{one.name}: {one.failure}'",
    "recording/processes/eslogger.py: self._refused",  # of eslogger_errors.py
    "recording/sockets/conntrack.py: failure",
    "recording/sockets/ebpf_sockets.py: '; '.join(missing)",
    "recording/supervisor.py: failure",
    "results/result_file.py: str(found)",  # of SQLite
    "standalone.py: warning",  # of loading.py
    "gateway_program.py: warning",  # of loading.py
    "platforms/named_pipes.py: 'kernel32'",  # of NotWindowsError, which makes the text
    "platforms/winapi/__init__.py: 'FormatMessageW'",
    "platforms/winapi/__init__.py: 'GetLastError'",
    "platforms/winapi/__init__.py: ctypes.FormatError(number).strip()",  # of Windows
    "platforms/winapi/accounts.py: 'winreg'",
    "platforms/winapi/audit_policy.py: 'winreg'",
    "platforms/winapi/channel_reader.py: 'EvtGetLogInfo'",
    "platforms/winapi/console.py: 'msvcrt'",
    "platforms/winapi/event_log.py: 'EvtGetLogInfo'",
    "platforms/winapi/event_log.py: 'EvtNext'",
    "platforms/winapi/event_log.py: 'EvtRender'",
    "platforms/winapi/event_log.py: 'GetLastError'",
    "platforms/winapi/event_log.py: 'WaitForSingleObject'",
    "platforms/winapi/event_log.py: call",
    "platforms/winapi/files.py: 'msvcrt'",
    "platforms/winapi/pipes.py: 'msvcrt'",
    "platforms/winapi/registry.py: 'winreg'",
    "platforms/winapi/services.py: 'kernel32'",
    "recording/portable_snapshots.py: str(withheld)",  # of host/portable/sockets.py
    "recording/windows/event_log_source.py: None if None in reasons else '; '.join(dict.fromkeys((reason for reason "
    "in reasons if reason)))",
    "terminal/config_check.py: f'{message}; {advice}'",
    "zeek/protocol.py: envelope.code",  # of Zeek
    "zeek/session.py: f' ({times} times)' * (times > 1)",
}
"""Places where a message is passed on whose words are made elsewhere, and are found there."""


def entries(text: str) -> list[str]:
    """The messages in the first cells of the tables below the heading "Messages"."""
    tables = text.partition("\n## Messages\n")[2].partition("\n### Checks of")[0]
    cells = [line.split(" | ")[0][2:] for line in tables.splitlines() if line.startswith("| `")]
    return [
        one.strip("`").strip() if one.startswith("`` ") else one[1:-1] for cell in cells for one in cell.split("<br>")
    ]


def is_described(message: str, patterns: list[re.Pattern[str]]) -> bool:
    return any(pattern.fullmatch(message) for pattern in patterns)


def pattern(entry: str) -> re.Pattern[str]:
    """An entry of few letters stands for itself alone: it would hide the lack of others."""
    if len(re.findall(r"[^\W\d_]", entry)) < LETTERS_MIN:
        return re.compile(re.escape(entry))
    return re.compile(".*".join(re.escape(part) for part in entry.split(HOLE)), re.DOTALL)


ENTRIES = entries(PAGE)
PATTERNS = [pattern(entry) for entry in ENTRIES]


@cache
def messages() -> list[Message]:
    return list(Source(SOURCE).messages())


@cache
def worded() -> list[str]:
    return sorted({one.text for one in messages() if not one.is_relay})


def test_every_message_has_an_entry() -> None:
    missing = [text for text in worded() if not is_described(text, PATTERNS)]
    assert not missing, "add to the tables of docs/troubleshooting.md:\n" + "\n".join(missing)


def test_every_entry_is_a_message() -> None:
    stale = [entry for entry, one in zip(ENTRIES, PATTERNS, strict=True) if not any(map(one.fullmatch, worded()))]
    assert not stale, "remove from docs/troubleshooting.md:\n" + "\n".join(stale)


def test_every_relay_is_known() -> None:
    relays = {
        f"{one.place}: {one.expression}"
        for one in messages()
        if one.is_relay and not OF_AN_ERROR.fullmatch(one.expression)
    }
    assert relays == RELAYED, "the scan finds no words there: see that it does, or where they are made"


def test_the_scan_finds_messages_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "errors.py").write_text("LIMIT = 'the limit of {most} is reached'\n")
    assert {one.text for one in Source(tmp_path).messages()} == {
        "cannot open …: …", "a warning of … bytes", "at a level", "neither text nor bytes", "an alternative",
        "the last error of …", "to Zeek, …", "a reason of probe", "passed as … to it", "made by a function",
        "the limit of … is reached", "joined to …",
    }  # fmt: skip


def test_doctors_checks_are_described() -> None:
    checks = PAGE.partition("\n### Checks of")[2]
    tree = ast.parse((SOURCE / "terminal/doctor.py").read_text())
    names = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Check" and isinstance(node.args[0], ast.Constant)
    }
    assert len(names) > 10
    assert not [name for name in names - {"python"} if f"`{name}`" not in checks]


@pytest.mark.parametrize("entry", ["…: …", "table …: …"])
def test_a_short_entry_stands_for_itself_alone(entry: str) -> None:
    assert pattern(entry).fullmatch(entry)
    assert not pattern(entry).fullmatch("table processes: on fire")
