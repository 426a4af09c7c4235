"""A running agent gets another configuration: what is applied at once, what is not, and that nothing is lost."""

from __future__ import annotations

import asyncio
import gzip
import os
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
from running_agent import RunningAgent, running
from waiting import until

from zeek_agent.errors import ZeekAgentError

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


async def test_what_is_recorded_is_masked_by_the_new_rules(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        write(file, "[access]\nredact = ['hunter[0-9]']\n")
        assert "access.redact" in await reloaded(agent)
        await asyncio.to_thread(subprocess.run, ["true", "tool hunter2"], check=True)
        sql = "SELECT cmdline FROM processes_events_history WHERE cmdline GLOB 'true tool *'"
        rows = await until(lambda: agent.ask(sql))
        assert {row["cmdline"] for row in rows} == {"true tool ***"}


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


async def test_settings_that_need_a_restart_are_listed_and_keep_their_values(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        write(file, "[sources]\nsockets = 'off'\n[log]\nlevel = 'debug'\n")
        assert await reloaded(agent) == ("configuration reloaded, applied: log.level; needs a restart: sources.sockets")
        value = await agent.ask("SELECT value FROM zeek_agent_config WHERE name = 'sources.sockets'")
        assert value != [{"value": "off"}]
        assert await reloaded(agent) == ("configuration reloaded, nothing to apply; needs a restart: sources.sockets")
        await until(lambda: " debug zeek_agent" in agent.output.read_text())


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


async def test_retention_is_changed_at_once(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as (agent, file):
        await asyncio.to_thread(subprocess.run, ["true"], check=True)
        sql = "SELECT count(*) AS n FROM processes_events_history WHERE name = 'true'"
        await until(lambda: agent.ask(f"{sql} HAVING count(*) > 0"))
        write(file, "[events]\nretention_age = 0.1\n")
        assert "events.retention_age" in await reloaded(agent)
        await until(lambda: agent.ask(f"{sql} HAVING count(*) = 0"), 60)


async def test_metrics_are_served_where_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with configured(tmp_path, "") as (agent, file):
        write(file, f"[metrics]\nlisten = 'unix:{path}'\n")
        assert "metrics.listen" in await reloaded(agent)
        assert path.is_socket()
        write(file, "")
        assert "metrics.listen" in await reloaded(agent)
        assert not path.exists()


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
