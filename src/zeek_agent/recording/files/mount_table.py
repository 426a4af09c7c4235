"""The mounts that the watching process sees: which file system is where, and what may be opened without hanging."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

_SEPARATOR: Final = b"-"


class Mount(NamedTuple):
    """A line of mountinfo (proc(5))."""

    number: int
    """The kernel's id, which can be used again after the mount is gone."""
    parent: int
    device: bytes
    """Major and minor number of the file system."""
    place: bytes
    """The mount point."""
    kind: bytes
    is_admitted: bool
    """Whether file systems of this type are entered."""


class MountTable:
    """What is mounted, as of the last `read`. A mount that another one covers cannot be reached by its path."""

    def __init__(self, kinds: Collection[bytes] = (), path: str = "/proc/self/mountinfo") -> None:
        """`kinds` are the types of file systems that are entered."""
        self._kinds = kinds
        self._path = path
        self._mounts: dict[int, Mount] = {}
        self._visible: dict[bytes, Mount] = {}

    def read(self) -> list[Mount]:
        """Read the table; returns the mounts that are gone."""
        with open(self._path, "rb") as file:  # noqa: PTH123
            mounts = {mount.number: mount for mount in map(self._parsed, file.read().splitlines())}
        # An id that is used again is another mount.
        gone = [former for number, former in self._mounts.items() if mounts.get(number) != former]
        self._mounts = mounts
        self._visible = {mount.place: mount for mount in _uncovered(mounts)}
        return gone

    def __iter__(self) -> Iterator[Mount]:
        """The mounts that can be reached by their paths."""
        return iter(self._visible.values())

    def at(self, place: bytes) -> Mount | None:
        """What is mounted at this place; None if it is not a mount point that can be reached."""
        return self._visible.get(place)

    def around(self, place: bytes) -> Mount | None:
        """The mount in which a path lies."""
        while True:
            mount = self._visible.get(place)
            if mount is not None or place == b"/":
                return mount
            place = place.rpartition(b"/")[0] or b"/"

    def has_device(self, device: bytes) -> bool:
        """Whether the file system is mounted anywhere, covered or not."""
        return any(mount.device == device for mount in self._mounts.values())

    def of_device(self, device: bytes) -> Mount | None:
        """A mount of the file system that can be reached by its path."""
        return next((mount for mount in self._visible.values() if mount.device == device), None)

    def _parsed(self, line: bytes) -> Mount:
        fields = line.split(b" ")
        kind = fields[fields.index(_SEPARATOR) + 1]
        return Mount(int(fields[0]), int(fields[1]), fields[2], unescaped(fields[4]), kind, kind in self._kinds)


def _uncovered(mounts: dict[int, Mount]) -> Iterator[Mount]:
    """The mounts without another one on their root, or on a directory above their mount point."""
    children: dict[int, set[bytes]] = {}
    for mount in mounts.values():
        children.setdefault(mount.parent, set()).add(mount.place)
    reachable: dict[int, bool] = {}
    for mount in mounts.values():
        chain = []  # hundreds of mounts can lie upon each other
        above: Mount | None = mount
        while above is not None and above.number not in reachable:
            reachable[above.number] = True  # the root may be its own parent
            chain.append(above)
            above = mounts.get(above.parent)
        verdict = above is None or reachable[above.number]
        for each in reversed(chain):
            beside = children[each.parent]
            verdict = verdict and not any(place in beside for place in _above(each.place))
            reachable[each.number] = verdict
        if reachable[mount.number] and not _has_on_root(mount, children):
            yield mount


def _has_on_root(mount: Mount, children: dict[int, set[bytes]]) -> bool:
    return mount.parent != mount.number and mount.place in children.get(mount.number, ())


def _above(place: bytes) -> Iterator[bytes]:
    """The directories above a place, but not the root directory."""
    while (place := place.rpartition(b"/")[0]) not in (b"", b"/"):
        yield place


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether a path is a directory or lies in it."""
    return path == directory or path.startswith(directory if directory.endswith(b"/") else directory + b"/")


def unescaped(field: bytes) -> bytes:
    """A path in mountinfo, where blanks, tabs, newlines and backslashes are octal numbers."""
    parts = field.split(b"\\")
    return parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])
