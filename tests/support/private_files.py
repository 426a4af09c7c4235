"""Whether other users can use a file: by its mode, or by its access control list on Windows."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from zeek_agent import platforms


def assert_private(path: Path) -> None:
    """Only the owner and, on Windows, administrators and the system can use the file or directory."""
    if platforms.HERE.has_owner_ids:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:04o}"
        return
    from zeek_agent.platforms.winapi import security

    descriptor = security.describe(path)
    trustees = set(re.findall(r"\(A;[^;)]*;[^;)]*;;;([^)]+)\)", descriptor))
    assert trustees <= {"SY", "BA", "OW", security.user_sid()}, f"{path} has {descriptor}"
    assert trustees, f"{path} has {descriptor}"
