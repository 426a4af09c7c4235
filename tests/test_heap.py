"""Threads share the heap."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

THREADS = """
import ctypes, sys, threading
from zeek_agent import heap

if sys.argv[1] == "shared":
    heap.share()
begin = threading.Barrier(4)

def take():
    begin.wait()
    for size in range(1000):
        bytes(1000 + size)
    begin.wait()

threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(library.fdopen(1, b"w"))
library.malloc_info(0, out)
library.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("kind", "is_one"), [("shared", True), ("default", False)])
def test_threads_share_one_heap_if_set(kind: str, is_one: bool) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS, kind], capture_output=True, text=True, check=True)
    assert (done.stdout.count("<heap nr=") == 1) is is_one


FREED = """
from zeek_agent import heap

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

heap.share()
kept = []
for _ in range(2_000):
    kept.append(bytes(1000))
    passing = bytes(40_000)
    kept.append(passing)
full = resident()
kept = [one for one in kept if len(one) == 1000]
del passing
heap.trim()
print(full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_returned_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    freed = 2_000 * 40_000 / 1024
    assert int(done.stdout) > freed / 2
