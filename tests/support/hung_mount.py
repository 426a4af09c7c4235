"""A FUSE file system that never answers, in the mount namespace of a running agent."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from children import fork
from mounting import CLONE_NEWNS, SilentFuse

OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
"""The prefix of an agent's command that makes it see mounts of its own."""


@contextmanager
def hung_mount(pid: int, place: Path) -> Iterator[SilentFuse]:
    """Mount it at a directory that the process sees. Whoever waits for it is released at the end."""
    fuse = SilentFuse()
    finished, finish = os.pipe()
    serving = threading.Thread(target=fuse.serve, args=(finished, 3600.0))
    serving.start()
    try:

        def mount() -> None:
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), "setns")
            fuse.mount(place)

        child = fork(mount)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        yield fuse
    finally:
        os.close(finish)
        serving.join()
        os.close(finished)
        fuse.close()
