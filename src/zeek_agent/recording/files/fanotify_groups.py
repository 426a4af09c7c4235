"""The fanotify groups of the watching process.

One group can hold the marks of all file systems but btrfs: the kernel refuses (EXDEV) to mix those of a btrfs subvolume
with others, because its subvolumes are one file system with several ids. Each of them gets a group of its own. Groups
are opened in advance, because that needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from zeek_agent.recording.files import fanotify

GROUPS: Final = 8
"""Of the 128 that a user may have (fs.fanotify.max_user_groups)."""


class FanotifyGroups:
    """Groups, and which of them has the marks of a file system."""

    def __init__(self, descriptors: Sequence[int], *, joins_renames: bool) -> None:
        """`joins_renames`: whether the groups report a rename as one event (Linux 5.17)."""
        self._descriptors = descriptors
        self.joins_renames = joins_renames
        self._by_file_system: dict[bytes, int] = {}
        self.in_use: list[int] = []
        """The descriptors of the groups that have marks."""

    @classmethod
    def opened(cls) -> FanotifyGroups:
        """Raises OSError if not even one can be opened; a limit of the kernel can leave out some."""
        descriptor, joins_renames = fanotify.open_group()
        descriptors = [descriptor]
        while len(descriptors) < GROUPS:
            try:
                descriptors.append(fanotify.open_group()[0])
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                break
        return cls(descriptors, joins_renames=joins_renames)

    def mark(self, flags: int, mask: int, directory: int, file_system: bytes) -> None:
        """Change the mark of an open directory, or of its file system. Raises OSError: EXDEV if no group is left."""
        known = self._by_file_system.get(file_system)
        for descriptor in self._descriptors if known is None else [known]:
            try:
                fanotify.mark(descriptor, flags, mask, directory)
            except OSError as error:
                if error.errno != errno.EXDEV or known is not None or descriptor == self._descriptors[-1]:
                    raise
            else:
                self._by_file_system[file_system] = descriptor
                if descriptor not in self.in_use:
                    self.in_use.append(descriptor)
                return

    def has_mark(self, flags: int, directory: int, file_system: bytes) -> bool:
        """Whether the kernel still has the mark of an open directory, or of its file system."""
        group = self._by_file_system.get(file_system)
        if group is None:
            return False
        try:
            fanotify.mark(group, flags | fanotify.MARK_REMOVE, fanotify.ACCESS, directory)  # removes nothing
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def forget(self, file_system: bytes) -> None:
        """Note that a file system is gone, and the kernel has removed its marks."""
        self._by_file_system.pop(file_system, None)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
