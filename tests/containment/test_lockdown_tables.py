"""Every built-in table in a snapshot worker that is locked down: it has the rows and values that it has outside."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asking import Agent
from children import child
from lockdown import MACHINE, ORDINARY_UID, ROOT, locked

from zeek_agent.access import AccessPolicy
from zeek_agent.bpf import iterators
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.containment.accounts import NUMBERS
from zeek_agent.containment.protections import WorkerAccount, WorkerClass
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.host.files.statx import memory_mount
from zeek_agent.privileges import Privileges
from zeek_agent.table import LookupTable, Table, TableContext
from zeek_agent.tables import builtin_tables

pytestmark = pytest.mark.skipif(MACHINE is None, reason="no seccomp filter for this architecture")

ACCOUNT = WorkerAccount(NUMBERS[0], NUMBERS[0]) if ROOT else None
TABLES = [table for table in builtin_tables() if table.kind == "snapshot"]
OF_OTHER_PROGRAMS = {
    *("processes", "process_tree", "sockets", "connections", "listening_ports", "packet_sockets"),
    *(table.name for table in TABLES if table.name.startswith(("osquery_", "process_"))),
}
"""Tables whose rows come and go."""
CLONE_NEWNET = 0x4000_0000


@pytest.fixture(autouse=True)
def without_iterators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not inherit those that other tests of this process may have loaded."""
    monkeypatch.setattr(iterators, "_loaded", None)


def query(statement: str) -> list[dict[str, Any]]:
    """The rows, by a connection of their own, as in a worker."""
    limits = LimitSettings(time=60.0)  # suid_bin searches /tmp
    connection = SqlConnection(
        Catalog.of(1, builtin_tables()),
        Profile.FULL,
        context=TableContext(Agent(), AccessPolicy(AccessSettings(secrets_deny=()))),
        limits=limits,
        scans=SharedScans(),
        store=None,
    )
    run = Run(limits, shared_seconds=0.0)
    run.start(memory_ceiling=1 << 40)
    result = connection.query(statement, run, None)
    connection.close()
    assert result.errors == ()
    names = [column.name for column in result.columns]
    return [dict(zip(names, map(str, row), strict=True)) for row in result.rows]


def summary(table: Table) -> list[tuple[int, list[str]]]:
    """For each example the number of rows, and the columns that have a value in any."""
    found = [query(example) for example in table.examples]
    if not table.parameters and not (isinstance(table, LookupTable) and table.required):
        found.append(query(f"SELECT * FROM {table.name}"))
    return [(len(rows), sorted({name for row in rows for name in row if row[name] != "None"})) for rows in found]


def in_worker(statement: str, **options: Any) -> list[dict[str, Any]]:
    options = {"worker_class": WorkerClass.SNAPSHOTS, "before": memory_mount, **options}
    rows: list[dict[str, Any]] = locked(
        options.pop("worker_class"), lambda: query(statement), account=ACCOUNT, **options
    )[1]
    return rows


@pytest.mark.long(kept=5)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_example_has_its_rows_in_a_worker(table: Table) -> None:
    """In a helper, if the table declares what only helpers may do."""
    in_helper = table.privileges.unix_sockets or table.privileges.programs
    worker_class = WorkerClass.HELPER if in_helper else WorkerClass.SNAPSHOTS
    options: dict[str, Any] = {"privileges": table.privileges} if in_helper else {}
    before = summary(table)
    _, inside = locked(worker_class, lambda: summary(table), account=ACCOUNT, before=memory_mount, **options)
    after = summary(table)
    for (count_before, columns_before), (count, columns), (count_after, columns_after) in zip(
        before, inside, after, strict=True
    ):
        assert set(columns) >= set(columns_before) & set(columns_after)
        if table.name not in OF_OTHER_PROGRAMS:
            assert count in {count_before, count_after}
        elif count_before and count_after:
            assert count


@pytest.mark.root
def test_processes_of_other_users_have_their_executables_and_sockets_in_a_worker() -> None:
    kept: list[socket.socket] = []

    def other() -> None:
        kept.append(socket.create_server(("127.0.0.1", 0)))
        os.setresgid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
        os.setresuid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)

    with child(other) as pid:
        for statement in (
            f"SELECT exe, cwd, cmdline, uid, netns FROM processes WHERE pid = {pid}",
            f"SELECT pid, process, exe, local_port, fd, cookie, netns FROM sockets WHERE pid = {pid}",
            f"SELECT path, sha256 FROM file_hashes('/proc/{pid}/exe')",
            "SELECT path, number, content FROM files_lines('/etc/passwd')",
            "SELECT name, uid, last_login FROM users",
        ):
            assert in_worker(statement) == query(statement) != [], statement
        statement = f"SELECT exe, cwd FROM processes WHERE pid = {pid}"
        assert in_worker(statement, worker_class=WorkerClass.HELPER, privileges=Privileges(other_users=True)) == query(
            statement
        )
        hidden = in_worker(statement, worker_class=WorkerClass.HELPER)
        assert hidden == [{"exe": "None", "cwd": "None"}]


@pytest.mark.root
def test_the_padding_of_a_title_is_not_taken_for_arguments_in_a_worker() -> None:
    code = (
        "import ctypes, os, time\n"
        "fields = open('/proc/self/stat').read().rpartition(')')[2].split()\n"
        "start, end = map(int, fields[45:47])\n"
        "os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)\n"
        "ctypes.memset(start, 0, end - start), ctypes.memmove(start, b'title', 5)\n"
        "print(flush=True), time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as titled:
        assert titled.stdout is not None
        titled.stdout.readline()
        rows = in_worker(f"SELECT cmdline, argv FROM processes WHERE pid = {titled.pid}")
        titled.kill()
    assert rows == [{"cmdline": "title", "argv": "('title',)"}]


@pytest.mark.root
def test_sockets_of_other_network_namespaces_are_shown_in_a_worker_without_their_cookie() -> None:
    """A worker may not enter the namespace, so it reads /proc as an agent without CAP_SYS_ADMIN does."""
    kept: list[socket.socket] = []

    def elsewhere() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        kept.append(socket.create_server(("0.0.0.0", 4_711)))
        kept.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))

    with child(elsewhere) as pid, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
        sniffer.bind(("lo", 3))
        netns = Path(f"/proc/{pid}/ns/net").stat().st_ino
        statement = f"SELECT pid, local_port, netns, cookie FROM sockets WHERE pid = {pid} AND protocol = 6"
        row = {"pid": str(pid), "local_port": "4711", "netns": str(netns), "cookie": "None"}
        assert in_worker(statement) == [row]
        statement = f"SELECT pid, interface, netns FROM packet_sockets WHERE pid IN ({pid}, {os.getpid()}) ORDER BY pid"
        assert in_worker(statement) == query(statement)
        assert [row["interface"] for row in in_worker(f"{statement} DESC") if row["pid"] == str(os.getpid())] == ["lo"]


def test_a_file_in_memory_is_recognised_in_a_worker() -> None:
    """For which the zygote has asked for the kernel's internal mount, since a worker makes no memfd."""
    copy = os.memfd_create("sleep")
    os.write(copy, Path("/bin/sleep").read_bytes())
    pid = os.posix_spawn(f"/proc/self/fd/{copy}", ["sleep", "1000"], {})
    try:
        statement = f"SELECT sha256 FROM file_hashes('/proc/{pid}/exe')"
        assert in_worker(statement) == query(statement) != []
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(copy)
