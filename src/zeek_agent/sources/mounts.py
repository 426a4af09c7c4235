"""Mounted file systems, from mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mount: its number, the directory of its file system that it shows, where it shows it, the file system's kind.

    Paths are in the form of `os.fsdecode`.
    """

    id: int
    root: str
    place: str
    kind: str


def mounts(mountinfo: str = "/proc/self/mountinfo") -> Iterator[Mount]:
    """All mounts that the process sees, the uppermost of one place last."""
    for line in Path(mountinfo).read_bytes().splitlines():
        number, _, _, root, place, *rest = line.split(b" ")
        yield Mount(int(number), _path(root), _path(place), os.fsdecode(rest[rest.index(b"-") + 1]))


def _path(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), field))
