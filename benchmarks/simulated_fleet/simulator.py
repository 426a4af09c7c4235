"""A process of simulated agents. Reads orders as JSON lines from standard input, and answers each with a line.

It is started by `simulated_fleet.processes`, which see; `python -m simulated_fleet.simulator --help` has the arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from simulated_fleet.agents import SimulatedAgent
from simulated_fleet.fake_host import TABLE, Phase, Recording
from zeek_agent.bus.session import Times
from zeek_agent.config.sections import BusSettings, ZeekSettings
from zeek_agent.zeek import session

HELLO_CHECK_SECONDS: Final = 60.0
"""Simulated hosts do not change. A real agent looks every 2 s whether its host did, which 10,000 in a few processes
cannot afford."""


class Start(Struct, tag="start"):
    """Start the next `count` agents, or all that are left, so many per second."""

    per_second: float = 500.0
    count: int | None = None


class Record(Struct, tag="record"):
    """Record so many rows per second on each host, from `begin` (seconds since the epoch) for `seconds`."""

    rows_per_second: float
    begin: float
    seconds: float


class Burst(Struct, tag="burst"):
    """Record so many rows at once on each host."""

    rows: int
    begin: float


class Status(Struct, tag="status"):
    """Answered with `Figures`."""


class Away(Struct, tag="away"):
    """Stop these agents in order; `killed` ends them at once."""

    numbers: tuple[int, ...]
    killed: bool = False


class Return(Struct, tag="return"):
    """Start these agents again after so many seconds of their clocks, at other servers if there are any.

    While they were away, they recorded `rows_per_second`, and do so for another `seconds`.
    """

    numbers: tuple[int, ...]
    away_seconds: float = 0.0
    rows_per_second: float = 0.0
    servers: tuple[str, ...] = ()


class Recorded(Struct, tag="recorded"):
    """Answered with a line per agent: `[id, store, first, last, lost]`."""


class Quit(Struct, tag="quit"):
    """End."""


class Figures(Struct):
    """The state of all agents of the process."""

    agents: int
    started: int
    ready: int
    undelivered: int
    recorded: int
    lost: int
    resident_kib: int
    cpu_seconds: float
    lag_seconds: float
    """The longest delay of the event loop since the last status."""


Order = Start | Record | Burst | Status | Away | Return | Recorded | Quit

GARBAGE_THRESHOLD: Final = 50_000
"""Of the garbage collector's first generation: thousands of agents in a process make full collections long."""
QUICK: Final = Times(probe=1.0, tick=0.5, hello=6.0, uninvited=4.0, server=3.0)
"""For small fleets, so that tests take seconds: by default, agents notice a dead gateway within 10 s."""
SETTINGS: Final = ZeekSettings(
    hello_interval=60.0, ping_interval=60.0, pong_timeout=120.0, instance_timeout=600.0, reconnect_max=5.0
)


class InlineExecutor(ThreadPoolExecutor):
    """Runs what a real agent does in a thread, which for a fake store is not worth one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - passed on to who awaits it
            done.set_exception(error)
        return done


class Simulator:
    """The agents of this process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.recording = Recording(arguments.detail_bytes)
        settings = msgspec.structs.replace(SETTINGS, script_timeout=arguments.script_timeout)
        bus = BusSettings(clusters=(arguments.cluster,))
        times = QUICK if arguments.quick else Times()
        self.agents = {
            number: SimulatedAgent(number, self.recording, settings, bus, times, arguments.server)
            for number in range(arguments.first, arguments.first + arguments.agents)
        }
        self._worst_lag = 0.0
        self._away: dict[int, float] = {}

    async def run(self) -> None:
        """Until the end of standard input or the order to end."""
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(InlineExecutor())
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        watch = asyncio.create_task(self._watch_lag())
        decoder = msgspec.json.Decoder(Order)
        while line := await reader.readline():
            order = decoder.decode(line)
            if isinstance(order, Quit):
                break
            for answer in await self._carry_out(order):
                sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.write(b"\n")
            sys.stdout.buffer.flush()
        watch.cancel()

    async def _carry_out(self, order: Order) -> list[object]:
        match order:
            case Start(per_second, count):
                begun = time.monotonic()
                left = [agent for agent in self.agents.values() if not agent.starts]
                for index, agent in enumerate(left[:count]):
                    agent.start()
                    await asyncio.sleep(max(0.0, begun + index / per_second - time.monotonic()))
            case Record(rows_per_second, begin, seconds):
                self.recording.phases.append(Phase(begin, begin + seconds, rows_per_second))
            case Burst(rows, begin):
                self.recording.bursts.append((begin, rows))
            case Status():
                return [self._figures()]
            case Away(numbers, killed):
                for number in numbers:
                    agent = self.agents[number]
                    await (agent.kill() if killed else agent.stop())
                    self._away[number] = time.time()
            case Return():
                self._return(order)
            case Recorded():
                return list(self._recorded())
        return []

    def _return(self, order: Return) -> None:
        for number in order.numbers:
            agent = self.agents[number]
            left = self._away.pop(number) + agent.store.clock_offset
            agent.store.clock_offset += order.away_seconds
            if order.rows_per_second:
                agent.store.record_alone(order.rows_per_second, left, left + order.away_seconds)
            if order.servers:
                agent.servers = order.servers
            agent.start()

    def _recorded(self) -> Iterator[object]:
        for agent in self.agents.values():
            yield agent.id, agent.store.id, agent.store.first_seq(TABLE), agent.recorded, agent.lost

    def _figures(self) -> Figures:
        agents = list(self.agents.values())
        lag, self._worst_lag = self._worst_lag, 0.0
        return Figures(
            agents=len(agents),
            started=sum(agent.starts > 0 for agent in agents),
            ready=sum(agent.is_ready for agent in agents),
            undelivered=sum(agent.undelivered for agent in agents),
            recorded=sum(agent.recorded for agent in agents),
            lost=sum(agent.lost for agent in agents),
            resident_kib=resident_kib(),
            cpu_seconds=time.process_time(),
            lag_seconds=lag,
        )

    async def _watch_lag(self) -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.1)
            self._worst_lag = max(self._worst_lag, time.monotonic() - begun - 0.1)


def resident_kib() -> int:
    """Resident memory of this process in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simulated_fleet.simulator")
    parser.add_argument("--first", type=int, default=0, help="number of the first agent")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--server", action="append", required=True, help="URL; several for the bus")
    parser.add_argument("--cluster", default="zeek")
    parser.add_argument("--detail-bytes", type=int, default=40, help="size of a row's last column")
    parser.add_argument("--script-timeout", type=float, default=10.0, help="seconds, zeek.script_timeout")
    parser.add_argument("--quick", action="store_true", help="notice a dead gateway within a second or two")
    parser.add_argument("--log-level", default="ERROR")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.basicConfig(stream=sys.stderr, level=arguments.log_level, format="%(asctime)s %(levelname)s %(message)s")
    session.HELLO_CHECK_INTERVAL_SECONDS = HELLO_CHECK_SECONDS  # type: ignore[misc]
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    asyncio.run(Simulator(arguments).run())


if __name__ == "__main__":
    main()
