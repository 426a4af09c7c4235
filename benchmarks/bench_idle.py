"""Memory and processor time of the program at rest and with the default query pack.

"asked nothing" is connected to a Zeek without queries; "default pack" runs the embedded collector with its pack, once
with eBPF and once without any event source. How many events the host gave meanwhile is shown, since they cost too.
Resident memory and processor time are the main process's; PSS is the sum over all processes of the agent.
Prints one table.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rig import Agent, Zeek, agent, ask

SETTLING = 5.0
"""Seconds from the start until measuring begins."""
EVENTS = "SELECT sum(received) FROM zeek_agent_sources"
NO_EVENTS = ("--set", "sources.processes=off", "--set", "sources.sockets=off")


def events(directory: Path) -> int:
    """How many events the agent's sources have received."""
    return int(ask(directory, EVENTS)[0][0] or 0)


def processes(pid: int) -> Iterator[int]:
    """The process and all that it has started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes(int(child))


def proportional(pid: int) -> tuple[float, int]:
    """Megabytes of a process and all that it has started, shared ones divided among their users; and their number."""
    sizes = []
    for one in processes(pid):
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        sizes.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
    return sum(sizes) / 1024, len(sizes)


async def watch(running: Agent, directory: Path, seconds: float) -> Sequence[str]:
    """Cells of a row of the table: resident at once and in the end, of which anonymous, peak, PSS, CPU, events."""
    await asyncio.sleep(SETTLING)
    first, cpu, before = running.resident, running.cpu_seconds, events(directory)
    await asyncio.sleep(seconds)
    pss, count = proportional(running.process.pid)
    used = (running.cpu_seconds - cpu) / seconds
    rate = (events(directory) - before) / seconds
    anonymous, peak = running.memory("RssAnon"), running.memory("VmHWM")
    return (
        f"{first:.1f}",
        f"{running.resident:.1f}",
        f"{anonymous:.1f}",
        f"{peak:.1f}",
        f"{pss:.1f} in {count}",
        f"{used * 100:.2f} %",
        f"{rate:.0f}",
    )


async def case(what: str, seconds: float, table: Table, *arguments: str, with_zeek: bool = False) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        zeek = Zeek()
        await zeek.start()
        if with_zeek:
            arguments = (*arguments, f"--zeek=ws://127.0.0.1:{zeek.port}")
        async with agent(directory, *arguments) as running:
            table.add_row(what, *await watch(running, directory, seconds))
        await zeek.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each case is watched")
    seconds: float = parser.parse_args().seconds
    table = Table(title=f"{seconds:g} s each; megabytes; processor time of one core")
    table.add_column("what")
    for heading in (
        f"resident after {SETTLING:g} s",
        "in the end",
        "of it anonymous",
        "peak",
        "PSS",
        "CPU",
        "events/s",
    ):
        table.add_column(heading, justify="right")
    await case("asked nothing", seconds, table, with_zeek=True)
    await case("asked nothing, no event source", seconds, table, *NO_EVENTS, with_zeek=True)
    await case("default pack, embedded collector", seconds, table)
    await case("default pack, no event source", seconds, table, *NO_EVENTS)
    Console(width=120).print(table)


if __name__ == "__main__":
    asyncio.run(main())
