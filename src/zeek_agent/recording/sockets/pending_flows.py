"""Inbound flows whose process is not known yet, because nobody has accepted or read them."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process_cache import Process
    from zeek_agent.recording.sockets.socket_event import Flow


class PendingFlow(NamedTuple):
    """An inbound flow, which began at `at` (ns since boot).

    `socket` and `key` identify it: its socket, and the flow within it. `holder` has the socket open, or had when it was
    last seen to use it. `inode` is that of a datagram socket.
    """

    socket: int
    key: Hashable
    at: int
    flow: Flow
    holder: Process | None
    inode: int = 0


class PendingFlows:
    """Pending flows by socket and, within a socket, by key; both in the order of arrival."""

    def __init__(self) -> None:
        self._by_socket: dict[int, dict[Hashable, PendingFlow]] = {}
        self._arrivals: deque[tuple[int, int, Hashable]] = deque()

    def add(self, pending: PendingFlow) -> None:
        """Add a flow."""
        self._by_socket.setdefault(pending.socket, {})[pending.key] = pending
        self._arrivals.append((pending.at, pending.socket, pending.key))

    def pop(self, socket: int, key: Hashable) -> PendingFlow | None:
        """Remove this flow; None if it is not pending."""
        flows = self._by_socket.get(socket)
        if flows is None or key not in flows:
            return None
        pending = flows.pop(key)
        if not flows:
            del self._by_socket[socket]
        return pending

    def pop_first(self, socket: int) -> PendingFlow | None:
        """Remove the flow of this socket that has waited longest; None if the socket has none."""
        flows = self._by_socket.get(socket)
        return self.pop(socket, next(iter(flows))) if flows else None

    def pop_all(self, socket: int) -> list[PendingFlow]:
        """Remove all flows of this socket."""
        return list(self._by_socket.pop(socket, {}).values())

    def pop_overdue(self, before: int) -> Iterator[PendingFlow]:
        """Remove the flows that began at `before` or earlier."""
        while self._arrivals and self._arrivals[0][0] <= before:
            at, socket, key = self._arrivals.popleft()
            current = self._by_socket.get(socket, {}).get(key)
            if current is not None and current.at == at:
                self.pop(socket, key)
                yield current
