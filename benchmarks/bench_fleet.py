"""What a batch and a connection cost on the bus: CPU time of gateway, servers and agents, memory, latency.

Simulated agents (`fleet/`) deliver over two leaf nodes, a hub and two gateways, and, alternately, as many others over
WebSockets of their own. The difference of their CPU time is that of the bus part of an agent. Costs per batch are what
an interval with rows takes beyond the idle ones next to it. All processes share the machine's cores: these are unit
costs, not the throughput of a cluster.

    python benchmarks/bench_fleet.py [--agents 400] [--rounds 10] [--rows 10] [--scale 10000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fleet.rig import Fleet, Plan, fleet

SECONDS = 6.0
"""Of an interval."""
BUS = ("hub", "leaf-a", "leaf-b", "gateway-0", "gateway-1")


def cpu(one: Fleet) -> dict[str, float]:
    """CPU seconds of each process so far."""
    servers = {name: server.process.cpu_seconds for name, server in one.servers.items()}
    return servers | {"agents": sum(each.process.cpu_seconds for each in one.simulators.processes)}


def costs(one: Fleet, rows_per_second: float, seconds: float) -> tuple[dict[str, float], int]:
    """CPU seconds per process while all hosts record and all is delivered, and the number of batches."""
    batches = round(seconds / one.plan.schedule) * one.plan.agents
    before = cpu(one)
    end = one.simulators.record(rows_per_second, seconds)
    time.sleep(max(0.0, end - time.time()))
    one.simulators.wait_delivered(60)
    after = cpu(one)
    return {name: after[name] - before[name] for name in before}, batches


def idle(one: Fleet, seconds: float) -> dict[str, float]:
    """CPU seconds per process and second while nothing is recorded."""
    before = cpu(one)
    time.sleep(seconds)
    after = cpu(one)
    return {name: (after[name] - before[name]) / seconds for name in before}


def spread(values: Sequence[float], unit: str) -> str:
    """Median, and the range of all but the lowest and the highest tenth."""
    ordered = sorted(values)
    cut = len(ordered) // 10
    return f"{statistics.median(ordered):.0f} {unit} ({ordered[cut]:.0f} to {ordered[-1 - cut]:.0f})"


def per_batch(agents: int, rounds: int, rows: int) -> None:
    """Alternate intervals over the bus and over WebSockets."""
    plan = {"agents": agents, "simulators": 1, "schedule": 1.0, "detail_bytes": 40}
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="fleet-") as directory,
        fleet(
            Path(directory) / "bus", Plan(**plan, simulators=2) if False else Plan(agents=agents, simulators=2)
        ) as bus,
        fleet(Path(directory) / "direct", Plan(agents=agents, simulators=2, transport="ws")) as direct,
    ):
        bus.start_agents()
        direct.start_agents()
        for _ in range(rounds):
            for name, one in (("bus", bus), ("direct", direct)):
                resting = idle(one, SECONDS / 2)
                begun = time.monotonic()
                used, batches = costs(one, float(rows), SECONDS)
                seconds = time.monotonic() - begun
                for process, value in used.items():
                    each = (value - resting[process] * seconds) / batches * 1e6
                    found.setdefault(f"{name} {process}", []).append(each)
        for one in (bus, direct):
            assert one.findings().is_exactly_once
    found["bus gateways"] = [sum(pair) for pair in zip(found["bus gateway-0"], found["bus gateway-1"], strict=True)]
    found["bus servers"] = [
        sum(three) for three in zip(found["bus hub"], found["bus leaf-a"], found["bus leaf-b"], strict=True)
    ]
    difference = [one - other for one, other in zip(found["bus agents"], found["direct agents"], strict=True)]
    print(
        f"CPU per batch of {rows} rows, {agents} agents, {rounds} pairs of intervals: median (10th to 90th percentile)"
    )
    for title, values in (
        ("gateway", found["bus gateways"]),
        ("NATS servers, hub and a leaf node", found["bus servers"]),
        ("agent, over the bus", found["bus agents"]),
        ("agent, over a WebSocket", found["direct agents"]),
        ("agent, the bus part: the difference", difference),
        ("stand-in for Zeek, from gateways", found["bus recipient"]),
        ("stand-in for Zeek, directly", found["direct recipient"]),
    ):
        print(f"  {title:40} {spread(values, 'µs')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=10, help="rows in a batch")
    arguments = parser.parse_args()
    per_batch(arguments.agents, arguments.rounds, arguments.rows)


if __name__ == "__main__":
    main()
