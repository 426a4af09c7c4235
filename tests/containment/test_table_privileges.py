"""Tables that declare privileges: read by a helper process that has these, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import workers
from privileged_plugin import installed
from waiting import until
from workers import descendants, is_running

from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.containment import helper_pool, landlock
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.messages import Need
from zeek_agent.containment.pool import WorkerStatus
from zeek_agent.containment.worker_process import WorkerProcess
from zeek_agent.database.cells import storable
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.host import programs
from zeek_agent.table import Table
from zeek_agent.worker import table_spool

pytestmark = pytest.mark.root

GROUP = 4_711
ANSWER = b"answered"
RUNS = AccessSettings(privileges_allow=("run_declared",))


@pytest.fixture(scope="module")
def plugin() -> Iterator[tuple[Path, list[Table]]]:
    with installed() as found:
        yield found


@pytest.fixture
def place(plugin: tuple[Path, list[Table]]) -> Path:
    return plugin[0]


@contextmanager
def answering(server: socket.socket) -> Iterator[None]:
    """Each client gets the answer."""

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.send(ANSWER)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@contextmanager
def unix_servers(place: Path) -> Iterator[None]:
    """Sockets of root's: for everybody, for a group (declared), and for another group (not declared)."""
    with ExitStack() as opened:
        for name, mode, gid in (("open", 0o666, 0), ("group", 0o660, GROUP), ("other", 0o660, GROUP + 1)):
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(place / name))
            (place / name).chmod(mode)
            os.chown(place / name, 0, gid)
            server.listen()
            opened.callback((place / name).unlink)
            opened.enter_context(answering(server))
        yield


@asynccontextmanager
async def database(
    tmp_path: Path, plugin: tuple[Path, list[Table]], access: AccessSettings | None = None, **limits: Any
) -> AsyncIterator[ContainedDatabase]:
    async with workers.contained(
        tmp_path, access=access, limits=LimitSettings(cpu=8.0, **limits), plugins=plugin[1]
    ) as opened:
        yield opened


def helpers(db: ContainedDatabase) -> list[WorkerStatus]:
    return [status for status in db.pool.status() if status.worker_class == "helper"]


def helper_processes(db: ContainedDatabase) -> list[WorkerProcess]:
    return [worker for worker in db.pool.processes if worker.kind.value == "helper"]


async def answer(db: ContainedDatabase, sql: str) -> str:
    (row,) = (await db.query(sql)).rows
    return str(row[0])


# Unix sockets


async def test_a_table_reaches_declared_sockets_and_no_other_groups(
    tmp_path: Path, plugin: tuple[Path, list[Table]], place: Path
) -> None:
    allowed = AccessSettings(privileges_allow=(str(place / "group"),))
    with unix_servers(place):
        async with database(tmp_path, plugin, allowed) as db:
            found = {
                name: await answer(db, f"SELECT answer FROM talk_declared('{place / name}')")
                for name in ("open", "group", "other")
            }
            undeclared = await answer(db, f"SELECT answer FROM talk_undeclared('{place / 'open'}')")
            groups = [worker.protections.groups for worker in helper_processes(db) if worker.protections]
    assert found == {"open": ANSWER.decode(), "group": ANSWER.decode(), "other": "EACCES"}
    assert undeclared == "EPERM"
    assert groups == [(GROUP,)]


async def test_a_socket_for_a_group_needs_the_operators_permission(
    tmp_path: Path, plugin: tuple[Path, list[Table]], place: Path
) -> None:
    with unix_servers(place):
        async with database(tmp_path, plugin) as db:
            with pytest.raises(SqlError, match=rf"group {GROUP} may connect to .*access\.privileges_allow"):
                await db.query(f"SELECT answer FROM talk_declared('{place / 'open'}')")
            await until(lambda: not helpers(db), 10)
            assert db.pool.killed.total() == 0


# Programs


async def test_a_declared_program_runs_once_it_is_permitted(tmp_path: Path, plugin: tuple[Path, list[Table]]) -> None:
    sql = "SELECT answer FROM run_declared('/bin/echo', 'one|two')"
    async with database(tmp_path, plugin) as db:
        with pytest.raises(AccessDeniedError, match=r"program /bin/echo: .*access\.privileges_allow"):
            await db.query(sql)
        assert helpers(db) == []
    async with database(tmp_path, plugin, RUNS) as db:
        assert await answer(db, sql) == "one two\n"
        failed = "SELECT answer FROM run_declared('/bin/sh', '-c|echo no luck >&2; exit 3')"
        with pytest.raises(SqlError, match=r"/bin/sh failed with exit code 3: no luck"):
            await db.query(failed)
        undeclared = "SELECT answer FROM run_undeclared('/bin/echo', '')"
        assert await answer(db, undeclared) == "EPERM"


async def test_a_helper_executes_nothing_but_the_declared_programs(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    async with database(tmp_path, plugin, RUNS) as db:
        assert await answer(db, "SELECT answer FROM run_declared('/bin/cat', '/etc/passwd')") == "EACCES"
        started = "SELECT answer FROM run_declared('/bin/sh', '-c|/bin/cat /etc/passwd')"
        with pytest.raises(SqlError, match="Permission denied"):
            await db.query(started)


async def test_a_program_that_others_can_replace_is_an_error_of_the_statement(
    tmp_path: Path, plugin: tuple[Path, list[Table]], place: Path
) -> None:
    (place / "program").write_bytes(Path("/bin/echo").read_bytes())
    (place / "program").chmod(0o777)
    allowed = AccessSettings(privileges_allow=(str(place / "program"),))
    try:
        async with database(tmp_path, plugin, allowed) as db:
            sql = f"SELECT answer FROM run_replaceable('{place / 'program'}', '')"
            with pytest.raises(SqlError, match="somebody other than root could replace"):
                await db.query(sql)
    finally:
        (place / "program").unlink()


def test_a_program_is_executed_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file that gets the program's name after the check is not executed."""
    directory = Path("/usr/local/lib/zeek-agent-test-program")
    directory.mkdir()
    try:
        program = directory / "program"
        program.write_text("#!/bin/sh\necho checked\n")
        program.chmod(0o755)
        check = programs.open_program

        def replaced_after_the_check(path: str) -> int:
            descriptor = check(path)
            (directory / "new").write_text("#!/bin/sh\necho replaced\n")
            (directory / "new").chmod(0o755)
            (directory / "new").rename(program)
            return descriptor

        monkeypatch.setattr(programs, "open_program", replaced_after_the_check)
        assert programs.run_program(str(program)) == b"checked\n"
        monkeypatch.setattr(programs, "open_program", check)
        assert programs.run_program(str(program)) == b"replaced\n"
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


@pytest.mark.long
async def test_what_a_program_started_ends_with_the_helper(tmp_path: Path, plugin: tuple[Path, list[Table]]) -> None:
    sql = "SELECT answer FROM run_declared('/bin/sh', '-c|/bin/sleep 3600 & /bin/sleep 3601; echo')"
    async with database(tmp_path, plugin, RUNS, time=1.0) as db:
        running = asyncio.create_task(db.query(sql))
        await until(lambda: [process for one in helpers(db) if len(process := descendants(one.pid)) == 3], 10)
        (helper,) = helpers(db)
        started = descendants(helper.pid)
        with pytest.raises(LimitError, match=r"limits\.time"):
            await running
        await until(lambda: not any(map(is_running, [helper.pid, *started])), 10)


# Network


async def test_the_network_is_refused_unless_declared_and_permitted(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, answering(server):
        port = server.getsockname()[1]
        declared, undeclared = (f"SELECT answer FROM {name}({port})" for name in ("dial_declared", "dial_undeclared"))
        async with database(tmp_path, plugin) as db:
            with pytest.raises(AccessDeniedError, match=r"the network: .*access\.privileges_allow = \['dial_declared"):
                await db.query(declared)
            assert await answer(db, undeclared) == "EPERM"
        async with database(tmp_path, plugin, AccessSettings(privileges_allow=("dial_declared",))) as db:
            assert await answer(db, declared) == ANSWER.decode()
            assert await answer(db, undeclared) == "EPERM"


# The process


async def test_the_kernel_shows_what_a_helper_may_do(
    tmp_path: Path, plugin: tuple[Path, list[Table]], place: Path
) -> None:
    with unix_servers(place):
        async with database(tmp_path, plugin, AccessSettings(privileges_allow=("talk_declared",))) as db:
            pid = int(await answer(db, f"SELECT pid FROM talk_declared('{place / 'open'}')"))
            lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            status = {name: value.split() for name, _, value in lines}
            (helper,) = helpers(db)
            listed = [worker.pid for worker in db.pool.processes if worker.kind.value == "snapshots"]
            assert os.getpgid(pid) == pid
    assert helper.pid == pid
    assert pid not in listed
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{kind}"][0], 16) == 0, kind
    assert status["Seccomp"] == ["2"]
    assert status["NoNewPrivs"] == ["1"]
    assert "0" not in status["Uid"] + status["Gid"]
    assert status["Groups"] == [str(GROUP)]
    assert helper.landlock_abi == landlock.version()


async def test_a_helper_gets_nothing_else_from_the_agent(
    tmp_path: Path, plugin: tuple[Path, list[Table]], place: Path
) -> None:
    async with database(tmp_path, plugin) as db:
        with pytest.raises(SqlError, match="a helper process has no agent log"):
            await db.query("SELECT * FROM asked")


# Rows


async def test_a_tables_rows_join_with_others_and_carry_what_the_statement_asks(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    async with database(tmp_path, plugin) as db:
        sql = "SELECT told.answer, ppid FROM told('x') JOIN processes USING (pid) WHERE pid IN (1, 4)"
        result = await db.query(sql)
        odd = await db.query("SELECT pid, answer FROM told('x') WHERE pid = 2")
    assert result.rows == [("({'first': 'x', 'second': 7}, {'pid': [1, 4]}, ['_first', 'answer', 'pid'])", 0)]
    assert odd.rows == [(2, storable("caf\udce9"))]
    assert ["cells instead of" in error for error in result.errors] == [True]


@pytest.mark.long
async def test_many_rows_come_whole_and_in_order(tmp_path: Path, plugin: tuple[Path, list[Table]]) -> None:
    async with database(tmp_path, plugin) as db:
        result = await db.query("SELECT pid, length(answer) FROM many(100001, 40)")
    assert result.rows == [(number, 40) for number in range(100_001)]


async def test_rows_and_bytes_are_limited(tmp_path: Path, plugin: tuple[Path, list[Table]]) -> None:
    async with database(tmp_path, plugin, rows=1_000, result_bytes=100_000) as db:
        with pytest.raises(LimitError, match=r"table many has more than 1000 rows"):
            await db.query("SELECT count(*) FROM many(1001, 1)")
        with pytest.raises(LimitError, match=r"rows of table many are larger than 100000 bytes"):
            await db.query("SELECT count(*) FROM many(900, 1000)")
        assert await answer(db, "SELECT count(*) FROM many(1000, 1)") == "1000"


@pytest.mark.long
async def test_an_exception_of_the_table_is_the_statements_error(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    async with database(tmp_path, plugin) as db:
        with pytest.raises(SqlError, match="table failed: the daemon said no"):
            await db.query("SELECT * FROM failed")


@pytest.mark.long
async def test_a_compromised_worker_gets_no_helper_for_a_table_that_it_may_not_read(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    denied = AccessSettings(tables_deny=("talk_*",), privileges_allow=("talk_declared",))
    async with database(tmp_path, plugin, denied) as db:
        await db.query("SELECT 1")
        (worker,) = db.pool.processes
        for name in ("talk_declared", "processes", "nowhere"):
            with pytest.raises(AccessDeniedError, match=f"table {name} is not for helper processes"):
                await db.pool._give(worker, Need(1, "table", name))


@pytest.mark.long(kept=2)
@pytest.mark.parametrize(
    ("content", "size_bytes", "error"),
    [
        (b"", 4, "spool ends early"),
        (struct.pack("=I", 10), 14, "spool ends early"),
        (struct.pack("=I", 1 << 31) + b"x", 5, "longer than the spool"),
        (struct.pack("=I", 1) + b"\xc1", 5, "damaged"),
        (struct.pack("=I", 1) + b"\x01", 5, "damaged"),
    ],
    ids=["empty", "truncated", "long", "no msgpack", "no rows"],
)
def test_a_damaged_spool_is_an_error(content: bytes, size_bytes: int, error: str) -> None:
    spool = os.memfd_create("test")
    os.write(spool, content)
    with pytest.raises(SqlError, match=error):
        list(table_spool.read_rows(spool, size_bytes))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(spool)


# Ends


async def test_a_helper_that_is_killed_is_an_error_of_that_statement_only(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    async with database(tmp_path, plugin) as db:
        waiting = asyncio.create_task(db.query("SELECT * FROM wait('asleep')"))
        await until(lambda: [one for one in helpers(db) if one.state == "busy"], 10)
        os.kill(helpers(db)[0].pid, signal.SIGKILL)
        with pytest.raises(SqlError, match="worker process was lost"):
            await waiting
        assert await answer(db, "SELECT answer FROM wait('')") == "awake"
        assert db.pool.killed["crash"] == 1
        assert [worker.kind.value for worker in db.pool.processes if worker.state == "idle"].count("snapshots") == 1


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("how", ["asleep", "stopped", "polite"])
async def test_a_helper_that_hangs_ends_at_the_time_limit(
    how: str, tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    async with database(tmp_path, plugin, time=0.5) as db:
        with pytest.raises(LimitError, match=r"limits\.time"):
            await db.query(f"SELECT * FROM wait('{how}')")
        snapshots = [worker for worker in db.pool.processes if worker.kind.value == "snapshots"]
        assert [worker.cause for worker in snapshots] == [None]
        await until(lambda: not helpers(db), 10)
        assert db.pool.killed["time"] == (0 if how == "polite" else 1)
        if how != "polite":
            with pytest.raises(LimitError, match="not run before"):
                await db.query(f"SELECT * FROM wait('{how}')")


@pytest.mark.long
async def test_a_helper_that_cannot_be_killed_is_abandoned_and_its_statement_fails(
    tmp_path: Path, plugin: tuple[Path, list[Table]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database(tmp_path, plugin, time=0.5) as db:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
            with pytest.raises(LimitError, match=r"limits\.time"):
                await db.query("SELECT * FROM wait('asleep')")
        (abandoned,) = helpers(db)
        assert abandoned.state == "abandoned"
        assert [worker.cause for worker in db.pool.processes if worker.kind.value == "snapshots"] == [None]
        assert await answer(db, "SELECT answer FROM wait('')") == "awake"
        os.kill(abandoned.pid, signal.SIGKILL)
        await until(lambda: abandoned.pid not in [one.pid for one in helpers(db)], 10)


@pytest.mark.long
async def test_a_helper_ends_with_the_statement_that_waits_for_it(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    async with database(tmp_path, plugin) as db:
        waiting = asyncio.create_task(db.query("SELECT * FROM wait('asleep')"))
        await until(lambda: [one for one in helpers(db) if one.state == "busy"], 10)
        (helper,) = helpers(db)
        waiting.cancel()
        await until(lambda: not is_running(helper.pid), 10)
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.long
async def test_helpers_are_bounded_and_none_waits_for_the_place_of_its_asker(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    most = 0
    async with database(tmp_path, plugin, processes=2, time=20.0) as db:

        async def ask(number: int) -> str:
            nonlocal most
            found = await answer(db, "SELECT answer FROM wait('')")
            most = max(most, len(helpers(db)))
            return found

        assert await asyncio.gather(*map(ask, range(12))) == ["awake"] * 12
        origins = [f"ws://zeek-{number}" for number in range(8)]
        results = await asyncio.gather(*(db.query("SELECT answer FROM wait('')", origin=one) for one in origins))
        assert [result.rows for result in results] == [[("awake",)]] * 8
        alive = [one for one in helper_processes(db) if one.counts]
    assert 1 <= most <= helper_pool.HELPERS_MAX
    assert len(alive) <= helper_pool.HELPERS_MAX


@pytest.mark.long
async def test_recipients_whose_helpers_hang_leave_a_place_to_others(
    tmp_path: Path, plugin: tuple[Path, list[Table]]
) -> None:
    async with database(tmp_path, plugin, time=2.0, workers=4, processes=16) as db:
        hanging = [
            asyncio.create_task(db.query(f"SELECT {number} FROM wait('asleep')", origin=f"ws://zeek-{number % 2}"))
            for number in range(8)
        ]
        await until(lambda: [one.state for one in helpers(db)].count("busy") == helper_pool.HELPERS_MAX - 1, 10)
        for _ in range(5):
            assert (await db.query("SELECT answer FROM wait('')", origin="ws://honest")).rows == [("awake",)]
        assert not [one for one in hanging if one.done()]
        results = await asyncio.gather(*hanging, return_exceptions=True)
        assert [type(result) for result in results] == [LimitError] * 8
