"""`zeek-agent watch` with a real agent."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running_agent import RunningAgent, running
from waiting import until

from zeek_agent.control import messages
from zeek_agent.errors import UsageError
from zeek_agent.terminal import watch
from zeek_agent.terminal.watch_query import PROCESSES, SOCKETS, Filters, conditions, literal

pytestmark = pytest.mark.root


class Watching:
    """A running `zeek-agent watch`, whose output goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def lines(self) -> list[str]:
        return self._output.read_text().splitlines()

    def events(self) -> list[dict[str, Any]]:
        """Of a watch with `--format json`, from its complete lines."""
        lines = self._output.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


@contextmanager
def watching(state: Path, output: Path, *arguments: str) -> Iterator[Watching]:
    command = [sys.executable, "-m", "zeek_agent", "watch", "--state-dir", str(state), *arguments]
    with output.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            yield Watching(process, output)
        finally:
            process.send_signal(signal.SIGINT)


async def watched(agent: RunningAgent) -> None:
    """Wait until the agent has run the query of a watch."""
    sql = "SELECT runs FROM zeek_agent_queries WHERE sql GLOB '/* watch *' AND runs > 0"
    await until(lambda: agent.ask(sql), complaint="nobody watches")


def program(directory: Path) -> str:
    """A copy of true(1) with a name of its own; the name."""
    name = f"zz{secrets.token_hex(4)}"
    shutil.copy2(shutil.which("true") or "/bin/true", directory / name)
    return name


@pytest.mark.long
async def test_events_are_lines_as_they_happen(tmp_path: Path) -> None:
    name = program(tmp_path)
    async with running(tmp_path) as agent:
        with watching(agent.state, tmp_path / "watch") as watch:
            await watched(agent)
            await asyncio.to_thread(subprocess.run, [tmp_path / name, "--for-this-test"], check=True)
            await until(lambda: [line for line in watch.lines if f"{name}[" in line and " exit " in line])
            (start,) = [line for line in watch.lines if f"{name}[" in line and " start " in line]
        assert f"/{name} --for-this-test" in start
        assert start.split()[2] == "root"
    assert watch.process.returncode == 130


async def test_filters_select_what_is_shown(tmp_path: Path) -> None:
    name, other = program(tmp_path), program(tmp_path)
    async with running(tmp_path) as agent:
        arguments = ("--process", f"{name[:-2]}*", "--process", "python*", "--user", "root", "--format", "json")
        port = ("--port", "1", "--address", "127.0.0.0/8", "--format", "json")
        with (
            watching(agent.state, tmp_path / "names", *arguments) as names,
            watching(agent.state, tmp_path / "ports", *port) as ports,
        ):
            sql = "SELECT runs FROM zeek_agent_queries WHERE sql GLOB '/* watch *' AND runs > 0"
            await until(lambda: _two(agent, sql), complaint="nobody watches")
            for one in (other, name):
                await asyncio.to_thread(subprocess.run, [tmp_path / one], check=True)
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", 1)) != 0
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", 2)) != 0
            await until(
                lambda: [event for event in names.events() if event.get("name") == name and event["state"] == "stopped"]
            )
            await until(lambda: [event for event in ports.events() if event["state"] == "failed"])
        assert not [event for event in names.events() if event.get("name") == other]
        assert {event.get("remote_port") for event in ports.events()} == {1}
        assert {event["kind"] for event in ports.events()} == {SOCKETS}


async def _two(agent: RunningAgent, sql: str) -> bool:
    return len(await agent.ask(sql)) == 2


@pytest.mark.long
async def test_since_begins_with_recorded_events_and_repeats_none(tmp_path: Path) -> None:
    names = [program(tmp_path) for _ in range(3)]
    async with running(tmp_path) as agent:
        await asyncio.to_thread(subprocess.run, [tmp_path / names[0]], check=True)
        sql = f"SELECT 1 FROM processes_events_history WHERE name = '{names[0]}' AND state = 'stopped'"
        await until(lambda: agent.ask(sql))
        with watching(agent.state, tmp_path / "watch", "--since", "1h", "--format", "json") as watch:
            while not (watch.events() and watch.process.poll() is None):
                await asyncio.to_thread(subprocess.run, [tmp_path / names[1]], check=True)
            await watched(agent)
            await asyncio.to_thread(subprocess.run, [tmp_path / names[2]], check=True)
            await until(lambda: [event for event in watch.events() if event.get("name") == names[2]])
            shown = watch.events()
        stored = await agent.ask("SELECT seq FROM processes_events_history")
    numbers = [event["seq"] for event in shown if event["kind"] == PROCESSES]
    assert len(numbers) == len(set(numbers))
    missing = {row["seq"] for row in stored if row["seq"] <= max(numbers)} - set(numbers)
    assert not missing
    assert {name for name in names if name in {event.get("name") for event in shown}} == set(names)


@pytest.mark.long
async def test_it_waits_for_an_agent_that_is_started_again_and_goes_on_where_it_was(tmp_path: Path) -> None:
    names = [program(tmp_path) for _ in range(2)]
    output = tmp_path / "watch"
    async with running(tmp_path) as agent:
        with watching(agent.state, output, "--format", "json") as watch:
            await watched(agent)
            await asyncio.to_thread(subprocess.run, [tmp_path / names[0]], check=True)
            await until(lambda: names[0] in output.read_text())
            await asyncio.to_thread(agent.stop)
            await until(lambda: "watching goes on when it is back" in output.read_text())
            async with running(tmp_path) as agent:
                await asyncio.to_thread(subprocess.run, [tmp_path / names[1]], check=True)
                await until(lambda: names[1] in output.read_text())
                stored = {row["seq"] for row in await agent.ask("SELECT seq FROM processes_events_history")}
                first = min(process_numbers(watch))
                expected = {number for number in stored if number >= first}
                await until(lambda: expected <= set(process_numbers(watch)))
                numbers = process_numbers(watch)
    assert len(numbers) == len(set(numbers))


def process_numbers(watch: Watching) -> list[int]:
    """The numbers of the events of processes that were shown."""
    return [event["seq"] for event in watch.events() if event["kind"] == PROCESSES]


@pytest.mark.long
async def test_since_shows_more_events_than_one_result_may_have(tmp_path: Path) -> None:
    name = program(tmp_path)
    async with running(tmp_path, settings={"limits.rows": 25}) as agent:
        for _ in range(15):
            await asyncio.to_thread(subprocess.run, [tmp_path / name], check=True)
        sql = f"SELECT count(*) AS n FROM processes_events_history WHERE name = '{name}' HAVING count(*) = 30"
        await until(lambda: agent.ask(sql))
        arguments = ("--since", "1h", "--process", name, "--format", "json")
        with watching(agent.state, tmp_path / "watch", *arguments) as watch:
            await until(lambda: len(watch.events()) >= 30, complaint=(tmp_path / "watch").read_text)
            events = watch.events()
    assert len({event["seq"] for event in events}) == len(events) == 30
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


class ScriptedResponder:
    """An agent with no users, whose store has events of processes with numbers in a range; it ends subscriptions."""

    notice = None
    place = "a test"

    def __init__(self, *, newest: int, oldest: int) -> None:
        self.newest, self.oldest = newest, oldest
        self.statements: list[str] = []

    def responses(self, request: Any) -> Generator[messages.Frame, None, None]:
        self.statements.append(request.sql)
        answers: dict[str, Any] = {
            "max(seq)": self.newest,
            "min(seq)": self.oldest,
            "FROM zeek_agent_tables": PROCESSES,
            "SELECT runs": 1,
        }
        for part, answer in answers.items():
            if part in request.sql:
                yield messages.Columns([("value", "text")])
                yield messages.Rows([[answer]])

    def close(self) -> None:
        pass


@pytest.mark.long
def test_events_before_the_end_of_the_agent_are_shown_even_if_none_was_before() -> None:
    responder, said = ScriptedResponder(newest=40, oldest=1), list[str]()
    one = watch.Watch(lambda: responder, Filters(), lambda event: None, said.append)
    one._follow(responder)
    assert said == ["the agent ended the subscription; watching goes on when it is back"]
    assert not [sql for sql in responder.statements if "LIMIT" in sql]
    responder.newest = 50
    one._follow(responder)
    assert [sql for sql in responder.statements if "seq > 40 AND seq <= 50" in sql]


@pytest.mark.long
@pytest.mark.parametrize(
    ("newest", "oldest", "warnings", "bounds"),
    [
        (40, 18, ["7 events of processes_events were removed before they could be shown"], "seq > 10 AND seq <= 40"),
        (40, 11, [], "seq > 10 AND seq <= 40"),
        (3, 1, [], "seq > 0 AND seq <= 3"),
    ],
)
def test_removed_events_are_reported_and_another_store_is_read_from_its_start(
    newest: int, oldest: int, warnings: list[str], bounds: str
) -> None:
    responder, said = ScriptedResponder(newest=newest, oldest=oldest), list[str]()
    one = watch.Watch(lambda: responder, Filters(), lambda event: None, said.append)
    one._seen = {PROCESSES: 10}
    one._write_past(responder, {PROCESSES: "1"}, {PROCESSES: newest})
    assert said == warnings
    assert bounds in responder.statements[-1]


def test_without_an_agent_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zeek_agent", "watch", "--state-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no agent is running" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(users=("nobody-here",)), "--user: there is no user 'nobody-here'"),
        (Filters(addresses=("example.net",)), "--address: expected an address"),
        (Filters(addresses=("10.0.0.0/99",)), "--address: expected an address"),
        (Filters(containers=("x' OR '1",)), "--container: expected a container id"),
        (Filters(processes=("a\0b",)), "NUL"),
        (Filters(processes=("",)), "--process: expected a process id"),
    ],
)
def test_invalid_filters_are_errors(filters: Filters, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conditions(filters, {}.get)


@pytest.mark.long
async def test_any_name_can_be_watched(tmp_path: Path) -> None:
    rows = {}
    async with running(tmp_path) as agent:
        for name in ("it's", "{name}", "{", "a]b[c", '"', "\\", "--", "ünï"):
            condition = conditions(Filters(processes=(name,)), {}.get)[PROCESSES]
            rows[name] = await agent.ask(f"SELECT {literal(name)} AS name WHERE {condition}")
    assert rows == {name: [] if "[" in name else [{"name": name}] for name in rows}
    assert len(rows) == 8


def test_start_times() -> None:
    assert abs(time.time() - 600 - watch.start_time("10min")) < 60
    assert watch.start_time("2026-11-28T03:20:00Z") == 1_795_836_000
    for text in ("soon", "", "600", "10 parsecs"):
        with pytest.raises(UsageError, match="--since: expected a duration"):
            watch.start_time(text)
