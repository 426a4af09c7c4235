"""What batches and connections cost on the bus: CPU time and memory of agents, servers and gateways, and latency.

Simulated agents (`simulated_fleet/`) deliver over two leaf nodes, a hub and two gateways to a stand-in for Zeek.

- Memory: agents are started in steps; each step's growth, divided by its agents.
- CPU time per batch: intervals with rows, over the bus and over WebSockets of other agents in turn, less what the same
  processes take while nothing is recorded. The difference between the two kinds of agents is the bus part of an agent.
- Latency: from when the agent has encoded a batch until the stand-in has read it, at a steady rate of rows.

All processes share the cores of this machine: these are unit costs, not the throughput of a cluster.

    python benchmarks/bench_fleet.py [--agents 2000] [--pair-agents 300] [--rounds 10] [--rows-per-second 10000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from simulated_fleet import oracle
from simulated_fleet.rig import Fleet, Plan, fleet

ROWS = 10
"""In a batch."""
INTERVAL_SECONDS = 6.0
SETTLE_SECONDS = 3.0


def cpu(one: Fleet) -> dict[str, float]:
    """CPU seconds so far, by kind of process."""
    used = {name: server.process.cpu_seconds for name, server in one.servers.items()}
    found = {
        "agents": sum(each.process.cpu_seconds for each in one.simulators.processes),
        "recipient": used["recipient"],
    }
    if one.plan.transport == "nats":
        found["gateways"] = used["gateway-0"] + used["gateway-1"]
        found["servers"] = used["hub"] + used["leaf-a"] + used["leaf-b"]
    return found


def memory(one: Fleet) -> dict[str, int]:
    """Resident KiB now, by kind of process."""
    kib = {name: server.process.resident_kib for name, server in one.servers.items()}
    return {
        "nats-server, leaf nodes": kib["leaf-a"] + kib["leaf-b"],
        "nats-server, hub": kib["hub"],
        "gateways": kib["gateway-0"] + kib["gateway-1"],
        "simulated agents": sum(each.process.resident_kib for each in one.simulators.processes),
    }


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure_memory(one: Fleet, steps: int) -> None:
    """Start the agents in steps."""
    growth: dict[str, list[float]] = {}
    one.simulators.status()  # they have been imported
    before = first = memory(one)
    each = one.plan.agents // steps
    for _ in range(steps):
        one.simulators.start(one.plan.starts_per_second, each)
        one.simulators.wait_started(300)
        time.sleep(SETTLE_SECONDS)
        now = memory(one)
        for name, kib in now.items():
            growth.setdefault(name, []).append((kib - before[name]) / each)
        before = now
    print(f"KB per agent, {steps} steps of {each} agents: median (quartiles), and of all")
    for name, values in growth.items():
        print(f"  {name:38} {spread(values, 1):24} {(before[name] - first[name]) / (each * steps):.1f}")


def measure_latency(one: Fleet, rows_per_second: float, intervals: int) -> None:
    """A steady rate, in intervals."""
    one.simulators.status()
    begin = time.time() + 0.5
    before = cpu(one)
    end = one.simulators.record(rows_per_second / one.plan.agents, intervals * INTERVAL_SECONDS)
    time.sleep(max(0.0, end - time.time()))
    after = cpu(one)
    one.simulators.wait_delivered(120)
    found = one.findings()
    assert found.is_exactly_once, found
    by_interval: list[list[float]] = [[] for _ in range(intervals)]
    rows = 0
    for log in one.logs:
        for line in oracle.lines(log):
            place = int((line.at - begin) / INTERVAL_SECONDS)
            if 0 <= place < intervals:
                by_interval[place].append(line.latency * 1000)
                rows += 1
    seconds = intervals * INTERVAL_SECONDS
    print(
        f"latency at {rows / seconds:,.0f} rows/s of {one.plan.agents:,} agents, "
        f"{intervals} intervals of {INTERVAL_SECONDS:g} s: median (quartiles) of the intervals"
    )
    for share in (0.5, 0.99):
        print(f"  p{share * 100:g} {spread([oracle.quantile(values, share) for values in by_interval], 1)} ms")
    cores = ", ".join(f"{name} {(after[name] - before[name]) / seconds:.2f}" for name in before)
    print(f"  cores in use: {cores}")


def interval(one: Fleet, batches_per_second: float) -> tuple[dict[str, float], float, int]:
    """All hosts record until all is delivered: CPU seconds, how long that took, and the number of batches."""
    logged = sum(map(oracle.batches, one.logs))
    began, before = time.monotonic(), cpu(one)
    end = one.simulators.record(ROWS * batches_per_second, INTERVAL_SECONDS)
    time.sleep(max(0.0, end - time.time()))
    one.simulators.wait_delivered(60)
    after, seconds = cpu(one), time.monotonic() - began
    time.sleep(SETTLE_SECONDS)
    batches = sum(map(oracle.batches, one.logs)) - logged
    return {name: after[name] - before[name] for name in before}, seconds, batches


def measure_batches(directory: Path, agents: int, rounds: int) -> None:
    """CPU time per batch, over the bus and over WebSockets in turn."""
    found: dict[str, list[float]] = {}
    with (
        fleet(directory / "bus", Plan(agents=agents, schedule=1.0)) as bus,
        fleet(directory / "direct", Plan(agents=agents, schedule=1.0, transport="ws")) as direct,
    ):
        fleets = {"bus": bus, "direct": direct}
        for one in fleets.values():
            one.start_agents()
        for _ in range(rounds):
            for kind, one in fleets.items():
                resting, began = cpu(one), time.monotonic()
                time.sleep(INTERVAL_SECONDS / 2)
                rested = time.monotonic() - began
                idle = {name: (now - resting[name]) / rested for name, now in cpu(one).items()}
                used, seconds, batches = interval(one, 1.0)
                for name, value in used.items():
                    each = (value - idle[name] * seconds) / batches * 1e6
                    found.setdefault(f"{kind} {name}", []).append(each)
        for one in fleets.values():
            checked = one.findings()
            assert checked.is_exactly_once, checked
    pairs = zip(found["bus agents"], found["direct agents"], strict=True)
    print(f"µs of CPU time per batch of {ROWS} rows, {agents} agents, {rounds} pairs of intervals: median (quartiles)")
    for title, values in (
        ("gateway", found["bus gateways"]),
        ("nats-server, leaf node and hub", found["bus servers"]),
        ("agent, over the bus", found["bus agents"]),
        ("agent, over its own WebSocket", found["direct agents"]),
        ("agent, bus part: the difference", [one - other for one, other in pairs]),
        ("stand-in, from gateways", found["bus recipient"]),
        ("stand-in, from agents", found["direct recipient"]),
    ):
        print(f"  {title:38} {spread(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=2_000, help="for memory and latency")
    parser.add_argument("--pair-agents", type=int, default=300, help="of each kind, for the cost of a batch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows-per-second", type=float, default=10_000.0)
    parser.add_argument("--simulators", type=int, default=4)
    arguments = parser.parse_args()
    batches_per_second = arguments.rows_per_second / ROWS
    plan = Plan(
        agents=arguments.agents, simulators=arguments.simulators, schedule=arguments.agents / batches_per_second
    )
    with tempfile.TemporaryDirectory(prefix="fleet-") as directory:
        with fleet(Path(directory) / "large", plan) as one:
            measure_memory(one, arguments.rounds)
            measure_latency(one, arguments.rows_per_second, arguments.rounds)
        measure_batches(Path(directory), arguments.pair_agents, arguments.rounds)


if __name__ == "__main__":
    main()
