"""Hosts that a collector remembers, also across its restarts: identity, state, and what was lost or failed there.

`HostRecords` writes them to the log directory. State changes are due at the next write; figures that change with every
row are due at longer intervals. The number of hosts is bounded: of those that are not connected, the ones known for the
shortest time go first, so that a client that makes up ids evicts its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Literal, TypeGuard

from msgspec import Struct

from zeek_agent.collector.agents import KnownAgent
from zeek_agent.queries.subscriptions import Change

HostState = Literal["connected", "away", "shutdown", "offline"]
"""`away`: the connection ended without a shutdown message, and the agent has not timed out yet."""

LIVE: Final = ("connected", "away", "shutdown")
"""States that end with `offline` when an agent stays silent."""
GAPS_LOG: Final = "zeek-agent-gaps"
SOURCES_LOG: Final = "zeek-agent-sources"
"""The logs with rows of `zeek_agent_gaps` and `zeek_agent_sources`, from which gaps and losses are counted."""

URGENT_MAX: Final = 500
"""State changes per write, which is each second; others wait for the next one."""
FIGURES_INTERVAL_SECONDS: Final = 10.0
"""How often changed figures are due."""
FIGURES_MAX: Final = 1_000
"""Hosts whose figures are written at one time, those that have waited longest."""
EVICTED_SHARE: Final = 100
"""The part of all hosts that is evicted at once, so that the search for them is rare."""
GAPS_REMEMBERED: Final = 50
"""The newest gaps of a host, so that one that is reported again is not counted again."""
LOSSES_REMEMBERED: Final = 64
"""Counters of a host's event sources; an agent has about ten."""
COUNT_MAX: Final = 2**53
"""Maximum of a number that a host reports, so that sums of them can be stored."""
ADDRESSES_MAX: Final = 16
TEXT_CHARACTERS: Final = 255
"""Maximum of a text, which is what a host name can have. Longer ones are cut."""


class Host(Struct, kw_only=True, omit_defaults=True):
    """What is remembered of an agent. Times are in seconds since the epoch."""

    id: str
    state: HostState
    since: float
    """When it entered that state."""
    first_seen: float
    last_seen: float
    instance: str | None = None
    hostname: str | None = None
    addresses: tuple[str, ...] = ()
    peer: str | None = None
    """The address from which it last connected."""
    certificate: str | None = None
    """The subject of its client certificate."""
    gateway: str | None = None
    """The gateway through which it last connected; address and certificate are the gateway's."""
    version: int | None = None
    platform: str | None = None
    os_name: str | None = None
    connects: int = 0
    """Hellos on a new connection."""
    rows: int = 0
    errors: int = 0
    """Errors that the agent reported, and messages of it that were refused."""
    last_error: str | None = None
    lost: int = 0
    """Events that its event sources lost, as it reported."""
    gaps: int = 0
    """Periods with missing events that it reported."""
    last_gap: float | None = None
    """When the newest of them ended."""
    conflicts: int = 0
    """Connections under its id that were refused, or that replaced one that did not answer."""
    counters: dict[str, int] = {}
    """The last values of the counters that `lost` is the sum of, by source."""
    counters_instance: str | None = None
    """The start of the agent that these values belong to."""
    recent_gaps: list[tuple[float, str]] = []
    """Starts and sources of the gaps counted last."""


class Peer(Struct, frozen=True):
    """The other end of a connection."""

    address: str | None = None
    certificate: str | None = None
    gateway: str | None = None
    """Its name, if it is a gateway, which has many agents."""


class Hosts:
    """All hosts by id, at most `limit`. To be used in one thread."""

    def __init__(self, *, limit: int) -> None:
        self.evicted = 0
        """Hosts removed because there were too many, also by earlier runs."""
        self.unremembered = 0
        """Hellos of agents that found no room, because as many others were connected."""
        self._limit = limit
        self._hosts: dict[str, Host] = {}
        self._urgent: dict[str, None] = {}
        self._figures: dict[str, None] = {}
        self._figures_due = float("-inf")

    def __len__(self) -> int:
        return len(self._hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def get(self, agent_id: str) -> Host | None:
        return self._hosts.get(agent_id)

    def set_limit(self, limit: int) -> None:
        self._limit = limit
        self._evict()

    def counts(self) -> dict[str, int]:
        """Number of hosts by state."""
        counts = dict.fromkeys((*LIVE, "offline"), 0)
        for host in self._hosts.values():
            counts[host.state] += 1
        return counts

    def restore(self, stored: Iterable[Host], evicted: int) -> list[Host]:
        """Add what an earlier run stored. Returns the hosts that were not offline then.

        A host that has connected since keeps its present state, and gets its earlier figures.
        """
        self.evicted += evicted
        returned = []
        for host in stored:
            present = self._hosts.get(host.id)
            if present is None:
                self._hosts[host.id] = host
                if host.state != "offline":
                    if host.state == "connected":
                        host.state = "away"
                        self._urgent[host.id] = None
                    returned.append(host)
                continue
            present.first_seen = min(present.first_seen, host.first_seen)
            for name in ("connects", "rows", "errors", "lost", "gaps", "conflicts"):
                setattr(present, name, getattr(present, name) + getattr(host, name))
            if not present.recent_gaps:
                present.recent_gaps = host.recent_gaps
            if not present.counters and present.instance == host.counters_instance:
                present.counters, present.counters_instance = host.counters, host.counters_instance
            self._urgent[host.id] = None
        self._evict()
        return returned

    def hello(self, agent: KnownAgent, peer: Peer, now: float) -> None:
        """Record the hello of an agent that was admitted."""
        host = self._hosts.get(agent.id)
        is_new = host is None
        if host is None:
            if len(self._hosts) >= self._limit and not self._evict(1):
                self.unremembered += 1
                return
            host = self._hosts[agent.id] = Host(
                id=agent.id, state="connected", since=now, first_seen=now, last_seen=now
            )
        before = (host.state, host.instance, host.hostname, host.addresses, host.peer, host.certificate, host.version)
        if host.state != "connected":
            host.state, host.since = "connected", now
        host.last_seen = now
        host.instance = _cut(agent.instance)
        host.hostname = _cut(agent.hostname)
        host.addresses = tuple(sorted(map(str, agent.addresses or ())))[:ADDRESSES_MAX]
        host.peer, host.certificate, host.gateway = peer.address, _cut(peer.certificate), _cut(peer.gateway)
        host.version = agent.version if agent.version is None or 0 <= agent.version <= COUNT_MAX else None
        host.platform, host.os_name = _cut(agent.platform), _cut(agent.os_name)
        if is_new or agent.state != "update":
            host.connects += 1
        after = (host.state, host.instance, host.hostname, host.addresses, host.peer, host.certificate, host.version)
        (self._urgent if is_new or before != after else self._figures)[host.id] = None

    def enter(self, agent_id: str, state: HostState, now: float) -> None:
        """Record a change of state, but not of one that was announced as a shutdown to `away`."""
        host = self._hosts.get(agent_id)
        if host is None or host.state == state or (state == "away" and host.state != "connected"):
            return
        host.state, host.since = state, now
        self._urgent[agent_id] = None

    def row(self, agent_id: str, now: float) -> Host | None:
        """Count a row, and return its host, if known."""
        host = self._seen(agent_id, now)
        if host is not None:
            host.rows += 1
        return host

    def error(self, agent_id: str, text: str, now: float) -> None:
        """Count an error that the agent reported, or that concerns a message of it."""
        host = self._seen(agent_id, now)
        if host is not None:
            host.errors += 1
            host.last_error = _cut(text)

    def conflict(self, agent_id: str, text: str) -> None:
        """Count a second agent with the same id."""
        host = self._hosts.get(agent_id)
        if host is not None:
            host.conflicts += 1
            host.last_error = _cut(text)
            self._urgent[agent_id] = None

    def due(self, now: float, *, everything: bool = False) -> list[Host]:
        """The changed hosts that are to be written now; `now` is on the monotonic clock. They count as written."""
        if everything:
            taken = [*self._urgent, *self._figures]
            self._urgent.clear()
            self._figures.clear()
        else:
            taken = list(islice(self._urgent, URGENT_MAX))
            if now >= self._figures_due:
                self._figures_due = now + FIGURES_INTERVAL_SECONDS
                taken += islice(self._figures, FIGURES_MAX)
            for agent_id in taken:
                self._urgent.pop(agent_id, None)
                self._figures.pop(agent_id, None)
        return [self._hosts[agent_id] for agent_id in dict.fromkeys(taken) if agent_id in self._hosts]

    def postpone(self, unwritten: Iterable[Host]) -> None:
        """Take back what `due` returned and could not be written."""
        self._urgent.update(dict.fromkeys(host.id for host in unwritten))

    def _seen(self, agent_id: str, now: float) -> Host | None:
        host = self._hosts.get(agent_id)
        if host is not None:
            host.last_seen = now
            self._figures[agent_id] = None
        return host

    def _evict(self, wanted: int = 0) -> bool:
        """Make room for `wanted` more hosts. Returns whether there is."""
        excess = len(self._hosts) + wanted - self._limit
        if excess <= 0:
            return True
        candidates = [host for host in self._hosts.values() if host.state != "connected"]
        candidates.sort(key=lambda host: (host.last_seen - host.first_seen, host.last_seen))
        for host in candidates[: max(excess, self._limit // EVICTED_SHARE)]:
            del self._hosts[host.id]
            self._urgent.pop(host.id, None)
            self._figures.pop(host.id, None)
            self.evicted += 1
        return len(self._hosts) + wanted <= self._limit


def count_gap(host: Host, row: Mapping[str, Any], change: Change | None) -> None:
    """Count a row of `zeek_agent_gaps`, unless it is about a gap that was counted before or has gone."""
    start = row.get("from", row.get("start"))
    if change is Change.DELETE or not _is_time(start):
        return
    end = row.get("until", row.get("end"))
    if _is_time(end):
        host.last_gap = max(end, host.last_gap or end)
    gap = (float(start), str(row.get("source") or "")[:32])
    recent = host.recent_gaps
    if gap in recent or (len(recent) >= GAPS_REMEMBERED and gap < recent[0]):
        return
    host.gaps += 1
    host.recent_gaps = sorted((*recent, gap))[-GAPS_REMEMBERED:]


def count_losses(host: Host, row: Mapping[str, Any], change: Change | None) -> None:
    """Add what the counters in a row of `zeek_agent_sources` have gained. They begin at 0 when the agent starts."""
    if change is Change.DELETE:
        return
    if host.counters_instance != host.instance:
        host.counters, host.counters_instance = {}, host.instance
    for name, value in row.items():
        if not name.startswith("lost") or not isinstance(value, int):
            continue
        key = f"{str(row.get('source') or '')[:32]} {str(row.get('backend') or '')[:32]} {name}"
        if key not in host.counters and len(host.counters) >= LOSSES_REMEMBERED:
            continue
        value, before = min(value, COUNT_MAX), host.counters.get(key, 0)
        host.lost = min(host.lost + max(value - before, 0), COUNT_MAX)
        host.counters = {**host.counters, key: max(value, before)}


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _cut(text: str | None) -> str | None:
    if text is None:
        return None
    text = text[:TEXT_CHARACTERS]
    return text if text.isascii() else text.encode(errors="replace").decode()  # without lone surrogates
