"""What the agent gives to its workers: the setup that all have in common, and answers to their needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from zeek_agent import paths, platforms
from zeek_agent.bpf import iterators
from zeek_agent.containment.accounts import worker_account
from zeek_agent.containment.messages import Setup
from zeek_agent.containment.protections import LockdownError
from zeek_agent.errors import SqlError, ZeekAgentError
from zeek_agent.host.linux import netlink
from zeek_agent.host.linux.namespaces import in_network_namespace
from zeek_agent.host.linux.procfs import living_directory
from zeek_agent.recording.sockets import conntrack

if TYPE_CHECKING:
    import socket

    from zeek_agent.config.declarations import Config
    from zeek_agent.containment.messages import Need
    from zeek_agent.own_tables.declarations import OwnTable
    from zeek_agent.paths import Paths
    from zeek_agent.table import AgentView

PROGRAMS: Final = frozenset({"tasks", "socket_holders"})
"""Iterators that a worker may have."""

_encode: Final = msgspec.msgpack.Encoder().encode


def worker_setup(
    config: Config,
    places: Paths,
    agent: AgentView,
    started: float,
    former: Setup | None = None,
    *,
    own: Sequence[OwnTable] = (),
) -> Setup:
    """The first message to the zygote. `started` is the agent's start on the monotonic clock, in seconds.

    `own` are the operator's tables.

    The account is that of the `former` setup if there is one: its workers have it and would be in the way. Raises
    ZeekAgentError if no account is available for workers.
    """
    try:
        account = former.account if former is not None else worker_account() if platforms.HERE.is_privileged() else None
    except LockdownError as error:
        raise ZeekAgentError(str(error)) from error
    return Setup(
        config=_encode(config),
        protected=paths.protected(config, places),
        agent_id=agent.id,
        instance=agent.instance,
        hostname=config.agent.hostname,
        started=started,
        account=account,
        agent_pid=os.getpid(),
        own_tables=_encode(own) if own else b"",
    )


async def answer(
    need: Need,
    agent: AgentView,
    drain: Callable[[], Awaitable[None]],
    connect_osquery: Callable[[], socket.socket] | None,
) -> tuple[bytes, Sequence[int]]:
    """What a worker process cannot get on its own: rows as msgpack, and descriptors. Raises SqlError.

    `drain` brings the event store up to date; `connect_osquery` blocks, and is None without osquery.
    """
    match need.what:
        case "agent":
            return await asyncio.to_thread(agent_rows, agent, need.name), ()
        case "drain":
            await drain()
            return b"", ()
        case "iterator":
            return b"", [passed_iterator(need.name)]
        case "sock_diag":
            return b"", [await asyncio.to_thread(sock_diag_of, need.name)]
        case "translations":
            return await asyncio.to_thread(packed_translations), ()
        case "osquery" if connect_osquery is not None:
            connection = await asyncio.to_thread(connect_osquery)
            return b"", [connection.detach()]
    raise SqlError(f"the agent has no {need.what}")


def agent_rows(agent: AgentView, name: str) -> bytes:
    """Rows of one of the agent's own tables, as msgpack. Raises SqlError for another table."""
    readers: Mapping[str, object] = {
        "connections": agent.connections,
        "queries": agent.queries,
        "workers": agent.workers,
        "sources": agent.sources,
        "gaps": agent.gaps,
        "log": agent.log,
        "config": agent.config,
    }
    reader = readers.get(name)
    if reader is None:
        raise SqlError(f"the agent has no rows of {name}")
    return _encode([tuple(row) for row in reader()])  # type: ignore[operator]


def sock_diag_of(pid: str) -> int:
    """A descriptor of a sock_diag(7) socket in the network namespace of a process. Blocks. Raises SqlError."""
    try:
        path = f"{living_directory('/proc', int(pid))}/ns/net"
        opened = in_network_namespace(path, lambda: netlink.channel(netlink.NETLINK_SOCK_DIAG))
    except (OSError, ValueError) as error:
        raise SqlError(f"network namespace of process {pid}: {error}") from error
    return opened.detach()


def packed_translations() -> bytes:
    """The address translations of this network namespace, as msgpack. Blocks. Raises SqlError."""
    try:
        return _encode(list(conntrack.list_translations().items()))
    except OSError as error:
        raise SqlError(f"address translations: {error}") from error


def passed_iterator(program: str) -> int:
    """A descriptor of a BPF iterator, for one pass. Raises SqlError."""
    loaded = iterators.loaded_iterators()
    if program not in PROGRAMS or not isinstance(loaded, iterators.Iterators):
        raise SqlError(f"there is no iterator {program}")
    try:
        return loaded.open(program)
    except OSError as error:
        raise SqlError(f"iterator {program}: {error.strerror}") from error
