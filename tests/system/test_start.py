"""What other users of the host, or a collector in the way, can do to an agent that starts: nothing."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from acting import locks_of_another_user, reachable_directory
from packs import pack_of
from running_agent import RunningAgent, running
from scripted_agent import read
from waiting import until

from zeek_agent.collector import pack
from zeek_agent.collector.server import Collector
from zeek_agent.config.server_sections import CollectorSettings
from zeek_agent.terminal.status_report import as_text, gather_status

PROGRAM = [sys.executable, "-m", "zeek_agent"]
EVENTS = "zeek-agent-process-events"


@pytest.fixture
def place() -> Iterator[Path]:
    with reachable_directory() as directory:
        yield directory


@contextmanager
def collector(logs: Path, listen: str = "127.0.0.1:0") -> Iterator[subprocess.Popen[str]]:
    """`zeek-agent collector`, from when it listens."""
    command = [*PROGRAM, "collector", "--listen", listen, "--logs", str(logs)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert "listening on " in process.stderr.readline()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def everything_in(*directories: Path) -> list[Path]:
    return [path for directory in directories for path in (directory, *sorted(directory.rglob("*")))]


async def asked_for_events(agent: RunningAgent) -> int:
    """Wait for the query that writes the log: it reports what happens from its first run on. How often it has run."""
    return await run_again(agent, 0)


async def run_again(agent: RunningAgent, runs: int) -> int:
    """Wait until the query that writes the log has run more often than that: what it reported then is acknowledged."""
    sql = f"SELECT runs FROM zeek_agent_queries WHERE event LIKE '%process_events' AND runs > {runs}"
    (query,) = await until(lambda: agent.ask(sql), complaint="the query on events of processes does not run")
    return int(query["runs"])


async def run_recorded(agent: RunningAgent, directory: Path) -> str:
    """Run a program of a new name; the name, once its end is in the event store."""
    name = f"zz{secrets.token_hex(4)}"
    program = directory / name
    shutil.copy2(shutil.which("cat") or "/bin/cat", program)
    sql = f"SELECT state FROM processes_events_history WHERE name = '{name}' AND state = "
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        await until(lambda: agent.ask(f"{sql}'started'"), complaint=f"the start of {name} was not recorded")
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.to_thread(process.wait)
    await until(lambda: agent.ask(f"{sql}'stopped'"), complaint=f"the end of {name} was not recorded")
    return name


async def the_log_has(agent: RunningAgent, name: str) -> None:
    for state in ("started", "stopped"):
        await agent.logged(EVENTS, {"name": name, "state": state})


async def waiting(agent: RunningAgent) -> dict[str, Any]:
    """The row of its connection, once that waits for the next attempt."""
    sql = "SELECT * FROM zeek_agent_connections WHERE state = 'waiting'"
    return (await until(lambda: agent.ask(sql), complaint="the connection does not wait"))[0]


def doctors_verdicts(agent: RunningAgent) -> str:
    return ended("doctor", "--state-dir", str(agent.state), "--set", f"collector.logs={agent.logs}").stdout


@pytest.mark.long
@pytest.mark.root
async def test_another_user_who_holds_every_possible_lock_does_not_prevent_the_start(place: Path) -> None:
    state, logs = place / "state", place / "logs"
    async with running(place) as agent:
        await agent.logged("zeek-agent", {"type_": "join"})
    for directory in (state, logs):
        directory.chmod(0o755)
    with locks_of_another_user(*everything_in(state, logs)) as held:
        assert {state, logs} <= set(held)
        assert not [path for path in held if "lock" in path.name]
        async with running(place, settings={"collector.schedule": 1}) as agent:
            await asked_for_events(agent)
            await the_log_has(agent, await run_recorded(agent, place))
            assert (await agent.connection())["state"] == "connected"


@pytest.mark.long
@pytest.mark.root
async def test_another_user_who_holds_an_older_versions_locks_does_not_prevent_the_start(place: Path) -> None:
    state, logs = place / "state", place / "logs"
    for directory in (state, logs):
        directory.mkdir(mode=0o755)
    (state / "lock").write_text("1 1700000000\n")
    with locks_of_another_user(*everything_in(state, logs)) as held:
        assert held == [state, state / "lock", logs]
        async with running(place) as agent:
            await agent.logged("zeek-agent", {"type_": "join"})
            assert int((state / "lock").read_text().split()[0]) == agent.pid
            for lock in (state / "lock", logs / ".lock"):
                status = lock.lstat()
                assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)


def test_a_state_directory_that_every_user_can_write_is_refused_in_one_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    reason = f"{state} is writable by every user"
    done = subprocess.run(
        [*PROGRAM, "run", "--state-dir", state], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"zeek-agent: the state directory {reason}: ")
    assert done.stderr.count("\n") == 1
    assert list(state.iterdir()) == []
    done = subprocess.run(
        [*PROGRAM, "doctor", "--state-dir", state], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert re.search(rf"^fail +state directory +{reason}$", done.stdout, re.MULTILINE)


@pytest.mark.long
async def test_logs_that_another_collector_writes_do_not_keep_the_agent_from_recording(tmp_path: Path) -> None:
    with collector(tmp_path / "logs") as other:
        async with running(tmp_path, settings={"collector.schedule": 1}) as agent:
            name = await run_recorded(agent, tmp_path)
            reason = f"another collector (pid {other.pid}, since "
            row = await waiting(agent)
            assert row["destination"] == "embedded"
            assert row["last_error"].startswith(f"the embedded collector cannot start: {reason}")
            assert agent.output.read_text().count(" warning zeek_agent.zeek.connection: the embedded collector ") == 1
            assert re.search(rf"collector_error +{re.escape(reason)}", await asyncio.to_thread(status, agent))
            assert re.search(rf"warn +collector +{re.escape(reason)}", await asyncio.to_thread(doctors_verdicts, agent))
            other.send_signal(signal.SIGTERM)
            await until(lambda: other.poll() is not None, complaint="the collector does not end")
            await asked_for_events(agent)
            await the_log_has(agent, await run_recorded(agent, tmp_path))
            assert re.search(r"collector_error +-\n", await asyncio.to_thread(status, agent))
            assert re.search(r"ok +collector +logs in ", await asyncio.to_thread(doctors_verdicts, agent))
            assert not [one for one in agent.log(EVENTS) if one["name"] == name], "from before the first query"


def status(agent: RunningAgent) -> str:
    from zeek_agent.config.loading import load
    from zeek_agent.terminal import responders

    config, _ = load(None, {}, {"state_dir": str(agent.state)})
    asked = responders.connect(config)
    try:
        return as_text(gather_status(asked))
    finally:
        asked.close()


@pytest.mark.long
async def test_events_wait_in_the_store_for_logs_that_cannot_be_written(tmp_path: Path) -> None:
    settings = {"collector.schedule": 1}
    async with running(tmp_path, settings=settings) as agent:
        await asked_for_events(agent)
        await the_log_has(agent, before := await run_recorded(agent, tmp_path))
    shutil.rmtree(agent.logs)
    agent.logs.write_text("in the way")
    async with running(tmp_path, settings=settings) as agent:
        meanwhile = await run_recorded(agent, tmp_path)
        row = await waiting(agent)
        assert f"the embedded collector cannot start: cannot write {agent.logs}: " in row["last_error"]
        assert "events are still recorded" in row["last_error"]
        agent.logs.unlink()
        await the_log_has(agent, meanwhile)
        assert before not in {one["name"] for one in agent.log(EVENTS)}


# The embedded collector


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(entry.readlink()))
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def tcp_sockets_of(pid: int) -> list[str]:
    """The lines of /proc/net that are TCP sockets of a process."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    sockets = sockets_of(pid)
    return [line for line in lines if line.split()[9] in sockets]


def listening_unix_sockets_of(pid: int) -> list[str]:
    """Paths at which a process listens; an empty one is a socket without an address."""
    lines = [[*line.split(), ""] for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    sockets = sockets_of(pid)
    return [line[7] for line in lines if int(line[3], 16) & 0x10000 and line[6] in sockets]


@pytest.mark.long
async def test_the_embedded_collector_is_not_called_a_zeek(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        await agent.logged("zeek-agent", {"type_": "join"})
        row = await agent.connection()
        assert (row["destination"], row["state"], row["zeek_version"]) == ("embedded", "connected", None)
        said = agent.output.read_text()
        assert "connected to the embedded collector\n" in said
        assert "9.0.0" not in said


@pytest.mark.long
async def test_nobody_can_connect_to_the_embedded_collector(tmp_path: Path) -> None:
    with collector(tmp_path / "other") as other:
        (listening,) = tcp_sockets_of(other.pid)
        assert listening.split()[3] == "0A"
    async with running(tmp_path) as agent:
        await agent.logged("zeek-agent", {"type_": "join"})
        assert (await agent.connection())["state"] == "connected"
        assert tcp_sockets_of(agent.pid) == []
        # The kernel shows the control socket by the name that it was bound to before it was renamed.
        assert listening_unix_sockets_of(agent.pid) == [str(agent.state / "zeek-agent.sock.new")]


@pytest.mark.long
async def test_a_listen_address_has_no_effect_on_the_embedded_collector_and_one_warning(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running(tmp_path, settings={"collector.listen": listen}) as agent:
            await agent.logged("zeek-agent", {"type_": "join"})
            assert agent.output.read_text().count("collector.listen (command line) has no effect") == 1
            assert tcp_sockets_of(agent.pid) == []
    async with running(tmp_path) as agent:
        assert (await agent.connection())["destination"] == "embedded"
        assert agent.output.read_text().count("collector.listen") == 1, "only the first start set it"


@pytest.mark.long
@pytest.mark.parametrize("busy", ["port", "logs"])
def test_the_collector_alone_needs_its_port_and_its_logs(tmp_path: Path, busy: str) -> None:
    with collector(tmp_path / "logs") as other:
        (line,) = tcp_sockets_of(other.pid)
        port = int(line.split()[1].rpartition(":")[2], 16)
        listen = f"127.0.0.1:{port if busy == 'port' else 0}"
        logs = tmp_path / ("logs" if busy == "logs" else "more")
        done = ended("collector", "--listen", listen, "--logs", str(logs))
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    expected = f"cannot listen on {listen}: " if busy == "port" else f"another collector (pid {other.pid}, since "
    assert message.startswith(f"zeek-agent: {expected}")


@pytest.mark.long
async def test_rows_delivered_over_tcp_are_not_delivered_again(tmp_path: Path) -> None:
    """An older version's embedded collector listened on `collector.listen`, and was known by that address."""
    queries = pack_of(EVENTS, tmp_path / "pack.toml")
    settings: dict[str, Any] = {"collector.schedule": 1, "collector.pack": str(queries)}
    listening = CollectorSettings(listen="127.0.0.1:0", logs=str(tmp_path / "earlier"))
    earlier = Collector(listening, pack.load(queries, schedule=1))
    host, port = await earlier.start()
    async with running(tmp_path, "--zeek", f"ws://{host}:{port}", settings=settings) as agent:
        runs = await asked_for_events(agent)
        delivered = await run_recorded(agent, tmp_path)

        def arrived() -> bool:
            log = tmp_path / "earlier" / f"{EVENTS}.log"
            states = (
                [one["state"] for one in read(log.parent, EVENTS) if one["name"] == delivered] if log.exists() else []
            )
            return sorted(states) == ["started", "stopped"]

        await until(arrived, complaint=f"{delivered} was not delivered")
        await run_again(agent, await run_again(agent, runs))
        await earlier.stop()
        waiting = await run_recorded(agent, tmp_path)
    async with running(tmp_path, settings={**settings, "collector.listen": f"{host}:{port}"}) as agent:
        await the_log_has(agent, waiting)
        names = [one["name"] for one in agent.log(EVENTS)]
        assert delivered not in names
        assert names.count(waiting) == 2
    async with running(tmp_path, settings=settings) as agent:
        await the_log_has(agent, await run_recorded(agent, tmp_path))
        assert {delivered, waiting}.isdisjoint(one["name"] for one in agent.log(EVENTS))
