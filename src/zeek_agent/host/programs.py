"""Running a program that a table declares.

The kernel executes the file that was checked (`/proc/self/fd/N`), as fexecve(3) does, whatever has its name then.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from zeek_agent.host.program_files import ProgramError, open_program

OUTPUT_BYTES_MAX: Final = 16 << 20
"""Most that a program may write to its standard output."""
ERRORS_BYTES_MAX: Final = 4096
"""The beginning of its standard error, which an error message quotes; the rest is discarded."""
PROCESSES_MAX: Final = 256
"""Processes of the user of all workers, programs included, with which a program can start another one."""
START_SECONDS: Final = 2.0
"""How long to wait for processes of other programs to end if there are too many."""
CHECK_SECONDS: Final = 0.1
"""How often a table's time is checked while its program writes nothing."""

_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/", "TZ": "UTC"}
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def run_program(
    program: str,
    arguments: Sequence[str] = (),
    *,
    check: Callable[[], None] = lambda: None,
    output_bytes_max: int = OUTPUT_BYTES_MAX,
) -> bytes:
    """The standard output of a program that the table has declared. Its standard input is empty, its environment fixed.

    `check` is the table's `Constraints.check`. Raises ProgramError if the program may not be executed, fails or writes
    more than `output_bytes_max`, and OSError.
    """
    descriptor = open_program(program)
    try:
        process = _started(program, arguments, descriptor, check)
    finally:
        os.close(descriptor)
    try:
        assert process.stdin is not None
        process.stdin.close()
        output, errors = _outputs(process, program, check, output_bytes_max)
        status = _ended(process, check)
    except BaseException:
        _abandon(process)
        raise
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if status != 0:
        how = f"was ended by signal {-status}" if status < 0 else f"failed with exit code {status}"
        raise ProgramError(f"{program} {how}", errors.decode(errors="replace").strip())
    return bytes(output)


def _started(
    program: str, arguments: Sequence[str], descriptor: int, check: Callable[[], None]
) -> subprocess.Popen[bytes]:
    """The process. The processes of other programs may use up the limit for a moment, until those are ended."""
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        try:
            return subprocess.Popen(
                [program, *arguments],
                executable=f"/proc/self/fd/{descriptor}",
                pass_fds=[descriptor],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                # only in a process with a single thread, as helpers are: elsewhere a lock could be held by another
                preexec_fn=_die_with_parent(os.getpid()) if threading.active_count() == 1 else None,  # noqa: PLW1509
            )
        except BlockingIOError:
            check()
            if time.monotonic() > give_up_at:
                raise
            time.sleep(CHECK_SECONDS)


def _outputs(
    process: subprocess.Popen[bytes], program: str, check: Callable[[], None], output_bytes_max: int
) -> tuple[bytearray, bytearray]:
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()
    left = {process.stdout.fileno(): output, process.stderr.fileno(): errors}
    while left:
        check()
        has_ended = process.poll() is not None
        readable, _, _ = select.select(list(left), [], [], 0 if has_ended else CHECK_SECONDS)
        if has_ended and not readable:
            break  # what it has started and left behind holds the pipes open
        for pipe in readable:
            content = os.read(pipe, 65_536)
            if not content:
                del left[pipe]
            elif left[pipe] is output:
                output += content
            else:
                errors += content[: ERRORS_BYTES_MAX - len(errors)]
        if len(output) > output_bytes_max:
            raise ProgramError(f"{program} wrote more than {output_bytes_max} bytes")
    return output, errors


def _ended(process: subprocess.Popen[bytes], check: Callable[[], None]) -> int:
    """The exit status. A program can close its output long before it ends."""
    while True:
        check()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(CHECK_SECONDS)


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End the program where that is permitted: a helper may signal nobody, and its programs end with it."""
    try:
        process.kill()
    except PermissionError:
        return
    process.wait()


def adopt_orphans() -> None:
    """Become the parent of what this process's programs leave behind (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def limit_processes() -> None:
    """Bound the number of processes of the user that this process becomes, so that no program starts ever more."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = PROCESSES_MAX if hard == resource.RLIM_INFINITY else min(PROCESSES_MAX, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def has_orphans() -> bool:
    """Whether a process that a program has left behind still runs. Reaps those that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _die_with_parent(parent: int) -> Callable[[], None]:
    """What a program's process does before it executes the program."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return prepare
