"""Lines of the system's configuration files, which are in places that only root can write to: without the path gate."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

BYTES_MAX: Final = 16 << 20
"""Far more than such files have."""
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def system_lines(path: Path, report: Callable[[str], None]) -> Iterator[bytes]:
    """The lines of a file without their ends, none if it does not exist.

    `report` is called with a sentence if the file cannot be read, or only its beginning.
    """
    try:
        content = _content(path)
    except FileNotFoundError:
        return
    except OSError as error:
        report(f"{path} cannot be read: {error.strerror or error}")
        return
    if len(content) > BYTES_MAX:
        report(f"{path} has more than {BYTES_MAX:,} bytes: the rest was not read")
        content = content[:BYTES_MAX].rpartition(b"\n")[0]
    yield from content.removesuffix(b"\n").split(b"\n")


def _content(path: Path) -> bytes:
    """The content up to one byte more than the limit. Raises OSError."""
    with os.fdopen(os.open(path, _FLAGS), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        parts = []
        left = BYTES_MAX + 1
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)
