"""`zeek-agent gateway` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def gateway_program(
    nats_url: str,
    zeek_url: str,
    name: str,
    directory: Path,
    *,
    cluster: str = "zeeks",
    settings: tuple[str, ...] = (),
    prefix: Sequence[str] = (),
    configuration: str = os.devnull,
) -> Iterator[subprocess.Popen[bytes]]:
    """It logs to `NAME.log` in the directory, and serves metrics at `NAME.sock`."""
    options = [
        part for setting in (f"metrics.listen=unix:{directory / name}.sock", *settings) for part in ("--set", setting)
    ]
    command = [
        *prefix, sys.executable, "-m", "zeek_agent", "gateway", "--zeek", zeek_url, "--nats", nats_url,
        "--cluster", cluster, "--name", name, *options,
    ]  # fmt: skip
    with (directory / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "ZEEK_AGENT_CONFIG": configuration}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def memory_bytes(pid: int, what: str = "VmRSS") -> int:
    """Resident memory of a process, or its maximum (`VmHWM`)."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
