"""Messages from agents to the gateway: batches, wants, beats and the end of a session."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.limits import Limits
from zeek_agent.bus.link import Received
from zeek_agent.bus.messages import Ack, Again, BadMessageError, Want
from zeek_agent.bus.subjects import Down, Up, UpSubject
from zeek_agent.gateway import frames
from zeek_agent.gateway.causes import Cause, RefusedError
from zeek_agent.gateway.core import Core
from zeek_agent.gateway.downlink import Downlink
from zeek_agent.gateway.frames import CheckedHello
from zeek_agent.gateway.sessions import AgentSession

UNKNOWN_PER_SECOND: Final = 500
"""Answers to messages of sessions that the gateway does not have, as after its restart. Also those to one site at
once, and per second: its server, if it was taken, can invent agents, and leaves the other half to other sites."""
UNKNOWN_OF_ALL: Final = 2 * UNKNOWN_PER_SECOND
UNKNOWN_PER_AGENT: Final = 5
UNKNOWN_PER_AGENT_SECOND: Final = 0.5
"""Those answers to one agent at once, and per second: one is enough, but it may be lost."""
UNKNOWN_SECONDS: Final = 2.0
"""An agent of such a session says hello within this time."""


class Uplink:
    """Handles what arrives at `za.v1.up.GATEWAY.>`."""

    def __init__(self, core: Core, downlink: Downlink) -> None:
        self._core = core
        self._downlink = downlink
        self._unknown_limits = Limits()

    async def receive(self, received: Received) -> None:
        core = self._core
        try:
            subject = subjects.read_up(received.subject)
        except ValueError as error:
            core.refusals.note(Cause.MALFORMED, "?", str(error))
            return
        session = core.sessions.get(subject.agent.agent_id)
        if session is None or session.name != subject.session:
            self._answer_unknown(subject)
            return
        if session.address != subject.agent:
            what = f"{subject.kind} from site {subject.agent.site} in a session at site {session.address.site}"
            core.refusals.note(Cause.IDENTITY, session.agent_id, what)
            return
        session.note_heard(core.monotonic())
        match subject.kind:
            case Up.BATCH:
                await self._batch(session, subject.number, received.payload)
            case Up.WANT:
                self._want(session, received.payload)
            case Up.BEAT:
                if core.answers_to(subjects.inbox(session.address), received.reply, session.agent_id):
                    core.outbox.put(received.reply)
            case Up.BYE:
                core.end(session, "bye")

    def _answer_unknown(self, subject: UpSubject) -> None:
        """End a session at the agent that the gateway does not have, at a bounded rate."""
        core = self._core
        if subject.kind is Up.BYE:
            return
        agent_id, now = subject.agent.agent_id, core.monotonic()
        core.refusals.note(Cause.SESSION, agent_id, f"{subject.kind} of a session that has ended")
        if not self._unknown_limits.permit(subject.agent.tokens, UNKNOWN_PER_AGENT, UNKNOWN_PER_AGENT_SECOND, now):
            core.refusals.note(Cause.FLOOD, agent_id, "uses a session that has ended, and gets no answer")
        elif subjects.is_name(subject.session) and subjects.is_name(subject.agent.site):
            self._end_unknown(subject, now)

    def _end_unknown(self, subject: UpSubject, now: float) -> None:
        shared = ((subject.agent.site, UNKNOWN_PER_SECOND), ("", UNKNOWN_OF_ALL))
        if all(self._unknown_limits.permit(source, rate, rate, now) for source, rate in shared):
            again = messages.encode(Again(UNKNOWN_SECONDS))
            self._core.outbox.put(subjects.down(subject.agent, subject.session, Down.AGAIN), again)

    def _want(self, session: AgentSession, payload: bytes) -> None:
        core = self._core
        try:
            want = messages.read(payload, Want)
        except BadMessageError as error:
            core.refuse(session, Cause.MALFORMED, str(error))
            return
        if want.bytes > messages.BATCH_BYTES_MAX:
            core.end_for(session, Cause.CREDIT, f"wants credit for {want.bytes:,} bytes")
        elif core.is_ready and session.is_told_back:
            session.want = want.number
            if want.bytes:
                core.credits.want(session, want.bytes, core.monotonic())
            else:
                core.credits.forget(session)
            core.publish_grants()

    async def _batch(self, session: AgentSession, number: int, payload: bytes) -> None:
        core = self._core
        if number < session.first_number:
            core.counters.refused[Cause.ZEEK_AWAY] += 1  # the agent had not read yet that Zeek was away
            return
        if number != session.next_number:
            what = f"batch {number:,} instead of {session.next_number:,}"
            core.end_for(session, Cause.ORDER, what, seconds=1.0)
            return
        session.next_number += 1
        size = len(payload)
        if size > messages.SMALL_BATCH_BYTES:
            await core.credits.room(session, core.monotonic())
        if session.ended:
            return
        if core.zeek.ack is None or not session.is_told_back:
            core.counters.refused[Cause.ZEEK_AWAY] += 1
            return
        now = core.monotonic()
        is_small = size <= messages.SMALL_BATCH_BYTES and session.small == 0
        if is_small:
            session.small = number
        elif not core.credits.use(session, size, now):
            core.end_for(session, Cause.CREDIT, f"batch of {size:,} bytes without credit for it")
            return
        core.counters.batches["small" if is_small else "large"] += 1
        core.counters.batch_bytes += size
        checked, rows = self._checked(session, payload)
        core.counters.rows += rows
        if delay := session.allowance.spend(rows, size, now):
            session.held_until = now + delay
            core.counters.limited += 1
        core.zeek.put(checked, partial(self._acknowledge, session, number, uses_credit=not is_small))

    def _checked(self, session: AgentSession, payload: bytes) -> tuple[list[bytes], int]:
        """The frames of a batch that may go to Zeek, and the number of rows in them."""
        core, now = self._core, self._core.monotonic()
        passed, rows = [], 0
        try:
            received = messages.split(payload)
        except BadMessageError as error:
            core.refuse(session, Cause.MALFORMED, str(error))
            return [], 0
        for raw in received:
            try:
                checked = frames.check(raw, session.agent_id, session.queries, now)
            except RefusedError as error:
                core.refuse(session, error.cause, str(error))
                continue
            if isinstance(checked, CheckedHello):
                self._downlink.hello(session, checked)
                continue
            session.is_shut_down = session.is_shut_down or checked.is_shutdown
            passed.append(checked.frame)
            rows += checked.rows
        return passed, rows

    def _acknowledge(self, session: AgentSession, number: int, *, uses_credit: bool) -> None:
        """Zeek has read a batch."""
        core = self._core
        core.counters.acks += 1
        if uses_credit:
            core.credits.acknowledged(session)
        if not session.ended:
            if core.monotonic() < session.held_until:
                delay = session.held_until - core.monotonic()
                asyncio.get_running_loop().call_later(delay, self._confirm, session, number)
            else:
                self._confirm(session, number)
        core.publish_grants()

    def _confirm(self, session: AgentSession, number: int) -> None:
        """Send an agent the acknowledgement of its batches up to `number`, with its next credit if it has any."""
        if session.ended:
            return
        if session.small and session.small <= number:
            session.small = 0
        granted = self._core.grant()
        self._core.say(session, Down.ACK, Ack(number, session.want if session in granted else None))
        for other in granted:
            if other is not session:
                self._core.say(other, Down.GRANT, messages.Grant(number=other.want))
