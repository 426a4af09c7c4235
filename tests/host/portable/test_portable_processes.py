"""psutil's processes next to those of proc(5), for all processes of this host."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from waiting import until_sync

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.host.portable.processes import PortableProcesses, no_start

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="compares with proc(5)")

SAME = ("name", "ppid", "uid", "gid", "ruid", "rgid", "cwd", "tty")
"""What both read from the kernel in the same form, and what does not change while both read it."""
GROWING = ("utime", "stime")
BOOT = "a1b2c3d4-0000-0000-0000-000000000000"


def both(pid: int, column: str) -> tuple[object, object]:
    """The value of a column by proc(5) and by psutil. Raises ProcessLookupError."""
    with ProcfsProcess(Procfs(), pid) as one, PortableProcesses(BOOT).process(pid) as other:
        return getattr(one, column), getattr(other, column)


def are_alike(pid: int, column: str) -> bool:
    """Whether both agree; they are read again while they do not, because the process may change in between.

    psutil completes names of 15 bytes from the command line, and does not mark directories that have been removed.
    """
    for _ in range(5):
        expected, found = both(pid, column)
        if column == "cwd" and expected is not None:
            expected = str(expected).removesuffix(" (deleted)")
        if expected == found or (
            column == "name" and len(str(expected)) >= 15 and str(found).startswith(str(expected)[:15])
        ):
            return True
    return False


@pytest.mark.parametrize("column", SAME)
def test_values_are_those_of_proc(column: str) -> None:
    compared, different = 0, []
    for pid in PortableProcesses(BOOT).pids():
        with suppress(ProcessLookupError):
            if not are_alike(pid, column):
                different.append((pid, *both(pid, column)))
            compared += 1
    assert different == []
    assert compared >= 2


def test_a_directory_that_has_been_removed_is_the_one_that_it_was(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    with subprocess.Popen(["cat"], cwd=directory, stdin=subprocess.PIPE) as process:
        directory.rmdir()
        assert both(process.pid, "cwd") == (f"{directory} (deleted)", str(directory))
        assert are_alike(process.pid, "cwd")
        process.stdin.close()  # type: ignore[union-attr]


def texts(pid: int, column: str) -> tuple[str, str]:
    """The same of executable or command line, without how they are known to differ.

    psutil leaves out ` (deleted)`, and blanks where a process wrote a title over its arguments.
    """
    expected, found = both(pid, column)
    if column == "arguments":
        return tuple(b" ".join((value or b"").replace(b"\0", b" ").split()).decode() for value in (expected, found))
    return str(expected).removesuffix(" (deleted)"), str(found)


@pytest.mark.parametrize("column", ["exe", "arguments"])
def test_executables_and_arguments_differ_only_in_deletions_and_blanks(column: str) -> None:
    compared, different = 0, []
    for pid in PortableProcesses(BOOT).pids():
        with suppress(ProcessLookupError):
            if not any(len(set(texts(pid, column))) == 1 for _ in range(5)):
                different.append((pid, *both(pid, column)))
            compared += 1
    assert different == []
    assert compared >= 2


@contextmanager
def running(*command: str) -> Iterator[int]:
    """The pid of a program that runs until the block ends."""
    process = subprocess.Popen(command, cwd="/tmp")
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def sleeper() -> Iterator[int]:
    with running("/bin/sleep", "600") as pid:
        until_sync(lambda: psutil.Process(pid).name() == "sleep")
        until_sync(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
        yield pid


def test_a_process_that_does_nothing_has_the_same_values(sleeper: int) -> None:
    with ProcfsProcess(Procfs(), sleeper) as one, PortableProcesses(BOOT).process(sleeper) as other:
        for column in (*SAME, *GROWING, "vsize", "state", "threads", "exe", "arguments"):
            assert getattr(other, column) == getattr(one, column), column
        assert other.rsize is not None
        assert 0 < other.rsize < one.vsize  # statm counts it by page, and stat roughly


def test_the_start_differs_by_the_rounded_time_of_the_boot(sleeper: int) -> None:
    """psutil adds the ticks to a time of the boot in whole seconds."""
    with ProcfsProcess(Procfs(), sleeper) as one, PortableProcesses(BOOT).process(sleeper) as other:
        assert other.start_time is not None
        assert abs(other.start_time - one.start_time) <= 1.0
        assert other.start == round(psutil.Process(sleeper).create_time() * 1e6)
        assert abs(time.time() - other.start_time) < 3600


def test_the_priority_is_the_negated_nice_value() -> None:
    """proc(5) has the kernel's priority, which begins at 20."""
    with running("/bin/sh", "-c", "exec nice -n 7 sleep 600") as pid:
        until_sync(lambda: psutil.Process(pid).name() == "sleep")
        nice = min(os.nice(0) + 7, 19)
        assert both(pid, "priority") == (str(20 + nice), str(-nice))


def test_a_zombie_has_no_executable_and_no_arguments() -> None:
    """psutil raises for these, and the rest is still known."""
    process = subprocess.Popen(["/bin/true"])
    try:
        until_sync(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        with PortableProcesses(BOOT).process(process.pid) as shown:
            assert (shown.exe, shown.arguments, shown.cwd) == (None, None, None)
            assert (shown.state, shown.ppid, shown.name) == ("zombie", os.getpid(), "true")
    finally:
        process.wait()


class Refused:
    """A process of which psutil may only read the name."""

    def name(self) -> str:
        return "launchd"

    def __getattr__(self, function: str) -> Callable[[], None]:
        def refuse() -> None:
            raise psutil.AccessDenied(1)

        return refuse


def test_what_the_system_refuses_is_null(sleeper: int) -> None:
    """As on macOS without root, where other users' processes show little."""
    shown = PortableProcesses(BOOT).process(sleeper)
    shown._process = Refused()
    for column in ("exe", "arguments", "cwd", "vsize", "rsize", "utime", "stime", "threads", "priority", "tty", "uid"):
        assert getattr(shown, column) is None, column
    assert shown.name == "launchd"


def test_a_process_that_is_gone_is_not_there() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        PortableProcesses(BOOT).process(process.pid)
    assert list(PortableProcesses(BOOT).processes([process.pid, -1, 2**40])) == []


def test_entity_ids_have_the_boot_and_the_start_in_microseconds(sleeper: int) -> None:
    scan = PortableProcesses(BOOT, {sleeper: 1_990_000_000_123_456}.get)
    with scan.process(sleeper) as shown:
        assert shown.entity_id == entity_id(BOOT, sleeper, 1_990_000_000_123_456)
        assert shown.start_time == 1_990_000_000.123456
        with scan.process(os.getpid()) as parent:
            assert shown.parent_entity_id == parent.entity_id


def test_without_an_id_of_the_boot_there_are_no_entity_ids(sleeper: int) -> None:
    with PortableProcesses(None).process(sleeper) as shown:
        assert (shown.entity_id, shown.parent_entity_id) == (None, None)


def test_a_younger_process_with_the_parents_pid_is_not_the_parent(sleeper: int) -> None:
    starts = {sleeper: 1_000, os.getpid(): 2_000}
    with PortableProcesses(BOOT, starts.get).process(sleeper) as shown:
        assert shown.ppid == os.getpid()
        assert shown.parent_entity_id is None


def test_psutils_start_is_used_where_the_kernels_is_not_known() -> None:
    assert no_start(os.getpid()) is None
