"""Inbound flows whose process is not known yet, because nobody has accepted or read them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.sockets.socket_event import Flow

T = TypeVar("T")


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


class FlowMap(Generic[T]):
    """A value for each flow: by socket and, within a socket, by key; in the order in which they were added."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[int, Hashable], T] = OrderedDict()
        self._keys: dict[int, dict[Hashable, None]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T]:
        """All values, the oldest first."""
        return iter(self._values.values())

    def add(self, socket: int, key: Hashable, value: T) -> None:
        """Add a flow, or replace its value."""
        self._values[socket, key] = value
        self._keys.setdefault(socket, {})[key] = None

    def get(self, socket: int, key: Hashable) -> T | None:
        """The value of a flow."""
        return self._values.get((socket, key))

    def keys(self, socket: int) -> list[Hashable]:
        """The flows of a socket, the oldest first."""
        return list(self._keys.get(socket, ()))

    def pop(self, socket: int, key: Hashable) -> T | None:
        """Remove a flow; None if there is no such flow."""
        value = self._values.pop((socket, key), None)
        if value is not None:
            self._forget(socket, key)
        return value

    def pop_first(self, socket: int) -> T | None:
        """Remove the oldest flow of a socket; None if there is none."""
        keys = self._keys.get(socket)
        return self.pop(socket, next(iter(keys))) if keys else None

    def pop_all(self, socket: int) -> list[T]:
        """Remove all flows of a socket."""
        return [self._values.pop((socket, key)) for key in self._keys.pop(socket, ())]

    def pop_oldest(self) -> T:
        """Remove the oldest flow of all. Raises KeyError if there is none."""
        (socket, key), value = self._values.popitem(last=False)
        self._forget(socket, key)
        return value

    def _forget(self, socket: int, key: Hashable) -> None:
        keys = self._keys[socket]
        del keys[key]
        if not keys:
            del self._keys[socket]


class PendingFlows(FlowMap[PendingFlow]):
    """Pending flows, in the order of arrival."""

    def pop_overdue(self, before: int) -> Iterator[PendingFlow]:
        """Remove the flows that began at `before` or earlier."""
        while self._values and next(iter(self)).at <= before:
            yield self.pop_oldest()

    def pop_surplus(self, maximum: int) -> Iterator[PendingFlow]:
        """Remove the oldest flows if there are more than `maximum`."""
        while len(self) > maximum:
            yield self.pop_oldest()
