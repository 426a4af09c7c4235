"""What file events cost processes that change or run files outside and inside of watched directories, and the agent,
alongside auditd with a watch rule on the same directory, and inotifywait.

    python benchmarks/bench_file_events.py [--pairs 10] [--files 20000] [--execs 2000] [--seconds 20] [--rounds 3]

The first table is from interleaved pairs: an agent without file events, and one that watches the default directories
and one more. The figures are CPU time (user and system) of the processes that do the work, per file created, written,
changed, renamed and removed, or per program run. In the second table a process does that with 200 files per second,
which is 1,000 events, and each program is measured alone. "lost" is what it should have shown and did not.

Needs root, a C compiler, and for the comparison auditd and inotifywait. The audit rule is removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rig import agent, ask, load_generator

from zeek_agent import files_defaults

FILES_PER_SECOND: Final = 200
EVENTS_PER_FILE: Final = 5
AUDIT_CALLS_PER_FILE: Final = 4  # open, chmod, rename, unlink: audit has no event for the end of writing
WINDOW_SECONDS: Final = 1.0
SWITCHED_OFF: Final = tuple(
    word
    for kind in ("sockets", "dns", "logins", "system_logs", "translations")
    for word in ("--set", f"sources.{kind}=off")
)


def change(path: str) -> None:
    """Five events: created, written, attributes, renamed, deleted."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x")
    os.close(descriptor)
    os.chmod(path, 0o600)  # noqa: PTH101
    os.rename(path, path + "r")  # noqa: PTH104
    os.unlink(path + "r")  # noqa: PTH108


def children_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a child that does the work, and of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def change_many(place: Path, files: int) -> None:
    for number in range(files):
        change(f"{place}/{number}")


def change_paced(place: Path, seconds: float) -> None:
    begun = time.monotonic()
    for number in range(int(seconds * FILES_PER_SECOND)):
        time.sleep(max(0.0, begun + number / FILES_PER_SECOND - time.monotonic()))
        change(f"{place}/{number}")


def processor_seconds(*pids: int) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def proportional_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def helpers(pid: int) -> list[int]:
    """The launcher of an agent, and the process that watches files."""
    below = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    launchers = [each for each in below if b"files_helper" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return [*launchers, *(int(one) for each in launchers for one in _children(each))]


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@asynccontextmanager
async def recording(place: Path | None) -> AsyncIterator[tuple[Path, int]]:
    """An agent that watches the default directories and this one, or none: its directory and its pid."""
    watch = msgspec.json.encode([*files_defaults.FILES_WATCH, str(place)]).decode()
    files = ["--set", "sources.files=off"] if place is None else ["--set", f"sources.files_watch={watch}"]
    with tempfile.TemporaryDirectory() as directory:
        async with agent(Path(directory), *SWITCHED_OFF, *files) as running:
            await asyncio.sleep(1)
            yield Path(directory), running.process.pid


async def pairs(places: tuple[Path, Path], count: int, files: int, execs: int) -> None:
    outside, inside = places
    program = load_generator(outside)
    shutil.copy(program, inside / "program")

    def run(path: str) -> None:
        subprocess.run([program, "exec", str(execs), "0", path, "nothing"], stdout=subprocess.DEVNULL, check=True)

    work: dict[str, tuple[Callable[[], object], int]] = {
        "file outside": (lambda: change_many(outside, files), files),
        "file inside": (lambda: change_many(inside, files), files),
        "program outside": (lambda: run(program), execs),
        "program inside": (lambda: run(str(inside / "program")), execs),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(count):
        costs = []
        for watched in (None, inside):
            async with recording(watched):
                costs.append({name: children_seconds(each) / number for name, (each, number) in work.items()})
                await asyncio.sleep(WINDOW_SECONDS)
        for name in work:
            measured[name].append((costs[0][name], costs[1][name]))
    table = Table("", "not watched, µs", "watched, median", "quartiles", "lowest, highest")
    for name, results in measured.items():
        ratios = sorted(watched / plain - 1 for plain, watched in results)
        low, _, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            name,
            f"{statistics.median(plain for plain, _ in results) * 1e6:.1f}",
            f"{statistics.median(ratios):+.1%}",
            f"{low:+.1%} to {high:+.1%}",
            f"{ratios[0]:+.1%}, {ratios[-1]:+.1%}",
        )
    Console(width=140).print(table)


async def agent_side(place: Path, seconds: float) -> tuple[float, dict[str, float], float]:
    async with recording(place) as (directory, pid):
        await asyncio.sleep(3)
        own, (launcher, watcher) = pid, helpers(pid)
        rest = {"agent": -processor_seconds(own), "helper": -processor_seconds(watcher, launcher)}
        await asyncio.sleep(seconds)
        rest = {"agent": rest["agent"] + processor_seconds(own), "helper": rest["helper"] + processor_seconds(watcher)}
        begun = {"agent": processor_seconds(own), "helper": processor_seconds(watcher, launcher)}
        writer = children_seconds(lambda: change_paced(place, seconds))
        await asyncio.sleep(WINDOW_SECONDS + 1)
        used = {
            "agent": processor_seconds(own) - begun["agent"] - rest["agent"],
            "helper": processor_seconds(watcher, launcher) - begun["helper"] - rest["helper"],
        }
        ((rows,),) = ask(
            directory, f"SELECT count(*) FROM files_events WHERE coalesce(path, old_path) GLOB '{place}/*'"
        )
        memory = proportional_kb(watcher) + proportional_kb(launcher)
        print(f"process that watches, and its launcher: {memory / 1024:.1f} MB PSS")
    return writer, used, 1 - rows / (int(seconds * FILES_PER_SECOND) * EVENTS_PER_FILE)


@contextmanager
def audit_daemon(directory: Path, place: Path) -> Iterator[tuple[list[int], Path]]:
    """auditd with a log of its own and one rule; its pids and its log. Puts the kernel's settings back."""
    log = directory / "audit.log"
    configuration = directory / "auditd"
    configuration.mkdir(exist_ok=True)
    settings = Path("/etc/audit/auditd.conf").read_text().replace("/var/log/audit/audit.log", str(log))
    settings = settings.replace("max_log_file = 8", "max_log_file = 1000")
    (configuration / "auditd.conf").write_text(settings)
    (configuration / "auditd.conf").chmod(0o640)
    status = subprocess.run(["auditctl", "-s"], check=True, capture_output=True, text=True).stdout
    before = dict(line.split(maxsplit=1) for line in status.splitlines() if " " in line)
    daemon = subprocess.Popen(["auditd", "-n", "-c", configuration], stdout=subprocess.DEVNULL)
    rule = ["-w", str(place), "-p", "wa", "-k", "files-benchmark"]
    try:
        time.sleep(1)
        subprocess.run(["auditctl", "-b", "8192"], check=True, capture_output=True)
        subprocess.run(["auditctl", *rule], check=True)
        kernel = int(subprocess.run(["pgrep", "-x", "kauditd"], check=True, capture_output=True, text=True).stdout)
        yield [daemon.pid, kernel], log
        status = subprocess.run(["auditctl", "-s"], check=True, capture_output=True, text=True).stdout
        if f"pid {daemon.pid}\n" not in status or "enabled 1\n" not in status:
            raise RuntimeError(f"another program has changed the audit settings meanwhile: {status}")
    finally:
        subprocess.run(["auditctl", "-W", *rule[1:]], check=True)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        for flag, name in (("-b", "backlog_limit"), ("-e", "enabled")):
            subprocess.run(["auditctl", flag, before[name]], check=True, capture_output=True)


def audit_side(directory: Path, place: Path, seconds: float) -> tuple[float, dict[str, float], float]:
    with audit_daemon(directory, place) as ((daemon, kernel), log):
        begun = processor_seconds(daemon), processor_seconds(kernel)
        writer = children_seconds(lambda: change_paced(place, seconds))
        time.sleep(1)
        used = {"auditd": processor_seconds(daemon) - begun[0], "kauditd": processor_seconds(kernel) - begun[1]}
    calls = [
        line for line in log.read_text().splitlines() if "type=SYSCALL" in line and 'key="files-benchmark"' in line
    ]
    log.unlink()
    return writer, used, 1 - len(calls) / (int(seconds * FILES_PER_SECOND) * AUDIT_CALLS_PER_FILE)


def inotify_side(directory: Path, place: Path, seconds: float) -> tuple[float, dict[str, float], float]:
    output = directory / "inotify"
    events = "create,close_write,attrib,moved_to,delete"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["inotifywait", "-q", "-m", "-r", "-e", events, str(place)], stdout=file, stderr=subprocess.DEVNULL
        )
        time.sleep(1)
        writer = children_seconds(lambda: change_paced(place, seconds))
        time.sleep(1)
        used = {"inotifywait": processor_seconds(process.pid)}
        process.terminate()
        process.wait()
    shown = len(output.read_text().splitlines())
    return writer, used, 1 - shown / (int(seconds * FILES_PER_SECOND) * EVENTS_PER_FILE)


async def compared(directory: Path, place: Path, seconds: float, rounds: int) -> None:
    files = int(seconds * FILES_PER_SECOND)
    results: dict[str, list[tuple[float, dict[str, float], float]]] = {}
    for _ in range(rounds):
        plain = children_seconds(lambda: change_paced(place, seconds))
        results.setdefault("nothing", []).append((plain, {}, 0.0))
        results.setdefault("agent", []).append(await agent_side(place, seconds))
        if shutil.which("auditd") and shutil.which("auditctl"):
            results.setdefault("auditd", []).append(await asyncio.to_thread(audit_side, directory, place, seconds))
        if shutil.which("inotifywait"):
            results.setdefault("inotifywait", []).append(
                await asyncio.to_thread(inotify_side, directory, place, seconds)
            )
    table = Table("1,000 events/s", "writer, µs per file", "µs per event", "lost")
    for name, each in results.items():
        writers = sorted(writer / files * 1e6 for writer, _, _ in each)
        parts = []
        for part in each[0][1]:
            costs = sorted(used[part] / files / EVENTS_PER_FILE * 1e6 for _, used, _ in each)
            parts.append(f"{part} {statistics.median(costs):.0f} ({costs[0]:.0f}-{costs[-1]:.0f})")
        lost = [f"{one:.2%}" for _, _, one in each]
        spread = f"{statistics.median(writers):.0f} ({writers[0]:.0f}-{writers[-1]:.0f})"
        table.add_row(name, spread, ", ".join(parts), ", ".join(sorted(set(lost))))
    Console(width=140).print(table)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--execs", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        outside, inside = Path(directory, "outside"), Path(directory, "inside")
        outside.mkdir()
        inside.mkdir()
        if options.pairs:
            await pairs((outside, inside), options.pairs, options.files, options.execs)
        if options.rounds:
            await compared(Path(directory), inside, options.seconds, options.rounds)


if __name__ == "__main__":
    asyncio.run(main())
