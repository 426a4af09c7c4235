"""What recorded name lookups cost: lookups at a rate, each with a socket of its own, with `sources.dns` on and off.

python benchmarks/bench_name_lookups.py [--rate N] [--seconds N] [--pairs N]

Interleaved pairs of two agents, one that records lookups and one that only records the flows, as root; CPU time (user
and system) of the agent's main process beyond its use at rest. The server answers each question for an IPv4 address, in
a process of its own, with a CNAME and two addresses.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import dns.message
import dns.rrset

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from running_agent import RunningAgent, started
from waiting import until_sync

from zeek_agent.errors import ZeekAgentError

_LOOK_UP = """
import socket, sys, time
port, count, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
question = bytearray.fromhex(sys.argv[4])
begun = time.monotonic()
for number in range(count):
    time.sleep(max(0.0, begun + number / rate - time.monotonic()))
    question[:2] = (number & 0xffff).to_bytes(2, "big")
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.send(question)
        client.recv(512)
"""
_ANSWER = """
import socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
answer = bytes.fromhex(sys.argv[1])
while True:
    question, client = server.recvfrom(512)
    server.sendto(question[:2] + answer[2:], client)
"""


def messages() -> tuple[str, str]:
    """A question and its answer, in hexadecimal digits."""
    question = dns.message.make_query("www.example.org.", "A")
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text("www.example.org.", 60, "IN", "CNAME", "host.example.org."))
    answer.answer.append(dns.rrset.from_text("host.example.org.", 60, "IN", "A", "192.0.2.1", "192.0.2.2"))
    return question.to_wire().hex(), answer.to_wire().hex()


def count(agent: RunningAgent, sql: str) -> int:
    """The rows of a table, with conditions; 0 until the agent answers."""
    try:
        return int(agent.query(f'SELECT count(*) AS "n:count" FROM {sql}')[0]["n"])
    except ZeekAgentError:
        return 0


def cost(agent: RunningAgent, port: int, question: str, options: argparse.Namespace) -> float:
    """CPU seconds that the lookups cost the agent."""
    before = agent.cpu_seconds()
    time.sleep(options.seconds + 2)
    between = agent.cpu_seconds()
    begun, number = time.monotonic(), options.rate * options.seconds
    command = [sys.executable, "-c", _LOOK_UP, str(port), str(number), str(options.rate), question]
    subprocess.run(command, check=True)
    time.sleep(max(0.0, begun + options.seconds + 2 - time.monotonic()))
    return (agent.cpu_seconds() - between) - (between - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args()
    question, answer = messages()
    costs: dict[str, list[float]] = {"auto": [], "off": []}
    server = subprocess.Popen([sys.executable, "-c", _ANSWER, answer], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    try:
        for _ in range(options.pairs):
            for dns_source, found in costs.items():
                settings = {"sources.dns": dns_source, "sources.dns_ports": port, "sources.files": "off"}
                with tempfile.TemporaryDirectory() as directory, started(Path(directory), settings=settings) as agent:
                    until_sync(partial(count, agent, "zeek_agent_sources WHERE source = 'sockets' AND active"), 60)
                    found.append(cost(agent, port, question, options) / (options.rate * options.seconds) * 1e6)
                    rows = count(agent, f"dns_events_history WHERE server_port = {port}")
                print(f"sources.dns={dns_source}: {found[-1]:.0f} µs a lookup, {rows:,} rows", flush=True)
    finally:
        server.kill()
        server.wait()
    both, flows = costs["auto"], costs["off"]
    added = sorted(one - other for one, other in zip(both, flows, strict=True))
    print(
        f"{options.rate:,} lookups/s: {statistics.median(both):.0f} µs of CPU time each with its flow, "
        f"{statistics.median(flows):.0f} the flow alone; pairs differ by {statistics.median(added):.0f} µs "
        f"({added[0]:.0f} to {added[-1]:.0f})"
    )


if __name__ == "__main__":
    main()
