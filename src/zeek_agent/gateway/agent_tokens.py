"""The tokens (JWTs) in agents' hellos: they prove that the id, at this site, belongs to the agent's key.

NATS' servers check which site a message comes from, but not which of its agents: a leaf that was taken can publish
under any id. It cannot sign a token, though, and one that it has copied from another site names that site.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from zeek_agent.bus import credentials, subjects
from zeek_agent.bus.subjects import Address
from zeek_agent.errors import UsageError
from zeek_agent.fleet import jwt, roles
from zeek_agent.gateway.causes import Cause, RefusedError
from zeek_agent.text import clipped

LEEWAY_SECONDS: Final = 300.0
"""Largest difference between the clocks of the gateway and the enrolment service."""
REMEMBERED: Final = 20_000
"""Agents whose last token is known; twice as many as a gateway has by default."""


class Proof(NamedTuple):
    """What a token has proved; times in seconds since the epoch, `expires` 0 for never. Without one, only a site."""

    site: str
    key: str = ""
    issued: int = 0
    expires: int = 0

    def supersedes(self, other: Proof) -> bool:
        """Whether an agent's newer token makes the other one void.

        The fleet's registry has one key and one site per id. So a token for another key is of a time before that was
        revoked, and one for another site of a time before the agent was enrolled there.
        """
        return (self.site, self.key) != (other.site, other.key) and self.issued > other.issued


class Trust(NamedTuple):
    """Whose tokens are accepted: those of the account's users that one of these keys has signed."""

    account: str
    keys: frozenset[str]


def trust_of(own: str) -> Trust:
    """What the gateway's own credentials name. Raises UsageError if they cannot be read, or name no key."""
    try:
        claims = jwt.read(jwt.read_credentials(own)[0])
    except ValueError as error:
        raise UsageError(f"the gateway's credentials cannot be used: {error}") from None
    prefix = f"{roles.AGENTS}:"
    keys = frozenset(tag.removeprefix(prefix) for tag in claims.nats.tags if tag.startswith(prefix))
    if not keys:
        raise UsageError(
            f"the gateway's credentials do not name the key that signs agents (a tag {prefix}KEY), without which it "
            "cannot check them: `zeek-agent fleet gateway` writes new ones"
        )
    return Trust(claims.nats.issuer_account or claims.iss, keys)


class AgentTokens:
    """Verifies agents' tokens, and remembers the newest of each agent. Without `trust`, all may be who they say."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._trust: Trust | None = None
        self._clock = clock
        self._known: OrderedDict[str, tuple[bytes, Proof]] = OrderedDict()

    @property
    def trust(self) -> Trust | None:
        return self._trust

    @trust.setter
    def trust(self, trust: Trust | None) -> None:
        if trust != self._trust:
            self._known.clear()
        self._trust = trust

    def verify(self, agent: Address, token: str) -> Proof:
        """Raises RefusedError if the token does not prove the agent's id and site."""
        if self.trust is None:
            return Proof(sys.intern(agent.site))
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known, proof = self._known.get(agent.agent_id, (b"", None))
        if proof is None or known != digest:
            newest, proof = proof, self._verified(self.trust, agent, token)
            if newest is not None and newest.supersedes(proof):
                raise _refused(agent, f"the agent has had a newer one since, for site {newest.site}")
            if newest is None or proof.issued >= newest.issued:
                self._known[agent.agent_id] = digest, proof
        else:
            self._check_expiry(agent, proof)
        if agent.agent_id in self._known:
            self._known.move_to_end(agent.agent_id)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if proof.site != agent.site:
            raise _refused(agent, f"it is for site {proof.site}")
        return proof

    def has_expired(self, proof: Proof) -> bool:
        return 0 < proof.expires < self._clock() - LEEWAY_SECONDS

    def _verified(self, trust: Trust, agent: Address, token: str) -> Proof:
        if not token:
            raise _refused(agent, "there is none")
        try:
            claims = jwt.read(token, trust.keys)
        except ValueError as error:
            raise _refused(agent, str(error)) from None
        sites = credentials.sites_of(claims.nats.tags)
        if claims.nats.type != "user" or (claims.nats.issuer_account or claims.iss) != trust.account:
            raise _refused(agent, "it is not one of a user of this account")
        if claims.name != subjects.token(agent.agent_id):
            raise _refused(agent, f"it is that of {claims.name}")
        if len(sites) != 1:
            raise _refused(agent, f"it names {len(sites)} sites")
        if max(claims.iat, claims.nbf) > self._clock() + LEEWAY_SECONDS:
            raise _refused(agent, "it is not valid yet: do the clocks differ?")
        proof = Proof(sys.intern(sites[0]), claims.sub, claims.iat, claims.exp)
        self._check_expiry(agent, proof)
        return proof

    def _check_expiry(self, agent: Address, proof: Proof) -> None:
        if self.has_expired(proof):
            raise _refused(agent, "it has expired")


def _refused(agent: Address, why: str) -> RefusedError:
    return RefusedError(Cause.IDENTITY, f"no token proves that it is an agent of site {agent.site}: {clipped(why)}")
