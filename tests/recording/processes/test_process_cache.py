"""The process cache: facts by pid and time, also of processes that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zeek_agent.access import compile_regex
from zeek_agent.host.linux.procfs import Procfs
from zeek_agent.host.linux.procfs import ProcfsProcess as ShownProcess
from zeek_agent.host.linux.stamps import TICKS, start_ticks
from zeek_agent.masking.command_line import CommandLine
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.processes.proc_reader import read_process
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache

SECOND = 1_000_000_000
CHILD_WITH_A_LOWER_PID = """
import os, signal
from pathlib import Path

wanted = os.getpid() - 1
while True:
    wanted -= 1
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(wanted - 1))
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    if child < os.getpid():
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(child, flush=True)
signal.pause()
"""


def process(pid: int, started: int, since: int | None = None, exe: str = "/bin/one") -> Process:
    ticks = start_ticks(started)
    return Process(
        pid=pid,
        start_ticks=ticks,
        since=started if since is None else since,
        started=started,
        entity_id=f"boot-{pid}-{ticks}",
        name=exe.rpartition("/")[2],
        ppid=1,
        parent_entity_id=None,
        parent_name=None,
        parent_exe=None,
        uid=0,
        gid=0,
        ruid=0,
        rgid=0,
        exe=exe,
        command_line=CommandLine(exe),
        cwd="/",
        loginuid=None,
        session=None,
        cgroup="/",
        container_id=None,
        netns=1,
    )


def exe_at(cache: ProcessCache, pid: int, at: int | None = None, ticks: int | None = None) -> str | None:
    found = cache.lookup(pid, at, ticks)
    return found and found.exe


def test_attributes_are_those_of_the_requested_time() -> None:
    cache = ProcessCache()
    cache.begin(process(7, 10 * SECOND))
    cache.exec(process(7, 10 * SECOND, 20 * SECOND, "/bin/two"))
    assert exe_at(cache, 7, 15 * SECOND) == "/bin/one"
    assert exe_at(cache, 7, 20 * SECOND) == "/bin/two"
    assert exe_at(cache, 7) == "/bin/two"
    assert exe_at(cache, 7, 5 * SECOND) is None


def test_a_pid_that_is_used_again_is_another_process() -> None:
    cache = ProcessCache()
    cache.begin(process(7, 10 * SECOND))
    cache.exit(7, 11 * SECOND)
    cache.begin(process(7, 30 * SECOND, exe="/bin/other"))
    assert exe_at(cache, 7, 12 * SECOND, start_ticks(10 * SECOND)) == "/bin/one"
    assert exe_at(cache, 7, 31 * SECOND, start_ticks(10 * SECOND)) == "/bin/one"
    assert exe_at(cache, 7, 31 * SECOND) == "/bin/other"
    assert exe_at(cache, 7, ticks=start_ticks(20 * SECOND)) is None


def test_a_process_whose_end_was_missed_ends_when_its_pid_is_reused() -> None:
    cache = ProcessCache()
    cache.begin(process(7, 10 * SECOND))
    first = cache.lookup(7)
    cache.begin(process(7, 30 * SECOND))
    assert first is not None
    assert (first.until, first.exited) == (30 * SECOND, True)


def test_a_process_ends_once() -> None:
    cache = ProcessCache()
    cache.begin(process(7, 10 * SECOND))
    assert cache.exit(7, 11 * SECOND, start_ticks(30 * SECOND)) is None
    assert cache.exit(7, 11 * SECOND) is not None
    assert cache.exit(7, 12 * SECOND) is None


def test_exited_processes_are_kept_for_the_grace_period_only() -> None:
    cache = ProcessCache(grace_seconds=60)
    cache.begin(process(7, 10 * SECOND))
    cache.begin(process(8, 10 * SECOND))
    cache.exit(7, 20 * SECOND)
    cache.expire(79 * SECOND)
    assert exe_at(cache, 7) == "/bin/one"
    cache.expire(81 * SECOND)
    assert exe_at(cache, 7) is None
    assert exe_at(cache, 8) == "/bin/one"
    assert len(cache) == 1


def test_exited_processes_are_bounded_in_number() -> None:
    cache = ProcessCache(exited_limit=100)
    for pid in range(1000):
        cache.begin(process(pid, pid * SECOND))
        cache.exec(process(pid, pid * SECOND, pid * SECOND + 1, "/bin/two"))
        cache.exit(pid, pid * SECOND + 2)
    assert len(cache) == 100
    assert exe_at(cache, 999) == "/bin/two"
    assert exe_at(cache, 900) is None


def test_processes_in_proc_are_cached_from_the_start() -> None:
    cache = ProcessCache()
    cache.seed()
    own = cache.lookup(os.getpid())
    assert own is not None
    with ShownProcess(Procfs(), os.getpid()) as shown:
        for name in ("pid", "ppid", "uid", "ruid", "exe", "cwd", "cgroup", "netns", "entity_id", "parent_entity_id"):
            assert getattr(own, name) == getattr(shown, name)
    assert own.started == own.start_ticks * SECOND // TICKS


def test_processes_that_are_gone_from_proc_end() -> None:
    cache = ProcessCache()
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        cache.find(sleeping.pid)
        cache.find(os.getpid())
        sleeping.kill()
    cache.reconcile()
    gone, here = cache.lookup(sleeping.pid), cache.lookup(os.getpid())
    assert gone is not None
    assert here is not None
    assert (gone.exited, here.exited) == (True, False)


def test_a_thread_and_an_unknown_pid_are_not_processes() -> None:
    assert read_process(2**22 + 1, Masker()) is None
    cache = ProcessCache()
    assert cache.find(os.getpid(), ticks=1) is None
    assert cache.find(os.getpid()) is not None


def test_command_lines_are_masked_before_they_are_kept() -> None:
    cache = ProcessCache(masker=Masker(compile_regex("secret|60")))
    assert cache.command_line(b"login\0secret\0") == CommandLine("login\0***")
    assert cache.command_line(b"login\0", cut=True) == CommandLine("login", cut=True)
    assert cache.command_line(b"\0") == CommandLine("")
    assert cache.command_line(b"") is None
    with subprocess.Popen(["sleep", "60"], env={"secret": "secret"}) as sleeping:
        arguments = Path(f"/proc/{sleeping.pid}/cmdline")
        while not arguments.read_bytes():  # Popen returns a moment before an exec is complete
            time.sleep(0.001)
        found = cache.find(sleeping.pid)
        sleeping.kill()
    assert found is not None
    assert found.command_line == CommandLine("sleep\0***")


@pytest.mark.root
def test_a_parent_with_a_higher_pid_is_found_too() -> None:
    """As it is once the kernel has begun to count its pids anew."""
    with subprocess.Popen([sys.executable, "-c", CHILD_WITH_A_LOWER_PID], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        cache = ProcessCache()
        cache.seed()
        parent.kill()
        os.kill(child, signal.SIGKILL)
    found, above = cache.lookup(child), cache.lookup(parent.pid)
    assert child < parent.pid
    assert found is not None
    assert above is not None
    assert (found.parent_entity_id, found.parent_name) == (above.entity_id, above.name)
