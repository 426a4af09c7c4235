"""Parts of the default pack, for tests that need one log: an agent that runs all its queries costs seconds."""

from __future__ import annotations

import re
from pathlib import Path

from zeek_agent.collector import pack_file

DEFAULT = Path(pack_file.__file__).with_name("default.toml")


def pack_of(log: str, file: Path) -> Path:
    """The file, with the declaration of this log and the queries that fill it."""
    head, *blocks = re.split(r"\n(?=\[)", DEFAULT.read_text())
    wanted = [block for block in blocks if block.startswith(f"[logs.{log}]") or f'\nlog = "{log}"\n' in block]
    assert len(wanted) >= 2, f"the default pack has no log {log}"
    file.write_text("\n".join([head, *wanted]))
    return file
