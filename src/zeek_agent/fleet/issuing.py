"""The decisions of the enrolment service: who gets credentials, and why others do not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from zeek_agent.bus import subjects
from zeek_agent.bus.limits import Limits
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.fleet import authority, jwt, messages, roles
from zeek_agent.fleet.authority import Authority
from zeek_agent.fleet.messages import Answer, BadMessageError, Code, Granted, Refused, Request
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.registry import AGENTS_MAX, AgentRow, Registry
from zeek_agent.text import clipped, visible

log = logging.getLogger("zeek_agent.fleet")

CREDENTIAL_SECONDS: Final = 30 * 86_400.0
"""Life of an agent's credentials, which it renews after two thirds of it."""
REQUESTS_PER_SECOND: Final = 200.0
"""Of all sources together; an answer takes about 2 ms of processor time."""
SHARED_REQUESTS: Final = 100
SHARED_PER_SECOND: Final = 20.0
"""Requests at once, and per second, of a network address or a token, which many agents may have in common."""
SITE_REQUESTS: Final = 100.0
"""Requests at once, and per second, by the servers of a site: one that was taken leaves the other half to others."""
KEY_REQUESTS: Final = 20
KEY_PER_SECOND: Final = 1 / 6
"""The same of an agent's key."""
LOG_LINES: Final = 100
LOG_LINES_PER_SECOND: Final = 1.0
"""Refusals that are logged at once, and per second."""
LOGGED: Final = "log"
SOURCE_CHARACTERS: Final = 120
"""Of a reply subject in a log line."""


class RefusedError(Exception):
    """A request is refused; the message is for the agent's operator."""

    def __init__(self, reason: str, code: Code) -> None:
        super().__init__(reason)
        self.code: Code = code


class Issuer(NamedTuple):
    """What signs credentials of agents; `account` is the public key of the account, `ca` the servers' authorities."""

    agents: Key
    account: str
    authority: Authority
    ca: str


class Enrolment:
    """Answers requests, one at a time."""

    def __init__(self, issuer: Issuer, registry: Registry, clock: Callable[[], float] = time.time) -> None:
        self._issuer = issuer
        self._registry = registry
        self._clock = clock
        self._limits = Limits()
        self.granted = 0
        self.refused = 0
        self._unlogged = 0

    def answer(
        self,
        payload: bytes,
        source: str,
        *,
        renewing: str | None = None,
        token: str | None = None,
        site: str | None = None,
        address: str | None = None,
    ) -> bytes:
        """The answer to a request from `source`, for the log; `renewing` is the id that the transport has proved.

        Without that, it is an enrolment, which needs a token: the one of which the transport has proved the public key
        `token`, if it has. `site` is the site that the transport has proved, `address` the network address, if known.
        """
        agent_id = "?" if renewing is None else renewing
        try:
            request = _opened(payload)
            agent_id = request.agent_id
            if token is not None and request.token != token:
                raise RefusedError("the request is signed with another token", "bad_request")
            self._limit(request, address, site)
            answer: Answer = self._decide(request, source, renewing, site)
        except RefusedError as refusal:
            self.refuse(agent_id, source, f"{refusal} ({refusal.code})")
            answer = Refused(refusal.code, str(refusal), self._clock())
        except ZeekAgentError as error:
            self.refused += 1
            log.error("agent %s from %s cannot be answered: %s", visible(clipped(agent_id)), source, error)
            answer = Refused("busy", "the enrolment service has a fault: see its log", self._clock())
        return messages.encode(answer)

    def refuse(self, agent_id: str, source: str, reason: str) -> None:
        """Count a refusal, and log it: at a bounded rate, because anybody can cause it."""
        self.refused += 1
        if not self._limits.permit(LOGGED, LOG_LINES, LOG_LINES_PER_SECOND, self._clock()):
            self._unlogged += 1
            return
        more = f"; {self._unlogged:,} refusals before it were not logged" if self._unlogged else ""
        self._unlogged = 0
        log.warning("refused agent %s from %s: %s%s", visible(clipped(agent_id)), source, visible(reason), more)

    def _limit(self, request: Request, address: str | None, site: str | None) -> None:
        """The limit of all is the last one, so that what another limit refuses does not count there."""
        now = self._clock()
        shared = [one for one in (address, request.token) if one]
        counted: list[tuple[str, float, float]] = [(one, SHARED_REQUESTS, SHARED_PER_SECOND) for one in shared]
        if site is not None:
            counted.append((f"site {site}", SITE_REQUESTS, SITE_REQUESTS))
        counted += [(request.key, KEY_REQUESTS, KEY_PER_SECOND), ("", REQUESTS_PER_SECOND, REQUESTS_PER_SECOND)]
        if not all(self._limits.permit(*one, now) for one in counted):
            raise RefusedError("too many requests: try again in a minute", "busy")

    def _decide(self, request: Request, source: str, renewing: str | None, site: str | None) -> Granted:
        now = self._clock()
        if abs(now - request.time) > messages.SKEW_SECONDS:
            raise RefusedError(f"the clocks differ by {now - request.time:.0f} s: set the host's clock", "clock")
        try:
            name = subjects.token(request.agent_id)
            public = authority.requested_key(request.csr)
        except (UsageError, ValueError) as error:
            raise RefusedError(str(error), "bad_request") from None
        with self._registry.transaction():
            replayed = self._registry.is_replayed(request.nonce, now)
        if replayed:
            raise RefusedError("the request was made before, it is not accepted twice", "replayed")
        expires = now + CREDENTIAL_SECONDS
        with self._registry.transaction():
            admit = self._enrolled if renewing is None else self._renewed
            row = admit(request, now)._replace(issued=now, expires=expires)
            if renewing is not None and renewing != request.agent_id:
                raise RefusedError(f"the credentials are those of {renewing}", "wrong_certificate")
            if site not in (None, row.site):
                raise RefusedError(f"it comes from site {site}, and the agent is of site {row.site}", "wrong_site")
            self._registry.put_agent(row)
        issuer = self._issuer
        token = jwt.user(
            name,
            request.key,
            issuer.agents,
            now,
            expires=expires,
            account=issuer.account,
            tags=roles.agent_tags(row.site, row.groups),
        )
        certificate = issuer.authority.agent(request.agent_id, public, now, expires)
        with self._registry.transaction():
            self._registry.add_certificate(authority.serial_number(certificate), row.key, expires, now)
        self.granted += 1
        log.info(
            "%s agent %s (%s) of site %s from %s, key %s",
            "enrolled" if renewing is None else "renewed",
            visible(row.id),
            visible(row.hostname),
            row.site,
            source,
            row.key,
        )
        return Granted(token, certificate, issuer.ca, expires, row.groups)

    def _enrolled(self, request: Request, now: float) -> AgentRow:
        """The agent that a token admits. The same agent with the same key may ask again: the answer may be lost."""
        token = self._registry.token(request.token)
        if token is None:
            raise RefusedError(
                "the token is unknown: it is of another fleet or registry than the service's", "unknown_token"
            )
        if token.expires <= now:
            raise RefusedError("the token has expired", "expired_token")
        row = self._known(request)
        if row is not None and row.token == token.key:
            return row
        if token.used >= token.uses:
            raise RefusedError(f"the token has been used {token.used} times, as often as it may be", "used_token")
        if row is None and self._registry.agent_count() >= AGENTS_MAX:
            raise RefusedError("the registry is full", "busy")
        self._registry.use_token(token.key)
        enrolled = now if row is None else row.enrolled
        hostname = clipped(request.hostname)
        return AgentRow(
            request.key, request.agent_id, hostname, token.groups, token.key, enrolled, now, now, None, token.site
        )

    def _renewed(self, request: Request, _now: float) -> AgentRow:
        row = self._known(request)
        if row is None:
            raise RefusedError("the agent is not in the registry: enrol it with a token", "unknown_agent")
        return row._replace(hostname=clipped(request.hostname) or row.hostname)

    def _known(self, request: Request) -> AgentRow | None:
        """The registered agent with that id and key."""
        holder = self._registry.holder(request.key)
        if holder is not None and holder.revoked is not None:
            raise RefusedError("the agent's key has been revoked", "revoked")
        if holder is not None and holder.id != request.agent_id:
            raise RefusedError(f"the key is that of the agent {visible(holder.id)}", "key_taken")
        if holder is None and (other := self._registry.agent(request.agent_id)) is not None:
            raise RefusedError(
                f"the agent id is enrolled with another key, on host {visible(other.hostname)!r}: revoke that, or "
                "remove identity.json of a cloned host",
                "id_taken",
            )
        return holder


def _opened(payload: bytes) -> Request:
    try:
        return messages.open_request(payload)
    except BadMessageError as error:
        raise RefusedError(str(error), "bad_request") from None
