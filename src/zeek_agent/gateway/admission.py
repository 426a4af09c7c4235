"""Hellos of agents on the bus: who gets a session, and which of two gateways has an agent.

An agent's id and site are those of its credentials (`agent_tokens.py`), so two instances with one id are a cloned host,
an agent that was started again, or one that was enrolled again, whose older token is void. The instance that has a
session is pinged: if it answers, the other one is refused, otherwise replaced. The same instance that comes again has
lost its session, which is replaced without a question.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.limits import Limits
from zeek_agent.bus.link import Received
from zeek_agent.bus.messages import (
    CLONE_SECONDS,
    Again,
    BadMessageError,
    Beacon,
    Claim,
    ClaimAnswer,
    Hello,
    Message,
    PeerBeat,
    Refusal,
)
from zeek_agent.bus.subjects import Address, Down, Peer
from zeek_agent.errors import ZeekAgentError
from zeek_agent.gateway.agent_tokens import Proof
from zeek_agent.gateway.allowance import Allowance
from zeek_agent.gateway.causes import Cause, RefusedError
from zeek_agent.gateway.core import CLONE_WAIT_SECONDS, Core
from zeek_agent.gateway.doubles import Doubles
from zeek_agent.gateway.downlink import Downlink
from zeek_agent.gateway.sent_queries import SentQueries
from zeek_agent.gateway.sessions import AgentSession, all_groups
from zeek_agent.text import clipped, visible

log = logging.getLogger(__name__)

PENDING_MAX: Final = 2_000
"""Hellos and claims that are being decided; others are refused for a while."""
PENDING_PER_AGENT: Final = 3
HELLOS: Final = 20
HELLOS_PER_SECOND: Final = 0.5
"""Hellos of one agent at once, and per second: each ends its session and has Zeek send all queries. Also of `who`."""
BUSY_SECONDS: Final = 5.0
FULL_SECONDS: Final = 60.0
RESERVED_IDS: Final = frozenset({"all", "linux", "darwin", "windows"})
"""Groups of Zeek's topics, which is why Zeek's package refuses these ids, too."""
RIVAL_SECONDS: Final = 1.0
REPORTED_SECONDS: Final = 2.0
"""Time for Zeek to read that an agent has left, before another gateway may have it."""


class Admission:
    """Handles hellos, and beats, claims and pings of other gateways."""

    def __init__(self, core: Core, downlink: Downlink) -> None:
        self._core = core
        self._downlink = downlink
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        self._pending: Counter[str] = Counter()
        self._limits = Limits()
        self.doubles = Doubles(core, self._shows_itself)
        self.began = core.monotonic()
        """When the connection to the bus began."""

    def stop(self) -> None:
        """Abandon what is being decided."""
        for task in self._tasks:
            task.cancel()
        self.doubles.stop()

    # Agents.

    async def receive_hello(self, received: Received) -> None:
        core = self._core
        try:
            cluster, agent = subjects.read_hello(received.subject)
            hello = messages.read(received.payload, Hello)
        except (ValueError, BadMessageError) as error:
            core.refusals.note(Cause.MALFORMED, "?", str(error))
            return
        agent_id = agent.agent_id
        if cluster != core.cluster or not core.answers_to(subjects.inbox(agent), received.reply, agent_id):
            return
        if not core.is_ready:
            self._answer(received.reply, Refusal("the gateway has no Zeek", RIVAL_SECONDS))
        elif fault := unusable(agent_id, hello.groups):
            core.refusals.note(Cause.AGENT, agent_id, fault)
            self._answer(received.reply, Refusal(fault, CLONE_WAIT_SECONDS))
        elif not self._limits.permit(agent.tokens, HELLOS, HELLOS_PER_SECOND, core.monotonic()):
            core.refusals.note(Cause.FLOOD, agent_id, "says hello too often")
            self._answer(received.reply, Refusal("the agent says hello too often", FULL_SECONDS))
        elif (proof := self._proof(agent, hello, received.reply)) is None:
            return
        elif len(self._tasks) >= PENDING_MAX or self._pending[agent_id] >= PENDING_PER_AGENT:
            core.refusals.note(Cause.FULL, agent_id, f"{len(self._tasks):,} hellos are being decided")
            self._answer(received.reply, Refusal("the gateway is busy", BUSY_SECONDS))
        else:
            self._pending[agent_id] += 1
            self._start(self._decide(agent, proof, hello, received.reply))

    def _proof(self, agent: Address, hello: Hello, reply: str) -> Proof | None:
        """What the agent's token proves. None if it is refused, and the agent knows."""
        try:
            return self._core.tokens.verify(agent, hello.token)
        except RefusedError as error:
            self._core.refusals.note(error.cause, agent.agent_id, str(error))
            self._answer(reply, Refusal(f"{error}: `zeek-agent doctor` checks its credentials", FULL_SECONDS))
            return None

    async def receive_who(self, received: Received) -> None:
        """An agent or operator looks for gateways."""
        core = self._core
        try:
            asker = subjects.read_who(received.subject)
        except ValueError as error:
            core.refusals.note(Cause.MALFORMED, "?", str(error))
            return
        if isinstance(asker, Address):
            name, inbox = asker.agent_id, subjects.inbox(asker)
        else:
            name, inbox = asker, subjects.operator_inbox(asker)
        if not self._limits.permit(received.subject, HELLOS, HELLOS_PER_SECOND, core.monotonic()):
            core.refusals.note(Cause.FLOOD, name, "asks for gateways too often")
        elif core.answers_to(inbox, received.reply, name) and core.is_ready:
            self._answer(received.reply, Beacon(core.name, cluster=core.cluster))

    async def _decide(self, agent: Address, proof: Proof, hello: Hello, reply: str) -> None:
        """Give the agent a session, or refuse it. Hellos of one agent are decided one after another."""
        agent_id = agent.agent_id
        turn = self._turns.setdefault(agent_id, asyncio.Lock())
        try:
            async with turn:
                refusal = await self._objection(agent_id, proof, hello.instance)
                if refusal is None and not self._core.is_ready:
                    refusal = Refusal("the gateway has no Zeek", RIVAL_SECONDS)
                if refusal is not None:
                    self._answer(reply, refusal)
                    return
                session = self._open(agent, proof, hello)
                self._answer(reply, self._downlink.welcome(session))
        finally:
            self._pending[agent_id] -= 1
            if not self._pending[agent_id]:
                del self._pending[agent_id]
                self._turns.pop(agent_id, None)

    async def _objection(self, agent_id: str, proof: Proof, instance: str) -> Refusal | None:
        """Why the agent gets no session. Ends a session that this one replaces."""
        core = self._core
        held = core.sessions.get(agent_id)
        if held is None and len(core.sessions) >= core.settings.agents_max:
            core.refusals.note(Cause.FULL, agent_id, f"the gateway has {len(core.sessions):,} agents")
            return Refusal("the gateway has as many agents as it accepts", FULL_SECONDS)
        claim = Claim(core.name, instance, proof.site, proof.key, proof.issued)
        if held is not None and not await self._yields(held, claim):
            is_newer = held.proof.supersedes(proof)
            return self._refuse_rival(agent_id, claim, f"instance {held.instance} at this gateway", is_newer=is_newer)
        objection = await core.peers.claim(agent_id, lambda: self._publish_claim(agent_id, claim), core.monotonic())
        if objection is None:
            return None
        if objection.claims:
            return Refusal(f"gateway {objection.gateway} is about to answer", RIVAL_SECONDS)
        holder = f"an instance at gateway {objection.gateway}"
        return self._refuse_rival(agent_id, claim, holder, is_newer=objection.newer)

    def _refuse_rival(self, agent_id: str, claim: Claim, holder: str, *, is_newer: bool) -> Refusal:
        """Refuse an instance because the holder of the session answers, or has a newer token."""
        core = self._core
        if is_newer:
            what = f"{holder} has a newer token, so that of instance {claim.instance} at site {claim.site} is void"
            core.refusals.note(Cause.IDENTITY, agent_id, what)
            return Refusal(f"agent {clipped(agent_id)} has newer credentials than these", CLONE_WAIT_SECONDS)
        what = (
            f"the agent is connected twice: {holder} answers, so instance {claim.instance} is refused. One of them is "
            "a cloned host, or uses credentials that are not its own"
        )
        core.refusals.note(Cause.CLONE, agent_id, what)
        reason = f"another instance of agent {clipped(agent_id)} is connected (a cloned host? enrol it again)"
        return Refusal(reason, CLONE_WAIT_SECONDS)

    async def _yields(self, held: AgentSession, claim: Claim) -> bool:
        """Whether a session makes way for an instance of its agent; then it has ended, and Zeek knows if need be."""
        core = self._core
        proof = Proof(claim.site, claim.key, claim.issued)
        is_newer = proof.supersedes(held.proof)
        if held.proof.supersedes(proof):
            return False
        if held.instance == claim.instance and (is_newer or held.proof.site == claim.site):
            core.end(held, "replaced", report=False)
            return True
        if not is_newer and await self._shows_itself(held):
            return False
        if not held.ended:
            log.info(
                "agent %s: instance %s at site %s %s and is replaced by instance %s at site %s",
                visible(held.agent_id), visible(held.instance), held.address.site,
                "has an older token" if is_newer else "does not answer", visible(claim.instance), visible(claim.site),
            )  # fmt: skip
            reported = asyncio.Event()
            core.end(held, "replaced by another instance", again=Again(FULL_SECONDS), reported=reported.set)
            try:
                async with asyncio.timeout(REPORTED_SECONDS):
                    await reported.wait()
            except TimeoutError:
                log.debug("Zeek has not read in time that agent %s has left", held.agent_id)
        return True

    async def _shows_itself(self, session: AgentSession) -> bool:
        """Whether the agent of a session answers a ping in time."""
        if session.ended:
            return False
        sign: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session.signs.append(sign)
        self._core.say(session, Down.PING)
        await asyncio.wait([sign], timeout=CLONE_SECONDS)
        return sign.done() and not session.ended

    def _open(self, agent: Address, proof: Proof, hello: Hello) -> AgentSession:
        core, settings = self._core, self._core.settings
        now = core.monotonic()
        if (raced := core.sessions.get(agent.agent_id)) is not None:
            core.end(raced, "replaced", report=False)
        session = AgentSession(
            address=Address(proof.site, agent.agent_id),
            proof=proof,
            name=secrets.token_hex(8),
            instance=hello.instance,
            version=hello.version,
            groups=all_groups(hello.groups),
            queries=SentQueries(settings.queries_max, core.query_memory),
            allowance=Allowance(settings.rows_per_second, settings.bytes_per_second, now),
            began=now,
            heard=now,
        )
        core.sessions.add(session)
        core.counters.hellos += 1
        return session

    # Other gateways.

    def _publish_claim(self, agent_id: str, claim: Claim) -> None:
        core = self._core
        reply = f"{subjects.peer(core.cluster, Peer.REPLY, core.name)}.{subjects.token(agent_id)}"
        core.outbox.put(subjects.peers(core.cluster, Peer.CLAIM, agent_id), messages.encode(claim), reply)

    async def receive_claim(self, received: Received) -> None:
        """Another gateway is about to welcome an agent."""
        core = self._core
        try:
            agent_id = subjects.read_claim(received.subject)
            claim = messages.read(received.payload, Claim)
        except (ValueError, BadMessageError) as error:
            core.refusals.note(Cause.MALFORMED, "?", f"claim of a gateway: {error}")
            return
        if not subjects.is_name(claim.gateway):
            core.refusals.note(Cause.MALFORMED, agent_id, f"claim of a gateway: not a name: {claim.gateway}")
            return
        inbox = subjects.peer(core.cluster, Peer.REPLY, claim.gateway)
        if claim.gateway != core.name and core.answers_to(inbox, received.reply, agent_id):
            self._start(self._answer_claim(agent_id, claim, received.reply))

    async def _answer_claim(self, agent_id: str, claim: Claim, reply: str) -> None:
        core = self._core
        held, newer = core.peers.rival(agent_id, claim), False
        session = core.sessions.get(agent_id)
        if not held and session is not None:
            held = not await self._yields(session, claim)
            newer = session.proof.supersedes(Proof(claim.site, claim.key, claim.issued))
            if newer:
                what = f"gateway {claim.gateway} claims it for site {claim.site} with a token older than the session's"
                core.refusals.note(Cause.IDENTITY, agent_id, what)
            elif held:
                what = (
                    f"instance {session.instance} answers here, so instance {claim.instance} at gateway "
                    f"{claim.gateway} is refused"
                )
                core.refusals.note(Cause.CLONE, agent_id, what)
        self._answer(reply, ClaimAnswer(core.name, held, newer))

    async def receive_reply(self, received: Received) -> None:
        """A gateway answers a claim."""
        try:
            agent_id = subjects.text(received.subject.rpartition(".")[2])
            answer = messages.read(received.payload, ClaimAnswer)
        except (ValueError, BadMessageError) as error:
            log.debug("answer of a gateway: %s", error)
            return
        self._core.peers.answered(agent_id, answer)

    async def receive_ping(self, received: Received) -> None:
        core = self._core
        replies = subjects.peer(core.cluster, Peer.REPLY, "").removesuffix(".")
        if core.answers_to(replies, received.reply, "?"):
            core.outbox.put(received.reply)

    async def receive_beat(self, received: Received) -> None:
        """Another gateway is there."""
        core = self._core
        try:
            beat = messages.read(received.payload, PeerBeat)
        except BadMessageError as error:
            log.debug("beat of a gateway: %s", error)
            return
        if beat.gateway == core.name:
            if beat.life != core.life:
                self._same_name(beat)
            return
        was_silent = core.peers.is_silent(beat.gateway, core.monotonic())
        if core.peers.heard(beat, core.monotonic()):
            log.info("gateway %s of cluster %s has %d agents", visible(beat.gateway), core.cluster, beat.agents)
            self.publish_beat()
        if was_silent and not beat.leaving:
            self.doubles.announce()
        self.doubles.heard(beat)

    def _same_name(self, beat: PeerBeat) -> None:
        """Of two gateways with one name, the one that has been connected for less time ends."""
        core = self._core
        if core.monotonic() - self.began <= beat.age:
            raise SameNameError(
                f"another gateway of cluster {core.cluster} has the name {core.name}: set gateway.name to another one"
            )
        self.publish_beat()

    def publish_beat(self, *, leaving: bool = False) -> None:
        core = self._core
        beat = PeerBeat(core.name, len(core.sessions), core.is_ready, core.life, leaving, core.monotonic() - self.began)
        core.outbox.put(subjects.peers(core.cluster, Peer.BEAT), messages.encode(beat))

    def publish_beacon(self, *, gone: str = "", spread: float = 0.0) -> None:
        core = self._core
        if core.is_ready:
            beacon = messages.encode(Beacon(core.name, min(spread, 3600.0), gone))
            core.outbox.put(subjects.all_agents(core.cluster), beacon)

    def _answer(self, reply: str, message: Message) -> None:
        self._core.outbox.put(reply, messages.encode(message))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a hello was not decided: %s", error, exc_info=error)


def unusable(agent_id: str, groups: Sequence[str]) -> str | None:
    """Why an agent with this id and these groups gets no session; None if it may.

    The id and each group are parts of Zeek's topics. With a slash, or with the name of a group as its id, an agent
    could receive what is for another one.
    """
    if "/" in agent_id or agent_id.lower() in RESERVED_IDS:
        return f"no agent may have the id {clipped(agent_id)}"
    wrong = next((group for group in groups if "/" in group), None)
    return None if wrong is None else f"a group on the bus has no slash in its name: {clipped(wrong)}"


class SameNameError(ZeekAgentError):
    """Another gateway of the cluster has this one's name."""
