"""Mounted file systems, from mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

OWN_MOUNTINFO: Final = "/proc/self/mountinfo"

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_DELETED: Final = "//deleted"
"""Appended by the kernel to the root of a mount whose file or directory was deleted."""
_BETWEEN_COLONS: Final = re.compile(r"(?:\\.|[^:\\])+", re.DOTALL)
_BACKSLASHED: Final = re.compile(r"\\(.)", re.DOTALL)
_LAYER: Final = re.compile(r"(?:^|,)(?:lowerdir\+?|datadir\+|upperdir)=([^,]*)")


class Mount(NamedTuple):
    """A mount: its number, the device of its file system, the mounted directory of that, its mount point, and the file
    system's type.

    Paths are in the form of `os.fsdecode`; the device is `major:minor`. If the mounted directory was deleted, `root` is
    its former name.
    """

    id: int
    device: str
    root: str
    mount_point: str
    kind: str
    layers: tuple[str, ...] = ()
    """The layers of an overlay whose paths in its options are absolute; the directory that ecryptfs encrypts."""
    parent: int = 0
    """The number of the mount that it is mounted on."""


def mounts(mountinfo: str = OWN_MOUNTINFO) -> Iterator[Mount]:
    """All mounts that the process sees, the topmost of each mount point last."""
    return parse_mountinfo(Path(mountinfo).read_bytes())


def parse_mountinfo(mountinfo: bytes) -> Iterator[Mount]:
    """The mounts in the text of a mountinfo file."""
    for line in mountinfo.split(b"\n"):  # a carriage return may be part of a name, which the mounting user chooses
        if not line:
            continue
        number, parent, device, root, mount_point, *rest = line.split(b" ")
        kind, source, options = rest[rest.index(b"-") + 1 :][:3]
        layers = tuple(_layers(options)) if kind == b"overlay" else ()
        if kind == b"ecryptfs":
            layers = (_path(source),)
        top = _path(root).removesuffix(_DELETED) or "/"
        yield Mount(int(number), device.decode(), top, _path(mount_point), os.fsdecode(kind), layers, int(parent))


def _layers(options: bytes) -> Iterator[str]:
    """The absolute paths among the layers in an overlay's options, where colons of names are escaped."""
    for found in _LAYER.finditer(os.fsdecode(options)):
        for layer in _BETWEEN_COLONS.findall(_path(os.fsencode(found[1]))):
            path = _BACKSLASHED.sub(r"\1", layer)
            if path.startswith("/"):
                yield path


class Mounts:
    """The mounts at one moment, by number and by device, and their mount points."""

    def __init__(self, listed: Iterable[Mount]) -> None:
        self.by_id: Mapping[int, Mount] = {mount.id: mount for mount in listed}
        by_device: dict[str, list[Mount]] = {}
        for mount in self.by_id.values():
            by_device.setdefault(mount.device, []).append(mount)
        self.by_device: Mapping[str, Sequence[Mount]] = by_device
        self.mount_points: frozenset[str] = frozenset(mount.mount_point for mount in self.by_id.values())


class MountTable:
    """The agent's own mounts, read again whenever they have changed. Thread-safe.

    Mount numbers are reused after an unmount, so a number must only be looked up while a descriptor keeps the mount, in
    the result of a call of `current` after that descriptor was opened.
    """

    def __init__(self, mountinfo: str = OWN_MOUNTINFO) -> None:
        self._lock = threading.Lock()
        self._file = Path(mountinfo).open("rb", buffering=0)  # noqa: SIM115 - open as long as the process lives
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._mounts = self._read()

    def current(self) -> Mounts:
        """The mounts now. Raises OSError."""
        with self._lock:
            if self._poll.poll(0):
                self._mounts = self._read()
            return self._mounts

    def read(self) -> None:
        """Read them again although no mount has changed, because their directories may have been renamed."""
        with self._lock:
            self._mounts = self._read()

    def _read(self) -> Mounts:
        self._file.seek(0)
        return Mounts(parse_mountinfo(self._file.read()))


def _path(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), field))
