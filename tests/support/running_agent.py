"""The real program as a subprocess: with a state directory of its own, asked through its control socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from waiting import until
from zeek_log import parse_header, parse_log

from zeek_agent.control import messages
from zeek_agent.errors import ZeekAgentError

T = TypeVar("T")

WAIT = 60.0
START = 180.0
STOP = 30.0
LAST_WORDS = 4_000
"""Characters of an agent's output that a failed test shows."""
AGENT_ID = "H6sCElvPqe0P8W73ADijZGY"
QUICK: Mapping[str, object] = {
    "agent.id": AGENT_ID,
    "zeek.reconnect_min": 0.2,
    "zeek.reconnect_max": 1.0,
    "collector.rotate_interval": 0,
    "sources.files": "off",
}
"""Settings of every agent here: known by name, back soon, with all records in one file also at the full hour, and
without marking the thousands of directories that are watched by default."""

PRIVATE_FILES = """
set -e
mount --make-rprivate /
mount -t tmpfs scratch "$1"
for place in etc home; do
    mkdir "$1/$place" "$1/$place-work"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$1/$place,workdir=$1/$place-work" "/$place"
done
shift
exec "$@"
"""
"""In a mount namespace: what is written to /etc and /home stays in there. `$1` is an empty directory."""


@dataclass(eq=False)
class RunningAgent:
    """A started agent. `root` is the file system as it sees it."""

    process: subprocess.Popen[bytes]
    state: Path
    logs: Path
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    def run_beside(self, *command: str) -> None:
        """Run a command that sees the files that the agent sees."""
        subprocess.run(["nsenter", f"--target={self.pid}", "--mount", *command], check=True, capture_output=True)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of a statement, through the control socket."""
        client = messages.ControlClient(self.state / "zeek-agent.sock")
        try:
            names: list[str] = []
            rows: list[dict[str, Any]] = []
            for frame in client.responses(messages.QueryRequest(sql)):
                if isinstance(frame, messages.Columns):
                    names = [name for name, _ in frame.columns]
                elif isinstance(frame, messages.Rows):
                    rows += [dict(zip(names, row, strict=True)) for row in frame.rows]
            return rows
        finally:
            client.close()

    def status(self) -> dict[str, Any]:
        """The facts of `zeek-agent status`."""
        client = messages.ControlClient(self.state / "zeek-agent.sock")
        try:
            frames = client.responses(messages.StatusRequest())
            return dict(next(frame for frame in frames if isinstance(frame, messages.Facts)).facts)
        finally:
            client.close()

    async def ask(self, sql: str) -> list[dict[str, Any]]:
        """The same without blocking a server of the test."""
        return await asyncio.to_thread(self.query, sql)

    async def connection(self) -> dict[str, Any]:
        """The row of its first destination."""
        return (await self.ask("SELECT * FROM zeek_agent_connections"))[0]

    async def ready(self) -> None:
        """Wait until it answers."""
        await until(self._answers, START, lambda: f"no answer: {self.output.read_text()}")

    async def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}: {self.output.read_text()}")
        try:
            return bool(await self.ask("SELECT id FROM zeek_agent"))
        except ZeekAgentError:
            return False

    def log(self, path: str) -> list[dict[str, Any]]:
        """The records of one of its collector's logs so far, each line of them complete and of its type."""
        file = self.logs / f"{path}.log"
        if not file.exists():
            return []
        content = file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        if not content:  # it has just been created
            return []
        names = parse_header(content)["#fields"]
        return [dict(zip(names, record, strict=True)) for record in parse_log(content)]

    async def logged(self, path: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for a record with these values."""

        def find() -> dict[str, Any] | None:
            return next((one for one in self.log(path) if wanted.items() <= one.items()), None)

        return await until(lambda: asyncio.to_thread(find), WAIT, f"{path}.log has no record with {wanted}")

    def resident(self) -> int:
        """Bytes of memory that it has in use now."""
        return _status(self.pid, "VmRSS") * 1024

    def threads(self) -> int:
        return _status(self.pid, "Threads")

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Ask it to end; its exit code. Killed when it does not."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it without a chance to do anything more."""
        self.process.kill()
        self.process.wait()


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


@contextmanager
def started(
    directory: Path,
    *arguments: str,
    settings: Mapping[str, object] | None = None,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    has_session: bool = False,
) -> Iterator[RunningAgent]:
    """`zeek-agent run` with its state, logs and output in a directory; stopped at the end, killed if it must be.

    With a session of its own, as a service has, it gets a share of the processors (sched(7), autogroups) next to the
    test's other programs, whatever these do.
    """
    state, logs, output = directory / "state", directory / "logs", directory / "output"
    values = {**QUICK, **(settings or {})}
    command = [
        *(*prefix, sys.executable, "-m", "zeek_agent", "run", "--state-dir", str(state), "--logs", str(logs)),
        *(part for name, value in values.items() for part in ("--set", f"{name}={value}")),
        *arguments,
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_AGENT_")}
    with output.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**kept, **(environment or {})},
            start_new_session=has_session,
        )
    agent = RunningAgent(process, state, logs, output)
    try:
        yield agent
    except BaseException as error:
        error.add_note(f"agent, return code {process.poll()}: {output.read_text(errors='replace')[-LAST_WORDS:]}")
        raise
    finally:
        if process.poll() is None:
            agent.stop()


@asynccontextmanager
async def running(
    directory: Path,
    *arguments: str,
    settings: Mapping[str, object] | None = None,
    private_files: bool = False,
    prefix: Sequence[str] = (),
    has_session: bool = False,
) -> AsyncIterator[RunningAgent]:
    """A started agent that answers; with `private_files` in a mount namespace, where /etc and /home are its own."""
    if private_files:
        scratch = directory / "scratch"
        scratch.mkdir(exist_ok=True)
        prefix = ("unshare", "--mount", "sh", "-c", PRIVATE_FILES, "sh", str(scratch))
        _skip_unless_possible(scratch)
    with started(directory, *arguments, settings=settings, prefix=prefix, has_session=has_session) as agent:
        await agent.ready()
        yield agent
        if agent.process.poll() is None:
            await asyncio.to_thread(agent.stop)


def _skip_unless_possible(scratch: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs unshare and nsenter (util-linux)")
    command = ["unshare", "--mount", "sh", "-c", PRIVATE_FILES, "sh", str(scratch), "true"]
    tried = subprocess.run(command, check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs to mount file systems: {tried.stderr.strip()}")
