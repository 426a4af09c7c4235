"""Files and directories for the tests of the path gate and its rules, and what the tables read from them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from asking import READS_ALL, ask
from mounting import (
    mount,
)

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.host.files.reads import FileReads
from zeek_agent.tables.file_hashes import file_hashes
from zeek_agent.tables.files import files_columns, files_lines, files_list

DEFAULT = AccessPolicy()
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hPQyLqgM2u0kL8h1bX0o5mW9c1P0m6m1Jb2o5T3fY"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIL1pZ3Vp\n-----END PRIVATE KEY-----\n"


def lines(pattern: str | Path, access: AccessPolicy = DEFAULT, reads: FileReads | None = None) -> list[str]:
    return [
        row["content"].decode(errors="surrogateescape")
        for row in ask(files_lines, str(pattern), access=access, reads=reads)
    ]


def hashes(pattern: str | Path, access: AccessPolicy = DEFAULT, reads: FileReads | None = None) -> list[str]:
    return [row["sha256"] for row in ask(file_hashes, str(pattern), access=access, reads=reads)]


def listed(
    pattern: str | Path, access: AccessPolicy = DEFAULT, reads: FileReads | None = None
) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in ask(files_list, str(pattern), access=access, reads=reads)}


def read_anyhow(*patterns: str | Path, access: AccessPolicy = READS_ALL) -> list[Any]:
    """All that the tables tell of the contents of files."""
    found: list[Any] = []
    for pattern in patterns:
        rows = ask(files_columns, str(pattern), "$0:text", "", "^$", access=access)
        found += [*lines(pattern, access), *hashes(pattern, access), *(row["columns"] for row in rows)]
    return found


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def allowing(*patterns: str, **settings: Any) -> AccessPolicy:
    return AccessPolicy(AccessSettings(files_allow=patterns, **settings))


def write(file: str | Path, content: str, mode: int = 0o644, owner: int = 0) -> Path:
    """Write a file; directories that it needs are as public as /etc, and below /home the owner's."""
    file = Path(file)
    for directory in reversed(file.parents):
        if not directory.exists():
            directory.mkdir()
            directory.chmod(0o755)
            if directory.is_relative_to("/home") and directory != Path("/home"):
                os.chown(directory, owner, owner)
    file.write_text(content)
    file.chmod(mode)
    os.chown(file, owner, owner)
    return file


def tmpfs(*places: str) -> None:
    """Empty directories in place of the host's."""
    for place in places:
        Path(place).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", place, "tmpfs", data="mode=755")
