"""The host's name, which an administrator, DHCP or a cloud's setup can change while the agent runs."""

from __future__ import annotations

import socket

from zeek_agent.text import from_os


def hostname(configured: str | None) -> str:
    """The name to report now: that of the configuration (`agent.hostname`), or else the system's."""
    return configured or from_os(socket.gethostname())
