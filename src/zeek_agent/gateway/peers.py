"""The other gateways of the cluster: which are there, and whether one of them has an agent's session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from zeek_agent.bus.messages import (
    CLONE_SECONDS,
    PEER_CLAIM_SECONDS,
    PEER_SILENCE_SECONDS,
    Claim,
    ClaimAnswer,
    PeerBeat,
)

ANSWER_SECONDS: Final = CLONE_SECONDS + 2.0
"""Time for a gateway to answer a claim: it may ping its agent first."""


@dataclass(slots=True)
class KnownPeer:
    """A gateway, as its last beat described it."""

    beat: PeerBeat
    heard: float


class Objection(NamedTuple):
    """Another instance of the agent has just shown itself at that gateway; or the gateway claims it now, too.

    `newer`: the other instance has a newer token.
    """

    gateway: str
    claims: bool
    newer: bool


@dataclass(slots=True)
class PendingClaim:
    """A claim of this gateway that the others have not all answered."""

    awaited: set[str]
    since: float
    done: asyncio.Future[bool]
    holder: str | None = None
    is_preceded: bool = False
    """Whether another gateway claims the same agent at this moment, and precedes."""
    is_older: bool = False
    """Whether the holder's token is newer than that of the agent that is claimed."""


@dataclass(slots=True)
class Peers:
    """`name` is this gateway's own."""

    name: str
    known: dict[str, KnownPeer] = field(default_factory=dict)
    claims: dict[str, PendingClaim] = field(default_factory=dict)

    def heard(self, beat: PeerBeat, now: float) -> bool:
        """Record a beat. Returns whether the gateway was unknown."""
        is_new = beat.gateway not in self.known
        if beat.leaving:
            self.known.pop(beat.gateway, None)
            self._stop_waiting(beat.gateway)
            return False
        self.known[beat.gateway] = KnownPeer(beat, now)
        return is_new

    def is_silent(self, name: str, now: float) -> bool:
        """Whether a gateway is unknown, or has not been heard of for too long."""
        peer = self.known.get(name)
        return peer is None or now - peer.heard > PEER_SILENCE_SECONDS

    def silent(self, now: float) -> list[str]:
        """Gateways that have not been heard of for too long, or that do not answer a claim."""
        owing = {
            name for claim in self.claims.values() if now - claim.since > PEER_CLAIM_SECONDS for name in claim.awaited
        }
        return [name for name in self.known if self.is_silent(name, now) or name in owing]

    def lost(self, name: str) -> PeerBeat | None:
        """Forget a dead gateway; its last beat."""
        self._stop_waiting(name)
        peer = self.known.pop(name, None)
        return None if peer is None else peer.beat

    async def claim(self, agent_id: str, publish: Callable[[], None], now: float) -> Objection | None:
        """Claim an agent. Returns None if this gateway may have it.

        `publish` sends the claim. A gateway that does not answer has no say.
        """
        if not self.known:
            return None
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        claim = self.claims[agent_id] = PendingClaim(set(self.known), now, done)
        try:
            publish()
            await asyncio.wait([done], timeout=ANSWER_SECONDS)
            return None if claim.holder is None else Objection(claim.holder, claim.is_preceded, claim.is_older)
        finally:
            if self.claims.get(agent_id) is claim:
                del self.claims[agent_id]

    def answered(self, agent_id: str, answer: ClaimAnswer) -> None:
        """Record an answer to the pending claim of an agent."""
        claim = self.claims.get(agent_id)
        if claim is None or answer.gateway not in claim.awaited:
            return
        claim.awaited.discard(answer.gateway)
        if answer.held:
            claim.holder, claim.is_older = answer.gateway, answer.newer
        if (answer.held or not claim.awaited) and not claim.done.done():
            claim.done.set_result(answer.held)

    def rival(self, agent_id: str, claim: Claim) -> bool:
        """Whether this gateway's own pending claim of the agent precedes that of another one.

        Of two that claim at the same time, the one whose name comes first does; the other one's claim then fails.
        """
        mine = self.claims.get(agent_id)
        if mine is None:
            return False
        if self.name < claim.gateway:
            return True
        mine.holder, mine.is_preceded = claim.gateway, True
        if not mine.done.done():
            mine.done.set_result(True)
        return False

    def _stop_waiting(self, name: str) -> None:
        for claim in self.claims.values():
            claim.awaited.discard(name)
            if not claim.awaited and not claim.done.done():
                claim.done.set_result(False)
