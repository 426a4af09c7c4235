"""The table systemd_units, compared with systemctl(1) on a systemd of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import READS_ALL
from systemd_manager import AVAILABLE, SystemdManager, systemd_manager

from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.errors import SqlError
from zeek_agent.table import TableContext
from zeek_agent.tables.osquery import services

SHOWN = {
    "id": "Id",
    "description": "Description",
    "load_state": "LoadState",
    "active_state": "ActiveState",
    "sub_state": "SubState",
    "unit_file_state": "UnitFileState",
    "following": "Following",
    "fragment_path": "FragmentPath",
    "user": "User",
    "source_path": "SourcePath",
}
"""Columns, and the names by which `systemctl show` has their values."""
UNITS = {
    "sleeping.service": "[Unit]\nDescription=Sleeps für a test\n[Service]\nExecStart=/bin/sleep 100\n",
    "other.service": "[Service]\nUser=nobody\nExecStart=/bin/true\n[Install]\nWantedBy=default.target\n",
    "failing.service": "[Service]\nExecStart=/bin/false\n",
    "waiting.service": "[Unit]\nRequires=slow.service\nAfter=slow.service\n[Service]\nExecStart=/bin/true\n",
    "slow.service": "[Service]\nType=oneshot\nExecStart=/bin/sleep 100\nTimeoutSec=200\n",
    "needs.target": "[Unit]\nWants=there-is-none.service other.service\n",
    "masked.service": "",
}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdManager]:
    if not AVAILABLE:
        pytest.skip("needs root, systemd, dbus-daemon and unshare")
    with systemd_manager(tmp_path_factory.mktemp("systemd") / "run", UNITS) as started:
        yield started


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    opened = Database(services.TABLES, TableContext(NoAgent(), READS_ALL), LimitSettings())
    opened.scans.max_age_seconds = 0
    yield opened
    await opened.aclose()


@pytest.fixture
def on_bus(manager: SystemdManager, monkeypatch: pytest.MonkeyPatch) -> SystemdManager:
    monkeypatch.setattr(services, "SYSTEM_BUS", manager.socket)
    return manager


async def rows(db: Database, sql: str) -> list[dict[str, Any]]:
    result = await db.query(sql)
    assert result.errors == ()
    return [dict(zip((column.name for column in result.columns), row, strict=True)) for row in result.rows]


def by_systemctl(manager: SystemdManager, unit: str) -> dict[str, str]:
    shown = manager.systemctl("show", "--property", ",".join(SHOWN.values()), "--", unit)
    values = dict(line.split("=", 1) for line in shown.splitlines())
    return {column: values.get(name, "") for column, name in SHOWN.items()}


async def test_units_are_those_of_systemctl(db: Database, on_bus: SystemdManager) -> None:
    on_bus.systemctl("start", "sleeping.service", "needs.target")
    on_bus.systemctl("start", "failing.service")
    on_bus.systemctl("mask", "--runtime", "masked.service")
    on_bus.systemctl("start", "masked.service", fails=True)
    listed = on_bus.systemctl("list-units", "--all", "--full", "--plain", "--no-legend")
    found = {row["id"]: row for row in await rows(db, "SELECT * FROM systemd_units")}
    assert set(found) == {line.split()[0] for line in listed.splitlines()}
    assert {row["load_state"] for row in found.values()} >= {"loaded", "not-found"}
    assert {row["active_state"] for row in found.values()} >= {"active", "inactive", "failed"}
    for name, row in found.items():
        assert {column: row[column] for column in SHOWN} == by_systemctl(on_bus, name)
        assert (row["job_id"], row["job_type"], row["job_path"]) == (0, "", "/")
        escaped = "".join(one if one.isalnum() and one.isascii() else f"_{ord(one):02x}" for one in name)
        assert row["object_path"] == f"/org/freedesktop/systemd1/unit/{escaped}"
    assert found["other.service"]["user"] == "nobody"
    assert found["sleeping.service"]["description"] == "Sleeps für a test"


async def test_a_unit_that_starts_and_stops_is_shown_so(db: Database, on_bus: SystemdManager) -> None:
    sql = "SELECT active_state, sub_state FROM systemd_units WHERE id = 'sleeping.service'"
    on_bus.systemctl("start", "sleeping.service")
    assert await rows(db, sql) == [{"active_state": "active", "sub_state": "running"}]
    on_bus.systemctl("kill", "--signal=KILL", "sleeping.service")
    on_bus.systemctl("stop", "sleeping.service")
    states = {row["active_state"] for row in await rows(db, sql)}
    assert "active" not in states
    on_bus.systemctl("enable", "other.service")
    on_bus.systemctl("start", "needs.target")
    sql = "SELECT unit_file_state FROM systemd_units WHERE id = 'other.service'"
    assert await rows(db, sql) == [{"unit_file_state": "enabled"}]


async def test_queued_jobs_are_those_of_systemctl(db: Database, on_bus: SystemdManager) -> None:
    on_bus.systemctl("start", "--no-block", "waiting.service")
    jobs = [line.split() for line in on_bus.systemctl("list-jobs", "--no-legend", "--full").splitlines()]
    expected = {(unit, int(job), kind, f"/org/freedesktop/systemd1/job/{job}") for job, unit, kind, _ in jobs}
    found = await rows(db, "SELECT id, job_id, job_type, job_path FROM systemd_units WHERE job_id > 0")
    assert {tuple(row.values()) for row in found} == expected
    assert len(expected) == 2
    on_bus.systemctl("stop", "--no-block", "waiting.service", "slow.service")


async def test_only_wanted_properties_are_requested(
    db: Database, on_bus: SystemdManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zeek_agent.host.dbus import bus

    called: list[tuple[str, ...]] = []
    some_calls = bus.Bus._some_calls

    def counted(self: bus.Bus, calls: Any) -> Any:
        called.extend((call[3], *call[4]) for call in calls)
        return some_calls(self, calls)

    monkeypatch.setattr(bus.Bus, "_some_calls", counted)
    await rows(db, "SELECT id FROM systemd_units")
    assert called == [("Hello",), ("ListUnits",)]
    called.clear()
    await rows(db, "SELECT fragment_path FROM systemd_units WHERE id IN ('default.target', 'no such unit')")
    assert called == [("Hello",), ("ListUnits",), ("Get", "org.freedesktop.systemd1.Unit", "FragmentPath")]


async def test_a_host_without_systemd_has_no_units(
    db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(services, "SYSTEM_BUS", str(tmp_path / "none"))
    monkeypatch.setattr(services, "BOOTED", str(tmp_path / "none"))
    assert await rows(db, "SELECT * FROM systemd_units") == []
    monkeypatch.setattr(services, "BOOTED", str(tmp_path))
    with pytest.raises(SqlError, match="none does not answer: No such file"):
        await db.query("SELECT * FROM systemd_units")


@contextmanager
def bus_that_sends(path: Path, *answers: bytes) -> Iterator[None]:
    """A bus that answers to the authentication and to the first call, and then closes the connection."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        client, _ = server.accept()
        with client:
            for answer, awaited in zip(answers, (b"AUTH", b"Hello"), strict=False):
                received = b""
                while awaited not in received:
                    received += client.recv(4096)
                client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        server.close()


HEADER = b"l\2\0\1\0\0\0\0\1\0\0\0"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([b"REJECTED EXTERNAL\r\n"], "the bus refuses the authentication"),
        ([b"x" * 20_000], "does not answer to the authentication"),
        ([b"OK 1234\r\n", b"B" + bytes(15)], "not in version 1 of the protocol"),
        ([b"OK 1234\r\n", b"l\2\0\1\xff\xff\xff\xff" + bytes(8)], "more than 33554432 bytes"),
        ([b"OK 1234\r\n", HEADER + b"\10\0\0\0\1\1s\0\xff\0\0\0"], "value is longer than its message"),
        ([b"OK 1234\r\n", HEADER + b"\1\0\0\0" + bytes(8)], "an array ends inside of a value|not a type"),
        ([b"OK 1234\r\n"], "the bus refuses uid"),
        ([b"OK 1234\r\n", b"l"], "the bus refuses uid 0"),
    ],
)
async def test_a_hostile_bus_is_an_error_of_the_statement(
    db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[bytes], message: str
) -> None:
    monkeypatch.setattr(services, "SYSTEM_BUS", str(tmp_path / "bus"))
    with bus_that_sends(tmp_path / "bus", *answers), pytest.raises(SqlError, match=message):
        await db.query("SELECT * FROM systemd_units")
