"""Each event source with exactly the capabilities that it is declared to need, and without each one of them."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.required_capabilities import REQUIRED

pytestmark = pytest.mark.root
NOBODY = 65534
PROGRAM = """
import json, os, subprocess, sys, time
import msgspec
from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.recording_position import RecordingPosition
from zeek_agent.recording.registry import candidates

kind, backend = sys.argv[1:]
settings = msgspec.structs.replace(SourceSettings(), snapshot_interval=0.1, audit_rules=backend == "audit")
(source,) = [one for one in candidates(settings)[kind] if one.backend == backend]
reason = source.probe()
rows = []
if reason is None:
    source.resume(lambda table, rows=1: RecordingPosition())
    try:
        source.start(lambda table, new: rows.extend(new))
    except OSError as error:
        reason = str(error)
if reason is None:
    sys.stdout.write("started\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    source.drain()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        time.sleep(0.1)
    source.stop()
found = [
    {name: str(getattr(row, name, None) or "") for name in ("pid", "exe")}
    for row in rows
]
print(json.dumps({"reason": reason, "error": source.failure or source.counters.last_error, "rows": found}))
"""
ACTOR = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
print("connected", flush=True)
sys.stdin.readline()
"""
"""A process of another user that connects and stays."""


def result(kind: str, backend: str, *names: str) -> dict[str, object]:
    """What the source reports with these capabilities while another user's process starts and connects."""
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    mounting = 'test -e /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing; exec "$@"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        mounting,
        "sh",
        "setpriv",
        f"--bounding-set={bounding}",
        "--no-new-privs",
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, sys.executable, "-c", PROGRAM, kind, backend], **pipes) as source:  # type: ignore[call-overload]
        first = source.stdout.readline()
        if first != "started\n":
            source.stdin.close()
            return dict(json.loads(first))
        actor = subprocess.Popen(["/usr/bin/python3", "-c", ACTOR], user=NOBODY, group=NOBODY, extra_groups=[], **pipes)  # type: ignore[call-overload]
        with actor:
            actor.stdout.readline()
            output, _ = source.communicate("\n")
            actor.communicate("\n")
    answer = dict(json.loads(output))
    answer["rows"] = [row for row in answer["rows"] if row["pid"] == str(actor.pid)]
    answer["exe"] = any(Path(row["exe"]).name.startswith("python") for row in answer["rows"])
    return answer


def works(kind: str, answer: dict[str, object]) -> bool:
    """Whether nothing is missing but other network namespaces, which only CAP_SYS_ADMIN can enter."""
    if answer["reason"] or not str(answer["error"] or "network namespace").startswith("network namespace"):
        return False
    return bool({"processes": answer.get("exe"), "sockets": answer.get("rows")}.get(kind, True))


def usable() -> list[tuple[str, str]]:
    return sorted((kind, backend) for kind, backend in REQUIRED if backend not in ("journal", "syslog", "fanotify"))


def test_every_source_is_declared() -> None:
    declared = {(kind, one.backend) for kind, sources in candidates(SourceSettings()).items() for one in sources}
    assert declared <= set(REQUIRED)


@pytest.mark.long(kept=6)
@pytest.mark.parametrize(("kind", "backend"), usable())
def test_a_source_works_with_its_capabilities(kind: str, backend: str) -> None:
    answer = result(kind, backend, *(one.name for one in REQUIRED[kind, backend]))
    if answer["reason"]:
        (whole,) = [one for one in candidates(SourceSettings())[kind] if one.backend == backend]
        if whole.probe() is not None:
            pytest.skip(f"not possible here: {answer['reason']}")
    assert works(kind, answer), answer


OF_CLOSED_SOCKETS = {("sockets", "inet_diag", "NET_ADMIN")}
"""The kernel's reports of closed sockets need it; here all stay open."""
ONLY_BEFORE_LINUX_6_6 = {("processes", "proc_connector", "NET_ADMIN")}
OF_RUNNING_PROCESSES = {
    *(("processes", backend, "SYS_PTRACE") for backend in ("ebpf", "audit")),
    *(("sockets", "ebpf", name) for name in ("SYS_PTRACE", "DAC_READ_SEARCH")),
}
"""Events name the process themselves; these are needed for what was running before, which `/proc` shows."""


@pytest.mark.long(kept=6)
@pytest.mark.parametrize(
    ("kind", "backend", "name"),
    [(kind, backend, one.name) for kind, backend in usable() for one in REQUIRED[kind, backend]],
)
def test_without_one_of_them_a_source_has_less(kind: str, backend: str, name: str) -> None:
    if (kind, backend, name) in OF_RUNNING_PROCESSES:
        pytest.skip("the event itself has it; the snapshots' cases show that /proc does not")
    if (kind, backend, name) in OF_CLOSED_SOCKETS:
        pytest.skip("needed when sockets are closed, which is not tried here")
    if (kind, backend, name) in ONLY_BEFORE_LINUX_6_6 and kernel_version() >= (6, 6):
        pytest.skip("not needed by this kernel")
    names = [one.name for one in REQUIRED[kind, backend] if one.name != name]
    assert not works(kind, result(kind, backend, *names))


def kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
