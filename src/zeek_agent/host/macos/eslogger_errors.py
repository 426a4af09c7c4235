"""Why eslogger(1) could not begin, from its messages and those of other programs that need Full Disk Access."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

FULL_DISK_ACCESS: Final = (
    "System Settings > Privacy & Security > Full Disk Access, or with a profile of the management system "
    "(SystemPolicyAllFiles)"
)
_EXPLANATIONS: Final[Mapping[str, str]] = {
    "ERR_NOT_PERMITTED": (
        "macOS does not permit it: the program that is responsible for the agent needs Full Disk Access. That is "
        "{program} if launchd started the agent, else the terminal or SSH server. Grant it in "
        f"{FULL_DISK_ACCESS}, and restart the agent"
    ),
    "ERR_NOT_PRIVILEGED": "it needs root",
    "ERR_NOT_ENTITLED": "this eslogger lacks Apple's entitlement: use the one of the system, /usr/bin/eslogger",
    "ERR_TOO_MANY_CLIENTS": "too many programs use Endpoint Security: end some of them",
    "ERR_INTERNAL": "the Endpoint Security subsystem does not answer",
}
"""By the result of es_new_client(3)."""


def with_remedy(reason: str, program: str = sys.executable) -> str:
    """The reason why eslogger ended, with the remedy if it is known."""
    for code, explanation in _EXPLANATIONS.items():
        if code in reason:
            return f"{explanation.format(program=program)} ({reason})"
    return reason
