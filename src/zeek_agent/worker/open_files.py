"""Takes the right to write from what a worker has open."""

from __future__ import annotations

import os
import stat


def let_go_of_standard_streams() -> None:
    """Replace standard input, output and error by the null device: what a worker says goes through its socket."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


def reopen_read_only() -> None:
    """Open regular files again for reading that this process could write, under the same numbers.

    SQLite opens the write-ahead log for writing, even for a connection that only reads. Standard output and standard
    error stay as they are. A lock (fcntl(2)) on such a file would be lost; SQLite has
    none on the log. Raises OSError.
    """
    for descriptor in _written_files():
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(opened, descriptor, inheritable=False)
        finally:
            os.close(opened)


def _written_files() -> list[int]:
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [number for number in numbers if number > 2 and _is_written_file(number)]


def _is_written_file(descriptor: int) -> bool:
    import fcntl

    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # the directory of descriptors itself
    return is_file and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
