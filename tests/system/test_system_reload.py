"""A running agent gets another configuration: what is applied at once, what is not, and that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from running_agent import RunningAgent, running, started
from waiting import until

from zeek_agent.control import messages
from zeek_agent.errors import RevokedError, ZeekAgentError

pytestmark = pytest.mark.root

LOG: Final = "zeek-agent-process-events"
OLD: Final = "zeek-agent-users.2026-01-01-00-00-00.log"
RECENT: Final = "zeek-agent-users.2026-01-01-00-00-01.log"
UNRELATED: Final = "conn.2026-01-01-00-00-00.log"


def write(file: Path, text: str) -> None:
    """Replace the configuration in one step."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


@asynccontextmanager
async def configured(directory: Path, text: str) -> AsyncIterator[tuple[RunningAgent, Path]]:
    """An agent with a configuration file, and the file."""
    file = directory / "zeek-agent.toml"
    write(file, text)
    async with running(directory, "--config", str(file)) as agent:
        yield agent, file


def reload(agent: RunningAgent) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zeek_agent", "reload", "--state-dir", str(agent.state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def metrics(agent: RunningAgent) -> str:
    command = [sys.executable, "-m", "zeek_agent", "status", "--state-dir", str(agent.state), "--format", "prometheus"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


async def reloaded(agent: RunningAgent) -> str:
    done = await asyncio.to_thread(reload, agent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def test_access_rules_and_limits_hold_for_the_next_statement(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("told\n")
    sql = f"SELECT content FROM files_lines('{secret}')"
    async with configured(tmp_path, f"[access]\nfiles_allow = ['{tmp_path}/**']\n") as (agent, file):
        assert await agent.ask(sql) == [{"content": b"told"}]
        write(file, "[access]\ntables_deny = ['users']\n[limits]\nrows = 3\n")
        told = await reloaded(agent)
        assert set(told.partition("applied: ")[2].split(", ")) == {
            "limits.rows",
            "access.tables_deny",
            "access.files_allow",
        }
        assert await agent.ask(sql) == []
        with pytest.raises(ZeekAgentError, match="users"):
            await agent.ask("SELECT name FROM users")
        with pytest.raises(ZeekAgentError, match=r"more than 3 rows \(limits\.rows\)"):
            await agent.ask("SELECT pid FROM processes")
        origin = await agent.ask("SELECT value, origin FROM zeek_agent_config WHERE name = 'limits.rows'")
        assert origin == [{"value": "3", "origin": str(file)}]
        await until(lambda: one_zygote(agent), 30, "the zygote with the former rules does not end")


async def one_zygote(agent: RunningAgent) -> bool:
    """Whether the only children are one zygote, and the embedded collector's."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return len(children) <= 2


@pytest.mark.long
async def test_what_is_recorded_is_masked_by_the_new_rules(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        write(file, "[access]\nredact = ['hunter[0-9]']\n")
        assert "access.redact" in await reloaded(agent)
        await asyncio.to_thread(subprocess.run, ["true", "tool hunter2"], check=True)
        sql = "SELECT cmdline FROM processes_events_history WHERE cmdline GLOB 'true tool *'"
        rows = await until(lambda: agent.ask(sql))
        assert {row["cmdline"] for row in rows} == {"true tool ***"}


@pytest.mark.long
async def test_an_invalid_configuration_changes_nothing_and_is_explained(tmp_path: Path) -> None:
    async with configured(tmp_path, "[limits]\nrows = 1000\n") as (agent, file):
        write(file, "[limits]\nrows = 3\n[access]\nredact = ['(']\n")
        done = await asyncio.to_thread(reload, agent)
        assert done.returncode == 2
        assert "access.redact" in done.stderr
        assert len(await agent.ask("SELECT value FROM json_each('[1,2,3,4,5]')")) == 5
        write(file, "[limits]\nrow = 3\n")
        agent.process.send_signal(signal.SIGHUP)
        await until(lambda: "the configuration is not reloaded" in agent.output.read_text())
        assert "did you mean limits.rows" in agent.output.read_text()
        value = await agent.ask("SELECT value FROM zeek_agent_config WHERE name = 'limits.rows'")
        assert value == [{"value": "1000"}]


@pytest.mark.long
async def test_settings_that_need_a_restart_are_listed_and_keep_their_values(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        write(file, "[sources]\nsockets = 'off'\n[log]\nlevel = 'debug'\n")
        assert await reloaded(agent) == ("configuration reloaded, applied: log.level; needs a restart: sources.sockets")
        value = await agent.ask("SELECT value FROM zeek_agent_config WHERE name = 'sources.sockets'")
        assert value != [{"value": "off"}]
        assert await reloaded(agent) == ("configuration reloaded, nothing to apply; needs a restart: sources.sockets")
        await until(lambda: " debug zeek_agent" in agent.output.read_text())


@pytest.mark.long
async def test_destinations_are_added_and_removed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/v1/messages/json"
        async with configured(tmp_path, "") as (agent, file):
            await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_connections WHERE state = 'connected'"))
            collector = agent.status()["collector_pid"]
            write(file, f"[zeek]\ndestinations = ['{url}']\n")
            assert "zeek.destinations" in await reloaded(agent)
            assert [one["destination"] for one in await agent.ask("SELECT * FROM zeek_agent_connections")] == [url]
            server.settimeout(10)
            connection, _ = await asyncio.to_thread(server.accept)
            connection.close()
            await until(lambda: not Path(f"/proc/{collector}").exists())
            write(file, "")
            assert "zeek.destinations" in await reloaded(agent)
            await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_connections WHERE state = 'connected'"))
            assert (await agent.connection())["destination"] == "embedded"


@pytest.mark.long
async def test_retention_is_changed_at_once(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        await asyncio.to_thread(subprocess.run, ["true"], check=True)
        sql = "SELECT count(*) AS n FROM processes_events_history WHERE name = 'true'"
        await until(lambda: agent.ask(f"{sql} HAVING count(*) > 0"))
        write(file, "[events]\nretention_age = 0.1\n")
        assert "events.retention_age" in await reloaded(agent)
        await until(lambda: agent.ask(f"{sql} HAVING count(*) = 0"), 60)


@pytest.mark.long
async def test_metrics_are_served_where_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with configured(tmp_path, "") as (agent, file):
        write(file, f"[metrics]\nlisten = 'unix:{path}'\n")
        assert "metrics.listen" in await reloaded(agent)
        assert path.is_socket()
        write(file, "")
        assert "metrics.listen" in await reloaded(agent)
        assert not path.exists()


NUMBERS: Final = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"


@pytest.mark.long
async def test_rows_that_the_new_rules_forbid_are_not_sent_any_more(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        client = messages.ControlClient(agent.state / "zeek-agent.sock")
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
        sql = f"{numbers} SELECT printf('%200s', i), name FROM n, users LIMIT 50000"
        frames = client.responses(messages.QueryRequest(sql))
        begun = [await asyncio.to_thread(next, frames) for _ in range(2)]
        assert isinstance(begun[1], messages.Rows)
        write(file, "[access]\ntables_deny = ['users']\n")
        await reloaded(agent)
        with pytest.raises(RevokedError, match="run the statement again"):
            await asyncio.to_thread(list, frames)
        client.close()


@pytest.mark.long
async def test_the_key_of_a_new_certificate_cannot_be_read(tmp_path: Path) -> None:
    """The agent's own files are protected as soon as the configuration names them."""
    key = tmp_path / "key"
    key.write_text("told\n")
    text = f"[access]\nfiles_allow = ['{tmp_path}/**']\n"
    async with configured(tmp_path, text) as (agent, file):
        sql = f"SELECT content FROM files_lines('{key}')"
        assert await agent.ask(sql) == [{"content": b"told"}]
        write(file, f"{text}[zeek.tls]\nkey = '{key}'\n")
        assert "zeek.tls.key" in await reloaded(agent)
        assert await agent.ask(sql) == []


@pytest.mark.long
async def test_a_reload_is_completed_if_its_command_is_interrupted(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_connections WHERE state = 'connected'"))
        write(file, "[zeek]\ndestinations = ['ws://127.0.0.1:1']\n")
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(agent.state / "zeek-agent.sock"))
            control.sendall(b'{"request":"reload"}\n')
        sql = "SELECT 1 FROM zeek_agent_connections WHERE destination GLOB 'ws://127.0.0.1:1/*'"

        async def is_destination() -> bool:
            with contextlib.suppress(RevokedError):  # while the rules change
                return bool(await agent.ask(sql))
            return False

        await until(is_destination, complaint="no connection to the new destination")


@pytest.mark.long
async def test_a_changed_query_pack_is_applied_and_an_invalid_one_refused(tmp_path: Path) -> None:
    pack, log = tmp_path / "pack.toml", "zz_users"
    text = """
        [logs.{log}]
        [[queries]]
        log = "{log}"
        sql = "SELECT {columns} FROM users"
        schedule = 0.5
        subscription = "Snapshots"
    """
    write(pack, text.format(log="zz_first", columns="name"))
    async with configured(tmp_path, f"[collector]\npack = '{pack}'\n") as (agent, _):
        await agent.logged("zz_first", {"name": "root"})
        write(pack, text.format(log=log, columns="name, uit"))
        done = await asyncio.to_thread(reload, agent)
        assert done.returncode == 2
        assert "uit" in done.stderr
        write(pack, text.format(log=log, columns="name, uid"))
        assert await reloaded(agent) == "configuration reloaded, applied: collector.pack"
        await agent.logged(log, {"name": "root"})
        assert await reloaded(agent) == "configuration reloaded, nothing to apply"


@pytest.mark.long
async def test_a_place_where_metrics_cannot_be_served_is_refused(tmp_path: Path) -> None:
    path, taken = tmp_path / "metrics.sock", tmp_path / "taken"
    taken.write_text("")
    async with configured(tmp_path, f"[metrics]\nlisten = 'unix:{path}'\n") as (agent, file):
        write(file, f"[metrics]\nlisten = 'unix:{taken}'\n[limits]\nrows = 3\n")
        done = await asyncio.to_thread(reload, agent)
        assert done.returncode == 1
        assert f"{taken} exists and is not a socket" in done.stderr
        assert path.is_socket()
        rows = await agent.ask("SELECT value FROM zeek_agent_config WHERE name IN ('metrics.listen', 'limits.rows')")
        assert rows == [{"value": "1000000"}, {"value": f"unix:{path}"}]


@pytest.mark.long
async def test_hangup_signals_end_the_agent_neither_at_its_start_nor_at_its_end(tmp_path: Path) -> None:
    with started(tmp_path) as agent:
        await until(lambda: "state in" in agent.output.read_text())
        agent.process.send_signal(signal.SIGHUP)
        await agent.ready()
        await until(lambda: "configuration reloaded" in agent.output.read_text())
        agent.process.send_signal(signal.SIGTERM)
        while agent.process.poll() is None:
            agent.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.001)
        assert agent.process.returncode == 0


@pytest.mark.long
async def test_an_agent_ends_in_order_when_its_terminal_is_closed(tmp_path: Path) -> None:
    """Otherwise it would go on unseen, since SIGHUP also means that the configuration has changed."""
    ours, theirs = pty.openpty()
    state = tmp_path / "state"
    command = [sys.executable, "-m", "zeek_agent", "run", "--state-dir", str(state), "--logs", str(tmp_path / "logs")]
    handled = ["env", "--default-signal=HUP"]  # the tests may run where SIGHUP is ignored, as under nohup
    on_terminal = ["setsid", "--ctty", "--wait", *handled, *command]
    process = subprocess.Popen(on_terminal, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    reading = asyncio.create_task(asyncio.to_thread(_read_all, ours))
    agent = RunningAgent(process, state, tmp_path / "logs", tmp_path / "output")
    agent.output.write_text("")
    try:
        await agent.ready()
        reading.cancel()
        os.close(ours)
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        process.wait()


def _read_all(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 4096):
            pass


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_reloading_under_load_loses_no_event(tmp_path: Path) -> None:
    """Access rules, limits, the connection and the collector change while processes start and end all the time."""
    shutil.copy2(shutil.which("true") or "/bin/true", tmp_path / "zzreload")
    done = asyncio.Event()

    async def load() -> int:
        made = 0
        while not done.is_set():
            made += await asyncio.to_thread(_spawn, tmp_path / "zzreload", 20)
            await asyncio.sleep(0.05)
        return made

    changes = ("[limits]\nrows = {}\n", "[zeek]\ngroups = ['g{}']\n", "[collector]\nrotate_interval = {}\n")
    async with configured(tmp_path, "") as (agent, file):
        sql = "SELECT id FROM zeek_agent_queries WHERE event LIKE '%process_events' AND runs > 0"
        await until(lambda: agent.ask(sql), 30, "nobody asks for events of processes")
        loading = asyncio.create_task(load())
        for turn in range(2 * len(changes)):
            write(file, changes[turn % len(changes)].format(100_000 + turn))
            assert "applied: " in await reloaded(agent)
            await asyncio.sleep(0.3)
        done.set()
        total = await loading
        await until(lambda: stored(agent, total), 60)
        await until(lambda: all_logged(agent), 60, lambda: f"not logged: {missing(agent)}")
    assert total > 50


def _spawn(program: Path, times: int) -> int:
    for _ in range(times):
        os.waitpid(os.posix_spawn(program, [str(program)], {}), 0)
    return times


async def stored(agent: RunningAgent, total: int) -> bool:
    sql = "SELECT count(*) AS n FROM processes_events_history WHERE name = 'zzreload' AND state = 'stopped'"
    return (await agent.ask(sql))[0]["n"] == total


def missing(agent: RunningAgent) -> list[int]:
    """Numbers of events that are stored and not logged."""
    logged = {one["seq"] for one in agent.log(LOG)}
    rows = agent.query("SELECT seq FROM processes_events_history WHERE name = 'zzreload'")
    return sorted({row["seq"] for row in rows} - logged)


async def all_logged(agent: RunningAgent) -> bool:
    return not await asyncio.to_thread(missing, agent)


@pytest.mark.long
async def test_rotated_logs_are_compressed_and_removed_as_the_new_settings_say(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, age in ((OLD, 2 * 86_400), (RECENT, 3_600), (UNRELATED, 90 * 86_400)):
        (logs / name).write_text("a line\n")
        os.utime(logs / name, (time.time() - age,) * 2)
    off = "[collector]\ncompress = false\nretention_age = 0\n"
    async with configured(tmp_path, off) as (agent, file):
        await agent.logged(LOG, {"state": "started"})
        assert {OLD, RECENT, UNRELATED} <= {path.name for path in logs.iterdir()}
        write(file, "[collector]\nretention_age = 86400\n")
        assert "collector.compress, collector.retention_age" in await reloaded(agent)
        await until(lambda: (logs / f"{RECENT}.gz").exists() and not (logs / RECENT).exists(), 30, "not compressed")
        assert gzip.decompress((logs / f"{RECENT}.gz").read_bytes()) == b"a line\n"
        assert not (logs / OLD).exists()
        assert (logs / UNRELATED).exists()
        await until(lambda: "removed 1 rotated log of 7 bytes" in agent.output.read_text(), 30, "nothing reported")
        counted = {
            'zeek_agent_collector_removed_logs_total{cause="age"} 1',
            "zeek_agent_collector_compressed_logs_total 1",
        }
        await until(lambda: counted <= set(metrics(agent).splitlines()), 30, "not counted")
