"""Directories that only root can have filled, and declarations of own tables in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT = "/usr/local/lib"


@contextmanager
def roots_directory() -> Iterator[Path]:
    """An empty directory of root's, as are those above it; others may read it."""
    place = Path(tempfile.mkdtemp(prefix="zeek-agent-test-", dir=PARENT))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def script(place: Path, name: str, text: str) -> Path:
    """A shell script of root's."""
    path = place / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def declared(place: Path, text: str, name: str = "tables.toml") -> str:
    """A file with these declarations, replaced in one step."""
    fresh = place / f"{name}.new"
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(place / name)
    return str(place / name)
