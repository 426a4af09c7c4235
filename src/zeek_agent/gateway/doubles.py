"""Agents with sessions at two gateways, each of which welcomed one while it did not know the other.

Gateways announce their sessions to each other, all of them once another gateway appears and at intervals. If an agent
has two sessions of one instance, the newer one stays. If it has two instances, the older session is pinged: it stays if
the agent answers, and the other one is refused; otherwise the newer one stays. Before all that, a session whose token
a newer one has made void ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.messages import Again, HeldSession, PeerBeat
from zeek_agent.bus.subjects import Peer
from zeek_agent.gateway.agent_tokens import Proof
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.core import CLONE_WAIT_SECONDS, Core
from zeek_agent.gateway.sessions import AgentSession
from zeek_agent.text import clipped, visible

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 60.0
"""Interval of announcements of all sessions, since a message on the bus may be lost."""
HELD_BYTES_MAX: Final = 12 * 1024
"""Sessions in one message, in bytes: fewer than `CONTROL_BYTES_MAX`."""
STEP_SECONDS: Final = 0.05
"""Pause between messages: some 2,000 sessions a second."""
SAME_AGE_SECONDS: Final = 2.0
"""Ages that differ by less do not tell which session is newer: the announcement was on its way for a while."""
PINGED_MAX: Final = 1_000
"""Sessions that are pinged at a time; further ones are in the next round."""
REPLACED_SECONDS: Final = 60.0
"""An instance that did not answer may say hello again after at most this time."""


class Doubles:
    """Finds them in other gateways' beats and ends one session of each. `shows_itself` pings a session."""

    def __init__(self, core: Core, shows_itself: Callable[[AgentSession], Awaitable[bool]]) -> None:
        self._core = core
        self._shows_itself = shows_itself
        self._due = asyncio.Event()
        self._pinged: dict[AgentSession, asyncio.Task[None]] = {}

    def announce(self) -> None:
        """Another gateway is there, or there again: have `run` announce all sessions."""
        self._due.set()

    def stop(self) -> None:
        """Abandon what is being decided."""
        for task in self._pinged.values():
            task.cancel()

    async def run(self) -> None:
        """Announce all sessions when it is due, until cancelled."""
        core = self._core
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._due.wait()
            self._due.clear()
            for held in _parts(self._held(session) for session in core.sessions if not session.ended):
                if not core.peers.known or core.is_draining:
                    break
                self._publish(held)
                await asyncio.sleep(STEP_SECONDS)

    def heard(self, beat: PeerBeat) -> None:
        """Compare another gateway's sessions with those here."""
        for held in beat.holds:
            try:
                session = self._core.sessions.get(subjects.text(held.agent))
            except ValueError as error:
                log.debug("session of gateway %s: %s", visible(beat.gateway), error)
                continue
            if session is not None:
                self._decide(session, held, beat.gateway)

    def _decide(self, session: AgentSession, held: HeldSession, gateway: str) -> None:
        proof = Proof(held.site, held.key, held.issued)
        if proof.supersedes(session.proof):
            self._end_void(session, held, gateway)
            return
        if session.proof.supersedes(proof):
            self._core.hellos.add(session)  # the other gateway ends its own
            return
        older_by = self._age(session) - held.age
        if session.instance == held.instance:
            if older_by > SAME_AGE_SECONDS:
                self._end_older(session, gateway)
            elif older_by >= -SAME_AGE_SECONDS:
                self._ping(session, self._keep_the_used_one(session, gateway))
            else:
                self._core.hellos.add(session)  # Zeek may have heard the other gateway last
            return
        is_first = older_by > SAME_AGE_SECONDS or (older_by >= -SAME_AGE_SECONDS and self._core.name < gateway)
        if held.shown:
            if not is_first or gateway < self._core.name:
                self._refuse(session, held, gateway)
        elif is_first:
            self._ping(session, self._keep_the_first(session, held, gateway))

    def _ping(self, session: AgentSession, decide: Coroutine[Any, Any, None]) -> None:
        """Decide about a session with the help of a ping, unless that is being done."""
        if session in self._pinged or len(self._pinged) >= PINGED_MAX:
            decide.close()
            return
        task = self._pinged[session] = asyncio.create_task(decide)
        task.add_done_callback(partial(self._finish, session))

    def _finish(self, session: AgentSession, task: asyncio.Task[None]) -> None:
        self._pinged.pop(session, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("two sessions of agent %s: %s", visible(session.agent_id), error, exc_info=error)

    async def _keep_the_used_one(self, session: AgentSession, gateway: str) -> None:
        """Of two sessions of one instance that are as old as each other, the agent uses, and answers in, one."""
        if await self._shows_itself(session):
            self._core.hellos.add(session)
        elif not session.ended:
            self._end_older(session, gateway)

    async def _keep_the_first(self, session: AgentSession, held: HeldSession, gateway: str) -> None:
        core = self._core
        if await self._shows_itself(session):
            what = (
                f"the agent is connected twice: instance {session.instance} answers here, so instance "
                f"{held.instance} at gateway {gateway} is refused"
            )
            core.refusals.note(Cause.CLONE, session.agent_id, what)
            self._publish([self._held(session, shown=True)])
            core.hellos.add(session)
        elif not session.ended:
            log.warning(
                "agent %s is connected twice: instance %s does not answer here and is replaced by instance %s "
                "at gateway %s",
                visible(session.agent_id), visible(session.instance), visible(held.instance), visible(gateway),
            )  # fmt: skip
            core.end(session, "replaced by another instance", again=Again(REPLACED_SECONDS))

    def _end_void(self, session: AgentSession, held: HeldSession, gateway: str) -> None:
        core = self._core
        what = (
            f"instance {held.instance} at gateway {gateway} has a newer token, so that of instance {session.instance} "
            f"at site {session.address.site} is void"
        )
        core.refusals.note(Cause.IDENTITY, session.agent_id, what)
        reason = f"agent {clipped(session.agent_id)} has newer credentials than these"
        core.end(session, "identity", again=Again(CLONE_WAIT_SECONDS, reason), report=False)

    def _end_older(self, session: AgentSession, gateway: str) -> None:
        log.warning(
            "agent %s has a newer session at gateway %s, the one here ends", visible(session.agent_id), visible(gateway)
        )
        self._core.end(session, "double", again=Again(1.0), report=False)

    def _refuse(self, session: AgentSession, held: HeldSession, gateway: str) -> None:
        core = self._core
        what = (
            f"the agent is connected twice: instance {held.instance} at gateway {gateway} answers, so instance "
            f"{session.instance} is refused"
        )
        core.refusals.note(Cause.CLONE, session.agent_id, what)
        reason = f"another instance of agent {clipped(session.agent_id)} is connected (a cloned host? enrol it again)"
        core.end(session, "clone", again=Again(CLONE_WAIT_SECONDS, reason))

    def _age(self, session: AgentSession) -> float:
        return self._core.monotonic() - session.began

    def _held(self, session: AgentSession, *, shown: bool = False) -> HeldSession:
        agent, proof = subjects.token(session.agent_id), session.proof
        return HeldSession(agent, session.instance, self._age(session), shown, proof.site, proof.key, proof.issued)

    def _publish(self, holds: Sequence[HeldSession]) -> None:
        core = self._core
        beat = PeerBeat(core.name, len(core.sessions), core.is_ready, core.life, core.is_draining, holds=tuple(holds))
        core.outbox.put(subjects.peers(core.cluster, Peer.BEAT), messages.encode(beat))


def _parts(sessions: Iterable[HeldSession]) -> Iterator[list[HeldSession]]:
    """The sessions in lists that fit into a message."""
    part: list[HeldSession] = []
    size = 0
    for held in sessions:
        held_bytes = len(messages.encode(held)) + 1
        if part and size + held_bytes > HELD_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(held)
        size += held_bytes
    if part:
        yield part
