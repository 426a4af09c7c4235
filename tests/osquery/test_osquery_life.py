"""An osquery that comes and goes, is slow, refuses, breaks off or is something else: what the agent makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from acting import NOBODY
from osqueryd import Bridged, FakeTable, Osqueryd, usual_tables
from places import ROOT
from sql import database
from waiting import until

from zeek_agent.cli.program import run_command
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import LimitSettings, OsquerySettings
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.osquery import bridge as bridges
from zeek_agent.osquery import client as clients
from zeek_agent.osquery import wire
from zeek_agent.osquery.client import CooldownError, OsqueryClient
from zeek_agent.osquery.wire import (
    ConnectionLostError,
    ImpostorError,
    OsqueryRefusedError,
    ReplyTimeoutError,
    ThriftConnection,
    UnreachableError,
)
from zeek_agent.tables import builtin_tables
from zeek_agent.terminal import doctor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "osquery.em"


@asynccontextmanager
async def living(bridged: Bridged) -> AsyncIterator[Bridged]:
    """The bridge looks by itself, as in the running agent."""
    task = asyncio.create_task(bridged.bridge.run())
    try:
        yield bridged
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bridged.db.aclose()


@contextmanager
def answering(path: Path, answer: bytes, *, hang_up: bool = True) -> Iterator[None]:
    """Something else at the socket: whoever connects gets these bytes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(answer)
                if not hang_up:
                    connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


# Coming and going


async def test_tables_are_added_and_removed_with_osquery(path: Path) -> None:
    osquery = Osqueryd(path, usual_tables())
    changes = []
    async with living(Bridged(osquery, [])) as bridged:
        bridged.db.on_change(lambda: changes.append("deb_packages" in bridged.db.tables))
        await until(lambda: "no such socket" in str(bridged.source()["reason"]))
        with pytest.raises(SqlError, match="no such table: deb_packages"):
            await bridged.rows("SELECT * FROM deb_packages")
        with osquery:
            await until(lambda: "deb_packages" in bridged.db.tables)
            assert len(await bridged.rows("SELECT * FROM deb_packages")) == 100
            assert bridged.source()["active"]
        await until(lambda: "deb_packages" not in bridged.db.tables)
        await until(lambda: "nothing is listening" in str(bridged.source()["reason"]))
        with pytest.raises(SqlError, match=r"no such table: deb_packages any more: .*nothing is listening"):
            await bridged.rows("SELECT * FROM deb_packages")
        with osquery:
            await until(lambda: "deb_packages" in bridged.db.tables)
    assert changes == [True, False, True]


async def test_tables_that_change_are_followed(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            osquery.tables["more"] = FakeTable({"a": "TEXT"}, [("x",)], owner=5)
            del osquery.tables["deb_packages"]
            await bridged.bridge.refresh()
            assert await bridged.rows("SELECT * FROM more") == [("x",)]
            with pytest.raises(SqlError, match="no such table: deb_packages any more: osquery no longer has it"):
                await bridged.rows("SELECT * FROM deb_packages")
            osquery.tables["more"] = FakeTable({"a": "TEXT", "b": "BIGINT"}, [("x", 1)], owner=6)
            await bridged.bridge.refresh()
            assert await bridged.rows("SELECT * FROM more") == [("x", 1)]


async def test_a_refresh_does_not_query_known_tables_again(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            osquery.statements.clear()
            generation = bridged.db.tables
            await bridged.bridge.refresh()
            assert len(osquery.statements) == 1
            assert bridged.db.tables is generation


async def test_a_restart_between_two_queries_is_not_noticed(path: Path) -> None:
    osquery = Osqueryd(path, usual_tables())
    with osquery:
        async with Bridged(osquery, []) as bridged:
            assert len(await bridged.rows("SELECT name FROM deb_packages")) == 100
            osquery.stop()
            osquery.start()
            assert len(await bridged.rows("SELECT version FROM deb_packages")) == 100


async def test_a_table_that_vanished_since_gives_osquerys_error(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            del osquery.tables["deb_packages"]
            with pytest.raises(SqlError, match=r"table deb_packages: osquery: .*no such table: deb_packages"):
                await bridged.rows("SELECT * FROM deb_packages")


async def test_a_query_fails_immediately_while_osquery_is_not_running(path: Path) -> None:
    osquery = Osqueryd(path, usual_tables()).start()
    async with Bridged(osquery, []) as bridged:
        osquery.stop()
        for _ in range(2):
            with pytest.raises(SqlError, match="nothing is listening"):
                await bridged.rows("SELECT * FROM deb_packages")


# Harm


async def test_invalid_descriptions_of_tables_are_ignored(path: Path) -> None:
    class Odd(Osqueryd):
        def query(self, sql: str) -> Any:
            return super().query("SELECT 'x' AS something" if "osquery_registry" in sql else sql)

    with Odd(path, usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            assert "list of tables is invalid" in bridged.source()["reason"]


async def test_a_query_that_ends_osquery_is_not_repeated(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            osquery.hang_up_on = "FROM `deb_packages` WHERE `size`"
            with pytest.raises(SqlError, match="the connection was lost"):
                await bridged.rows("SELECT name FROM deb_packages WHERE size > 5")
            assert len(osquery.asked("deb_packages")) == 1
            with pytest.raises(SqlError, match=r"such a query will not be repeated for (60|59) s"):
                await bridged.rows("SELECT name FROM deb_packages WHERE size > 6")
            assert len(osquery.asked("deb_packages")) == 1
            assert len(await bridged.rows("SELECT name FROM deb_packages")) == 100
            assert "the connection was lost" in bridged.source()["last_error"]


def test_the_rest_after_harm_grows_and_ends_with_success(path: Path) -> None:
    now = [1000.0]
    with Osqueryd(path, usual_tables()) as osquery:
        client = OsqueryClient(lambda: str(path), 5.0, clock=lambda: now[0])

        def ask(size: int) -> None:
            client.shared_query(
                f"SELECT size FROM deb_packages WHERE size = {size}", "packages", lambda rows: [], lambda: None
            )

        osquery.hang_up_on = "deb_packages"
        for rest in (60, 120, 240):
            with pytest.raises(ConnectionLostError):
                ask(1)
            now[0] += rest - 1
            with pytest.raises(CooldownError, match="for 1 s"):
                ask(2)
            now[0] += 1.1
        osquery.hang_up_on = None
        ask(3)
        osquery.hang_up_on = "deb_packages"
        with pytest.raises(ConnectionLostError):
            ask(4)
        with pytest.raises(CooldownError, match="for 60 s"):
            ask(5)
        client.close()


def test_attempts_to_connect_become_rarer(path: Path) -> None:
    now, tried = [0.0], []

    def find() -> str:
        tried.append(now[0])
        return str(path)

    client = OsqueryClient(find, 1.0, clock=lambda: now[0])
    while now[0] < 100:
        with pytest.raises(UnreachableError):
            client.query("SELECT 1")
        now[0] += 0.5
    assert tried == [0.0, 1.0, 3.0, 7.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0]


async def test_a_slow_reply_is_abandoned(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, [], time=0.3) as bridged:
            osquery.delay = 2.0
            with pytest.raises(SqlError, match="no reply in time"):
                await bridged.rows("SELECT * FROM deb_packages")
            osquery.delay = 0.0
            assert len(await bridged.rows("SELECT name FROM deb_packages")) == 100


async def test_the_statements_own_time_limit_holds_while_osquery_works(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, [], limits=LimitSettings(time=0.3)) as bridged:
            osquery.delay = 2.0
            with pytest.raises(LimitError, match=r"took longer than 0\.3 s"):
                await bridged.rows("SELECT * FROM deb_packages")
            with pytest.raises(LimitError, match="took longer"):
                await asyncio.gather(*(bridged.rows(f"SELECT * FROM deb_packages WHERE size = {n}") for n in range(3)))


async def test_a_query_that_was_cancelled_late_has_a_cooldown_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "UNANSWERED_SECONDS", 0.1)
    with Osqueryd(path, usual_tables()) as osquery:
        async with Bridged(osquery, [], limits=LimitSettings(time=0.3)) as bridged:
            osquery.delay = 1.0
            with pytest.raises(LimitError, match="took longer"):
                await bridged.rows("SELECT name FROM deb_packages")
            with pytest.raises(SqlError, match=r"took too long: .*will not be repeated"):
                await bridged.rows("SELECT name FROM deb_packages")


async def test_an_error_of_osquery_is_reported(path: Path) -> None:
    with Osqueryd(path, usual_tables()) as osquery:

        def broken(given: object) -> list[tuple[str]]:
            raise ValueError("a table is broken")

        osquery.tables["broken"] = FakeTable({"a": "TEXT"}, broken)
        async with Bridged(osquery, []) as bridged:
            with pytest.raises(SqlError, match="table broken: osquery: it failed: Internal error"):
                await bridged.rows("SELECT * FROM broken")
            assert len(await bridged.rows("SELECT * FROM deb_packages")) == 100


# What is at the socket


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x80\x01\x00\x02\x00\x00\x00\x05query\x00\x00\x00\x00\x0f\x00\x02",
        b"\x80\x01\x00\x02\x7f\xff\xff\xff",
        b"\x80\x01\x00\x02\xff\xff\xff\xff",
        b"\x80\x01\x00\x02\x00\x00\x00\x05query\x00\x00\x00\x00\x0c\x00\x00\x0f\x00\x02\x0d\x7f\xff\xff\xff",
        b"\0" * 1000,
        bytes(range(256)),
        b"",
    ],
)
def test_garbage_is_an_error_and_ends_the_connection(path: Path, answer: bytes) -> None:
    with answering(path, answer):
        connection = ThriftConnection(str(path), 2.0)
        with pytest.raises((ConnectionLostError, OsqueryRefusedError)):
            connection.query("SELECT 1")
        with pytest.raises(ConnectionLostError):
            connection.query("SELECT 1")
        connection.close()


def test_an_endless_reply_is_abandoned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REPLY_BYTES_MAX", 100_000)
    with Osqueryd(path, {"big": FakeTable({"t": "TEXT"}, [("x" * 1000,)] * 1000)}):
        connection = ThriftConnection(str(path), 5.0)
        with pytest.raises(ConnectionLostError, match="longer than 100000 bytes"):
            connection.query("SELECT t FROM big")
        connection.close()


def test_a_silent_peer_is_not_waited_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        connection = ThriftConnection(str(path), 0.2)
        with pytest.raises(ReplyTimeoutError):
            connection.query("SELECT 1")
        connection.close()


def test_the_reason_for_a_failed_connection_is_reported(path: Path) -> None:
    with pytest.raises(UnreachableError, match="no such socket; osquery is not running"):
        ThriftConnection(str(path), 1.0)
    osquery = Osqueryd(path, {}).start()
    osquery.stop()
    with pytest.raises(UnreachableError, match="nothing is listening"):
        ThriftConnection(str(path), 1.0)


@pytest.mark.root
def test_missing_permission_for_the_socket_is_reported(path: Path) -> None:
    with Osqueryd(path, {}):
        path.chmod(0o600)
        os.seteuid(65_534)
        try:
            with pytest.raises(UnreachableError, match="permission denied; run as the user of osquery"):
                ThriftConnection(str(path), 1.0)
        finally:
            os.seteuid(0)


# Whose osquery it is


@contextmanager
def impostor(path: Path, owner: int) -> Iterator[None]:
    """A process of nobody's that listens at the socket, whose file belongs to `owner`."""
    program = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as listener:\n"
        "    listener.bind(sys.argv[1])\n"
        "    listener.listen()\n"
        "    print(flush=True)\n"
        "    while connection := listener.accept()[0]:\n"
        "        received = connection.recv(65536)\n"
        "        print(len(received), flush=True)\n"
    )
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", program]
    with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            os.chown(path, owner, -1)
            yield
        finally:
            process.terminate()
            heard = process.stdout.read()
    assert heard.strip() in (b"", b"0"), f"{heard!r} bytes were sent to it"


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """In a directory that everybody can reach and write, as /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o1777)
        yield Path(place) / "osquery.em"


@pytest.mark.root
async def test_another_users_socket_is_not_used(shared_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with impostor(shared_path, NOBODY):
        async with Bridged(Osqueryd(shared_path, {}), builtin_tables(), export=("zeek_agent_log",)) as bridged:
            for backend in ("import", "export"):
                row = bridged.source(backend)
                assert not row["active"]
                assert f"may be another user's: it belongs to uid {NOBODY}" in row["reason"]
        assert "may be another user's" in caplog.text
        config = Config(osquery=OsquerySettings(socket=str(shared_path)), state_dir=str(shared_path.parent))
        (found,) = [one for one in doctor.run_checks(config, {}) if one.name == "osquery"]
    assert found.verdict == "warn"
    assert "may be another user's" in found.found


@pytest.mark.root
def test_a_listener_of_another_user_behind_a_socket_of_roots_is_not_used(shared_path: Path) -> None:
    with (
        impostor(shared_path, 0),
        pytest.raises(ImpostorError, match=rf"which is listening there, belongs to uid {NOBODY}"),
    ):
        ThriftConnection(str(shared_path), 1.0)


def test_a_socket_that_others_could_replace_is_not_used(path: Path) -> None:
    with Osqueryd(path, usual_tables()):
        path.parent.chmod(0o777)
        with pytest.raises(ImpostorError, match=r"is writable by others \(mode 0777\)"):
            ThriftConnection(str(path), 1.0)
        path.parent.chmod(0o1777)
        ThriftConnection(str(path), 1.0).close()


@pytest.mark.root
def test_a_link_of_another_user_to_a_socket_is_not_used(path: Path, shared_path: Path) -> None:
    with Osqueryd(path, usual_tables()):
        shared_path.symlink_to(path)
        ThriftConnection(str(shared_path), 1.0).close()
        os.chown(shared_path, NOBODY, NOBODY, follow_symlinks=False)
        with pytest.raises(ImpostorError, match="may be another user's: the symbolic link osquery"):
            ThriftConnection(str(shared_path), 1.0)


@pytest.mark.root
def test_an_impostor_where_osquery_usually_is_is_a_warning(
    shared_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bridges, "DAEMON_SOCKETS", (str(shared_path),))
    with impostor(shared_path, NOBODY):
        bridge = bridges.Bridge(OsquerySettings(), database())
        bridge.refresh_blocking()
        bridge.refresh_blocking()
        bridge.close()
        (found,) = doctor._osquery(OsquerySettings())
    assert [record.levelname for record in caplog.records if "may be another user's" in record.message] == ["WARNING"]
    assert found.verdict == "warn"


def test_without_the_extra_the_reason_names_the_package_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "thriftpy2", None)
    wire.interface.cache_clear()
    with Osqueryd(path, {}), pytest.raises(UnreachableError, match=r"install zeek-agent\[osquery\]"):
        ThriftConnection(str(path), 1.0)
    monkeypatch.undo()
    wire.interface.cache_clear()


def test_bytes_that_are_not_utf8_are_returned_unchanged(path: Path) -> None:
    with Osqueryd(path, {"raw": FakeTable({"t": "TEXT"}, [("a\uefff\uef80",), ("ü",)])}):
        connection = ThriftConnection(str(path), 5.0)
        assert [row["t"] for row in connection.query("SELECT t FROM raw")] == [b"a\xff\x80", "ü"]
        assert len(connection.query("SELECT t FROM raw WHERE t = 'a\uefff\uef80'")) == 1
        connection.close()


# Where it is looked for, and what doctor says


def test_the_daemons_socket_is_preferred_to_the_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, home = tmp_path / "osquery.em", tmp_path / "home"
    monkeypatch.setattr(bridges, "DAEMON_SOCKETS", (str(daemon),))
    monkeypatch.setattr(Path, "home", lambda: home)
    with pytest.raises(UnreachableError, match="osquery is not running here"):
        bridges.find_socket("auto")
    (home / ".osquery").mkdir(parents=True)
    (home / ".osquery/shell.em").touch()
    assert bridges.find_socket("auto") == str(home / ".osquery/shell.em")
    daemon.touch()
    assert bridges.find_socket("auto") == str(daemon)
    assert bridges.find_socket("/elsewhere") == "/elsewhere"


def test_doctor_queries_osquerys_version(path: Path) -> None:
    def check(where: str) -> list[doctor.Check]:
        config = Config(osquery=OsquerySettings(socket=where), state_dir=str(path.parent))
        return [one for one in doctor.run_checks(config, {}) if one.name == "osquery"]

    with Osqueryd(path, usual_tables()):
        (found,) = check(str(path))
        assert (found.verdict, found.found) == ("ok", f"{path}, version 5.99.0, 7 tables")
    (found,) = check(str(path))
    assert found.verdict == "warn"
    assert "nothing is listening" in found.found
    assert check("off") == []
    (found,) = check("auto")
    assert found.verdict == "ok"


def test_a_query_without_a_running_agent_uses_a_socket_that_is_named(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Osqueryd(path, usual_tables()):
        settings = ["--set", f"osquery.socket={path}", "--set", 'osquery.prefer=["*"]']
        arguments = ["--state-dir", str(path.parent / "state"), *settings, "-f", "json"]
        assert run_command(["query", *arguments, "SELECT name, size FROM deb_packages WHERE size = 7000"]) == 0
        assert json.loads(capfd.readouterr().out) == [{"name": "package7", "size": 7000}]
        assert run_command(["query", *arguments, "SELECT name FROM zeek_agent_tables WHERE name LIKE '%users'"]) == 0
        assert {"users", "osquery_users"} <= {row["name"] for row in json.loads(capfd.readouterr().out)}
        join = "SELECT u.username, f.size FROM osquery_users u JOIN file f ON f.path = u.directory ORDER BY u.uid"
        assert run_command(["query", *arguments, join]) == 0
        assert [tuple(row.values()) for row in json.loads(capfd.readouterr().out)] == [("root", 5), ("ann", 9)]


async def test_the_examples_of_the_documentation_work(path: Path) -> None:
    page = (ROOT / "docs/osquery.md").read_text()
    statements = [sql for block in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) for sql in block.split(";")]
    tables = usual_tables()
    tables["hash"] = FakeTable({"path": "TEXT", "sha256": "TEXT"})
    with Osqueryd(path, tables) as osquery:
        async with Bridged(osquery, builtin_tables()) as bridged:
            for sql in filter(str.strip, statements):
                await bridged.db.prepare(sql)
    assert len(statements) >= 4


def test_every_setting_is_in_the_documentation() -> None:
    page = (ROOT / "docs/osquery.md").read_text()
    for name in OsquerySettings.__struct_fields__:
        assert re.search(rf"`osquery\.{name}`|\n{name} = |`{name}`", page), name
