"""The agent on this system's Python without what macOS' lacks, and on Linux without what macOS needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from places import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes away what only Linux has")

PROGRAM = ROOT / "tests" / "support" / "mac_python.py"
NAMES = ("ZEEK_AGENT_CONFIG", "ZEEK_AGENT_STATE_DIR", "ZEEK_AGENT_CONTROL", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")


class Done(NamedTuple):
    """A command that has ended."""

    output: str
    errors: str
    noted: dict[str, Any]
    """What `mac_python` notes about it."""


def on_mac(*arguments: str, home: Path) -> Done:
    """Run a command of the agent."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env={**environment, "HOME": str(home)},
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output, _, noted = done.stdout.rstrip("\n").rpartition("\n")
    result = Done(output, done.stderr, json.loads(noted))
    assert result.noted["platform"] == "Darwin"
    assert result.noted["kernel_files"] == []
    return result


def rows(statement: str, home: Path) -> list[dict[str, Any]]:
    """The rows of a statement. That some sockets are not visible is no fault of it."""
    done = on_mac("query", "--format", "json", statement, home=home)
    assert done.noted["exit_code"] == 0 or "not visible to this user" in done.errors, done.errors
    return json.loads(done.output)  # type: ignore[no-any-return]


def test_all_modules_can_be_imported(tmp_path: Path) -> None:
    assert on_mac("import-all", home=tmp_path).noted["failed"] == []


def test_the_tables_are_those_of_macos(tmp_path: Path) -> None:
    done = on_mac("tables", home=tmp_path)
    names = {line.split()[0] for line in done.output.splitlines() if line.strip()}
    assert done.noted["exit_code"] == 0
    assert names >= {"processes", "processes_events", "sockets", "sockets_events", "users", "network_interfaces"}
    assert names.isdisjoint({"packet_sockets", "connections", "dns_events", "files_events"})


def test_processes_are_read(tmp_path: Path) -> None:
    statement = f"SELECT name, pid, uid, cmdline, cgroup, priority FROM processes WHERE pid = {os.getpid()}"
    (own,) = rows(statement, tmp_path)
    assert (own["pid"], own["uid"], own["cgroup"]) == (os.getpid(), os.geteuid(), None)
    assert own["cmdline"]
    assert own["priority"] == str(-os.nice(0))


@pytest.mark.long
def test_sockets_are_read(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = rows(f"SELECT pid, address, protocol FROM listening_ports WHERE port = {port}", tmp_path)
    assert found == {"pid": os.getpid(), "address": "127.0.0.1", "protocol": 6}


@pytest.mark.long
def test_accounts_follow_the_rules_of_macos(tmp_path: Path) -> None:
    found = {row["name"]: row for row in rows("SELECT name, uid, is_admin, is_system FROM users", tmp_path)}
    assert (found["root"]["is_admin"], found["root"]["is_system"]) == (True, True)
    assert all(row["is_system"] for row in found.values() if int(row["uid"]) < 500)


@pytest.mark.long
def test_the_host_describes_itself(tmp_path: Path) -> None:
    (found,) = rows("SELECT platform, kernel_name, hostname, tables FROM zeek_agent", tmp_path)
    assert (found["platform"], found["kernel_name"]) == ("Darwin", "Darwin")
    assert "processes" in found["tables"]
    assert rows("SELECT name FROM network_interfaces WHERE up", tmp_path)


LINUX = """
import sys
from zeek_agent.config.sections import SourceSettings
from zeek_agent.contract import rows
from zeek_agent.recording.registry import candidates
from zeek_agent.tables import builtin_tables
sources = candidates(SourceSettings())
for table in builtin_tables():
    if table.name in {"processes", "sockets", "listening_ports", "network_interfaces", "users", "zeek_agent"}:
        assert rows(table)
others = "psutil", "zeek_agent.host.portable", "zeek_agent.host.windows"
print([name for name in sys.modules if name.startswith(others)])
"""


def test_linux_loads_nothing_of_the_other_systems() -> None:
    done = subprocess.run([sys.executable, "-c", LINUX], capture_output=True, text=True, timeout=110, check=True)
    assert done.stdout == "[]\n"
