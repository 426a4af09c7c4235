"""The shell as a person meets it: on a terminal, with keys for completion, history and interrupting."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminals import Terminal


def shell(home: Path, **more: str) -> Terminal:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZEEK_AGENT_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "TERM": "xterm", "COLUMNS": "100", "LINES": "40", **more}
    return Terminal([sys.executable, "-m", "zeek_agent", "shell", "--state-dir", str(home / "state")], environment)


def end(terminal: Terminal) -> int:
    """Type Ctrl-D; the exit code."""
    terminal.type("\x04")
    return terminal.wait()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    started = shell(tmp_path)
    try:
        started.expect("zeek-agent> ")
        yield started
    finally:
        started.close()


def test_statements_span_lines_until_their_semicolon(terminal: Terminal) -> None:
    terminal.type("SELECT 40 + 2 AS answer\n")
    terminal.expect(r"End the statement with ; to run it\.\r\n   \.\.\.> ")
    terminal.type("\n, 7 AS seven\n")
    assert "End the" not in terminal.expect(r"seven.*\.\.\.> ")
    terminal.type(";\n")
    terminal.expect(r"answer.*seven.*42      7.*\(1 row\)\r\n.*zeek-agent> ")
    terminal.type("SELECT 1 AS n WHERE 0;\n")
    terminal.expect(r"\(0 rows\)\r\n.*zeek-agent> ")
    assert end(terminal) == 0


PASTED = "SELECT\t40 +\n\t2\n\nAS answer;\nSELECT 'b' AS b;\n"
"""Two statements with what terminals would take for completion and for the end of a statement."""


def test_statements_can_be_pasted(terminal: Terminal) -> None:
    terminal.type(f"\x1b[200~{PASTED}\x1b[201~\n")
    terminal.expect(r"answer.*42\r\n.*\(1 row\)\r\n.*b.*\(1 row\)\r\n.*zeek-agent> ")
    terminal.type(PASTED.replace("\t", " "))
    seen = terminal.expect(r"answer.*42\r\n.*\(1 row\)\r\n.*b.*\(1 row\)\r\n.*zeek-agent> ")
    assert "End the statement" not in seen
    assert end(terminal) == 0


@pytest.mark.long
def test_a_newcomer_finds_help_and_the_way_out(terminal: Terminal) -> None:
    terminal.type("help\n")
    terminal.expect(r"\.tables +list the tables.*zeek-agent> ")
    terminal.type("SELECT count(*)\n")
    terminal.expect(r"\.\.\.> ")
    terminal.type(".tables\n")
    terminal.expect(r"This is within a statement: end it with ;, or discard it with Ctrl-C\.\r\n.*\.\.\.> ")
    terminal.type("FROM usres;\n")
    terminal.expect(r"no such table: usres; did you mean users\?\r\n.*zeek-agent> ")
    terminal.type("exit\n")
    assert terminal.wait() == 0


def test_the_greeting_says_that_no_agent_is_running_and_what_is_recorded(tmp_path: Path) -> None:
    started = shell(tmp_path)
    seen = started.expect(".*zeek-agent> ")
    assert f"No agent is running: this host is read directly; no recorded events in {tmp_path}/state." in seen
    assert end(started) == 0
    started.close()


@pytest.mark.long
def test_long_results_are_shown_in_the_pager_and_others_are_not(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nexec sed 's/^/paged: /'\n")
    pager.chmod(0o755)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n;\n"
    started = shell(tmp_path, PAGER=str(pager))
    started.expect("zeek-agent> ")
    started.type(numbers.format(60))
    started.expect(r"paged: 60\r\npaged: \(60 rows\)\r\n.*zeek-agent> ")
    started.type(numbers.format(9))
    assert "paged" not in started.expect(r".*\(9 rows\)\r\n.*zeek-agent> ")
    started.type(".pager off\n")
    started.expect("pager: off.*zeek-agent> ")
    started.type(numbers.format(60))
    assert "paged" not in started.expect(r".*\(60 rows\)\r\n.*zeek-agent> ")
    assert end(started) == 0
    started.close()


def test_tables_and_columns_complete(terminal: Terminal) -> None:
    terminal.type("SELECT nam\t;\n")
    terminal.expect("SELECT name")
    terminal.expect("zeek-agent> ")
    terminal.type("SELECT count(*) FROM network_i\t;\n")
    terminal.expect("FROM network_interfaces")
    terminal.expect("zeek-agent> ")
    assert end(terminal) == 0


@pytest.mark.long
def test_ctrl_c_ends_a_repeated_query_and_a_line_but_not_the_shell(terminal: Terminal) -> None:
    terminal.type(".snapshots 0.1 SELECT 5 AS five\n")
    terminal.expect(r"Runs every 0\.1 s; Ctrl-C stops\..*five.*five")
    terminal.type("\x03")
    terminal.expect("zeek-agent> ")
    terminal.type("SELECT (never\n")
    terminal.expect(r"\.\.\.> ")
    time.sleep(0.2)  # Python overlooks a signal between the prompt and its wait for a key
    terminal.type("\x03")
    terminal.expect("zeek-agent> ")
    terminal.type("SELECT 6 AS six;\n")
    terminal.expect("six.*6.*zeek-agent> ")
    assert end(terminal) == 0


def test_a_schedule_that_is_too_short_is_raised_with_a_warning(terminal: Terminal) -> None:
    terminal.type(".snapshots 0.001 SELECT 5 AS five\n")
    terminal.expect(r"runs every 0\.05 s, the shortest possible schedule, instead of every 0\.001 s.*five.*5.*five")
    terminal.type("\x03")
    terminal.expect("zeek-agent> ")
    assert end(terminal) == 0


@pytest.mark.long
def test_a_slow_statement_can_be_interrupted(terminal: Terminal) -> None:
    terminal.type("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n;\n")
    terminal.expect("FROM n;\r\n")
    time.sleep(0.3)
    terminal.type("\x03")
    assert "took longer" not in terminal.expect(".*zeek-agent> ")
    assert end(terminal) == 0


@pytest.mark.long
def test_history_is_kept_for_the_next_time_and_private(tmp_path: Path, terminal: Terminal) -> None:
    terminal.type("SELECT 'remembered';\n")
    terminal.expect("zeek-agent> ")
    assert end(terminal) == 0
    history = tmp_path / ".local/state/zeek-agent/history"
    assert "SELECT 'remembered'" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    again = shell(tmp_path)
    again.expect("zeek-agent> ")
    again.type("\x1b[A\n")
    again.expect(r"SELECT 'remembered';\r\n.*remembered.*zeek-agent> ")
    assert end(again) == 0
    again.close()
