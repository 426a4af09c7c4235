"""The processes of a simulated fleet: each is started, sampled and ended by its process id."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from simulated_fleet.oracle import Recorded
from simulated_fleet.simulator import Away, Burst, Figures, Quit, Record, Return, Start, Status
from simulated_fleet.simulator import Recorded as RecordedOrder

T = TypeVar("T")

BENCHMARKS: Final = Path(__file__).parent.parent
ORDER_SECONDS: Final = 300.0
"""A simulator answers an order within this time, or the run has failed."""
SAMPLE_SECONDS: Final = 0.5


class FleetError(AssertionError):
    """A process of the fleet does not do what it should."""


@dataclass(eq=False)
class Process:
    """A program that runs, and what it has used."""

    name: str
    popen: subprocess.Popen[bytes]
    output: Path
    peak_kib: int = 0
    """The most resident memory of this life that was sampled."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    @property
    def resident_kib(self) -> int:
        return resident_kib(self.pid)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far, exactly: its own clock, clock_getcpuclockid(3)."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def kill(self) -> None:
        """End it without warning."""
        if self.is_running:
            self.popen.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self, seconds: float = 20.0) -> None:
        """Ask it to end; kill it if it does not."""
        if self.is_running:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(seconds)
        self.kill()

    def _reap(self) -> None:
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # an order that it did not read any more
                    pipe.close()

    def pause(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def resident_kib(pid: int) -> int:
    """Resident memory of a process in KiB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def start(
    name: str, command: Sequence[str | Path], directory: Path, *, stdin: int | None = None, stdout: int | None = None
) -> Process:
    """Start a program in a session of its own; its output goes to `directory`/`name`.log."""
    output = directory / f"{name}.log"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ZEEK_AGENT_")}
    path = os.pathsep.join(filter(None, (str(BENCHMARKS), kept.get("PYTHONPATH"))))
    with output.open("ab") as log:
        popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=log if stdout is None else stdout,
            stderr=log,
            cwd=directory,
            env={**kept, "PYTHONPATH": path},
            start_new_session=True,
        )
    return Process(name, popen, output)


class Sampler:
    """Samples the resident memory of processes until it is closed."""

    def __init__(self) -> None:
        self._processes: list[Process] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, process: Process) -> None:
        self._processes.append(process)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def peaks(self) -> dict[str, int]:
        """The most resident memory in KiB, by name, of all lives of a process."""
        found: dict[str, int] = {}
        for one in self._processes:
            found[one.name] = max(found.get(one.name, 0), one.peak_kib)
        return found

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for one in list(self._processes):
                if one.is_running:
                    one.peak_kib = max(one.peak_kib, one.resident_kib)


@dataclass(eq=False)
class SimulatorProcess:
    """A process of simulated agents, and the orders that it takes."""

    process: Process
    numbers: range
    _unread: bytes = field(default=b"", repr=False)

    def order(self, order: object) -> list[bytes]:
        """Give an order and wait for its answer: its lines."""
        self.send(order)
        return self.answer()

    def send(self, order: object) -> None:
        """Give an order without waiting: `answer` must be called for each."""
        assert self.process.popen.stdin is not None
        self.process.popen.stdin.write(msgspec.json.encode(order) + b"\n")
        self.process.popen.stdin.flush()

    def answer(self) -> list[bytes]:
        assert self.process.popen.stdout is not None
        descriptor, deadline = self.process.popen.stdout.fileno(), time.monotonic() + ORDER_SECONDS
        while not (self._unread == b"\n" or self._unread.startswith(b"\n") or b"\n\n" in self._unread):
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            read = os.read(descriptor, 1 << 20) if readable else b""
            if not read:
                raise FleetError(f"{self.process.name} does not answer: {self.process.text[-2000:]}")
            self._unread += read
        if self._unread.startswith(b"\n"):
            self._unread = self._unread[1:]
            return []
        answer, _, self._unread = self._unread.partition(b"\n\n")
        return answer.split(b"\n")

    def status(self) -> Figures:
        (line,) = self.order(Status())
        return msgspec.json.decode(line, type=Figures)

    def recorded(self) -> list[Recorded]:
        return [Recorded(*msgspec.json.decode(line)) for line in self.order(RecordedOrder())]

    def quit(self) -> None:
        with suppress(BrokenPipeError):
            self.send(Quit())
        with suppress(subprocess.TimeoutExpired):
            self.process.popen.wait(ORDER_SECONDS)
        self.process.kill()


class Simulators:
    """All simulated agents."""

    def __init__(self, processes: Sequence[SimulatorProcess]) -> None:
        self.processes = processes

    def start(self, per_second: float, count: int | None = None) -> None:
        """Start the next `count` agents, the same number in each process, or all that are left."""
        each = None if count is None else count // len(self.processes)
        self._all(Start(per_second / len(self.processes), each))

    def record(self, rows_per_second: float, seconds: float) -> float:
        """Have each host record; returns when that ends, in seconds since the epoch."""
        begin = time.time() + 0.5
        self._all(Record(rows_per_second, begin, seconds))
        return begin + seconds

    def burst(self, rows: int) -> None:
        self._all(Burst(rows, time.time() + 0.5))

    def send_away(self, numbers: Sequence[int], *, killed: bool = False) -> None:
        for one, mine in self._by_process(numbers):
            one.order(Away(mine, killed))

    def bring_back(
        self,
        numbers: Sequence[int],
        servers: Sequence[str] = (),
        away_seconds: float = 0.0,
        rows_per_second: float = 0.0,
    ) -> None:
        for one, mine in self._by_process(numbers):
            one.order(Return(mine, away_seconds, rows_per_second, tuple(servers)))

    def status(self) -> Figures:
        """The sums over all processes; the longest lag."""
        for one in self.processes:
            one.send(Status())
        figures = [msgspec.json.decode(one.answer()[0], type=Figures) for one in self.processes]
        total = Figures(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
        for name in Figures.__struct_fields__:
            values = [getattr(one, name) for one in figures]
            setattr(total, name, max(values) if name == "lag_seconds" else sum(values))
        return total

    def recorded(self) -> Iterator[Recorded]:
        for one in self.processes:
            yield from one.recorded()

    def wait_ready(self, seconds: float) -> float:
        """Wait until all agents have their query; returns how long that took."""
        begun = time.monotonic()
        self._wait("agents have no query", lambda figures: figures.agents - figures.ready, seconds)
        return time.monotonic() - begun

    def wait_started(self, seconds: float) -> None:
        """Wait until those that were started have their query."""
        self._wait("agents have no query", lambda figures: figures.started - figures.ready, seconds)

    def wait_delivered(self, seconds: float) -> float:
        """Wait until every row was acknowledged; returns how long that took."""
        begun = time.monotonic()
        self._wait("rows are undelivered", lambda figures: figures.undelivered, seconds)
        return time.monotonic() - begun

    def _wait(self, what: str, left: Callable[[Figures], int], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while number := left(self.status()):
            if time.monotonic() > deadline:
                raise FleetError(f"after {seconds:g} s, {number:,} {what}")
            time.sleep(0.25)

    def _all(self, order: object) -> None:
        for one in self.processes:
            one.send(order)
        for one in self.processes:
            one.answer()

    def _by_process(self, numbers: Sequence[int]) -> Iterable[tuple[SimulatorProcess, tuple[int, ...]]]:
        for one in self.processes:
            if mine := tuple(number for number in numbers if number in one.numbers):
                yield one, mine


def python(module: str, *arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", module, *arguments]


def free_port() -> int:
    """A port that nothing uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether a server listens on loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def wait_for(find: Callable[[], T | None], seconds: float, what: str) -> T:
    """Wait until `find` returns something true; that."""
    deadline = time.monotonic() + seconds
    while True:
        if found := find():
            return found
        if time.monotonic() > deadline:
            raise FleetError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
