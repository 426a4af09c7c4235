"""osquery's table shared_memory."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking_sql import rows_of

IPC_CREAT, IPC_RMID, SHM_LOCK = 0o1000, 0, 11
BYTES = 12_345
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
LIBC.shmdt.argtypes = [ctypes.c_void_p]


@pytest.fixture
def segment() -> Iterator[int]:
    number = LIBC.shmget(0, ctypes.c_size_t(BYTES), IPC_CREAT | 0o640)
    if number < 0:
        pytest.skip("no shared memory of System V")
    yield number
    LIBC.shmctl(number, IPC_RMID, None)


def statement(number: int) -> str:
    return f"SELECT * FROM shared_memory WHERE shmid = {number}"


@pytest.mark.skipif(shutil.which("ipcs") is None, reason="needs ipcs")
def test_a_segment_has_the_values_that_ipcs_shows(segment: int) -> None:
    before = int(time.time())
    address = LIBC.shmat(segment, None, 0)
    LIBC.shmdt(address)
    address = LIBC.shmat(segment, None, 0)
    LIBC.shmctl(segment, SHM_LOCK, None)
    (row,) = rows_of(statement(segment))
    shown = subprocess.run(["ipcs", "-m", "-i", str(segment)], capture_output=True, text=True, check=True).stdout
    values = dict(re.findall(r"(\w+)=(\d+)", shown))
    assert [row[name] for name in ("owner_uid", "creator_uid", "pid", "creator_pid", "size", "attached")] == [
        int(values[name]) for name in ("uid", "cuid", "lpid", "cpid", "bytes", "nattch")
    ]
    assert int(row["permissions"], 8) == int(values["mode"], 8)
    assert (row["size"], row["attached"], row["creator_pid"], row["pid"]) == (BYTES, 1, os.getpid(), os.getpid())
    assert all(before <= row[name] <= time.time() for name in ("atime", "dtime", "ctime"))
    for name, label in (("atime", "att"), ("dtime", "det"), ("ctime", "change")):
        assert re.sub(" +", " ", f"{label}_time={time.ctime(row[name])}") in re.sub(" +", " ", shown)
    assert (row["status"], row["locked"]) == ("", int(bool(int(values["mode"], 8) & 0o2000)))
    LIBC.shmdt(address)


def test_segments_appear_are_marked_and_vanish(segment: int) -> None:
    (row,) = rows_of(statement(segment))
    assert (row["permissions"], row["attached"], row["atime"], row["pid"]) == ("0640", 0, 0, 0)
    address = LIBC.shmat(segment, None, 0)
    LIBC.shmctl(segment, IPC_RMID, None)
    (row,) = rows_of(statement(segment))
    assert (row["status"], row["permissions"], row["attached"]) == ("dest", "1640", 1)
    LIBC.shmdt(address)
    assert rows_of(statement(segment)) == []


def test_a_kernel_without_shared_memory_has_no_segments(tmp_path: Path) -> None:
    assert rows_of("SELECT * FROM shared_memory", proc=str(tmp_path)) == []
