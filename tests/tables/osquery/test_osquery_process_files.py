"""What processes have open and mapped, and their environments, compared with lsof, pmap and /proc."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from children import child, fork, without_main_thread
from osquery_rows import selected
from scratch_host import select_with_errors
from waiting import until_sync

from zeek_agent.config.sections import AccessSettings
from zeek_agent.contract import rows
from zeek_agent.errors import AccessDeniedError
from zeek_agent.host.linux import pipes
from zeek_agent.host.linux.pipes import PipeEnd, PipeEnds, pipe_ends
from zeek_agent.tables.osquery import process_files
from zeek_agent.tables.osquery.process_files import (
    process_envs,
    process_memory_map,
    process_open_files,
    process_open_pipes,
)

PERMITTED = AccessSettings(secrets_deny=())
GONE = 2**22 + 1


def me(table: str, columns: str = "*", access: AccessSettings | None = None) -> list[dict[str, Any]]:
    return selected(f"SELECT {columns} FROM {table} WHERE pid = {os.getpid()}", access=access)


@contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    descriptors = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def shown_by_lsof(pid: int) -> dict[int, tuple[str, str]]:
    """Type and name by descriptor."""
    output = subprocess.run(["lsof", "-p", str(pid), "-F", "ftn"], capture_output=True, text=True, check=False).stdout
    found: dict[int, tuple[str, str]] = {}
    fields: dict[str, str] = {}
    for line in output.splitlines():
        fields[line[0]] = line[1:]
        if line[0] == "n" and fields["f"].isdigit():
            found[int(fields["f"])] = fields["t"], line[1:]
    return found


def test_open_files_are_those_of_lsof(tmp_path: Path) -> None:
    def work() -> None:
        os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.open(tmp_path, os.O_RDONLY)
        os.open("/dev/null", os.O_RDONLY)
        os.pipe()
        os.eventfd(0)

    with child(work) as pid:
        found = selected(f"SELECT * FROM process_open_files WHERE pid = {pid}")
        listed = shown_by_lsof(pid)
    files = {fd: name for fd, (kind, name) in listed.items() if kind in {"REG", "DIR", "CHR", "BLK"}}
    shown = {row["fd"]: row["path"] for row in found}
    assert {row["pid"] for row in found} == {pid}
    assert {fd: path for fd, path in shown.items() if "(deleted)" not in path} == {
        fd: name for fd, name in files.items() if "(deleted)" not in name
    }
    assert {str(tmp_path / "file"), str(tmp_path), "/dev/null"} <= set(shown.values())
    assert len([kind for kind, _ in listed.values() if kind in {"FIFO", "a_inode"}]) >= 3


def test_deleted_and_hostile_names_are_shown(tmp_path: Path) -> None:
    deleted, odd = tmp_path / "deleted", Path(os.fsdecode(os.fsencode(tmp_path) + b"/pipe:[1]\xff\n socket:[2]"))
    with opened(deleted, odd) as (first, second):
        deleted.unlink()
        shown = {row["fd"]: row["path"] for row in me("process_open_files")}
        assert shown[first] == f"{deleted} (deleted)"
        assert shown[second].endswith("/pipe:[1]\uefff\n socket:[2]")
    after = {row["fd"]: row["path"] for row in me("process_open_files")}
    assert after.get(first) != f"{deleted} (deleted)"


def test_files_of_a_process_whose_main_thread_has_ended_are_shown(tmp_path: Path) -> None:
    with without_main_thread(lambda: os.open(tmp_path, os.O_RDONLY)) as pid:
        assert str(tmp_path) in {row["path"] for row in ask(process_open_files, pid=pid)}
        assert [row for row in ask(process_memory_map, pid=pid) if row["path"] == "[stack]"]
        assert "PATH" in {row["key"] for row in ask(process_envs, pid=pid)}


def test_only_processes_that_are_asked_for_are_read() -> None:
    for table in (process_open_files, process_memory_map, process_envs, process_open_pipes):
        assert {row["pid"] for row in ask(table, pid=[os.getpid(), GONE, -1])} <= {os.getpid()}
        assert ask(table, pid=GONE) == []
    everybody = {row["pid"] for row in selected("SELECT DISTINCT pid FROM process_open_files")}
    assert {os.getpid()} < everybody


def test_both_ends_of_a_pipe_are_each_others_partners() -> None:
    reading, writing = os.pipe()
    with child() as pid:
        os.close(writing)
        inode = os.fstat(reading).st_ino
        found = selected(f"SELECT * FROM process_open_pipes WHERE inode = {inode}")
    os.close(reading)
    here, there = os.getpid(), pid
    assert {(row["pid"], row["fd"], row["mode"], row["partner_pid"], row["partner_fd"]) for row in found} == {
        (here, reading, "r", there, writing),
        (there, reading, "r", there, writing),
        (there, writing, "w", here, reading),
        (there, writing, "w", there, reading),
    }
    assert len(found) == 4
    assert {(row["inode"], row["type"]) for row in found} == {(inode, "anonymous")}
    assert {row["mode"] + row["partner_mode"] for row in found} == {"rw", "wr"}


def test_fifos_have_their_inode_and_a_pipe_without_another_end_has_no_partner(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    both = os.open(fifo, os.O_RDWR)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        found = {row["fd"]: row for row in me("process_open_pipes") if row["fd"] in {both, writing}}
    finally:
        os.close(both)
        os.close(writing)
    nobody = {"partner_pid": None, "partner_fd": None, "partner_mode": None}
    assert found[both].items() >= {"mode": "rw", "type": "named", "inode": fifo.stat().st_ino, **nobody}.items()
    assert found[writing].items() >= {"mode": "w", "type": "anonymous", **nobody}.items()


def test_a_pipe_of_very_many_does_not_make_very_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "PARTNERS_MAX", 3)
    reading, writing = os.pipe()
    inode = os.fstat(reading).st_ino
    more = [os.dup(writing) for _ in range(10)]
    found = [row for row in ask(process_open_pipes, pid=os.getpid()) if row["inode"] == inode]
    for descriptor in (reading, writing, *more):
        os.close(descriptor)
    assert len([row for row in found if row["fd"] == reading]) == 3
    assert len(found) == 3 + 11


def test_a_process_with_very_many_ends_does_not_make_very_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "PARTNERS_OF_PROCESS_MAX", 20)
    ends = PipeEnds()
    for number in range(10):
        ends.add(PipeEnd(1, number, "rw", 5, 7))
        ends.add(PipeEnd(2, number, "rw", 5, 8 + number % 5))
    assert [len(ends.partners(end)) for end in ends.of([1])] == [2] * 10
    assert [len(ends.partners(end)) for end in ends.of([2])] == [1] * 10


def test_ends_that_cannot_be_partners_are_not_compared() -> None:
    compared: list[PipeEnd] = []

    class Compared(PipeEnd):
        def __ne__(self, other: object) -> bool:
            compared.append(self)
            return tuple(self) != other

    ends = PipeEnds()
    for pid in range(100):
        ends.add(Compared(pid, 3, "r", 5, 7))
    assert [ends.partners(end) for end in ends.of(None)] == [[]] * 100
    assert compared == []


def test_a_process_with_very_many_pipes_is_shown_in_part_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "ENDS_MAX", 40)
    reading, writing = os.pipe()
    more = [os.dup(writing) for _ in range(50)]
    reports: list[str] = []
    ends = pipe_ends("/proc", report=reports.append)
    for descriptor in (reading, writing, *more):
        os.close(descriptor)
    assert len(list(ends.of([os.getpid()]))) == 40
    assert f"process {os.getpid()} has more than 40 pipes open, of which the first are shown" in reports


def test_memory_maps_are_those_of_pmap(tmp_path: Path) -> None:
    mapped = tmp_path / "a file with blanks"
    mapped.write_bytes(bytes(3 * mmap.PAGESIZE))
    with mapped.open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE, offset=mmap.PAGESIZE) as memory:
        found = me("process_memory_map", access=PERMITTED)
        lines = Path("/proc/self/maps").read_text().splitlines()
        shown = subprocess.run(["pmap", "-p", str(os.getpid())], capture_output=True, text=True, check=True).stdout
        assert len(memory) == mmap.PAGESIZE
    (row,) = (row for row in found if row["path"] == str(mapped))
    status = mapped.stat()
    assert (row["permissions"], row["offset"], row["inode"]) == ("rw-s", mmap.PAGESIZE, status.st_ino)
    assert int(row["end"], 16) - int(row["start"], 16) == mmap.PAGESIZE
    assert row["device"] == f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    assert row["pseudo"] == 0
    assert f"{int(row['start'], 16):016x}      4K rw-s- {mapped}" in shown
    as_lines = {
        f"{row['start'][2:]}-{row['end'][2:]} {row['permissions']} {row['offset']:08x} {row['device']} {row['inode']}"
        for row in found
    }
    kept = {" ".join(line.split()[:5]) for line in lines} & as_lines
    assert len(kept) > 0.9 * len(lines)
    (stack,) = (row for row in found if row["path"] == "[stack]")
    assert (stack["pseudo"], stack["inode"], stack["device"]) == (1, 0, "00:00")
    assert {row["pseudo"] for row in found if row["path"] == ""} == {0}


def test_addresses_are_withheld_by_default() -> None:
    found = me("process_memory_map", 'pid, start, "end", path')
    assert {(row["start"], row["end"]) for row in found} == {(None, None)}
    assert "[stack]" in {row["path"] for row in found}
    assert selected("SELECT pid FROM process_memory_map WHERE start > '0x1'") == []


def test_environments_are_denied_by_default() -> None:
    for name in ("process_envs", "osquery_process_envs"):
        with pytest.raises(AccessDeniedError, match=r"may not be queried \(access\.secrets_deny\)"):
            selected(f"SELECT * FROM {name}")


def test_environments_have_their_secrets_masked() -> None:
    environment = {"LANG": "de_DE", "EMPTY": "", "DB_PASSWORD": "hunter2", "URL": "https://a:hunter2@example.org/"}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        until_sync(Path(f"/proc/{process.pid}/environ").read_bytes)
        found = selected(f"SELECT * FROM process_envs WHERE pid = {process.pid}", access=PERMITTED)
        process.kill()
    assert found == [
        {"pid": process.pid, "key": "LANG", "value": "de_DE"},
        {"pid": process.pid, "key": "EMPTY", "value": ""},
        {"pid": process.pid, "key": "DB_PASSWORD", "value": "***"},
        {"pid": process.pid, "key": "URL", "value": "https://a:***@example.org/"},
    ]


def test_hostile_environments_are_rows() -> None:
    entries = [b"", b"no value", b"=x", b"A=\xff\n'", b"PASSWORD=x=y", b"B=1"]

    script = f"import ctypes, os, sys; e = (ctypes.c_char_p * 7)(*{entries!r}, None); "
    script += "a = (ctypes.c_char_p * 3)(b'sleep', b'60', None); ctypes.CDLL(None).execve(b'/bin/sleep', a, e)"
    with subprocess.Popen(["python3", "-c", script]) as process:
        until_sync(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        found = rows(process_envs)
        process.kill()
    assert [(row["key"], row["value"]) for row in found if row["pid"] == process.pid] == [
        ("no value", ""),
        ("", "x"),
        ("A", "\uefff\n'"),
        ("PASSWORD", "***"),
        ("B", "1"),
    ]


def test_very_many_variables_are_shown_in_part_but_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_files, "VARIABLES_MAX", 2)
    with subprocess.Popen(["sleep", "60"], env={"A": "1", "B": "2", "C": "3"}) as process:
        until_sync(Path(f"/proc/{process.pid}/environ").read_bytes)
        sql = f"SELECT key, value FROM process_envs WHERE pid = {process.pid}"
        found, errors = select_with_errors(sql, secrets_deny=())
        named = select_with_errors(f"{sql} AND key = 'C'", secrets_deny=())
        process.kill()
    assert [row["key"] for row in found] == ["A", "B"]
    assert any(f"process {process.pid} has more than 2 variables" in error for error in errors)
    assert named == ([{"key": "C", "value": "3"}], [])


def test_a_zombie_has_nothing_open() -> None:
    pid = fork(lambda: None)
    until_sync(lambda: b") Z " in Path(f"/proc/{pid}/stat").read_bytes())
    assert [ask(table, pid=pid) for table in (process_open_files, process_memory_map, process_envs)] == [[], [], []]
    os.waitpid(pid, 0)


def test_a_process_with_very_many_descriptors_does_not_outlast_the_statement() -> None:
    class OverError(Exception):
        """The statement's time is up."""

    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > 4:
            raise OverError

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = [os.dup(0) for _ in range(min(6_000, limit[0] - 100))]
    try:
        for table in (process_open_files, process_open_pipes):
            checks = 0
            with pytest.raises(OverError):
                ask(table, pid=os.getpid(), check=check)
    finally:
        for descriptor in more:
            os.close(descriptor)
