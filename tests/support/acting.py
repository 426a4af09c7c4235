"""Being somebody else for a moment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534

HOLD_LOCKS = """
import fcntl, os, sys
user, *places = sys.argv[1:]
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
for place in places:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        continue
    os.set_inheritable(descriptor, True)
    print(place, flush=True)
print(flush=True)
if program := os.environ.get("THEN"):
    os.execv(program, [program, "300"])
sys.stdin.read()
"""


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Root becomes another user of one group, for what the kernel checks while the block runs."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextmanager
def reachable_directory() -> Iterator[Path]:
    """A directory that every user can look into, as those that pytest makes are not."""
    with tempfile.TemporaryDirectory(prefix="zeek-agent-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def locks_of_another_user(*places: Path, then: Path | None = None) -> Iterator[list[Path]]:
    """A process of another user that holds the lock of each file and directory that it can; those are yielded.

    `then` is a program that it becomes, with its descriptors.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCKS, str(NOBODY), *map(str, places)],
        env={"THEN": str(then)} if then else {},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield [Path(line.strip()) for line in iter(process.stdout.readline, "\n")]
        finally:
            process.stdin.close()
            process.kill()
