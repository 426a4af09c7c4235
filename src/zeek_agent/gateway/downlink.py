"""Messages of Zeek to agents, and the hellos of agents to Zeek.

An agent's hello is kept here. It goes to Zeek when it has changed, or after an interval. When Zeek is back, or another
instance of it appears, all are sent again, at a bounded rate.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

import msgspec

from zeek_agent.bus import subjects
from zeek_agent.bus.messages import BEAT_SECONDS, Welcome
from zeek_agent.bus.subjects import Down
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.core import Core
from zeek_agent.gateway.frames import CheckedHello
from zeek_agent.gateway.sessions import AgentSession
from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek import broker_json, message_limits, protocol
from zeek_agent.zeek.protocol import (
    CancelQuery,
    Context,
    InstallQuery,
    Message,
    RowsAck,
    ZeekEvent,
    ZeekHello,
    ZeekShutdown,
)

log = logging.getLogger(__name__)

COLLECTOR_HELLO_SECONDS: Final = 60.0
"""Longest interval of hellos to a collector, which takes an agent for offline after three times as long."""
HELLO_REPLY_SECONDS: Final = 1.0
"""The first hello of a Zeek instance later than this after an agent's means that it has missed that."""
CHANGE_SECONDS: Final = 1.0
"""Shortest time between hellos of an agent that go to Zeek, which replies to each with all queries."""
FIRST_HELLO_SECONDS: Final = 1.0
"""Wait for Zeek's features after the connection, before hellos are sent."""
NUMBERS_SKIPPED: Final = 1_000
"""By so many the numbers of batches leap when Zeek is back: more than an agent can have on their way."""
INSTANCES_MAX: Final = 100
ERRORS_QUEUED_MAX: Final = 10_000
"""Messages to a slow Zeek; with more of them, a query that is not passed on is only logged."""

_RAW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Downlink:
    """`connected` and `lost` follow the connection to Zeek."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._connections = 0
        self._greeted = asyncio.Event()

    def connected(self) -> None:
        """Zeek is there. Agents with a session are notified, and their hellos sent again, by `send_hellos`."""
        self._connections += 1
        self._core.features.clear()
        self._greeted.clear()
        for session in self._core.sessions:
            session.hello_id = ""
            self._core.hellos.add(session)

    def lost(self) -> None:
        """Zeek is gone: what agents have sent is lost, and they send it again later."""
        core, now = self._core, self._core.monotonic()
        core.credits.clear()
        core.features.clear()
        for session in core.sessions:
            session.small = 0
            session.queries.cancel_where(lambda _: True, now)
            core.hellos.forget(session)
            if session.is_told_back:
                session.is_told_back = False
                core.say(session, Down.GONE)

    def welcome(self, session: AgentSession) -> Welcome:
        """The description of the session and Zeek. Only while Zeek is there."""
        ack = self._core.zeek.ack
        assert ack is not None
        return Welcome(self._core.name, session.name, ack.endpoint, ack.version, first=session.first_number)

    async def send_hellos(self) -> None:
        """Send due hellos at a bounded rate."""
        core = self._core
        while True:
            sessions = await core.hellos.next()
            if not self._greeted.is_set():
                try:
                    async with asyncio.timeout(FIRST_HELLO_SECONDS):
                        await self._greeted.wait()
                except TimeoutError:
                    self._greeted.set()  # a collector says nothing before an agent does
            for session in sessions:
                if core.zeek.ack is None or session.ended:
                    continue
                if not session.is_told_back:
                    session.is_told_back = True
                    session.first_number = session.next_number = session.next_number + NUMBERS_SKIPPED
                    core.say(session, Down.BACK, self.welcome(session))
                self._send_hello(session, "replayed" if session.hello_at > float("-inf") else "forwarded")
            await asyncio.sleep(core.hellos.pause_seconds)

    def hello(self, session: AgentSession, hello: CheckedHello) -> None:
        """An agent has said hello: keep it, and pass it on if Zeek needs it."""
        core = self._core
        before, session.hello = session.hello, self._shared(hello)
        session.hello_received = core.monotonic()
        is_same = before is not None and (before.fields, before.features) == (hello.fields, hello.features)
        if session in core.hellos:
            core.counters.agent_hellos["absorbed"] += 1  # it is sent with the others
        elif not session.hello_id:
            core.hellos.add(session)
        elif is_same and core.monotonic() - session.hello_at < self._interval - BEAT_SECONDS:
            core.counters.agent_hellos["absorbed"] += 1
        elif (wait := session.hello_at + CHANGE_SECONDS - core.monotonic()) > 0:
            core.counters.agent_hellos["absorbed"] += 1
            if not session.hello_waits:
                session.hello_waits = True
                asyncio.get_running_loop().call_later(wait, self._send_changed, session)
        else:
            self._send_hello(session, "forwarded")

    def _send_changed(self, session: AgentSession) -> None:
        session.hello_waits = False
        if not session.ended and session.hello_id and self._core.zeek.ack is not None:
            self._send_hello(session, "forwarded")

    @property
    def _interval(self) -> float:
        ack, seconds = self._core.zeek.ack, self._core.settings.hello_interval
        return min(seconds, COLLECTOR_HELLO_SECONDS) if ack is not None and ack.is_collector else seconds

    def _shared(self, hello: CheckedHello) -> CheckedHello:
        """The hello with texts that many agents have, such as their tables, only once in memory."""
        text = self._core.texts.text
        features = None if hello.features is None else tuple(map(text, hello.features))
        return replace(hello, fields=tuple(map(text, hello.fields)), features=features)

    def _send_hello(self, session: AgentSession, how: str) -> None:
        core = self._core
        if session.hello is None:
            return  # the agent says it as soon as it knows that Zeek is there
        if not session.hello_id:
            session.hello_id = f"agent_hello_{session.name}_{self._connections}"
        via = core.via
        session.hello_at, session.hello_via = core.monotonic(), via is not None
        core.counters.agent_hellos[how] += 1
        host_time = session.hello.host_time + (session.hello_at - session.hello_received)
        context = Context(session.agent_id, host_time, session.hello_id)
        core.zeek.put([session.hello.write(context, via)])

    async def receive(self, raw: bytes, message: Message) -> None:
        """Pass a message of Zeek on to the agents that it addresses."""
        core = self._core
        event = protocol.zeek_event(message)
        if event is None:
            core.counters.zeek_messages["ignored"] += 1
            return
        if isinstance(event, ZeekHello):
            self._zeek_hello(event)
        elif isinstance(event, ZeekShutdown):
            core.features.pop(event.instance, None)
        written = message.topic.rstrip("/")
        topic = protocol.without_via(core.name, written)
        excess = message_limits.excess(event)
        sessions = [one for one in core.sessions.addressed(topic) if self._accepts(one, event, len(raw), excess)]
        core.counters.zeek_messages["forwarded" if sessions else "unaddressed"] += 1
        if not sessions:
            return
        payload = raw if topic == written else readdressed(raw, topic)
        for session in sessions:
            await core.outbox.room()
            if not session.ended and core.zeek.ack is not None:
                core.counters.frames_down += 1
                core.outbox.put(subjects.down(session.address, session.name, Down.FRAME), payload)

    def _zeek_hello(self, hello: ZeekHello) -> None:
        """Another Zeek instance needs the hellos of all agents; so does one that knows `via`, if they were without."""
        core = self._core
        is_new = hello.instance not in core.features
        if is_new and (len(core.features) >= INSTANCES_MAX or message_limits.excess(hello) is not None):
            return
        core.features[hello.instance] = hello.features & {protocol.VIA, protocol.LEFT}
        self._greeted.set()
        if not is_new:
            return
        log.info("Zeek instance %s at %s", clipped(hello.instance), core.zeek.destination.title)
        has_via = core.via is not None
        late = core.monotonic() - HELLO_REPLY_SECONDS
        for session in core.sessions:
            if session.hello_id and (session.hello_at < late or session.hello_via != has_via):
                core.hellos.add(session)

    def _accepts(self, session: AgentSession, event: ZeekEvent, size: int, excess: str | None) -> bool:
        """Note what a message permits the agent to answer. Returns False if the agent is not to receive it."""
        if not session.is_told_back:
            return False
        core, queries = self._core, session.queries
        if excess is None and size > core.payload_bytes_max:
            excess = f"message of {size:,} bytes; the bus accepts {core.payload_bytes_max:,}"
        if excess is not None:
            self._report(session, event, excess)
            return False
        instance = core.texts.text(event.instance)
        queries.heard(instance)
        match event:
            case InstallQuery():
                if not queries.add(core.texts.text(event.query_id), core.texts.query(event)):
                    is_full = len(queries) < core.settings.queries_max
                    memory = "the gateway has no memory for more queries"
                    limit = f"limit of {core.settings.queries_max} queries per agent"
                    self._report(session, event, memory if is_full else limit)
                    return False
            case CancelQuery():
                queries.cancel(event.query_id, instance, core.monotonic())
            case ZeekShutdown():
                queries.cancel_where(lambda query: query.instance == instance, core.monotonic())
            case ZeekHello() | RowsAck():
                pass
        return True

    def _report(self, session: AgentSession, event: ZeekEvent, reason: str) -> None:
        """Report to Zeek that a message is not passed on to an agent."""
        core = self._core
        core.refusals.note(Cause.QUERIES, session.agent_id, f"a message of Zeek is not passed on: {reason}")
        is_known = byte_length(event.instance) <= message_limits.NAME_BYTES_MAX
        if isinstance(event, InstallQuery) and is_known and core.zeek.queued < ERRORS_QUEUED_MAX:
            known = event.query_id if byte_length(event.query_id) <= message_limits.NAME_BYTES_MAX else None
            context = Context(session.agent_id, core.clock(), known)
            message = f"could not install query ({reason})"
            core.zeek.put([protocol.agent_error(event.instance, context, message).encode()])


def readdressed(raw: bytes, topic: str) -> bytes:
    """A frame of Zeek with another topic. Raises ProtocolError if it cannot be read."""
    try:
        try:
            fields = _RAW.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            fields = _RAW.decode(broker_json.repaired(raw))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise broker_json.ProtocolError(f"cannot read message: {error}") from None
    return msgspec.json.encode({**fields, "topic": topic})
