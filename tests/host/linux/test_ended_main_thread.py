"""Processes whose main thread has ended while other threads run: everything is read from the oldest living one."""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from children import child, without_main_thread
from recording import Recording
from waiting import until_sync

from zeek_agent.bpf.iterators import Task
from zeek_agent.config.sections import SourceSettings
from zeek_agent.containment import usage
from zeek_agent.containment.needs import sock_diag_of
from zeek_agent.host.linux.procfs import (
    Procfs,
    ProcfsProcess,
    living_directory,
    network_namespace,
    socket_holders,
)
from zeek_agent.recording.audit import audit
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_lifecycle import ProcessLifecycle
from zeek_agent.recording.snapshots import ProcessSnapshots
from zeek_agent.recording.sockets.socket_owners import SocketOwners
from zeek_agent.recording.sockets.socket_polling import SocketPolling
from zeek_agent.tables.file_hashes import file_hashes
from zeek_agent.tables.process_tree import process_tree
from zeek_agent.tables.processes import processes
from zeek_agent.tables.sockets import listening_ports, sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
root = pytest.mark.root

PYTHON = str(Path(sys.executable).resolve())
SAME = ("exe", "exe_device", "exe_inode", "exe_mntns", "cmdline", "cwd", "cgroup", "container_id", "netns", "loginuid")
"""Facts that the process inherits from the test."""
CHANGING = {"utime", "stime", "start_ticks"}
CLONE_NEWNET = 0x4000_0000


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def row_of(pid: int) -> dict[str, Any]:
    """Its row in a scan of all processes."""
    (row,) = (row for row in ask(processes) if row["pid"] == pid)
    return row


def holders_of(listener: socket.socket) -> list[dict[str, Any]]:
    """Its rows; ports are used in other network namespaces, too."""
    port, netns = listener.getsockname()[1], network_namespace("/proc", "self")
    rows = ask(sockets, state="LISTEN")
    return [row for row in rows if row["state"] == "LISTEN" and (row["local_port"], row["netns"]) == (port, netns)]


def enter_new_network() -> None:
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0


def test_processes_shows_what_the_living_threads_do(reader: str) -> None:
    with without_main_thread(threads=2) as pid:
        row, mine = row_of(pid), row_of(os.getpid())
        assert {name: row[name] for name in SAME} == {name: mine[name] for name in SAME}
        assert row["exe"] == PYTHON
        assert (row["state"], row["threads"]) == ("sleeping", 3)
        assert row["vsize"] > row["rsize"] > 0
        assert row["name"] == mine["name"]
        assert row["entity_id"] == ask(processes, pid=pid)[0]["entity_id"]
        assert ask(processes, pid=pid, columns=SAME)[0]["exe"] == PYTHON


def test_both_readers_show_the_same(reader: str) -> None:
    with without_main_thread() as pid:
        row = row_of(pid)
        with ProcfsProcess(Procfs(), pid) as shown:
            fields = [name for name in row if name in Task.__dataclass_fields__ and name not in CHANGING]
            assert {name: row[name] for name in fields} == {name: getattr(shown, name) for name in fields}


@root
def test_the_users_are_those_of_the_living_thread(reader: str) -> None:
    """Of the system calls for threads, of which the C library makes one of the process."""
    ready = threading.Event()

    def become_nobody() -> None:
        number = {"x86_64": (119, 117), "aarch64": (149, 147)}[os.uname().machine]
        libc = ctypes.CDLL(None)
        assert [libc.syscall(call, 65534, 65534, 65534) for call in number] == [0, 0]
        ready.set()
        time.sleep(600)

    def begin() -> None:
        threading.Thread(target=become_nobody).start()
        ready.wait()

    with without_main_thread(begin) as pid:
        row = row_of(pid)
        assert [row[name] for name in ("uid", "gid", "ruid", "rgid")] == 4 * [65534]


def test_a_process_all_of_whose_threads_have_ended_is_a_zombie(reader: str) -> None:
    with subprocess.Popen(["true"]) as ended:
        until_sync(lambda: b") Z " in Path(f"/proc/{ended.pid}/stat").read_bytes())
        row = row_of(ended.pid)
        with ProcfsProcess(Procfs(), ended.pid) as shown:
            assert shown.is_ending
    assert row["state"] == "zombie"
    assert [row[name] for name in ("exe", "exe_inode", "exe_mntns", "cwd", "cmdline")] == 5 * [None]


def test_it_holds_its_sockets(reader: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with without_main_thread() as pid, child() as sibling:
        held = {row["pid"]: row for row in holders_of(listener)}
        assert held.keys() == {os.getpid(), pid, sibling}
        assert held[pid]["fd"] == listener.fileno()
        assert [held[pid][name] for name in SAME[:4]] == [held[sibling][name] for name in SAME[:4]]
        assert held[pid]["exe"] == PYTHON
        assert [row["fd"] for row in ask(sockets, pid=pid) if row["local_port"] == port] == [listener.fileno()]
        assert pid in {row["pid"] for row in ask(listening_ports) if row["port"] == port}


def test_each_socket_has_one_row_per_process_whatever_its_threads(reader: str, listener: socket.socket) -> None:
    """The threads are listed one by one, with other processes between them."""
    with without_main_thread(threads=5) as pid:
        rows = [row["pid"] for row in holders_of(listener)]
    assert sorted(rows) == sorted({os.getpid(), pid})


@root
def test_sockets_in_a_network_of_its_own(reader: str) -> None:
    def listen() -> None:
        enter_new_network()
        listening = socket.create_server(("0.0.0.0", 4711))
        listening.detach()

    with without_main_thread(listen) as pid:
        (row,) = (row for row in ask(sockets) if row["pid"] == pid)
        assert (row["local_port"], row["netns"]) == (4711, row_of(pid)["netns"])
        assert row["netns"] != network_namespace("/proc", "self")
        with socket.socket(fileno=sock_diag_of(str(pid))) as channel:
            assert channel.family == socket.AF_NETLINK


def test_the_memory_of_a_worker_counts() -> None:
    with without_main_thread() as pid, child() as other:
        assert usage.memory(pid).peak == pytest.approx(usage.memory(other).peak, rel=0.5)


def test_its_executable_can_be_hashed() -> None:
    with without_main_thread() as pid:
        (row,) = ask(file_hashes, f"/proc/{pid}/exe")
    assert row["sha256"] == hashlib.sha256(Path(PYTHON).read_bytes()).hexdigest()


def test_process_tree_shows_it_running() -> None:
    with without_main_thread() as pid:
        (row,) = (row for row in ask(process_tree, pid, store=None) if row["relation"] == "self")
    assert (row["running"], row["exe"]) == (True, PYTHON)


def test_event_sources_read_it(listener: socket.socket) -> None:
    inode = os.fstat(listener.fileno()).st_ino
    with without_main_thread() as pid:
        process = ProcessCache().read(pid)
        assert process is not None
        assert (process.exe, process.cwd) == (PYTHON, str(Path.cwd()))
        assert process.cgroup == ask(processes, pid=os.getpid())[0]["cgroup"]
        assert process.vsize
        assert process.netns == network_namespace("/proc", "self")
        assert (pid, listener.fileno()) in socket_holders("/proc", [pid])[inode]
        assert audit._inode(pid, listener.fileno()) == inode
        assert living_directory("/proc", pid).startswith(f"/proc/{pid}/task/")


def test_owners_of_sockets_include_it() -> None:
    inode, told = os.pipe()

    def listen() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        os.write(told, str(os.fstat(listening.fileno()).st_ino).encode())
        listening.detach()

    with without_main_thread(listen) as pid:
        number = int(os.read(inode, 20))
        assert SocketOwners().find([number]) == {number: pid}
    os.close(inode)
    os.close(told)


@root
def test_it_is_discovered_after_missed_events() -> None:
    """A process that is about to end is not; this one runs on."""
    cache = ProcessCache()
    life = ProcessLifecycle(cache, Exclusions(SourceSettings()))
    with without_main_thread() as pid:
        life.reconcile(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        found = cache.lookup(pid)
    assert found is not None
    assert found.exe == PYTHON


@root
def test_polling_attributes_its_sockets() -> None:
    settings, cache = SourceSettings(snapshot_interval=0.1, ignore_self=False), ProcessCache()
    begin, go = os.pipe()

    def later() -> None:
        def listen() -> None:
            os.read(begin, 1)
            socket.create_server(("127.0.0.1", 0)).detach()

        threading.Thread(target=listen).start()

    with without_main_thread(later) as pid:
        sources = [ProcessSnapshots(cache, settings), SocketPolling(cache, settings)]
        with Recording(sources) as recording:
            os.write(go, b".")
            (event,) = recording.expect("sockets_events", pid=pid, state="listen")
    os.close(begin)
    os.close(go)
    assert event["exe"] == PYTHON


def test_a_process_that_is_gone_has_no_living_thread() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert living_directory("/proc", ended.pid) == f"/proc/{ended.pid}"
    assert network_namespace("/proc", ended.pid) is None
