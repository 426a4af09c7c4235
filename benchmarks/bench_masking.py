"""What masking command lines costs per exec: without it, for ordinary lines, and for lines that hold a secret.

    python benchmarks/bench_masking.py [--records FILE] [--rounds 20]

Needs root: real records of programs with these arguments are taken from the ring once (and kept in FILE), then decoded
and stored again and again, as the agent does. Prints µs of processor time per exec.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from zeek_agent.bpf.records import RecordKind
from zeek_agent.config.sections import EventSettings
from zeek_agent.events.store import EventStore
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.bpf_monitor import BpfMonitor, RecordStream
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import process_event
from zeek_agent.recording.processes.process_tracker import ProcessTracker
from zeek_agent.tables.events import TABLES

ORDINARY = """
/bin/sh -c 'test -x /usr/sbin/anacron || run-parts --report /etc/cron.hourly'
cat /proc/loadavg
ls --color=auto -l /var/log
sed -e s/foo/bar/ -n /etc/fstab
git status --porcelain=v2 --branch
cc -O2 -Wall -I/usr/include/glib-2.0 -c -o build/main.o src/main.c
/usr/bin/python3 /usr/share/unattended-upgrades/unattended-upgrade-shutdown --wait-for-signal
sleep 60
grep -q ^processor /proc/cpuinfo
/usr/sbin/logrotate /etc/logrotate.conf
systemctl is-active sshd.service
/usr/lib/systemd/systemd-udevd --daemon
ps -eo pid,ppid,comm,args --sort=-pcpu
node /srv/app/server.js --port 8080 --workers 4
java -Xms512m -Xmx2g -XX:+UseG1GC -cp /opt/app/lib/a.jar:/opt/app/lib/b.jar com.example.Main --config /etc/app.yml
rsync -a --delete /srv/data/ backup:/srv/data/
"""
SECRET = """
mysql -h db -u app -phunter2 app
curl -sS -u alice:hunter2 https://example.com/api
env AWS_SECRET_ACCESS_KEY=hunter2 aws s3 ls
/bin/sh -c 'mysqldump --password="hunter2" app | gzip > /srv/app.sql.gz'
"""
REPEATED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench_masking: needs root")
        return
    records = kept(options.records)
    print(f"{'arguments':32} {'execs':>6} {'µs each':>8}")
    measure("ordinary, masking off", records["ordinary"], Masker(enabled=False), options.rounds)
    measure("ordinary", records["ordinary"], Masker(), options.rounds)
    measure("with a secret, masking off", records["secret"], Masker(enabled=False), options.rounds)
    measure("with a secret", records["secret"], Masker(), options.rounds)


def kept(path: Path | None) -> dict[str, list[bytes]]:
    """The records, from the file if there is one."""
    if path is not None and path.exists():
        found: dict[str, list[bytes]] = pickle.loads(path.read_bytes())
        return found
    records = {"ordinary": record(ORDINARY), "secret": record(SECRET)}
    if path is not None:
        path.write_bytes(pickle.dumps(records))
    return records


def record(lines: str) -> list[bytes]:
    """Records of processes that start with these arguments and stop; the program itself is always true(1)."""
    monitor = BpfMonitor(ProcessCache())
    monitor.on_change = lambda changes: None
    monitor.open()
    records: list[bytes] = []
    assert monitor._processes is not None  # noqa: SLF001
    keep(monitor._processes, records)  # noqa: SLF001
    for line in lines.strip().splitlines() * REPEATED:
        subprocess.run(shlex.split(line), executable="/bin/true", check=True)
    monitor.drain()
    monitor.close()
    return records


def keep(stream: RecordStream, records: list[bytes]) -> None:
    """Also put a stream's records into a list."""
    handle = stream.handle

    def both(batch: list[bytes]) -> None:
        records.extend(batch)
        handle(batch)

    stream.handle = both


def measure(name: str, records: list[bytes], masker: Masker, rounds: int) -> None:
    """One line of the table."""
    cache = ProcessCache(masker=masker)
    execs = sum(record[0] == RecordKind.EXEC for record in records) or len(records)
    with tempfile.TemporaryDirectory() as directory:
        store = EventStore(Path(directory) / "events.db", TABLES, EventSettings(queue_rows=10_000_000))

        def run() -> None:
            changes = ProcessTracker(cache).apply(records)
            store.append("processes_events", [process_event(process, at, 0.0, ended) for process, at, ended in changes])

        run()
        store.flush()
        started = time.process_time()
        for _ in range(rounds):
            run()
        store.flush()
        each = (time.process_time() - started) / rounds / execs
        store.close()
    print(f"{name:32} {execs:6} {each * 1e6:8.2f}")


if __name__ == "__main__":
    main()
