"""osquery's tables of processes and namespaces, compared with ps, /proc and lsns."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from children import child, without_main_thread
from osquery_rows import selected
from waiting import until_sync

from zeek_agent.tables.osquery.processes import process_namespaces, processes

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
CLONE_NEWUTS, CLONE_NEWIPC, PR_SET_NAME = 0x0400_0000, 0x0800_0000, 15


@contextmanager
def program(*arguments: str | bytes | Path, **options: Any) -> Iterator[int]:
    with subprocess.Popen(arguments, **options) as process:
        try:
            until_sync(Path(f"/proc/{process.pid}/cmdline").read_bytes)
            yield process.pid
        finally:
            process.kill()


def row_of(pid: int, columns: str = "*") -> dict[str, Any]:
    (row,) = selected(f"SELECT {columns} FROM osquery_processes WHERE pid = {pid}")
    return row


def shown_by_ps(pid: int, fields: str) -> list[str]:
    command = ["ps", "-o", ",".join(f"{field}=" for field in fields.split()), "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def become_somebody() -> None:
    os.setpgid(0, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 7)
    os.setresgid(2001, 2002, 2003)
    os.setresuid(1001, 1002, 1003)


@pytest.mark.root
def test_a_process_has_the_values_that_ps_and_proc_show(tmp_path: Path) -> None:
    before = time.time()
    tmp_path.chmod(0o755)
    with child(become_somebody) as pid:
        until_sync(lambda: b") S " in Path(f"/proc/{pid}/stat").read_bytes())
        row = row_of(pid)
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        fields = "ruid rgid euid egid suid sgid pgid ppid nlwp ni"
        shown = dict(zip(fields.split(), map(int, shown_by_ps(pid, fields)), strict=True))
        sizes = [int(kib) * 1024 for kib in shown_by_ps(pid, "rss vsz")]
        name, cgroup = Path(f"/proc/{pid}/comm").read_text().strip(), Path(f"/proc/{pid}/cgroup").read_text()
        links = {kind: str(Path(f"/proc/{pid}/{kind}").readlink()) for kind in ("exe", "cwd", "root")}
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert row["pid"] == pid
    assert row["name"] == name
    assert (row["path"], row["cwd"], row["root"]) == (links["exe"], links["cwd"], links["root"])
    assert row["cmdline"] == arguments.replace(b"\0", b" ").decode().strip()
    assert row["state"] == stat[0] == "S"
    assert [row[column] for column in ("uid", "gid", "euid", "egid", "suid", "sgid", "pgroup", "parent")] == [
        shown[field] for field in ("ruid", "rgid", "euid", "egid", "suid", "sgid", "pgid", "ppid")
    ]
    assert [row[column] for column in ("uid", "euid", "suid", "gid", "egid", "sgid")] == [
        *(1001, 1002, 1003),
        *(2001, 2002, 2003),
    ]
    assert (row["pgroup"], row["parent"], row["threads"], row["nice"]) == (pid, os.getpid(), shown["nlwp"], 7)
    assert row["on_disk"] == 1
    assert row["wired_size"] == 0
    assert [row["resident_size"], row["total_size"]] == [int(stat[21]) * os.sysconf("SC_PAGE_SIZE"), int(stat[20])]
    assert abs(row["resident_size"] - sizes[0]) < 1 << 20  # each CPU counts some pages of its own
    assert row["total_size"] == sizes[1]
    assert [row["user_time"], row["system_time"]] == [int(stat[11]) * 10, int(stat[12]) * 10]
    assert int(before) - 1 <= row["start_time"] <= time.time()
    assert row["cgroup_path"] in [line.split(":", 2)[2] for line in cgroup.splitlines()]


def test_times_are_milliseconds_and_disk_bytes_those_of_proc(tmp_path: Path) -> None:
    def work() -> None:
        with (tmp_path / "file").open("wb") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        until = time.process_time() + 0.12
        while time.process_time() < until:
            pass

    with child(work) as pid:
        until_sync(lambda: b") S " in Path(f"/proc/{pid}/stat").read_bytes())
        row = row_of(pid, "user_time, system_time, disk_bytes_read, disk_bytes_written")
        counted = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert [row["user_time"], row["system_time"]] == [int(stat[11]) * 10, int(stat[12]) * 10]
    assert 100 <= row["user_time"] + row["system_time"] <= 1_000
    assert row["disk_bytes_read"] == int(counted["read_bytes"])
    assert row["disk_bytes_written"] == int(counted["write_bytes"]) - int(counted["cancelled_write_bytes"])
    assert row["disk_bytes_written"] >= 1 << 20


def test_the_start_is_that_of_ps() -> None:
    with program("sleep", "60") as pid:
        (elapsed,) = map(int, shown_by_ps(pid, "etimes"))
        assert abs(time.time() - elapsed - row_of(pid, "start_time")["start_time"]) <= 2


def test_a_kernel_thread_has_no_executable_and_no_sizes() -> None:
    (row,) = selected("SELECT * FROM osquery_processes WHERE pid = 2")
    assert row["name"] == "kthreadd"
    assert [row[column] for column in ("path", "cmdline", "on_disk")] == ["", "", -1]
    assert [row[column] for column in ("resident_size", "total_size")] == [None, None]
    assert (row["parent"], row["uid"], row["cwd"]) == (0, 0, "/")


def test_a_zombie_has_no_directories_and_no_memory() -> None:
    with subprocess.Popen(["true"]) as ended:
        until_sync(lambda: b") Z " in Path(f"/proc/{ended.pid}/stat").read_bytes())
        row = row_of(ended.pid)
    assert row["state"] == "Z"
    assert [row[column] for column in ("path", "cwd", "root", "cmdline", "on_disk")] == ["", "", "", "", -1]
    assert [row["resident_size"], row["total_size"]] == [None, None]


def test_a_deleted_executable_is_not_on_disk(tmp_path: Path) -> None:
    copy = tmp_path / "sleeper"
    shutil.copy(shutil.which("sleep") or "", copy)
    with program(copy, "60") as pid:
        assert row_of(pid, "path, on_disk") == {"path": str(copy), "on_disk": 1}
        copy.unlink()
        assert row_of(pid, "path, on_disk") == {"path": str(copy), "on_disk": 0}
        assert row_of(pid, "on_disk") == {"on_disk": 0}
        (tmp_path / "sleeper (deleted)").write_text("another file")
        assert row_of(pid, "path, on_disk") == {"path": str(copy), "on_disk": 0}
        copy.write_text("a file of that name, which is not the executable")
        assert row_of(pid, "path, on_disk") == {"path": str(copy), "on_disk": 0}


def test_a_name_that_ends_like_the_kernels_suffix_is_a_name(tmp_path: Path) -> None:
    named = tmp_path / "sleeper (deleted)"
    shutil.copy(shutil.which("sleep") or "", named)
    with program(named, "60") as pid:
        assert row_of(pid, "path, on_disk") == {"path": str(named), "on_disk": 1}
        named.unlink()
        assert row_of(pid, "path, on_disk") == {"path": str(named), "on_disk": 0}


def test_an_executable_deleted_under_one_of_its_names_is_not_on_disk(tmp_path: Path) -> None:
    copy = tmp_path / "sleeper"
    shutil.copy(shutil.which("sleep") or "", copy)
    (tmp_path / "another name").hardlink_to(copy)
    with program(copy, "60") as pid:
        copy.unlink()
        assert row_of(pid, "path, on_disk") == {"path": str(copy), "on_disk": 0}


def test_an_executable_in_memory_is_not_on_disk() -> None:
    descriptor = os.memfd_create("sleeper", 0)
    with Path(shutil.which("sleep") or "").open("rb") as file:
        os.sendfile(descriptor, file.fileno(), 0, 1 << 24)
    with program(f"/proc/self/fd/{descriptor}", "60", pass_fds=[descriptor]) as pid:
        os.close(descriptor)
        until_sync(lambda: str(Path(f"/proc/{pid}/exe").readlink()).startswith("/memfd"))
        assert row_of(pid, "path, on_disk") == {"path": "/memfd:sleeper", "on_disk": 0}


def test_secrets_in_arguments_are_masked() -> None:
    with program("bash", "-c", "while :; do read -t 60; done", "run", "--password", "hunter2") as pid:
        shown = row_of(pid, "cmdline")["cmdline"]
    assert shown == "bash -c while :; do read -t 60; done run --password ***"


def test_hostile_names_are_one_row_each(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff (x) \n'"
    shutil.copy(shutil.which("sleep") or "", path)
    with program(path, b"60", cwd=tmp_path) as pid:
        row = row_of(pid)
    assert row["path"].endswith("/\uefff (x) \n'")
    assert row["name"] == "\uefff (x) \n'"
    assert row["state"] == "S"
    assert row["parent"] == os.getpid()

    def rename() -> None:
        assert ctypes.CDLL(None).prctl(PR_SET_NAME, b") R 1 1 1\n", 0, 0, 0) == 0

    with child(rename) as pid:
        row = row_of(pid)
    assert (row["name"], row["parent"]) == (") R 1 1 1\n", os.getpid())


def test_a_process_whose_main_thread_has_ended_is_shown_by_another() -> None:
    with without_main_thread() as pid:
        row, mine = row_of(pid), row_of(os.getpid())
        inside = ask(process_namespaces, pid=pid)
    assert [row[column] for column in ("path", "cwd", "root", "state", "on_disk")] == [
        *(mine[column] for column in ("path", "cwd", "root")),
        *("S", 1),
    ]
    assert row["total_size"] > row["resident_size"] > 0
    assert inside == [{**ask(process_namespaces, pid=os.getpid())[0], "pid": pid}]


def test_only_processes_that_are_asked_for_are_read() -> None:
    pids = [os.getpid(), 2**22 + 1, -1]
    assert [row["pid"] for row in ask(processes, pid=pids)] == [os.getpid()]
    assert [row["pid"] for row in ask(process_namespaces, pid=pids)] == [os.getpid()]
    listed = ", ".join(map(str, pids))
    assert selected(f"SELECT pid FROM osquery_processes WHERE pid IN ({listed})") == [{"pid": os.getpid()}]


def test_only_columns_that_are_asked_for_are_read() -> None:
    (row,) = ask(processes, pid=os.getpid(), columns={"pid", "name"})
    assert {name for name, value in row.items() if value is not None} == {"pid", "name"}


def test_all_processes_are_those_of_ps() -> None:
    rows = {row["pid"]: row for row in selected("SELECT pid, parent, uid, euid FROM osquery_processes")}
    shown = subprocess.run(["ps", "-eo", "pid=,ppid=,ruid=,euid="], capture_output=True, text=True, check=True).stdout
    same = [line for line in map(str.split, shown.splitlines()) if int(line[0]) in rows]
    assert len(same) > len(rows) * 0.8
    assert {1, os.getpid()} <= rows.keys()
    for pid, *others in same:
        if len({int(pid)} & {1, 2, os.getpid(), os.getppid()}):
            assert list(rows[int(pid)].values()) == [int(pid), *map(int, others)]


@pytest.mark.root
def test_namespaces_are_those_of_lsns() -> None:
    def leave() -> None:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS | CLONE_NEWIPC) == 0

    with child(leave) as pid:
        (row,) = selected(f"SELECT * FROM process_namespaces WHERE pid = {pid}")
        command = ["lsns", "--json", "--output", "type,ns", "--task", str(pid)]
        listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["namespaces"]
        (mine,) = selected(f"SELECT * FROM process_namespaces WHERE pid = {os.getpid()}")
    shown = {namespace["type"]: str(namespace["ns"]) for namespace in listed}
    assert row == {"pid": pid, **{f"{kind}_namespace": shown[kind] for kind in NAMESPACES}}
    assert {kind for kind in NAMESPACES if row[f"{kind}_namespace"] != mine[f"{kind}_namespace"]} == {"uts", "ipc"}


def test_a_zombie_has_no_namespaces() -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        (row,) = selected(f"SELECT * FROM process_namespaces WHERE pid = {ended.pid}")
    assert row["net_namespace"] is None
    assert row["mnt_namespace"] is None


def test_a_stopped_process_is_stopped() -> None:
    with child() as pid:
        os.kill(pid, signal.SIGSTOP)
        until_sync(lambda: b") T " in Path(f"/proc/{pid}/stat").read_bytes())
        assert row_of(pid, "state") == {"state": "T"}
