"""Forked processes of tests. Whatever happens in one, it ends there and never goes on with the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from waiting import until_sync

_EXIT: Final = {"x86_64": 60, "aarch64": 93}
"""The number of exit(2) by machine."""


def fork(work: Callable[[], int | None]) -> int:
    """Run `work` in a new process; its pid, which the caller has to wait for.

    The exit code is what `work` returns; 1, with the traceback on standard error, when it raises. The child uses no
    lock of the threads that there may be.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _end_with(work)
    return pid


def fork_in_terminal(work: Callable[[], int | None]) -> tuple[int, int]:
    """The same in a session with a terminal of its own; the pid, and the descriptor of the terminal's other side."""
    import pty  # which Windows lacks

    pid, descriptor = pty.fork()
    if pid == 0:
        _end_with(work)
    return pid, descriptor


def _end_with(work: Callable[[], int | None]) -> NoReturn:
    code = 1
    try:
        code = work() or 0
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - nothing may get out of here
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a child to end; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def child(work: Callable[[], object] = lambda: None) -> Iterator[int]:
    """The pid of a process that has done its work and waits until the block ends."""
    ready, told = os.pipe()

    def wait() -> None:
        work()
        os.write(told, b".")
        while True:
            signal.pause()

    pid = fork(wait)
    os.close(told)
    try:
        assert os.read(ready, 1) == b".", "the child failed, see its traceback"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def without_main_thread(work: Callable[[], object] = lambda: None, *, threads: int = 1) -> Iterator[int]:
    """The pid of a process whose main thread has ended after its work, while others wait until the block ends."""

    def end() -> None:
        work()
        for _ in range(threads):
            threading.Thread(target=signal.pause).start()
        ctypes.CDLL(None).syscall(_EXIT[os.uname().machine], 0)  # of the calling thread only

    pid = fork(end)
    try:
        until_sync(lambda: b") Z " in Path(f"/proc/{pid}/stat").read_bytes())
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
