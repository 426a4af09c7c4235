"""The agent on Windows' Python under Wine: logs, the pipe, limits, and its life as a service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from terminals import Terminal

from zeek_agent import platforms

if platforms.HERE.key == "win32":
    pytest.skip("starts Wine itself", allow_module_level=True)

import wine

pytestmark = [
    pytest.mark.skipif(shutil.which("wine") is None, reason="needs Wine"),
    pytest.mark.skipif(not (wine.KEPT / "ready").exists(), reason="make test-windows sets up Windows' Python"),
    pytest.mark.timeout(1_500),
]
COMMAND_SECONDS = 400.0
"""Far longer than a command takes, also on a busy machine."""
WITHOUT_SOCKETS = ("--set", "sources.sockets=off", "--set", "access.tables_deny=sockets,listening_ports")
"""Wine lists the sockets of the whole host, and meanwhile answers no program that opens a file."""
SERVICE = r"""
import time
from pathlib import Path
from zeek_agent.cli import program
from zeek_agent.platforms.winapi import services
from zeek_agent.service.windows_service import NAME

def step(name, value):
    print(name, value, flush=True)

def do(*command):
    return program.run_command([*command])

step("install", do("service", "install", "--no-start"))
Path(r"C:\ProgramData\ZeekAgent\zeek-agent.toml").write_text(
    '[sources]\nsockets = "off"\n[access]\ntables_deny = ["sockets", "listening_ports"]\n'
)
step("state", services.state(NAME))
services.start(NAME, 400)
step("state", services.state(NAME))
for _ in range(100):  # it runs before its pipe is there
    if (status := do("status")) == 0:
        break
    time.sleep(1)
step("status", status)
step("query", do("query", "-f", "csv", "SELECT platform, id FROM zeek_agent"))
step("sources", do("query", "-f", "csv", "SELECT value FROM zeek_agent_config WHERE name = 'sources.sockets'"))
services.stop(NAME, 200)
step("state", services.state(NAME))
step("remove", do("service", "remove", "--purge"))
for _ in range(60):  # until nobody has a handle of it
    if services.state(NAME) is None:
        break
    time.sleep(1)
step("state", services.state(NAME))
step("left", Path(r"C:\ProgramData\ZeekAgent").exists())
"""
STEPS = (
    ("install", "0"),
    ("state", "1"),
    ("state", "4"),
    ("status", "0"),
    ("query", "0"),
    ("sources", "0"),
    ("state", "1"),
    ("remove", "0"),
    ("state", "None"),
    ("left", "False"),
)
"""Exit codes of commands, and states: 1 stopped, 4 running."""


class WindowsAgent:
    """An agent that runs under Wine, and its files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self._state = ("--state-dir", wine.windows_path(directory / "state"))
        self.process = wine.start_python(
            ["-m", "zeek_agent", "run", "--logs", wine.windows_path(self.logs), *WITHOUT_SOCKETS, *self._state],
            cwd=directory,
        )

    def command(self, *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["-m", "zeek_agent", arguments[0], *self._state, *arguments[1:]]
        return wine.run_python(command, seconds=COMMAND_SECONDS, typed=typed)

    def console(self, *arguments: str) -> Terminal:
        """The same with a console, which Wine makes of a terminal."""
        command = wine.python_command(["-m", "zeek_agent", arguments[0], *self._state, *arguments[1:]])
        return Terminal(command, {**wine.environment_with(), "TERM": "xterm"})

    def wait_until_connected(self) -> None:
        for _ in range(60):
            answer = self.command("query", "-f", "csv", "SELECT state FROM zeek_agent_connections")
            if "connected" in answer.stdout:
                return
            time.sleep(1)
        pytest.fail(f"the agent is not connected: {answer.stdout} {answer.stderr}")


@contextmanager
def running(directory: Path) -> Iterator[WindowsAgent]:
    agent = WindowsAgent(directory)
    try:
        agent.wait_until_connected()
        yield agent
    finally:
        agent.process.kill()
        agent.process.communicate()


def log_of_linux(name: str, directory: Path) -> bytes:
    """The log of an agent on this host."""
    command = [sys.executable, "-m", "zeek_agent", "run", "--logs", str(directory / "logs")]
    with subprocess.Popen(
        [*command, "--state-dir", str(directory / "state")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=directory,
    ) as process:
        try:
            for _ in range(60):
                if (directory / "logs" / name).exists():
                    break
                time.sleep(1)
        finally:
            process.terminate()
    return (directory / "logs" / name).read_bytes()


def header(content: bytes) -> list[bytes]:
    """The lines before the rows, without the time of opening."""
    return [
        line for line in content.split(b"\n") if line.startswith(b"#") and not line.startswith((b"#open", b"#close"))
    ]


def test_a_statement_is_answered_through_the_pipe_and_logs_are_those_of_linux(tmp_path: Path) -> None:
    (tmp_path / "windows").mkdir()
    (tmp_path / "linux").mkdir()
    with running(tmp_path / "windows") as agent:
        answer = agent.command("query", "-f", "json", "SELECT platform, kernel_name, id FROM zeek_agent")
        log = agent.logs / "zeek-agent.log"
        for _ in range(60):
            if log.exists():
                break
            time.sleep(1)
        content = log.read_bytes()
    assert re.search(r'"platform":"Windows","kernel_name":null,"id":"H\w+"', answer.stdout), answer.stdout
    assert "no agent is running" not in answer.stderr
    assert b"\r" not in content
    assert header(content) == header(log_of_linux("zeek-agent.log", tmp_path / "linux"))


def test_the_shell_reads_statements_and_commands_from_its_input(tmp_path: Path) -> None:
    typed = "SELECT platform,\n  6 * 7 AS answer\n  FROM zeek_agent;\n.status\nSELECT missing;\n.quit\nSELECT 'late';\n"
    with running(tmp_path) as agent:
        done = agent.command("shell", typed=typed)
    assert re.match(r"platform +answer\n-+ +-+\nWindows +42\n", done.stdout), done.stdout
    assert re.search(r"^running +True\nversion", done.stdout, re.MULTILINE), done.stdout
    assert "no such column: missing" in done.stderr
    assert "no agent is running" not in done.stderr
    assert "late" not in done.stdout
    assert done.returncode == 1, "a statement has failed"


def test_the_shell_works_on_a_console(tmp_path: Path) -> None:
    with running(tmp_path) as agent, closing(agent.console("shell")) as console:
        console.expect("using the running agent on", COMMAND_SECONDS)
        typed = (
            ("SELECT 6 * 7 AS answer", "End the statement with ;"),
            (";", r"answer.*42.*\(1 row\)"),
            (".quit", r"\n"),
        )
        for line, answer in typed:
            console.expect(r"zeek-agent>|\.\.\.>", COMMAND_SECONDS)
            console.wait_until_raw(COMMAND_SECONDS)
            console.type(f"{line}\r")
            console.expect(answer, COMMAND_SECONDS)
        assert console.wait() == 0


def test_limits_hold_where_statements_run_in_the_agents_process(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    greedy = "WITH RECURSIVE n(x) AS (SELECT hex('wine') UNION ALL SELECT x || x FROM n) SELECT max(length(x)) FROM n"
    with running(tmp_path) as agent:
        late = agent.command("query", endless)
        large = agent.command("query", greedy)
        after = agent.command("query", "-f", "csv", "SELECT 42 AS answer")
    assert "limits.time" in late.stderr
    assert late.returncode == 1
    assert "limits.value_bytes" in large.stderr
    assert large.returncode == 1
    assert after.stdout.split() == ["answer", "42"]


def test_the_service_control_manager_runs_an_agent_that_answers() -> None:
    done = wine.run_python(["-c", SERVICE], seconds=1_200)
    names = "|".join({name for name, _ in STEPS})
    steps = re.findall(rf"^({names}) (\w+)$", done.stdout, re.MULTILINE)
    assert tuple(steps) == STEPS, done.stdout + done.stderr
    answered = done.stdout[done.stdout.index("status 0") :]
    assert re.search(r"^Windows,H\w+$", answered, re.MULTILINE), "the query's answer"
    assert re.search(r"^value\noff$", answered, re.MULTILINE), "it has read the configuration of the installation"
    assert "no agent is running" not in answered
    assert re.search(r"^state_dir +C:\\ProgramData\\ZeekAgent\\state$", done.stdout, re.MULTILINE)


def test_only_the_service_control_manager_can_run_the_service() -> None:
    done = wine.run_python(["-m", "zeek_agent", "service", "run"], seconds=COMMAND_SECONDS)
    assert done.returncode == 2
    assert "only the service control manager can run this" in done.stderr


@pytest.mark.soak
def test_logs_of_five_minutes_are_complete(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        until = time.monotonic() + 300
        asked = 0
        while time.monotonic() < until:
            assert agent.command("query", "SELECT 1").returncode == 0
            asked += 1
        assert agent.process.poll() is None
        status = agent.command("query", "-f", "csv", "SELECT dropped_rows, reconnects FROM zeek_agent_connections")
        contents = {file.name: file.read_bytes() for file in agent.logs.glob("*.log")}
    assert status.stdout.split()[1] == "0,0"
    assert asked > 10
    assert {"zeek-agent.log", "zeek-agent-sources.log"} <= contents.keys()
    for name, content in contents.items():
        assert b"\r" not in content, name
        assert content.endswith(b"\n"), name
