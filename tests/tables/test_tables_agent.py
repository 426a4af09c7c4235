"""The tables that show the agent itself, and how tables are found."""

from __future__ import annotations

import ipaddress
import platform
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from asking import Agent, ask
from places import ROOT, SUPPORT

from zeek_agent import tables, version_number
from zeek_agent.schema import Column
from zeek_agent.table import Table
from zeek_agent.tables import builtin_tables, plugin_tables
from zeek_agent.tables.agent import zeek_agent, zeek_agent_tables


def test_the_agent_introduces_itself() -> None:
    (row,) = ask(zeek_agent)
    assert list(row) == [
        *("id", "instance", "hostname", "addresses", "platform", "os_name", "kernel_name", "kernel_version"),
        *("kernel_arch", "agent_version", "uptime", "tables"),
    ]
    assert (row["id"], row["instance"], row["hostname"]) == (Agent.id, Agent.instance, Agent.hostname)
    assert (row["platform"], row["kernel_version"]) == (platform.system(), platform.release())
    assert row["agent_version"] == version_number()
    assert row["uptime"] == 1.5
    assert {"processes", "sockets", "zeek_agent"} <= set(row["tables"])
    assert all(ipaddress.ip_address(address) for address in row["addresses"])
    if Path("/etc/os-release").exists():
        assert f'PRETTY_NAME="{row["os_name"]}"' in Path("/etc/os-release").read_text()


def test_tables_describe_themselves() -> None:
    rows = {row["name"]: row for row in ask(zeek_agent_tables)}
    assert rows["processes_events"]["kind"] == "events"
    assert rows["files_list"]["columns"][0] == "path:text"
    assert rows["files_columns"]["parameters"][:2] == ["pattern:text", "columns:text"]
    assert rows["files_columns"]["parameters"][3] == r"ignore:text=^[ \t]*([#;]|$)"


def test_each_platform_has_the_tables_that_fit() -> None:
    assert {table.name for table in builtin_tables("win32")} >= {"files_list", "processes", "zeek_agent"}
    assert "packet_sockets" not in {table.name for table in builtin_tables("win32")}
    assert {table.name for table in builtin_tables("linux")} >= {
        *("processes", "sockets", "users", "files_list", "files_lines", "files_columns", "network_interfaces"),
        *("listening_ports", "zeek_agent", "zeek_agent_tables", "zeek_agent_queries", "zeek_agent_sources"),
        *("zeek_agent_connections", "zeek_agent_log", "zeek_agent_config", "zeek_agent_gaps"),
        *("processes_events", "sockets_events"),
    }


def test_a_module_in_tables_needs_no_other_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added_by_test.py").write_text(
        "from zeek_agent.schema import Column\n"
        "from zeek_agent.table import Table\n"
        "added = Table('added', 'for tests', description='For tests.', columns=[Column('one', 'count', 'a value')])\n"
        "TABLES = (added,)\n"
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "zeek_agent.tables.added_by_test", raising=False)
    before = {table.name for table in builtin_tables("linux")} - {"added"}
    assert "processes" in before
    assert [table.name for table in builtin_tables("linux")].count("added") == 1
    monkeypatch.delitem(sys.modules, "zeek_agent.tables.added_by_test")


def test_tables_of_other_packages_are_found_and_broken_ones_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    points = EntryPoints(
        [
            EntryPoint("good", f"{__name__}:extra", tables.PLUGINS),
            EntryPoint("several", f"{__name__}:several", tables.PLUGINS),
            EntryPoint("missing", "no.such.module:table", tables.PLUGINS),
            EntryPoint("odd", "sys:platform", tables.PLUGINS),
        ]
    )
    monkeypatch.setattr(tables, "entry_points", lambda group: points.select(group=group))
    assert plugin_tables() == [extra, extra]
    assert "cannot load the tables of plug-in missing" in caplog.text
    assert "plug-in odd" in caplog.text


extra = Table("extra", "extra", description="extra", columns=[Column("a", "text", "a")], platforms=(sys.platform,))
several = [extra, Table("elsewhere", "e", description="e", columns=[Column("a", "text", "a")], platforms=("plan9",))]

HIDE = """
import importlib.abc, socket, os, sys, time
for module, names in {
    socket: ["AF_NETLINK"],
    os: ["O_PATH", "O_DIRECTORY", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "getuid", "geteuid", "getgrouplist"],
    time: ["CLOCK_BOOTTIME", "clock_gettime"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "spwd"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules.pop(name, None)
sys.platform = "win32"
"""


REAL_SYSTEM = ("__main__", "cli", "manual", "reference", "flock", "named_pipes", "windows_loop")
"""Modules that cannot be imported here: click needs a real system, the others Unix's locks or Windows' event loop."""


def elsewhere(code: str, *arguments: str) -> Any:
    """Run code where nothing of Linux is at hand."""
    places = [str(ROOT / "src"), str(SUPPORT)]
    prelude = f"import sys; sys.path[:0] = {places!r}\nimport apsw, msgspec, logging, asyncio, pathlib, psutil, re2\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + HIDE + code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_package_needs_nothing_of_linux_to_be_imported() -> None:
    result = elsewhere(
        "from zeek_agent.tables import builtin_tables\n"
        "import importlib, pkgutil\n"
        "def import_all(package):\n"
        "    for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):\n"
        f"        if module.name.rpartition('.')[2] not in {REAL_SYSTEM!r}:\n"
        "            imported = importlib.import_module(module.name)\n"
        "            if module.ispkg: import_all(imported)\n"
        "import_all(importlib.import_module('zeek_agent'))\n"
        "from asking import ask\n"
        "from zeek_agent.tables.agent import zeek_agent\n"
        "assert ask(zeek_agent)[0]['id']\n"
        "print(len(builtin_tables()))\n"
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(builtin_tables("win32"))
