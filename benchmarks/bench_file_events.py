"""What file events cost: processes that write files outside and inside of watched directories, and the agent.

python benchmarks/bench_file_events.py [--pairs N] [--files N]

Interleaved pairs, CPU time of the writing process (user and system), with and without the watch; then the agent's side.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from watching import watching, watching_processes

from zeek_agent import files_defaults


def write(place: Path, files: int) -> float:
    """CPU seconds of a process that creates, writes, changes, renames and removes so many files."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.fork()
    if pid == 0:
        for number in range(files):
            path = f"{place}/{number}"
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b"x")
            os.close(descriptor)
            os.chmod(path, 0o600)  # noqa: PTH101
            os.rename(path, path + "r")  # noqa: PTH104
            os.unlink(path + "r")  # noqa: PTH108
        os._exit(0)
    os.waitpid(pid, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pair(place: Path, files: int, watched: tuple[str, ...]) -> tuple[float, float]:
    """CPU seconds without the watch, and with it."""
    without = write(place, files)
    with watching(*watched) as _:
        return without, write(place, files)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--files", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "written"
        other = Path(directory) / "other"
        place.mkdir()
        other.mkdir()
        for name, watched in (
            ("outside, default watch", files_defaults.FILES_WATCH),
            ("inside", (str(place),)),
        ):
            write(place, options.files)
            pairs = [pair(place, options.files, watched) for _ in range(options.pairs)]
            plain = statistics.median(one for one, _ in pairs) / options.files
            ratios = sorted(other / one for one, other in pairs)
            print(
                f"{name}: {plain * 1e6:.1f} µs per file unwatched, watched {statistics.median(ratios) - 1:+.1%} "
                f"({ratios[0] - 1:+.1%} to {ratios[-1] - 1:+.1%})"
            )
        with watching(str(place)) as recording:
            watcher = watching_processes()[1]
            before, own = processor_seconds(watcher), sum(os.times()[:2])
            write(place, options.files)
            recording.expect("files_events", seconds=60, path=f"{place}/{options.files - 1}r", action="deleted")
            rows = len(recording.events("files_events"))
            print(
                f"watching process: {(processor_seconds(watcher) - before) / options.files * 1e6:.1f} µs per file, "
                f"{rows:,} rows; agent: {(sum(os.times()[:2]) - own) / options.files * 1e6:.1f} µs per file"
            )
        with watching(*files_defaults.FILES_WATCH) as recording:
            pids = watching_processes()
            source = recording.sources[1]
            print(
                f"default watch: {source._status.directories:,} directories, "  # type: ignore[attr-defined] # noqa: SLF001
                f"{sum(map(proportional_kb, pids)) / 1024:.1f} MB PSS in {len(pids)} processes"
            )


if __name__ == "__main__":
    main()
