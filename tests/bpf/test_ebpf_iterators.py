"""Processes and sockets' holders by BPF iterators, compared with /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from btf import Btf
from children import child
from test_ebpf_layouts import DIRECTORY, fields

from zeek_agent.bpf import records
from zeek_agent.bpf.iterators import Iterators, Task, why_no_iterators
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess, socket_holders

pytestmark = pytest.mark.root
CHANGING = {"utime", "stime", "disk_read", "disk_written", "rsize", "vsize", "state", "threads", "name"}


@pytest.fixture(scope="module")
def iterators() -> Iterator[Iterators]:
    reason = why_no_iterators()
    if reason is not None:
        pytest.skip(reason)
    iterators = Iterators()
    yield iterators
    iterators.close()


def task(iterators: Iterators, pid: int) -> Task:
    (found,) = (task for task in iterators.tasks() if task.pid == pid)
    return found


def test_all_processes_have_the_facts_that_proc_shows(iterators: Iterators) -> None:
    same = [name for name in Task.__dataclass_fields__ if name not in CHANGING]

    def compare() -> tuple[int, list[tuple[dict[str, object], dict[str, object]]]]:
        """How many processes are the same in both, and the facts of those that are not."""
        compared, different = 0, []
        tasks = iterators.tasks()
        assert [task.pid for task in tasks] == sorted(task.pid for task in tasks)
        for found in tasks:
            try:
                with ProcfsProcess(Procfs(), found.pid) as shown:
                    facts = {name: getattr(shown, name) for name in same}
            except ProcessLookupError:
                continue
            if facts["exe"] != found.exe or found.state == "zombie":
                continue  # it executed something meanwhile, or is gone but for its number
            if facts["exe_mntns"] is None:  # not among the mounts of the agent and of the process
                found.exe_mntns = None
            if (told := {name: getattr(found, name) for name in same}) != facts:
                different.append((told, facts))
            compared += 1
        return compared, different

    for _ in range(5):  # a process may change between the two looks
        compared, different = compare()
        if not different:
            break
    assert not different
    assert compared >= 10


def test_process_one_and_the_own_one_are_there(iterators: Iterators) -> None:
    pids = {task.pid for task in iterators.tasks()}
    assert {1, os.getpid()} <= pids


def test_a_sleeping_process_has_the_same_sizes_and_times(iterators: Iterators) -> None:
    with subprocess.Popen(["sleep", "2"], cwd="/usr") as sleeping:
        time.sleep(0.1)
        found = task(iterators, sleeping.pid)
        with ProcfsProcess(Procfs(), sleeping.pid) as shown:
            for name in ("name", "vsize", "rsize", "state", "threads", "tty", "start_time", "arguments"):
                assert getattr(found, name) == getattr(shown, name)
            assert found.utime + found.stime == pytest.approx(shown.utime + shown.stime, abs=0.02)
        sleeping.kill()
    assert found.cwd == "/usr"
    with pytest.raises(ProcessLookupError):
        _ = found.arguments


def test_what_threads_write_to_disk_is_the_processs(iterators: Iterators, tmp_path: Path) -> None:
    def write(name: str) -> None:
        with (tmp_path / name).open("wb") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())

    def work() -> None:
        write("of the main thread")
        ended = threading.Thread(target=write, args=("of a thread that has ended",))
        ended.start()
        ended.join()
        written = threading.Event()
        threading.Thread(target=lambda: (write("of another thread"), written.set(), time.sleep(600))).start()
        written.wait()
        (tmp_path / "of the main thread").unlink()  # does not change what has been written

    with child(work) as pid:
        found = task(iterators, pid)
        with ProcfsProcess(Procfs(), pid) as shown:
            assert (found.disk_read, found.disk_written) == (shown.disk_read, shown.disk_written)
    assert found.disk_written is not None
    assert found.disk_written >= 3 << 20


def test_another_root_directory_is_shown(iterators: Iterators, tmp_path: Path) -> None:
    with child(lambda: os.chroot(tmp_path)) as pid:
        found = task(iterators, pid)
        with ProcfsProcess(Procfs(), pid) as shown:
            assert found.root == shown.root == str(tmp_path)


def test_threads_count_and_their_time_is_the_processs(iterators: Iterators) -> None:
    def burn() -> None:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    done = threading.Event()
    threads = [threading.Thread(target=lambda: (burn(), done.wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    found = task(iterators, os.getpid())
    used = time.process_time()
    done.set()
    assert found.threads >= 3
    assert found.utime + found.stime == pytest.approx(used, abs=0.05)


def test_a_zombie_is_one(iterators: Iterators) -> None:
    with subprocess.Popen(["true"]) as process:
        time.sleep(0.2)
        found = task(iterators, process.pid)
    assert (found.state, found.exe) == ("zombie", None)


def test_holders_of_sockets_are_those_that_proc_shows(iterators: Iterators) -> None:
    with socket.socket() as shared, socket.socket() as twice:
        again = os.dup(twice.fileno())
        inodes = [os.fstat(each.fileno()).st_ino for each in (shared, twice)]
        with subprocess.Popen(["sleep", "2"], pass_fds=[shared.fileno()]) as child:
            holders = iterators.socket_holders()
            both = sorted([os.getpid(), child.pid])
            shown = socket_holders("/proc", both)
            only = iterators.socket_holders({child.pid})
            child.kill()
        os.close(again)
        assert holders[inodes[0]] == [(pid, shared.fileno()) for pid in both]
        assert holders[inodes[1]] == [(os.getpid(), twice.fileno())]
        assert {inode: holders[inode] for inode in inodes} == {inode: shown[inode] for inode in inodes}
        assert only == {inodes[0]: [(child.pid, shared.fileno())]}


def test_repeated_scans_leave_no_descriptors_open(iterators: Iterators) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        iterators.tasks()
        iterators.socket_holders()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_layouts(iterators: Iterators) -> None:
    btf = Btf(DIRECTORY / "iterators.bpf.o")
    for name, layout in [("task_record", records.TASK), ("holder_record", records.HOLDER)]:
        structure = btf.structure(name)
        leaves = [(at, size) for field, at, size in btf.leaves(structure) if field != "reserved"]
        assert leaves == fields(layout)
        assert structure.size == layout.size


def test_the_executable_of_this_process(iterators: Iterators) -> None:
    assert task(iterators, os.getpid()).exe == str(Path(sys.executable).resolve())
