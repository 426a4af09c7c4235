"""The running agent as a worker's tables see it: every answer is one request to the agent's process."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from zeek_agent.bpf import iterators
from zeek_agent.containment.messages import Setup
from zeek_agent.errors import SqlError
from zeek_agent.events import reading
from zeek_agent.host.hostname import hostname
from zeek_agent.recording.sockets.socket_event import Ends, Translation

if TYPE_CHECKING:
    from zeek_agent.schema import Row
    from zeek_agent.table import Table

Ask: TypeAlias = "Callable[[str, str], tuple[bytes, list[int]]]"
"""Asks the agent: what, and which. Returns rows as msgpack and descriptors. Raises SqlError."""

_translations: Final = msgspec.msgpack.Decoder(list[tuple[list[Any], list[Any]]]).decode
_rows: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


class AgentProxy:
    """`AgentView` in a worker. `ask` sends a need and returns rows and descriptors; it raises SqlError."""

    def __init__(
        self,
        setup: Setup,
        ask: Ask,
        tables: Callable[[], Iterable[Table]],
        store_uri: str | None,
    ) -> None:
        self.id = setup.agent_id
        self.instance = setup.instance
        self.pid = setup.agent_pid
        self._hostname = setup.hostname
        self._started = setup.started
        self._ask = ask
        self._tables = tables
        self._store_uri = store_uri

    @property
    def hostname(self) -> str:
        return hostname(self._hostname)

    def uptime(self) -> float:
        return time.monotonic() - self._started

    def tables(self) -> Iterable[Table]:
        return [table for table in self._tables() if not table.alias]

    def recorded(
        self,
        sql: str,
        bindings: Sequence[int | float | str | None] = (),
        check: Callable[[], None] = lambda: None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Iterable[Row]:
        if self._store_uri is None:
            return ()
        self._ask("drain", "")
        return reading.iterate_events(self._store_uri, sql, bindings, check, functions)

    def connections(self) -> Iterable[Row]:
        return self._agent_rows("connections")

    def queries(self) -> Iterable[Row]:
        return self._agent_rows("queries")

    def workers(self) -> Iterable[Row]:
        return self._agent_rows("workers")

    def sources(self) -> Iterable[Row]:
        return self._agent_rows("sources")

    def gaps(self) -> Iterable[Row]:
        return self._agent_rows("gaps")

    def log(self) -> Iterable[Row]:
        return self._agent_rows("log")

    def config(self) -> Iterable[Row]:
        return self._agent_rows("config")

    def _agent_rows(self, name: str) -> Iterable[Row]:
        packed, _ = self._ask("agent", name)
        return [tuple(row) for row in _rows(packed)]


def passed_sock_diag(ask: Ask, pid: int) -> socket.socket:
    """A sock_diag(7) socket in the network namespace of a process. Raises OSError."""
    try:
        _, descriptors = ask("sock_diag", str(pid))
    except SqlError as error:
        raise PermissionError(str(error)) from error
    return socket.socket(fileno=descriptors[0])


def passed_translations(ask: Ask) -> dict[Ends, Translation]:
    """Address translations of the agent's network namespace. Raises SqlError."""
    packed, _ = ask("translations", "")
    return {
        (ends[0], ends[1], ends[2], ends[3], ends[4]): Translation(*translation)
        for ends, translation in _translations(packed)
    }


class PassedIterators(iterators.IteratorReader):
    """BPF iterators that the agent makes, one descriptor for each read."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def _read(self, program: str) -> bytes:
        _, descriptors = self._ask("iterator", program)
        if len(descriptors) != 1:
            raise SqlError(f"the agent passed no iterator of {program}")
        return iterators.read_all(descriptors[0])
