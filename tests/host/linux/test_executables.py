"""The file that a process executes, by the object: as the tables show it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from children import child
from mounting import CLONE_NEWNS, NOBODY, SilentFuse, in_mount_namespace, process, start, static_program, unshare
from waiting import until_sync

from zeek_agent.host.linux.executables import file_object, mount_namespace
from zeek_agent.tables.processes import processes

pytestmark = pytest.mark.root
IDENTITY = ("exe_device", "exe_inode", "exe_mntns")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def row_of(pid: int) -> dict[str, Any]:
    (row,) = (row for row in ask(processes) if row["pid"] == pid)
    return row


def test_an_ordinary_executable(reader: str) -> None:
    sleep = shutil.which("sleep") or ""
    status = Path(sleep).stat()
    with subprocess.Popen([sleep, "60"]) as running:
        until_sync(lambda: Path(f"/proc/{running.pid}/exe").readlink() == Path(sleep).resolve())
        row = row_of(running.pid)
        running.kill()
    assert [row[name] for name in IDENTITY] == [*(file_object(sleep) or ()), mount_namespace("self")]
    assert row["exe_inode"] == status.st_ino
    if os.major(status.st_dev):
        assert row["exe_device"] == status.st_dev


def test_a_file_that_a_user_binds_over_another_shows_itself(reader: str, place: Path) -> None:
    honest, false = place / "honest", place / "false"
    for copy in (honest, false):
        shutil.copy(shutil.which("sleep") or "", copy)
    script = 'mount --bind "$1" "$2" && exec "$2" 60'
    namespaces = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(false), str(honest)]
    with subprocess.Popen(namespaces, user=NOBODY, group=NOBODY) as running:
        until_sync(lambda: Path(f"/proc/{running.pid}/exe").readlink() == honest)
        row = row_of(running.pid)
        namespace = mount_namespace(running.pid)
        running.kill()
    assert row["exe"] == str(honest)
    assert (row["exe_device"], row["exe_inode"]) == file_object(str(false))
    assert row["exe_mntns"] == namespace != mount_namespace("self")


def test_the_namespace_is_that_of_the_exec(reader: str) -> None:
    """A process that has entered another one since still executes a file of the first."""
    with child(lambda: unshare(CLONE_NEWNS)) as pid:
        assert mount_namespace(pid) != mount_namespace("self")
        assert row_of(pid)["exe_mntns"] == mount_namespace("self")


def test_a_file_in_memory_is_in_no_namespace(reader: str) -> None:
    file = os.memfd_create("program", 0)
    try:
        os.write(file, Path(shutil.which("sleep") or "").read_bytes())
        status = os.fstat(file)
        with subprocess.Popen(["sleep", "60"], executable=f"/proc/self/fd/{file}", pass_fds=[file]) as running:
            until_sync(lambda: str(Path(f"/proc/{running.pid}/exe").readlink()) == "/memfd:program (deleted)")
            row = row_of(running.pid)
            running.kill()
    finally:
        os.close(file)
    assert [row[name] for name in IDENTITY] == [status.st_dev, status.st_ino, None]


def test_kernel_threads_execute_no_file(reader: str) -> None:
    row = next(row for row in ask(processes) if row["ppid"] == 2)
    assert [row[name] for name in ("exe", *IDENTITY)] == 4 * [None]


def test_a_deleted_file_is_still_that_file(reader: str, place: Path) -> None:
    program = place / "program"
    shutil.copy(shutil.which("sleep") or "", program)
    inode = program.stat().st_ino
    with subprocess.Popen([program, "60"]) as running:
        until_sync(lambda: Path(f"/proc/{running.pid}/exe").readlink() == program)
        program.unlink()
        row = row_of(running.pid)
        running.kill()
    assert (row["exe"], row["exe_inode"]) == (f"{program} (deleted)", inode)


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
@pytest.mark.parametrize("namespace", [0, CLONE_NEWNS], ids=["own mounts", "other mounts"])
def test_a_file_system_that_does_not_answer_is_not_asked(place: Path, namespace: int) -> None:
    """Any user can run a program from one, and every query of all columns reads it."""
    fuse = SilentFuse(static_program())
    below, told = place / "below", place / "pid"
    below.mkdir()

    def prepare() -> None:
        fuse.mount(below)
        told.write_text(str(start(below / "program")))

    def scene() -> tuple[dict[str, Any], int]:
        with process(prepare, namespaces=namespace):
            fuse.fall_silent()
            (row,) = ask(processes, pid=int(told.read_text()))
            return row, mount_namespace(told.read_text()) or 0

    row, mntns = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert fuse.requests == []
    assert row["exe"] == str(below / "program")
    assert (row["exe_device"] > 0, row["exe_inode"] > 0, row["exe_mntns"]) == (True, True, mntns)
