"""The agent's sessions with the gateways of one Zeek cluster, one after another, over any connection to the bus."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec import structs

from zeek_agent import __version__
from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import NoListenerError
from zeek_agent.bus.messages import BadMessageError, Beacon, Hello, Refusal, Welcome
from zeek_agent.bus.session import BusSession, BusTransport, SessionOverError, Times
from zeek_agent.errors import ZeekAgentError
from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek import connection_errors, message_limits, protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.connection_errors import UnusableError
from zeek_agent.zeek.instance import Traffic
from zeek_agent.zeek.lasting_connection import ConnectionState, ConnectionStatus, reconnect_pause
from zeek_agent.zeek.session import Session

if TYPE_CHECKING:
    from zeek_agent.bus.credentials import User
    from zeek_agent.bus.link import Link
    from zeek_agent.bus.subjects import Down
    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.database.database import SqlDatabase
    from zeek_agent.identity import Identity
    from zeek_agent.queries.runner import QueryRunner

log = logging.getLogger(__name__)

IDENTITY_PREFIX: Final = "nats:"
"""Of a cluster's identity: deliveries belong to the cluster, not to a server, hop or gateway."""
BATCH_BYTES_MAX: Final = 256 * 1024
"""Rows in one batch: as a JSON text within JSON they may take twice as much, which still fits."""
ZEEK_AWAY: Final = "the gateway has lost Zeek"
NO_GATEWAY: Final = "no gateway listens"
UNHEARD_BEACONS: Final = 2
"""Beacons after which a hello had no listener: the server passes on the one, but not the other."""
NO_GATEWAY_SECONDS: Final = 5.0
"""First pause then, which doubles: the network between may be cut for a moment only."""
EARLY_MESSAGES_MAX: Final = 1_000
"""Messages of a session whose welcome has not been read yet: answers to requests take another way."""
EARLY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Their size in bytes."""


class RefusedError(ConnectionError):
    """A gateway has refused a hello; the agent says it again after `seconds`, or when a beacon invites it."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all sessions of an agent need."""

    identity: Identity
    settings: ZeekSettings
    topics: frozenset[str]
    database: SqlDatabase
    runner: QueryRunner
    times: Times
    session_names: set[str]
    """Names of all sessions on the bus."""
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    platform: str = ""
    """The group of all agents on this platform."""


class Cluster:
    """Keeps a session with a cluster, while there is a connection to the bus and a gateway."""

    def __init__(self, name: str, surroundings: Surroundings) -> None:
        self.name = name
        self.traffic = Traffic()
        self.session: BusSession | None = None
        self.was_welcomed = False
        """Whether there has ever been a session."""
        self._its = surroundings
        self._identity = f"{IDENTITY_PREFIX}{name}"
        self._early: deque[tuple[str, Down, bytes]] | None = None
        self._invited = asyncio.Event()
        self._spread = 0.0
        self._has_heard = False
        """Whether there was a beacon since the last hello."""
        self._state = ConnectionState.CONNECTING
        self._since = surroundings.clock()
        self._sent_bytes = 0
        self._reconnects = 0
        self._last_error: str | None = None
        self._logged_error: str | None = None

    def invite(self, beacon: Beacon) -> None:
        """A gateway of the cluster is there."""
        session = self.session
        self._has_heard = True
        if session is not None and session.welcome.gateway == beacon.gone:
            session.gateway_is_gone(beacon.spread)
        elif session is not None and session.welcome.gateway == beacon.gateway:
            session.heard_beacon()
        if session is None:
            self._spread = beacon.spread
            self._invited.set()

    def keep_early(self, session: str, kind: Down, payload: bytes) -> bool:
        """Keep a message to a session that nobody knows. Returns whether it may be the one that is awaited."""
        early = self._early
        if early is None or len(early) >= EARLY_MESSAGES_MAX:
            return False
        if sum(len(one) for *_, one in early) + len(payload) > EARLY_BYTES_MAX:
            return False
        early.append((session, kind, payload))
        return True

    async def run(self, link: Link, user: User, not_passed: Callable[[str], None], *, is_named: bool) -> None:
        """Have sessions over a connection until cancelled; `is_named` if the configuration has the cluster's name.

        `not_passed` is called with that name if the server passes on the cluster's beacons, but not the agent's hellos.
        """
        try:
            await self._have_sessions(link, user, not_passed, is_named=is_named)
        finally:
            self._enter(ConnectionState.WAITING)

    async def _have_sessions(
        self, link: Link, user: User, not_passed: Callable[[str], None], *, is_named: bool
    ) -> None:
        self._enter(ConnectionState.CONNECTING)
        failures, uninvited, unheard = 0, 0.0 if is_named else self._its.times.uninvited, 0
        while True:
            await self._until_invited(uninvited)
            began = self._its.monotonic()
            has_heard, self._has_heard = self._has_heard, False
            unheard_before, unheard = unheard, 0
            try:
                await self._have_session(link, user)
            except SessionOverError as error:
                self._note_failure(error)
                uninvited = random.uniform(0, error.seconds)
            except RefusedError as error:
                self._note_failure(error)
                uninvited = error.seconds
            except NoListenerError:
                self._note_failure(ConnectionError(NO_GATEWAY))
                unheard = unheard_before + has_heard
                if has_heard and unheard >= UNHEARD_BEACONS:
                    not_passed(self.name)
                longest = min(self._its.times.uninvited, NO_GATEWAY_SECONDS * 2.0 ** min(failures, 10))
                uninvited = longest * random.uniform(0.5, 1)
            except (ConnectionError, TimeoutError, ZeekAgentError, ProtocolError) as error:
                self._note_failure(error)
                uninvited = 0.0
            failures = 0 if self._its.monotonic() - began > self._its.settings.reconnect_max else failures + 1
            self._enter(ConnectionState.WAITING)
            await asyncio.sleep(reconnect_pause(self._its.settings, failures))
            self._reconnects += 1

    async def shutdown(self, seconds: float) -> tuple[str, ...]:
        """Send the shutdown message to Zeek and end the session. Returns the ids of the Zeek instances."""
        session = self.session
        if session is None:
            return ()
        if session.zeek is None:
            await session.say_bye()
            return ()
        instances = tuple(session.zeek.instances)
        await session.zeek.send_shutdown(seconds)
        return instances

    def status(self) -> ConnectionStatus:
        session = self.session
        zeek = session.zeek if session is not None else None
        away_since = session.away_since if session is not None else None
        return ConnectionStatus(
            destination=self._identity,
            state=(self._state if away_since is None else ConnectionState.WAITING).value,
            since=self._since if away_since is None else away_since,
            endpoint=zeek.ack.endpoint if zeek else None,
            zeek_version=zeek.ack.version if zeek and not zeek.ack.is_collector else None,
            instances=len(zeek.instances) if zeek else 0,
            queries=sum(len(zeek.queries(one)) for one in zeek.instances.values()) if zeek else 0,
            queued_rows=self.traffic.queued_rows,
            unacknowledged_bytes=zeek.sender.window.in_flight_bytes if zeek else 0,
            window_bytes=zeek.sender.window.limit_bytes if zeek else messages.SMALL_BATCH_BYTES,
            sent_rows=self.traffic.sent_rows,
            sent_bytes=self._sent_bytes + (session.sent_bytes if session else 0),
            dropped_rows=self.traffic.dropped_rows.total(),
            reconnects=self._reconnects,
            last_error=self._last_error if away_since is None else ZEEK_AWAY,
        )

    async def _until_invited(self, seconds: float) -> None:
        """Wait for an invitation, but not longer than so many seconds; then for this agent's turn in its spread."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._invited.wait()
        if self._invited.is_set():
            await asyncio.sleep(self._spread * turn(self._its.identity.agent))
            self._invited.clear()

    async def _have_session(self, link: Link, user: User) -> None:
        """Say hello, and have the session to which a gateway answers, until its end. Raises the cause."""
        its = self._its
        self._early = deque()
        try:
            welcome = await self._say_hello(link, user)
            early = self._early
        finally:
            self._early = None
        session = self.session = BusSession(
            link,
            welcome,
            user.address,
            title=f"gateway {welcome.gateway} of cluster {self.name}",
            traffic=self.traffic,
            frame_bytes_max=its.settings.message_bytes_max,
            begin=self._begin,
            times=its.times,
            clock=its.clock,
            monotonic=its.monotonic,
        )
        self._invited.clear()
        its.session_names.add(welcome.session)
        for name, kind, payload in early:
            if name == welcome.session:
                session.receive(kind, payload)
        try:
            await session.run()
        except (UnusableError, ProtocolError):
            await session.say_bye()
            raise
        finally:
            its.session_names.discard(welcome.session)
            self.session = None
            self._sent_bytes += session.sent_bytes

    async def _say_hello(self, link: Link, user: User) -> Welcome:
        its = self._its
        self._enter(ConnectionState.CONNECTING)
        groups = (*its.settings.groups, its.platform)
        hello = Hello(its.identity.instance, __version__, tuple(filter(None, groups)), token=user.token)
        subject = subjects.hello(self.name, user.address)
        try:
            answer = messages.read_welcome(await link.request(subject, messages.encode(hello), its.times.hello))
        except TimeoutError:
            seconds = its.times.uninvited * random.uniform(0.5, 1)
            raise RefusedError("does not answer the agent's hello", seconds) from None
        except BadMessageError as error:
            raise UnusableError(f"answers the agent's hello with something else: {error}") from None
        if isinstance(answer, Refusal):
            raise RefusedError(f"refuses a session: {clipped(answer.reason)}", answer.seconds)
        if answer.session in its.session_names:
            raise UnusableError("answers the agent's hello with the name of another session")
        for name in (answer.endpoint, answer.version):
            if byte_length(name) > message_limits.NAME_BYTES_MAX:
                raise UnusableError(
                    connection_errors.LONG_NAME.format(most=message_limits.NAME_BYTES_MAX, name=clipped(name))
                )
        return answer

    def _begin(self, transport: BusTransport, welcome: Welcome) -> Session:
        """The session with Zeek over a session with a gateway. Raises UnusableError if Zeek is not usable."""
        its = self._its
        ack = protocol.Ack(welcome.endpoint, welcome.version)
        if ack.lacks_backend:
            raise UnusableError(f"has a Zeek that {connection_errors.NO_BACKEND}")
        limit = min(BATCH_BYTES_MAX, transport.frame_bytes_max // 3)
        settings = structs.replace(its.settings, batch_bytes=min(its.settings.batch_bytes, limit))
        self._enter(ConnectionState.CONNECTED)
        self._logged_error = None
        self.was_welcomed = True
        log.info("connected to cluster %s through gateway %s, version %s", self.name, welcome.gateway, welcome.version)
        return Session(
            transport,
            ack,
            its.topics,
            url=self._identity,
            identity=its.identity,
            settings=settings,
            database=its.database,
            runner=its.runner,
            traffic=self.traffic,
            clock=its.clock,
            monotonic=its.monotonic,
        )

    def _note_failure(self, error: Exception) -> None:
        """Log why a session ended or was not possible, once per cause until one has worked again."""
        is_gateways = isinstance(error, UnusableError | RefusedError | SessionOverError)
        who = f"the gateway of cluster {self.name} " if is_gateways else f"cluster {self.name} on the bus: "
        text = who + clipped(str(error) or type(error).__name__)
        level = logging.DEBUG if text == self._logged_error else logging.WARNING
        log.log(level, "%s; the agent tries again", text)
        self._last_error = self._logged_error = text

    def _enter(self, state: ConnectionState) -> None:
        if state is not self._state:
            self._state, self._since = state, self._its.clock()


def turn(agent_id: str) -> float:
    """The part of a spread after which an agent says hello, from its id: below 1, and even over many agents."""
    return zlib.crc32(agent_id.encode(errors="surrogateescape")) / 2**32


def statuses(clusters: Sequence[Cluster]) -> list[ConnectionStatus]:
    """The rows of clusters with which there has been a session."""
    return [cluster.status() for cluster in clusters if cluster.was_welcomed]
