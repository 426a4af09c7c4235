"""The service manager of this system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from zeek_agent import platforms
from zeek_agent.errors import UsageError
from zeek_agent.platforms import Platform


class ServiceInstaller(Protocol):
    """Installs the agent as a service. Methods yield lines about what they did, and raise ZeekAgentError."""

    def install(self, *, start: bool) -> Iterator[str]:
        """Install the service for this program and, if there is none, a configuration; start it."""

    def uninstall(self, *, purge: bool) -> Iterator[str]:
        """Stop and remove the service; with `purge` also state, logs and configuration."""


def of_this_system(platform: Platform = platforms.HERE, *, gateway: bool = False) -> ServiceInstaller:
    """The one that runs this host's services. Raises UsageError for a gateway on a system that is not Linux."""
    if gateway and platform.key != "linux":
        raise UsageError("a gateway can be installed as a service on Linux only; `zeek-agent gateway` runs one")
    if platform.key == "darwin":
        from zeek_agent.service.launchd import InstalledDaemon

        return InstalledDaemon()
    if platform.key == "win32":
        from zeek_agent.service.windows_service import WindowsService

        return WindowsService()
    from zeek_agent.service.installation import GATEWAY_UNIT, UNIT, InstalledProgram, Service

    return InstalledProgram(Service(name=GATEWAY_UNIT if gateway else UNIT))
