"""Rows a second into a real Zeek that logs them: the program beside a minimal client with the same window.

The minimal client has all frames ready before Zeek's clock starts and does nothing but send them. Rows have 12 columns.
The stock package is taken from where ZEEK_AGENT_STOCK_PACKAGE says, ours from this directory; without a `zeek` on PATH
there is nothing to measure. Rounds are interleaved. Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
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

from rich.console import Console
from rich.table import Table
from rig import AGENT_ID, agent
from websockets.asyncio.client import connect

from zeek_agent.config.sections import ZeekSettings
from zeek_agent.database.database import ResultColumn
from zeek_agent.database.encodings import EventsEncoding
from zeek_agent.destination import PATH
from zeek_agent.queries.subscriptions import Report
from zeek_agent.schema import ZeekType
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.back_pressure import Sender
from zeek_agent.zeek.connection import SEND_BUFFER_BYTES, WRITE_BUFFER_BYTES
from zeek_agent.zeek.frames import batch_frames, event_frames
from zeek_agent.zeek.instance import Instance, Traffic

PACKAGES: Final = {"stock": os.environ.get("ZEEK_AGENT_STOCK_PACKAGE"), "ours": str(Path("zeek/scripts").absolute())}
TYPES: Final = {
    "pid": "count",
    "process": "text",
    "family": "text",
    "protocol": "count",
    "local_addr": "address",
    "local_port": "count",
    "remote_addr": "address",
    "remote_port": "count",
    "state": "text",
    "uid": "count",
    "cmdline": "text",
    "at": "time",
}
COLUMNS: Final = tuple(ResultColumn(name, ZeekType.parse(kind)) for name, kind in TYPES.items())
SQL: Final = """\
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT {rows})
SELECT 1000 + i % 400 AS "pid:count", 'python3' AS process, 'IPv4' AS family, 6 AS "protocol:count",
'192.0.2.17' AS "local_addr:address", 1024 + i % 60000 AS "local_port:count",
'198.51.100.' || (i % 250) AS "remote_addr:address", 443 AS "remote_port:count", 'ESTABLISHED' AS state,
1000 AS "uid:count", '/usr/bin/python3 -m http.server' AS cmdline, 1795489155.123456 + i / 1000.0 AS "at:time" FROM n"""

SCRIPT: Final = """
@ifdef ( Cluster::Backend::ZeroMQ::listen_xpub_endpoint )
redef Cluster::Backend::ZeroMQ::listen_xpub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::listen_xsub_endpoint = "tcp://127.0.0.1:{xsub}";
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = "tcp://127.0.0.1:{xsub}";
@endif
module Benchmark;
export {{
    redef enum Log::ID += {{ LOG }};
    type Row: record {{
        pid: count &log &optional; process: string &log &optional; family: string &log &optional;
        protocol: count &log &optional; local_addr: addr &log &optional; local_port: count &log &optional;
        remote_addr: addr &log &optional; remote_port: count &log &optional; state: string &log &optional;
        uid: count &log &optional; cmdline: string &log &optional; at: time &log &optional;
    }};
    type Rows: vector of Row;
    global row: event(ctx: ZeekAgent::Context, columns: Row);
}}
global number = 0;
global begun: time;
function take(columns: Row)
    {{
    if ( ++number == 1 )
        begun = current_time();
    Log::write(LOG, columns);
    if ( number == {rows} )
        {{
        print fmt("seconds %.6f", interval_to_double(current_time() - begun));
        terminate();
        }}
    }}
event Benchmark::row(ctx: ZeekAgent::Context, columns: Row) {{ take(columns); }}
event zeek_init()
    {{
    Log::create_stream(LOG, [$columns=Row, $path="benchmark"]);
    {query}
    }}
"""
QUERY: Final = {
    "stock": "ZeekAgent::query([$sql_stmt={sql}, $event_=row]);",
    "ours": """ZeekAgent::query(ZeekAgent::Query($sql_stmt={sql}, $row_type=Rows,
        $on_rows=function(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
            {{ for ( _, columns in rows as Rows ) take(columns); }}));""",
}


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


def row(number: int) -> tuple[Any, ...]:
    address = f"198.51.100.{number % 250}"
    connection = ("192.0.2.17", 1024 + number % 60_000, address, 443, "ESTABLISHED", 1000)
    command = "/usr/bin/python3 -m http.server"
    return (1000 + number % 400, "python3", "IPv4", 6, *connection, command, 1795489155.123456 + number / 1000)


def start_zeek(package: str, directory: Path, port: int, rows: int) -> subprocess.Popen[str]:
    sql = '"' + SQL.format(rows=rows).replace("\n", " ").replace('"', '\\"') + '"'
    query = QUERY[package].format(sql=sql)
    script = SCRIPT.format(xpub=free_port(), xsub=free_port(), rows=rows, query=query)
    (directory / "benchmark.zeek").write_text(script)
    return subprocess.Popen(
        ["zeek", str(PACKAGES[package]), "benchmark.zeek"],
        cwd=directory,
        env={**os.environ, "ZEEK_WEBSOCKET_LISTEN_PORT": str(port), "ZEEK_DNS_FAKE": "1"},
        stdout=subprocess.PIPE,
        stderr=(directory / "errors").open("w"),
        text=True,
    )


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("Zeek does not listen")


async def minimal_client(port: int, rows: int) -> None:
    """Join, wait for the query, have all frames ready, then only send."""
    options: dict[str, Any] = {"compression": None, "ping_interval": None, "write_limit": WRITE_BUFFER_BYTES}
    url = f"ws://127.0.0.1:{port}{PATH}"
    async with connect(url, additional_headers={"X-Application-Name": "benchmark"}, **options) as websocket:
        raw: socket.socket = websocket.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        await websocket.send(protocol.subscription_message(protocol.subscriptions(AGENT_ID, (), "linux")))
        await websocket.recv()
        context = protocol.Context(AGENT_ID, time.time(), "hello")
        texts = [broker_json.string(text) for text in (AGENT_ID, "I1", "host")]
        features = broker_json.set_of([broker_json.string(protocol.BATCHES)])
        hello = broker_json.vector(
            [
                *texts,
                *[broker_json.NONE] * 6,
                broker_json.count(300_000_000),
                broker_json.NONE,
                broker_json.NONE,
                features,
            ]
        )
        await websocket.send(protocol.agent_hello(context, hello))
        while True:
            message = protocol.read_message(await websocket.recv(decode=False))
            event = protocol.zeek_event(message) if isinstance(message, protocol.Message) else None
            if isinstance(event, protocol.InstallQuery) and "RECURSIVE" in event.query.sql:
                break
        batches = ready(event, rows)
        sender = Sender(websocket, ZeekSettings())
        reading = asyncio.create_task(_discard(websocket))
        for frames in batches:
            pong = await sender.send(frames)
        await pong
        await asyncio.sleep(3600)
        await reading


def ready(event: protocol.InstallQuery, rows: int) -> list[list[bytes]]:
    """The answer as frames, in the batches in which the program sends them."""
    settings = ZeekSettings()
    answer = [(None, row(number)) for number in range(rows)]
    report = Report(event.query_id, event.query, COLUMNS, answer, window=(0, 1))
    recipient = Instance(event.instance, AGENT_ID, "", None, settings, Traffic(), 0.0)  # type: ignore[arg-type]
    encoding = recipient.encoding(report)
    if isinstance(encoding, EventsEncoding):
        frames = event_frames(report.columns, report.rows, encoding)
    else:
        frames = batch_frames(report.columns, report.rows, encoding)
    return [batch.frames for batch in frames]


async def _discard(websocket: Any) -> None:
    while True:
        await websocket.recv(decode=False)


async def rate(package: str, who: str, rows: int) -> float:
    """Rows a second at Zeek, from the first to the last."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        port = free_port()
        zeek = start_zeek(package, directory, port, rows)
        assert zeek.stdout is not None
        try:
            await asyncio.to_thread(wait_for, port)
            line = asyncio.create_task(asyncio.to_thread(zeek.stdout.readline))
            if who == "program":
                url = f"--zeek=ws://127.0.0.1:{port}"
                async with asyncio.timeout(90), agent(directory, url, "--set=limits.time=60"):
                    said = await line
            else:
                arguments = [sys.executable, __file__, "client", str(port), str(rows)]
                with subprocess.Popen(arguments) as client:
                    try:
                        async with asyncio.timeout(90):
                            said = await line
                    finally:
                        client.kill()
            return rows / float(said.split()[1])
        finally:
            zeek.kill()
            zeek.wait()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if shutil.which("zeek") is None:
        print("there is no zeek on PATH: nothing to measure rows into")
        return
    table = Table(title=f"{arguments.rows:,} rows of {len(COLUMNS)} columns into a real Zeek, logged there")
    table.add_column("package")
    for heading in ("program, rows/s", "minimal client, rows/s", "program of minimal"):
        table.add_column(heading, justify="right")
    for package, place in PACKAGES.items():
        if place is None:
            table.add_row(package, "not here", "(ZEEK_AGENT_STOCK_PACKAGE)", "")
            continue
        rates: dict[str, list[float]] = {"program": [], "minimal": []}
        for _ in range(arguments.rounds):
            for who, found in rates.items():
                found.append(await rate(package, who, arguments.rows))
        program, minimal = (statistics.median(found) for found in rates.values())
        table.add_row(
            package, *(f"{statistics.median(f):,.0f} ({min(f):,.0f}-{max(f):,.0f})" for f in rates.values()),
            f"{100 * program / minimal:.0f} %",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(minimal_client(int(sys.argv[2]), int(sys.argv[3])))
    else:
        asyncio.run(main())
