"""The readers of a system without Linux's kernel interfaces, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from zeek_agent.host.portable import network_interfaces, sockets
from zeek_agent.host.portable.processes import PortableProcesses

if TYPE_CHECKING:
    from zeek_agent.host.network_interface import Interface
    from zeek_agent.host.portable.sockets import HeldSocket, Withheld

_DYNAMIC_PORTS: Final = range(49_152, 65_536)
"""RFC 6335; the default of macOS and Windows."""


class PortableSystem(Protocol):
    """A system that psutil knows."""

    ephemeral_ports: range
    """The ports where no server listens."""
    has_datagram_peers: bool
    """Whether it reports the peers of UDP sockets."""

    def processes(self) -> PortableProcesses:
        """A new scan of all processes."""
        ...

    def sockets(
        self,
        withheld: Callable[[Withheld], None],
        pids: Iterable[int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[HeldSocket]:
        """The sockets of all processes, or of `pids`. `withheld` is called if some are not visible. Raises OSError."""
        ...

    def interfaces(self) -> list[Interface]:
        """The network interfaces. Raises OSError."""
        ...


class PosixSystem:
    """macOS, and Linux in tests."""

    ephemeral_ports = _DYNAMIC_PORTS
    has_datagram_peers = True

    def __init__(self, boot_id: Callable[[], str | None], start_of: Callable[[int], int | None]) -> None:
        self._boot_id = boot_id
        self._start_of = start_of

    def processes(self) -> PortableProcesses:
        return PortableProcesses(self._boot_id(), self._start_of)

    def sockets(
        self,
        withheld: Callable[[Withheld], None],
        pids: Iterable[int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[HeldSocket]:
        return sockets.sockets_of_processes(self.processes().pids() if pids is None else pids, withheld, check)

    def interfaces(self) -> list[Interface]:
        return network_interfaces.list_interfaces(counts_dropped_output=False)


class WindowsSystem:
    """Windows."""

    ephemeral_ports = _DYNAMIC_PORTS
    has_datagram_peers = False

    def processes(self) -> PortableProcesses:
        from zeek_agent.host.windows.processes import WindowsProcesses

        return WindowsProcesses()

    def sockets(
        self,
        withheld: Callable[[Withheld], None],
        pids: Iterable[int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[HeldSocket]:
        wanted = None if pids is None else set(pids)
        for one in sockets.all_sockets():
            if wanted is None or one.pid in wanted:
                yield one

    def interfaces(self) -> list[Interface]:
        return network_interfaces.list_interfaces()


def portable_system(group: str) -> PortableSystem:
    """The system of a group of agents: `darwin` or `windows`."""
    if group == "windows":
        return WindowsSystem()
    from zeek_agent.host.macos import process_starts

    return PosixSystem(_boot_session, process_starts.start_of)


def _boot_session() -> str | None:
    from zeek_agent.host.macos.boot_session import boot_session

    try:
        return boot_session()
    except OSError:
        return None
