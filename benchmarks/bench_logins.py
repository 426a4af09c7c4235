"""What recorded logins cost: failed logins at a rate, read from the file of a syslog daemon, and auditd for comparison.

python benchmarks/bench_logins.py [--rate N] [--seconds N] [--pairs N] [--backend combined] [--btmp] [--auditd]

Interleaved pairs of time without logins and with them; CPU time (user and system) of the agent's main process, as root.
Each failed login is three lines, as sshd and PAM write them, with the ids of processes of sshd that handle connections.
With `--btmp`, it has a record there too. `--auditd` measures auditd, which writes the two records of each failed login
to its log.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from running_agent import RunningAgent, started
from ssh_host import PORT, SshHost, ssh_host
from waiting import until_sync

from zeek_agent.errors import ZeekAgentError

_TICK = os.sysconf("SC_CLK_TCK")
_RECORD = struct.Struct("=hxxi32s4s32s256shhiIi16s20x")
_CONNECTIONS = 200
_CONFIG = """
log_file = {directory}/audit.log
log_format = ENRICHED
flush = INCREMENTAL_ASYNC
freq = 50
max_log_file = 100
num_logs = 5
space_left = 75
admin_space_left = 50
"""


def lines(number: int, pid: int) -> str:
    """What sshd and PAM log for a wrong password."""
    head = f"{time.strftime('%b %e %H:%M:%S')} host sshd[{pid}]: "
    port = 1024 + number % 60_000
    return (
        f"{head}pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.7  "
        f"user=root\n{head}Failed password for root from 192.0.2.7 port {port} ssh2\n"
        f"{head}Connection closed by authenticating user root 192.0.2.7 port {port} [preauth]\n"
    )


def at_rate(rate: int, seconds: float, act: Callable[[int], None]) -> int:
    """Call `act` with numbers at this rate, every 10 ms. Returns how often."""
    begun, done = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        for number in range(done, int(passed * rate)):
            act(number)
        done = max(done, int(passed * rate))
        time.sleep(0.01)
    return done


def count(agent: RunningAgent) -> int:
    try:
        return int(agent.query('SELECT count(*) AS "n:count" FROM logins_events')[0]["n"])
    except ZeekAgentError:
        return -1


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def report(name: str, pairs: list[tuple[float, float, int]]) -> None:
    """Print microseconds per login: those with logins less those of the same time without."""
    costs = sorted((loaded - idle) / done * 1e6 for idle, loaded, done in pairs)
    shares = sorted(loaded for _, loaded, _ in pairs)
    print(
        f"{name}: {statistics.median(costs):.0f} µs per failed login ({costs[0]:.0f} to {costs[-1]:.0f}), "
        f"{statistics.median(shares):.2f} s of CPU time with logins"
    )


def measure_agent(host: SshHost, directory: Path, options: argparse.Namespace) -> None:
    log, btmp = host.root / "var/log/auth.log", host.root / "var/log/btmp"
    log.touch()
    host.start_sshd("MaxStartups 1000\nLoginGraceTime 0")
    connect = "import signal, socket\nkept = [socket.create_connection(('127.0.0.1', %d)) for _ in range(%d)]\n"
    client = subprocess.Popen([*host.prefix, sys.executable, "-c", connect % (PORT, _CONNECTIONS) + "signal.pause()"])
    server = int((host.directory / "sshd.pid").read_text())
    children = Path(f"/proc/{server}/task/{server}/children")
    pids = until_sync(lambda: len(found := children.read_text().split()) >= _CONNECTIONS and found, 120)
    settings = {"sources.logins": options.backend, "sources.system_logs": "off", "events.retention_bytes": 1 << 30}
    with (
        started(directory, prefix=host.prefix, settings=settings) as agent,
        log.open("a", buffering=1 << 20) as file,
        btmp.open("ab", buffering=1 << 20) as records,
    ):
        until_sync(lambda: count(agent) >= 0, 60)

        def act(number: int) -> None:
            file.write(lines(number, int(pids[number % len(pids)])))
            file.flush()
            if options.btmp:
                texts = b"ssh:notty", b"", b"root", b"192.0.2.7"
                records.write(
                    _RECORD.pack(
                        6, int(pids[number % len(pids)]), *texts, 0, 0, 0, int(time.time()), 0, bytes([192, 0, 2, 7])
                    )
                )
                records.flush()

        def settle() -> float:
            time.sleep(4)
            return agent.cpu_seconds()

        pairs, wanted = [], 0
        for _ in range(options.pairs):
            before = agent.cpu_seconds()
            time.sleep(options.seconds)
            between = settle()
            done = at_rate(options.rate, options.seconds, act)
            wanted += done
            pairs.append((between - before, settle() - between, done))
        until_sync(lambda: count(agent) >= wanted, 120, lambda: f"{count(agent):,} of {wanted:,}")
        (source,) = agent.query("SELECT * FROM zeek_agent_sources WHERE source = 'logins' AND active")
        lost = {name: value for name, value in source.items() if name.startswith("lost_")}
        report(f"agent, {options.backend}, {options.rate:,}/s", pairs)
        client.kill()
        client.wait()
        print(f"{count(agent):,} rows for {wanted:,} failed logins; {lost}; {agent.resident() / 1e6:.0f} MB resident")


@contextmanager
def auditd(directory: Path) -> Iterator[int]:
    """auditd with a log of its own, and audit enabled meanwhile."""
    (directory / "auditd.conf").write_text(_CONFIG.format(directory=directory))
    (directory / "plugins.d").mkdir()
    enabled = "enabled 1" in subprocess.run(["auditctl", "-s"], check=True, capture_output=True, text=True).stdout
    with subprocess.Popen(["/usr/sbin/auditd", "-n", "-s", "enable", "-c", str(directory)]) as daemon:
        try:
            until_sync((directory / "audit.log").exists, 20)
            yield daemon.pid
        finally:
            daemon.terminate()
            daemon.wait()
            subprocess.run(["auditctl", "-e", str(int(enabled))], check=True, capture_output=True)


def measure_auditd(directory: Path, options: argparse.Namespace) -> None:
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)

    def act(number: int) -> None:
        origin = 'exe="/usr/sbin/sshd" hostname=192.0.2.7 addr=192.0.2.7 terminal=ssh res=failed'
        for kind, what in ((1100, 'op=PAM:authentication grantors=? acct="root" '), (1112, 'op=login acct="root" ')):
            text = f"{what}{origin}\0".encode()
            channel.send(struct.pack("=IHHII", 16 + len(text), kind, 1, number, 0) + text)

    with auditd(directory) as pid:
        pairs = []
        for _ in range(options.pairs):
            before = processor_seconds(pid)
            time.sleep(options.seconds)
            between = processor_seconds(pid)
            done = at_rate(options.rate, options.seconds, act)
            time.sleep(1)
            pairs.append((between - before, processor_seconds(pid) - between, done))
    written = (directory / "audit.log").read_bytes().count(b"type=USER_LOGIN")
    report(f"auditd, {options.rate:,}/s", pairs)
    print(f"{written:,} records of {sum(done for _, _, done in pairs):,} failed logins in its log")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--backend", choices=("combined", "syslog"), default="syslog")
    parser.add_argument("--btmp", action="store_true")
    parser.add_argument("--auditd", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if options.auditd:
            measure_auditd(Path(directory), options)
            return
        with ssh_host(Path(directory) / "host", "none") as host:
            measure_agent(host, Path(directory), options)


if __name__ == "__main__":
    main()
