"""Replacing the store's file by a copy of it, although a reader that does not end holds the old one open.

A crash leaves either file complete, and `finish` at the next start completes the replacement.
"""

from __future__ import annotations

import os
from pathlib import Path

from zeek_agent import platforms


def unfinished(path: Path) -> Path:
    """Where the copy is written."""
    return path.with_name(f"{path.name}.copying")


def replace(path: Path) -> None:
    """Replace the file, which nobody writes any more, with the unfinished copy. Raises OSError."""
    copy = unfinished(path)
    with copy.open("rb+") as file:
        os.fsync(file.fileno())
    copy.replace(_complete(path))
    platforms.HERE.sync_directory(path.parent)
    _put_in_place(path)


def finish(path: Path) -> None:
    """Complete a replacement that a crash interrupted, and remove what it left. Raises OSError."""
    if _complete(path).exists():
        _put_in_place(path)
    for left in (unfinished(path), Path(f"{unfinished(path)}-journal"), _old(path)):
        left.unlink(missing_ok=True)


def _put_in_place(path: Path) -> None:
    """The old file goes first, so that a reader that opens it meanwhile fails, instead of seeing it without its log."""
    if path.exists():
        path.replace(_old(path))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    _complete(path).replace(path)
    platforms.HERE.sync_directory(path.parent)
    _old(path).unlink(missing_ok=True)


def _complete(path: Path) -> Path:
    return path.with_name(f"{path.name}.copy")


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")
