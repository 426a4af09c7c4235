"""The tables of macOS and Windows: what they yield by psutil on this host obeys their declarations."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from zeek_agent import contract, platforms
from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database, Lane
from zeek_agent.host.portable.sockets import Withheld
from zeek_agent.host.portable.system import PosixSystem
from zeek_agent.platforms import Platform
from zeek_agent.table import Constraints, Table, TableContext
from zeek_agent.tables import builtin_tables

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses the readers for POSIX systems")

MAC = platforms.of("darwin")
WINDOWS = platforms.of("win32")
PORTABLE = {"processes", "sockets", "listening_ports", "network_interfaces", "users", "zeek_agent"}
"""Tables that have readers for other systems."""
NEVER_NULL = {
    "processes": {"name", "pid", "ppid", "uid", "gid", "ruid", "rgid", "state", "start_time"},
    "sockets": {"family", "protocol", "local_addr", "local_port", "remote_addr", "remote_port", "pid", "process"},
    "listening_ports": {"family", "protocol", "address", "port", "pid", "own_netns"},
    "network_interfaces": {"name", "addresses", "up"},
    "users": {"name", "full_name", "is_admin", "is_system", "uid", "gid", "home", "shell", "groups"},
}
LINUX_ONLY = {
    "processes": {"startup", "loginuid", "session", "cgroup", "container_id", "netns", "user", "sid"}
    | {"exe_device", "exe_inode", "exe_mntns"},
    "sockets": {"uid", "cookie", "netns", "container_id", "translated_local_addr", "exe_inode"},
    "network_interfaces": {"state", "master", "tx_dropped"},
}
"""Columns that are always null there."""


def table(name: str, platform: Platform = MAC) -> Table:
    return next(one for one in builtin_tables(platform.key) if one.name == name)


@pytest.mark.parametrize("name", sorted(PORTABLE - {"zeek_agent"}))
def test_tables_keep_their_contract(name: str) -> None:
    found = contract.problems(table(name), platform=MAC)
    assert [text for text in found if not text.endswith("not visible to this user")] == []


@pytest.mark.parametrize("name", sorted(NEVER_NULL))
def test_what_every_system_knows_is_never_null(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        rows = contract.rows(table(name), platform=MAC)
    assert rows
    for row in rows:
        missing = {column for column in NEVER_NULL[name] if row[column] is None}
        assert missing == set(), row


@pytest.mark.parametrize("name", sorted(LINUX_ONLY))
def test_what_only_linux_has_is_null(name: str) -> None:
    for row in contract.rows(table(name), platform=MAC):
        assert {row[column] for column in LINUX_ONLY[name]} == {None}


def test_one_process_is_read_by_its_pid() -> None:
    context = TableContext(NoAgent(), platform=MAC)
    wanted = Constraints(context, {}, {"pid": frozenset([os.getpid(), 2**22 + 1])}, frozenset(["pid", "name"]))
    found = [row[1] for row in table("processes").rows(wanted)]
    assert found == [os.getpid()]


def test_command_lines_are_masked() -> None:
    rows = contract.rows(table("processes"), platform=MAC)
    (own,) = [row for row in rows if row["pid"] == os.getpid()]
    assert own["cmdline"] == " ".join(own["argv"])  # type: ignore[arg-type]


async def test_sql_reads_them_with_the_pid_pushed_down() -> None:
    database = Database(builtin_tables(MAC.key), TableContext(NoAgent(), platform=MAC), LimitSettings())
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            statement = (
                "SELECT p.pid, l.port FROM processes AS p JOIN listening_ports AS l ON l.pid = p.pid "
                f"WHERE p.pid = {os.getpid()} AND l.port = {port}"
            )
            result = await database.query(statement, lane=Lane.LOCAL)
        assert [tuple(row) for row in result.rows] == [(os.getpid(), port)]
    finally:
        await database.aclose()


def test_sockets_that_are_not_visible_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(self, withheld, pids=None, check=lambda: None):  # type: ignore[no-untyped-def]
        withheld(Withheld(1_234))
        return iter(())

    reports: list[str] = []
    monkeypatch.setattr(PosixSystem, "sockets", hidden)
    sockets = table("sockets")
    names = frozenset(column.name for column in sockets.columns)
    wanted = Constraints(TableContext(NoAgent(), platform=MAC), columns=names, report=reports.append)
    assert list(sockets.rows(wanted)) == []
    assert reports == ["the sockets of 1,234 processes are not visible to this user"]


def test_the_peers_of_udp_sockets_are_unknown_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not report them, and zeros would mean that there is none."""
    from zeek_agent.host.portable import system

    posix = system.portable_system("darwin")
    monkeypatch.setattr(posix.__class__, "has_datagram_peers", False)
    monkeypatch.setattr(system, "portable_system", lambda _: posix)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.create_server(("127.0.0.1", 0)) as server:
        one.bind(("127.0.0.1", 0))
        ports = {one.getsockname()[1]: (None, None), server.getsockname()[1]: ("0.0.0.0", 0)}
        rows = contract.rows(table("sockets", WINDOWS), platform=WINDOWS)
        found = {
            row["local_port"]: (row["remote_addr"], row["remote_port"]) for row in rows if row["pid"] == os.getpid()
        }
    assert {port: found[port] for port in ports} == ports  # type: ignore[index]


@pytest.mark.parametrize("platform", [MAC, WINDOWS], ids=["darwin", "win32"])
def test_the_systems_have_the_tables(platform: Platform) -> None:
    names = {one.name for one in builtin_tables(platform.key)}
    assert names >= {*PORTABLE, "processes_events", "sockets_events", "files_list", "files_lines", "file_hashes"}
    assert names.isdisjoint({"packet_sockets", "connections", "process_tree", "osquery_processes"})


def test_linux_has_no_accounts_in_these_columns() -> None:
    (own,) = [row for row in contract.rows(table("processes", platforms.HERE)) if row["pid"] == os.getpid()]
    assert (own["user"], own["sid"]) == (None, None)
