"""What the agent gives to its workers: the setup that all have in common, and answers to their needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from zeek_agent import paths
from zeek_agent.bpf import iterators
from zeek_agent.containment.messages import Setup
from zeek_agent.errors import SqlError

if TYPE_CHECKING:
    from zeek_agent.config import Config
    from zeek_agent.paths import Paths
    from zeek_agent.table import AgentView

PROGRAMS: Final = frozenset({"tasks", "socket_holders"})
"""Iterators that a worker may have."""

_encode: Final = msgspec.msgpack.Encoder().encode


def worker_setup(config: Config, places: Paths, agent: AgentView, started: float) -> Setup:
    """The first message to the zygote. `started` is the agent's start on the monotonic clock, in seconds."""
    return Setup(
        config=_encode(config),
        protected=paths.protected(config, places),
        agent_id=agent.id,
        instance=agent.instance,
        hostname=agent.hostname,
        started=started,
    )


def agent_rows(agent: AgentView, name: str) -> bytes:
    """Rows of one of the agent's own tables, as msgpack. Raises SqlError for another table."""
    readers: Mapping[str, object] = {
        "connections": agent.connections,
        "queries": agent.queries,
        "sources": agent.sources,
        "gaps": agent.gaps,
        "log": agent.log,
        "config": agent.config,
    }
    reader = readers.get(name)
    if reader is None:
        raise SqlError(f"the agent has no rows of {name}")
    return _encode([tuple(row) for row in reader()])  # type: ignore[operator]


def passed_iterator(program: str) -> int:
    """A descriptor of a BPF iterator, for one pass. Raises SqlError."""
    loaded = iterators.loaded()
    if program not in PROGRAMS or not isinstance(loaded, iterators.Iterators):
        raise SqlError(f"there is no iterator {program}")
    try:
        return loaded.open(program)
    except OSError as error:
        raise SqlError(f"iterator {program}: {error.strerror}") from error
