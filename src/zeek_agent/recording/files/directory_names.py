"""The names in watched directories, in little memory, to find what is missing after events were lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

_BYTES_MAX: Final = 1 << 20
_CHANGES_MAX: Final = 4_000


class DirectoryNames:
    """Names by directory. Directories beyond the limit are left out: what is missing there cannot be told.

    Names are packed. Changes are kept apart until there are many, and then packed as well.
    """

    def __init__(self, bytes_max: int = _BYTES_MAX, changes_max: int = _CHANGES_MAX) -> None:
        self._bytes_max = bytes_max
        self._changes_max = changes_max
        self._packed: dict[bytes, bytes] = {}
        self._changes: dict[bytes, dict[bytes, bool]] = {}
        """Whether a name was added or removed since its directory was packed."""
        self._changed = 0
        self._bytes = 0

    def get(self, directory: bytes) -> set[bytes] | None:
        """The names; None if they are not known."""
        packed = self._packed.get(directory)
        if packed is None:
            return None
        names = set(packed.split(b"/") if packed else ())
        for name, is_there in self._changes.get(directory, {}).items():
            (names.add if is_there else names.discard)(name)
        return names

    @contextmanager
    def replacing(self, directory: bytes, share: float = 1.0) -> Iterator[Callable[[bytes], None]]:
        """Replace the names in a directory by those that the given function is called with.

        The directory is left out if the names, with those of others, then take more than this share of the memory.
        """
        self.forget(directory)
        left = int(self._bytes_max * share) - self._bytes
        names: list[bytes] = []

        def note(name: bytes) -> None:
            nonlocal left
            left -= len(name) + 1
            if left >= 0:
                names.append(name)
            else:
                names.clear()

        yield note
        if left >= 0:
            self._pack(directory, names)

    def add(self, directory: bytes, name: bytes) -> None:
        self._change(directory, name, is_there=True)

    def discard(self, directory: bytes, name: bytes) -> None:
        self._change(directory, name, is_there=False)

    def forget(self, directory: bytes) -> None:
        self._changed -= len(self._changes.pop(directory, ()))
        self._bytes -= len(self._packed.pop(directory, b""))

    def _change(self, directory: bytes, name: bytes, *, is_there: bool) -> None:
        if directory not in self._packed:
            return
        changes = self._changes.setdefault(directory, {})
        self._changed += name not in changes
        changes[name] = is_there
        while self._changed > self._changes_max:
            oldest = next(iter(self._changes))
            names = self.get(oldest) or set()
            self.forget(oldest)
            self._pack(oldest, names)

    def _pack(self, directory: bytes, names: Iterable[bytes]) -> None:
        packed = b"/".join(names)
        if self._bytes + len(packed) <= self._bytes_max:
            self._packed[directory] = packed
            self._bytes += len(packed)
