"""What the bus costs an agent, compared with a WebSocket: processor time per batch, and memory.

    python benchmarks/bench_bus.py [--pairs 10] [--batches 2000]

Batches are sent one after another and acknowledged at once, over a WebSocket to a test's server, and over a NATS server
to a test's gateway. The processor time is that of the sending process alone, which does nothing else. Memory is the
proportional set size of the main process of `zeek-agent run`, without event sources, some seconds after its hello. Both
alternate, and the last column is the difference within a pair. Needs the extra `fleet` and nats-server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from nats_server import nats_server
from prepared_rows import IDENTITY, PreparedRows
from rig import agent
from scripted_gateway import scripted_gateway
from zeek_server import zeek_server

from zeek_agent import destination
from zeek_agent.bus.connection import BusConnection
from zeek_agent.bus.credentials import BusFiles
from zeek_agent.config.sections import BusSettings, ZeekSettings
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.zeek import protocol
from zeek_agent.zeek.connection import ZeekConnection
from zeek_agent.zeek.protocol import Batch, Context
from zeek_agent.zeek.transport import FrameSender

SIZES: Final = (500, 3_000, 50_000)
"""Bytes of a batch; the last needs a grant."""
SETTLING: Final = 6.0
QUIET: Final = ("processes", "sockets", "translations", "system_logs", "dns", "files", "logins")
LINE: Final = "{:>24} {:>18} {:>18} {:>26}"


def frame(size: int) -> bytes:
    topic = protocol.response_topic(IDENTITY.agent, "zeek_1")
    context = Context(IDENTITY.agent, 1.0, "q1")
    return protocol.rows(topic, context, Batch("s", "t", 0, 1, 0, last=True), '["' + "x" * size + '"]').encode()


async def connected_sender(url: str) -> FrameSender:
    """The sender of a connection that has been made."""
    (target,) = destination.parse_all([url])
    rows, settings = PreparedRows(), ZeekSettings()
    runner = QueryRunner(rows)  # type: ignore[arg-type]
    if not target.is_bus:
        direct = ZeekConnection(url, settings, IDENTITY, rows, runner)  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(direct.run()))
        while direct.session is None:
            await asyncio.sleep(0.01)
        return direct.session.sender
    bus = BusSettings()
    connection = BusConnection(target, bus, BusFiles(None, bus.tls), settings, IDENTITY, rows, runner)  # type: ignore[arg-type]
    tasks.append(asyncio.create_task(connection.run()))
    while not connection.clusters or (session := connection.clusters[0].session) is None or session.zeek is None:
        await asyncio.sleep(0.01)
    return session.zeek.sender


tasks: list[asyncio.Task[None]] = []


async def send(url: str, size: int, number: int) -> None:
    """In a process of its own: print the microseconds of processor time for each batch."""
    sender = await connected_sender(url)
    await asyncio.sleep(1)
    frames = [frame(size)]
    for _ in range(100):
        await (await sender.send(frames))
    begun = time.process_time()
    for _ in range(number):
        await (await sender.send(frames))
    print((time.process_time() - begun) / number * 1e6)


async def cost(url: str, size: int, number: int) -> float:
    command = [sys.executable, __file__, "--send", url, str(size), str(number)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return float(output)


async def memory(url: str) -> float:
    """Megabytes of the main process of an agent that is connected."""
    arguments = [part for name in QUIET for part in ("--set", f"sources.{name}=off")]
    with tempfile.TemporaryDirectory() as place:
        async with agent(Path(place), f"--zeek={url}", "--set", "osquery.socket=off", *arguments) as running:
            await asyncio.sleep(SETTLING)
            lines = Path(f"/proc/{running.process.pid}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def show(what: str, pairs: Sequence[tuple[float, float]]) -> None:
    direct, bus = zip(*pairs, strict=True)
    differences = [after - before for before, after in pairs]
    cells = (
        f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
        for values in (direct, bus, differences)
    )
    print(LINE.format(what, *cells), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batches", type=int, default=2_000)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        url, size, number = options.send
        await send(url, int(size), int(number))
        return
    with tempfile.TemporaryDirectory() as place, nats_server(Path(place) / "hub") as server:
        async with zeek_server() as zeek, scripted_gateway(server.url):
            print(LINE.format("", "WebSocket", "bus", "difference in a pair"))
            for size in SIZES:
                pairs = [
                    (await cost(zeek.url(), size, options.batches), await cost(server.url, size, options.batches))
                    for _ in range(options.pairs)
                ]
                show(f"us, batch of {size:,}", pairs)
            show("MB of main", [(await memory(zeek.url()), await memory(server.url)) for _ in range(options.pairs)])


if __name__ == "__main__":
    asyncio.run(main())
