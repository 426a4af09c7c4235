"""Rows a second that one Zeek process logs: the package with batches, with an event a row, and a minimal script.

    python benchmarks/bench_zeek_scripts.py [--rows 60000] [--rounds 5]

The minimal script only parses a batch, logs its rows and says that it did: Zeek's ceiling. All three get the same rows
of the table `sockets` from the same client, which keeps at most 256 KiB under way, in one Zeek process, in turns; a
round's order is reversed in the next. Prints medians. Needs a `zeek` on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "zeek" / "testing" / "Scripts"))

from agents import Agent, address, agent, count, string, vector  # noqa: E402

BATCH: Final = 100
WINDOW: Final = 256 * 1024
BASIC: Final = 9
SITE: Final = """
@load {package}
@ifdef ( Cluster::Backend::ZeroMQ::listen_xpub_endpoint )
redef Cluster::Backend::ZeroMQ::listen_xpub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::listen_xsub_endpoint = "tcp://127.0.0.1:{xsub}";
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = "tcp://127.0.0.1:{xsub}";
@endif
redef ZeekAgent::attribute_connections = F;
module Minimal;
export {{
    redef enum Log::ID += {{ LOG }};
    type Info: record {{
        t: time &log;
        hid: string &log;
        host: string &log;
        change: string &log &optional;
        columns: ZeekAgent_Sockets::Columns &log;
    }};
    global rows: event(agent: string, index: count, rows: string);
    global done: event(zeek_instance: string, index: count);
}}
type Rows: vector of ZeekAgent_Sockets::Columns;
event Minimal::rows(agent: string, index: count, rows: string)
    {{
    local parsed = from_json(rows, Rows);
    local found = parsed$v as Rows;
    local t = network_time();
    for ( _, columns in found )
        Log::write(LOG, Info($t=t, $hid=agent, $host=agent, $change="new", $columns=columns));
    Cluster::publish("/zeek-agent/query/host/" + agent, done, ZeekAgent::zeek_instance, index);
    }}
event zeek_init()
    {{
    Log::create_stream(LOG, Log::Stream($columns=Info, $path="minimal"));
    }}
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


def row(number: int) -> dict[str, Any]:
    return {
        "pid": 1000 + number % 400,
        "process": "python3",
        "family": "IPv4",
        "protocol": 6,
        "local_addr": "192.0.2.17",
        "local_port": 1024 + number % 60_000,
        "remote_addr": f"198.51.100.{number % 250}",
        "remote_port": 443,
        "state": "ESTABLISHED",
        "uid": 1000,
        "exe": "/usr/bin/python3.11",
        "entity_id": "941640c8d90e-32662-283356",
    }


def cells(one: dict[str, Any]) -> list[Any]:
    writers = (count, string, string, count, address, count, address, count, string)
    return [write(value) for write, value in zip(writers, list(one.values())[:BASIC], strict=True)]


class Flow:
    """Sends frames while not too much is under way, by what comes back for each."""

    def __init__(self, one: Agent, answer: str) -> None:
        self._agent = one
        self._answer = answer

    async def run(self, frames: list[str]) -> None:
        under_way: list[int] = []
        for frame in frames:
            while sum(under_way) > WINDOW:
                await self._agent.expect(self._answer, 30)
                under_way.pop(0)
            await self._agent.send(frame)
            under_way.append(len(frame))
        for _ in under_way:
            await self._agent.expect(self._answer, 30)


async def measure(one: Agent, way: str, rows: int, query_id: str) -> float:
    """Rows a second, until Zeek has said that it handled the last."""
    batches = [[row(number) for number in range(start, start + BATCH)] for start in range(0, rows, BATCH)]
    minimal = [
        one.frame("Minimal::rows", string(one.id), count(index), string(json.dumps(batch, separators=(",", ":"))))
        for index, batch in enumerate(batches)
    ]
    if way == "minimal":
        frames, answer = minimal, "Minimal::done"
    elif way == "batches":
        frames = [one.batch_frame(query_id, batch, change="Add") for batch in batches]
        answer = "rows_ack_v1"
    else:
        # An event a row is not answered; now and then a batch of nothing is, after it.
        frames, answer = [], "Minimal::done"
        for index, batch in enumerate(batches):
            context = one.context(query_id, "Add")
            for each in batch:
                frames.append(one.frame("ZeekAgent_Sockets::query_result", context, vector(*cells(each))))
            frames.append(one.frame("Minimal::rows", string(one.id), count(index), string("[]")))
    started = time.perf_counter()
    if way == "events":
        await send_groups(one, frames)
    else:
        await Flow(one, answer).run(frames)
    return rows / (time.perf_counter() - started)


async def send_groups(one: Agent, frames: list[str]) -> None:
    """A hundred events and what is answered, two such groups under way: as much as the window holds."""
    under_way = 0
    for frame in frames:
        await one.send(frame)
        if "Minimal::rows" in frame:
            under_way += 1
        if under_way > 2:
            await one.expect("Minimal::done", 30)
            under_way -= 1
    for _ in range(under_way):
        await one.expect("Minimal::done", 30)


async def rounds(rows: int, number: int) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {"minimal": [], "batches": [], "events": []}
    async with agent("H1", patience=30) as one:
        await one.hello(hostname="host")
        query_id = await one.query("entity_id, community_id FROM sockets")
        await one.settled()
        await measure(one, "batches", 10_000, query_id)
        for turn in range(number):
            for way in list(results) if turn % 2 else reversed(list(results)):
                size = rows // 5 if way == "events" else rows
                results[way].append(await measure(one, way, size, query_id))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if shutil.which("zeek") is None:
        print("bench_zeek_scripts: needs zeek on PATH")
        return
    with tempfile.TemporaryDirectory() as directory:
        site = SITE.format(package=ROOT / "zeek" / "scripts", xpub=free_port(), xsub=free_port())
        (Path(directory) / "site.zeek").write_text(site)
        os.environ["ZEEK_WEBSOCKET_LISTEN_PORT"] = str(free_port())
        with (Path(directory) / "output").open("wb") as output:
            zeek = subprocess.Popen(["zeek", "site.zeek"], cwd=directory, stdout=output, stderr=output)
        try:
            results = asyncio.run(rounds(options.rows, options.rounds))
        finally:
            zeek.terminate()
            zeek.wait(30)
    ceiling = statistics.median(results["minimal"])
    print(f"{'way':22} {'rows/s':>8} {'of minimal':>11}   rounds")
    for way, title in (
        ("minimal", "minimal script"),
        ("batches", "package, batches"),
        ("events", "package, event a row"),
    ):
        median = statistics.median(results[way])
        print(
            f"{title:22} {median:8,.0f} {median / ceiling:11.0%}   {' '.join(f'{each:,.0f}' for each in results[way])}"
        )


if __name__ == "__main__":
    main()
