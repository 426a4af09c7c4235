"""The bridge against a real osqueryd, where there is one on PATH."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from osqueryd import Bridged, Osqueryd
from waiting import until_sync

from zeek_agent.errors import SqlError
from zeek_agent.table import LookupTable
from zeek_agent.tables import builtin_tables

pytestmark = pytest.mark.skipif(shutil.which("osqueryd") is None, reason="needs osqueryd on PATH")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon of our own, without state and events."""
    directory = tmp_path_factory.mktemp("osquery")
    config = directory / "osquery.conf"
    config.write_text("{}")
    command = [
        *("osqueryd", "--ephemeral", "--disable_database", "--disable_events", "--disable_watchdog", "--force"),
        *(f"--config_path={config}", f"--pidfile={directory / 'pid'}", f"--extensions_socket={directory / 'em'}"),
        *("--disable_logging", "--disable_extensions=false"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until_sync(lambda: process.poll() is not None or (directory / "em").exists(), 30, "osqueryd opened no socket")
    assert process.poll() is None
    yield directory / "em"
    process.terminate()
    process.wait(20)


@pytest.fixture
async def bridged(path: Path) -> AsyncIterator[Bridged]:
    async with Bridged(Osqueryd(path, {}), builtin_tables(), time=30.0, export=("users",)) as running:
        assert running.source()["active"], running.source()["reason"]
        yield running


async def test_its_tables_are_there(bridged: Bridged) -> None:
    imported = [table for table in bridged.db.tables.values() if isinstance(table, LookupTable) and table.remote]
    assert len([table for table in imported if not table.alias]) > 100
    ((version,),) = await bridged.rows("SELECT version FROM osquery_info")
    assert str(version)[0].isdigit()


async def test_rows_are_right(bridged: Bridged) -> None:
    rows = await bridged.rows("SELECT uid, username, directory, shell FROM osquery_users")
    expected = {(one.pw_uid, one.pw_name, one.pw_dir, one.pw_shell) for one in pwd.getpwall()}
    assert set(rows) == expected


async def test_a_join_with_a_table_of_ours(bridged: Bridged) -> None:
    sql = "SELECT o.pid, o.parent, p.ppid FROM processes p JOIN osquery_processes o ON o.pid = p.pid WHERE p.pid = {}"
    assert await bridged.rows(sql.format(os.getpid())) == [(os.getpid(), os.getppid(), os.getppid())]


async def test_values_go_to_tables_that_need_them(bridged: Bridged) -> None:
    size = Path("/etc/passwd").stat().st_size
    assert await bridged.rows("SELECT size FROM file WHERE path = '/etc/passwd'") == [(size,)]
    with pytest.raises(SqlError, match="is required"):
        await bridged.rows("SELECT * FROM file")


async def test_our_tables_are_registered(bridged: Bridged) -> None:
    with bridged.bridge.client.connected() as connection:
        assert "zeek_agent" in connection.extensions().values()
    rows = bridged.bridge.client.query("SELECT name FROM zeek_users WHERE name = 'root'")
    assert [row["name"] for row in rows] == ["root"]
