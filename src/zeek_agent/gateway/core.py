"""What the parts of a gateway share: its sessions, credits, queues and counters, and what ends a session."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.messages import Again, Message
from zeek_agent.bus.subjects import Down
from zeek_agent.config.server_sections import GatewaySettings
from zeek_agent.gateway.agent_tokens import AgentTokens
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.credits import Credits
from zeek_agent.gateway.hello_pacing import HelloPacing
from zeek_agent.gateway.outbox import Outbox
from zeek_agent.gateway.peers import Peers
from zeek_agent.gateway.refusal_log import RefusalLog
from zeek_agent.gateway.sent_queries import QueryMemory, QueryTexts
from zeek_agent.gateway.sessions import AgentSession, Sessions
from zeek_agent.gateway.stats import Counters
from zeek_agent.gateway.zeek_side import ZeekSide
from zeek_agent.text import clipped
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import Context

log = logging.getLogger(__name__)

REFUSED_FRAMES_MAX: Final = 100
"""Frames of a session that are refused before it ends."""
AGAIN_SECONDS: Final = 60.0
"""An agent whose session ended by its own fault may come again after at most this time."""
CLONE_WAIT_SECONDS: Final = 300.0
"""A refused clone may try again after this time."""


@dataclass(eq=False, slots=True)
class Core:
    """The state of a gateway; to be used in its event loop. `clock` is the time of day, `monotonic` for intervals."""

    name: str
    cluster: str
    settings: GatewaySettings
    zeek: ZeekSide
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    life: str = field(default_factory=lambda: secrets.token_hex(8))
    sessions: Sessions = field(default_factory=Sessions)
    outbox: Outbox = field(default_factory=Outbox)
    counters: Counters = field(default_factory=Counters)
    texts: QueryTexts = field(default_factory=QueryTexts)
    query_memory: QueryMemory = field(default_factory=QueryMemory)
    features: dict[str, frozenset[str]] = field(default_factory=dict)
    """The features of each Zeek instance that has said hello, by its id."""
    payload_bytes_max: int = 1024 * 1024
    """What the server accepts."""
    is_draining: bool = False
    tokens: AgentTokens = field(init=False)
    credits: Credits[AgentSession] = field(init=False)
    peers: Peers = field(init=False)
    hellos: HelloPacing = field(init=False)
    refusals: RefusalLog = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = AgentTokens(self.clock)
        self.credits = Credits(self.settings.places, self.settings.places_per_agent, self._may_have)
        self.peers = Peers(self.name)
        self.hellos = HelloPacing(self.settings.hellos_per_second)
        self.refusals = RefusalLog(self.counters.refused, self.monotonic)

    def _may_have(self, session: AgentSession) -> bool:
        return session.held_until <= self.monotonic()

    @property
    def is_ready(self) -> bool:
        """Whether agents can be served."""
        return self.zeek.ack is not None and not self.is_draining

    @property
    def via(self) -> str | None:
        """This gateway's name if Zeek can address agents by it."""
        return self.name if any(protocol.VIA in names for names in self.features.values()) else None

    def say(self, session: AgentSession, kind: Down, message: Message | None = None) -> None:
        """Queue a message to an agent."""
        payload = b"" if message is None else messages.encode(message)
        self.outbox.put(subjects.down(session.address, session.name, kind), payload)

    def answers_to(self, inbox: str, reply: str, asker: str) -> bool:
        """Whether a request that has this reply subject may be answered: only in the inbox of who asks."""
        if subjects.is_reply_to(inbox, reply):
            return True
        if reply:
            self.refusals.note(Cause.REPLY, asker, f"asks for a reply at {reply}")
        return False

    def grant(self) -> list[AgentSession]:
        """Give credit to those whose turn it is, and return them; the caller notifies them."""
        return [] if not self.is_ready else list(self.credits.grants(self.monotonic()))

    def publish_grants(self) -> None:
        """The same, and notify them."""
        for session in self.grant():
            self.say(session, Down.GRANT, messages.Grant(number=session.want))

    def refuse(self, session: AgentSession, cause: Cause, what: str) -> None:
        """Count and log a frame that is refused; too many end the session."""
        self.refusals.note(cause, session.agent_id, what)
        session.refused += 1
        if session.refused >= REFUSED_FRAMES_MAX:
            self.end(session, "refused", again=Again(AGAIN_SECONDS, f"too many refused messages, the last: {what}"))

    def end_for(self, session: AgentSession, cause: Cause, what: str, seconds: float = AGAIN_SECONDS) -> None:
        """End a session that has broken a rule."""
        self.refusals.note(cause, session.agent_id, what)
        self.end(session, str(cause), again=Again(seconds, clipped(what)))

    def end(
        self,
        session: AgentSession,
        cause: str,
        *,
        again: Again | None = None,
        report: bool = True,
        reported: Callable[[], None] | None = None,
    ) -> None:
        """End a session. With `report`, Zeek is notified unless the agent has shut down; `reported` is called then."""
        if session.ended:
            return
        session.ended = True
        self.counters.ended[cause] += 1
        self.sessions.remove(session)
        self.credits.forget(session)
        self.hellos.forget(session)
        session.queries.close()
        if again is not None:
            self.say(session, Down.AGAIN, again)
        if report and not session.is_shut_down and session.hello_id:
            self.report_left(session.agent_id, reported)
        elif reported is not None:
            reported()
        log.debug("session of agent %s ended: %s", session.agent_id, cause)

    def report_left(self, agent_id: str, reported: Callable[[], None] | None = None) -> None:
        """Notify Zeek, if it understands that, that an agent is gone without a shutdown."""
        if self.zeek.ack is not None and any(protocol.LEFT in names for names in self.features.values()):
            context = Context(agent_id, self.clock())
            self.zeek.put([protocol.agent_left(context, self.name).encode()], reported)
        elif reported is not None:
            reported()
