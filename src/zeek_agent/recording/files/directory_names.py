"""The names in watched directories, in little memory, to find what is missing after events were lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_BYTES_MAX: Final = 1 << 20
_OPEN_MAX: Final = 64
"""Directories whose names are kept as a set, because they change."""


class DirectoryNames:
    """Names by directory. Directories beyond the limit are left out: what is missing there cannot be told."""

    def __init__(self, bytes_max: int = _BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._packed: dict[bytes, bytes] = {}
        self._open: dict[bytes, set[bytes]] = {}
        self._bytes = 0

    def get(self, directory: bytes) -> frozenset[bytes] | None:
        """The names; None if they are not known."""
        opened = self._open.get(directory)
        if opened is not None:
            return frozenset(opened)
        packed = self._packed.get(directory)
        return None if packed is None else frozenset(packed.split(b"/") if packed else ())

    def replace(self, directory: bytes, names: Iterable[bytes]) -> None:
        """Replace the names in a directory."""
        self.forget(directory)
        self._pack(directory, names)

    def add(self, directory: bytes, name: bytes) -> None:
        names = self._opened(directory)
        if names is not None:
            names.add(name)

    def discard(self, directory: bytes, name: bytes) -> None:
        names = self._opened(directory)
        if names is not None:
            names.discard(name)

    def forget(self, directory: bytes) -> None:
        self._open.pop(directory, None)
        self._bytes -= len(self._packed.pop(directory, b""))

    def _opened(self, directory: bytes) -> set[bytes] | None:
        names = self._open.get(directory)
        if names is None:
            packed = self._packed.pop(directory, None)
            if packed is None:
                return None
            self._bytes -= len(packed)
            names = self._open[directory] = set(packed.split(b"/") if packed else ())
            if len(self._open) > _OPEN_MAX:
                oldest = next(iter(self._open))
                self._pack(oldest, self._open.pop(oldest))
        return names

    def _pack(self, directory: bytes, names: Iterable[bytes]) -> None:
        packed = b"/".join(names)
        if self._bytes + len(packed) <= self._bytes_max:
            self._packed[directory] = packed
            self._bytes += len(packed)
