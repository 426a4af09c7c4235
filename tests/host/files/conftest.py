from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    """A directory that every user can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and directory != Path("/") and not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    return tmp_path
