"""Rows per second through the codec and through a connection to a sink.

Run as `python benchmarks/bench_codec.py [ROWS]`.
The row is the `sockets` table's, with the columns that version 2 did not
have up to twelve. The sink is a process of its own that reads frames and answers pings, and looks at nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from zeek_agent.config.sections import ZeekSettings
from zeek_agent.database.database import ResultColumn
from zeek_agent.database.encodings import EventsEncoding
from zeek_agent.queries.subscriptions import Change, Query, Report
from zeek_agent.schema import ZeekType
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.back_pressure import Sender
from zeek_agent.zeek.connection import SEND_BUFFER_BYTES, WRITE_BUFFER_BYTES
from zeek_agent.zeek.frames import event_frames
from zeek_agent.zeek.instance import Instance, Traffic

ROUNDS = 5
TYPES = ["count", "text", "text", "count", "address", "count", "address", "count", "text", "count", "text", "time"]
COLUMNS = tuple(ResultColumn(f"c{index}", ZeekType.parse(name)) for index, name in enumerate(TYPES))


def rows(number: int) -> list[tuple[Any, ...]]:
    return [
        (
            1000 + n % 400,
            "python3",
            "IPv4",
            6,
            "192.0.2.17",
            1024 + n % 60_000,
            f"198.51.100.{n % 250}",
            443,
            "ESTABLISHED",
            1000,
            "/usr/bin/python3 -m http.server",
            1795489155.123456 + n / 1000,
        )
        for n in range(number)
    ]


def timed(work: Callable[[], object], number: int) -> tuple[float, float]:
    """Median rows a second of some rounds, and how far the slowest and fastest are apart in percent of it."""
    rates = []
    for _ in range(ROUNDS):
        gc.collect()
        began = time.perf_counter()
        work()
        rates.append(number / (time.perf_counter() - began))
    median = statistics.median(rates)
    return median, 100 * (max(rates) - min(rates)) / median


def sink() -> None:
    """Accept one client after another, acknowledge, read and drop all frames."""

    async def handle(websocket: ServerConnection) -> None:
        async for _ in websocket:
            pass

    async def run() -> None:
        server = await serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None)
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


def instance(sender: Sender) -> Instance:
    return Instance("zeek_1", "Hagent", "ws://sink", sender, ZeekSettings(), Traffic(), time.monotonic())


async def through_connection(port: int, report: Report) -> list[tuple[float, float]]:
    """Rows a second and processor seconds a row of some deliveries."""
    measured = []
    options: dict[str, Any] = {"compression": None, "ping_interval": None, "write_limit": WRITE_BUFFER_BYTES}
    async with connect(f"ws://127.0.0.1:{port}", **options) as websocket:
        raw: socket.socket = websocket.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        recipient = instance(Sender(websocket, ZeekSettings()))
        for _ in range(ROUNDS):
            gc.collect()
            began, cpu = time.perf_counter(), time.process_time()
            await recipient.deliver(report)
            seconds, used = time.perf_counter() - began, time.process_time() - cpu
            measured.append((len(report.rows) / seconds, used / len(report.rows)))
    return measured


def work_of_codec(sample: list[tuple[Any, ...]], report: Report) -> dict[str, Callable[[], None]]:
    """What is measured without a connection, by name."""
    encode = broker_json.row_encoder(COLUMNS)
    recipient = instance(None)  # type: ignore[arg-type]
    encoding = recipient.encoding(report)
    assert isinstance(encoding, EventsEncoding)
    frames = [frame for batch in event_frames(report.columns, report.rows, encoding) for frame in batch.frames]

    def encode_rows() -> None:
        for row in sample:
            encode(row)

    def encode_frames() -> None:
        for _ in event_frames(report.columns, report.rows, encoding):
            pass

    def read_frames() -> None:
        for frame in frames:
            protocol.read_message(frame)

    def read_cells() -> None:
        for frame in frames:
            event = protocol.agent_event(protocol.read_message(frame))  # type: ignore[arg-type]
            broker_json.cells(event.columns)  # type: ignore[union-attr]

    return {
        "encode rows": encode_rows,
        "encode frames in batches": encode_frames,
        "read frames": read_frames,
        "read frames into cells": read_cells,
    }


def main(number: int) -> None:
    sample = rows(number)
    report = Report("q1", Query("SELECT 1", "Test::row"), COLUMNS, [(Change.ADD, row) for row in sample])
    table = Table(title=f"{number} rows of {len(COLUMNS)} columns")
    for heading in ("what", "rows/s", "µs/row", "spread"):
        table.add_column(heading, justify="left" if heading == "what" else "right")

    def show(what: str, rate: float, spread: float) -> None:
        table.add_row(what, f"{rate:,.0f}", f"{1e6 / rate:.2f}", f"{spread:.0f} %")

    for what, work in work_of_codec(sample, report).items():
        show(what, *timed(work, number))
    with subprocess.Popen([sys.executable, __file__, "sink"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            measured = asyncio.run(through_connection(int(process.stdout.readline()), report))
        finally:
            process.terminate()
    rates = [rate for rate, _ in measured]
    median = statistics.median(rates)
    show("deliver to a sink", median, 100 * (max(rates) - min(rates)) / median)
    used = statistics.median(seconds for _, seconds in measured)
    table.add_row("  by the agent's processor time", f"{1 / used:,.0f}", f"{1e6 * used:.2f}", "")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:] == ["sink"]:
        sink()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
