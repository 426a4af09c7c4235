"""Base directories: the system's for root, the XDG base directories for everybody else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NAME: Final = "zeek-agent"
SYSTEM_CONFIG: Final = Path("/etc/zeek-agent/zeek-agent.toml")


def default_config(environment: Mapping[str, str] = os.environ) -> Path:
    """The default path of the configuration file."""
    if is_root():
        return SYSTEM_CONFIG
    return xdg_directory(environment, "XDG_CONFIG_HOME", ".config") / "zeek-agent.toml"


def xdg_directory(environment: Mapping[str, str], variable: str, fallback: str) -> Path:
    """The agent's directory in an XDG base directory; a relative one is ignored, as the specification requires."""
    base = Path(environment.get(variable) or "")
    if not base.is_absolute():
        base = Path(environment.get("HOME") or "~").expanduser() / fallback
    return base / NAME


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
