"""The collector: a substitute for Zeek that agents connect to, over TCP or, embedded in an agent, over passed sockets.

Like Zeek, it implements the server side of the agents' protocol on a WebSocket. It acts as one Zeek instance that
installs the queries of a pack, and writes the results as Zeek logs. Agents can be authenticated by TLS certificates.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import socket
import ssl
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from zeek_agent.collector import revocations
from zeek_agent.collector.agents import Agents, KnownAgent
from zeek_agent.collector.bounded_listener import AcceptedSockets, open_listeners
from zeek_agent.collector.clients import Claim, CollectorClient, IdHolders, IdInUseError, disconnect
from zeek_agent.collector.host_records import HostRecords
from zeek_agent.collector.hosts import Hosts
from zeek_agent.collector.intake import Intake
from zeek_agent.collector.log_archive import Retention
from zeek_agent.collector.log_files import PENDING_BYTES, LogDirectory, LogFile
from zeek_agent.collector.pack import Pack, PackQuery
from zeek_agent.collector.passed_connections import PassedConnections
from zeek_agent.collector.receive_memory import POOL_BYTES, BoundedConnection, ReceiveMemory, bounded_by
from zeek_agent.collector.stats import CollectorStats, LogStats
from zeek_agent.collector.tls import HANDSHAKE_SECONDS, ServerTls, log_doubts
from zeek_agent.config.server_sections import CollectorSettings
from zeek_agent.destination import PATH, parse_listen
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek import message_limits, protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import AgentHello, AgentLeft, Message, ZeekHello

ZEEK_VERSION: Final = "9.0.0"
ZEEK_VERSION_NUMBER: Final = 90_000
"""The Zeek version that it reports; agents send it the hello of package 2.4 and later."""

HELLO_INTERVAL_SECONDS: Final = 60.0
"""As in Zeek's package."""
FLUSH_INTERVAL_SECONDS: Final = 1.0
"""Bounds what is lost if the collector is killed."""
MESSAGES_WAITING: Final = 4
"""Messages of a client that are read ahead; bounds their memory."""
OPENING_TIMEOUT_SECONDS: Final = 10.0
"""How long a client may take until it subscribes."""
PING_INTERVAL_SECONDS: Final = 5.0
"""As in Zeek's WebSocket server."""
PONG_TIMEOUT_SECONDS: Final = 60.0
"""A client that has not answered a ping for so long is considered dead."""
BACKLOG_BYTES: Final = PENDING_BYTES // 2
"""If more than this waits for the disk, agents are not read until some is written."""
SEND_BYTES: Final = 1024 * 1024
"""If more than this waits for a client that does not read, the client misses broadcasts."""

ID_IN_USE: Final = "another connection with this agent id answers (a cloned host? remove its identity.json)"
"""The reason in a close frame has at most 123 bytes."""
ID_NOT_CERTIFIED: Final = "the agent id is not the one in the agent's certificate"

_GATEWAY: Final = re.compile(rf"{protocol.GATEWAY_APPLICATION}[^/]+/([A-Za-z0-9_-]{{1,64}})")
_APPLICATION_NAME = re.compile(r"[A-Za-z0-9/_.:=*@-]+")
_ALPHABET: Final = string.digits + string.ascii_letters

log = logging.getLogger("zeek_agent.collector")


@dataclass(frozen=True, slots=True)
class CollectorLimits:
    """Limits for all clients together, and for each of them."""

    connections: int = 1000
    agents: int = 25_000
    gateway_agents: int = 20_000
    """Those of all gateways together, so that there is room for others."""
    message_bytes: int = 32 * 1024 * 1024
    """Enough for an agent's longest value (4 MiB) with every byte escaped."""
    unread_bytes: int = POOL_BYTES
    """Received but unread, of all connections together, beyond the allowance of each."""
    per_connection: int = 1000
    """Subscriptions of one connection, and agents behind it."""
    per_gateway: int = 10_000
    """Agents behind a connection that has announced itself as a gateway."""


EMBEDDED_LIMITS: Final = CollectorLimits(connections=8, agents=8)
"""There is one agent; connections that have just ended count for a moment."""


class Collector:
    """Serves agents from `start` or `start_embedded` to `stop`."""

    def __init__(
        self,
        settings: CollectorSettings,
        pack: Pack,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        limits: CollectorLimits | None = None,
        holder: int | None = None,
    ) -> None:
        """`holder` is the process that the lock on the logs names, if not this one."""
        self.instance = f"zeek_{_unique()}"
        self.warning: str | None = None
        self._topics = (protocol.response_topic("", "all").rstrip("/"), protocol.response_topic("", self.instance))
        self._settings = settings
        self._monotonic = monotonic
        self._limits = limits or CollectorLimits()
        self._logs = LogDirectory(
            Path(settings.logs),
            kind=settings.format,
            rotate_interval_seconds=settings.rotate_interval,
            rotate_bytes=settings.rotate_bytes,
            clock=clock,
            holder=holder,
            retention=Retention(settings.retention_age, settings.retention_bytes, settings.compress),
        )
        known = Agents(timeout_seconds=settings.agent_timeout, limit=self._limits.agents)
        hosts = Hosts(limit=settings.hosts_max)
        self._intake = Intake(pack, self._logs, known, hosts, clock=clock, monotonic=monotonic)
        self._records = HostRecords(self._logs.directory, self._intake, monotonic)
        self._queries = {f"za_{_unique()}": query for query in _all_queries(pack)}
        self._clients: set[CollectorClient] = set()
        self._without_dialects: set[str] = set()
        """Agents that were reported for it; bounded like the agents that are served."""
        self._holders = IdHolders()
        self._tls: ServerTls | None = None
        self._memory = ReceiveMemory(
            # Includes those in their opening handshake; others are refused with an answer.
            connections=2 * self._limits.connections,
            pool_bytes=self._limits.unread_bytes,
            refuse=self._intake.refuse,
        )
        self._connections = 0
        self._numbers = count()
        self._servers: list[Server] = []
        self._listener: PassedConnections | None = None
        self._flush_task: asyncio.Task[None]
        self._hello_task: asyncio.Task[None]
        self._stopping = False
        self._flush_wanted = asyncio.Event()
        self._flushed = asyncio.Condition()
        self._disk = asyncio.Lock()
        """Held while log files are written or replaced."""
        self._started = 0.0

    async def start(self) -> tuple[str, int]:
        """Start listening. Returns address and port. Raises UsageError if that is not possible."""
        host, port = parse_listen(self._settings.listen)
        if self._settings.tls.certificate is not None:
            self._tls = await asyncio.to_thread(ServerTls, self._settings.tls)
            await asyncio.to_thread(log_doubts, self._settings.tls)
        await asyncio.to_thread(self._logs.start)
        await self._records.write()  # reads the hosts of an earlier run
        try:
            if self._tls is None:
                self._servers = [await self._serve(host=host, port=port)]
            else:
                self._servers = await self._serve_tls(host, port, self._tls)
        except OSError as error:
            self._logs.close()
            reason = error.strerror or error
            raise UsageError(
                f"cannot listen on {self._settings.listen}: {reason}; choose another address with collector.listen"
            ) from None
        self._warn_if_reachable({listener.getsockname()[0] for server in self._servers for listener in server.sockets})
        self._begin()
        log.info("listening on %s port %d, logs in %s", *self.address, self._logs.directory)
        if self._logs.failing:
            self._log_disk_state()
        return self.address

    def prepare(self) -> None:
        """Lock the log directory and move an earlier run's logs, for which the embedded collector still has privileges.

        May be retried after a failure. Raises ZeekAgentError if the logs cannot be locked or written: rows then wait in
        the agent's event store.
        """
        self._logs.start()
        if self._logs.failing:
            self._logs.release()
            raise ZeekAgentError(str(self._logs.last_error))

    async def start_embedded(self) -> None:
        """Serve only connections that `serve_connection` is given. Raises ZeekAgentError as `prepare`."""
        if self._servers:
            return
        await asyncio.to_thread(self.prepare)
        self._listener = PassedConnections()
        await self._records.write()  # reads the hosts of an earlier run
        self._servers = [await self._serve(sock=self._listener)]
        self._begin()
        log.info("embedded, logs in %s", self._logs.directory)

    def serve_connection(self, connection: socket.socket) -> None:
        """Serve the other end of a socket pair. Raises OSError if the embedded collector is not started."""
        if self._listener is None:
            connection.close()
            raise ConnectionRefusedError("the embedded collector is not running")
        self._listener.add(connection)

    async def _serve_tls(self, host: str, port: int, tls: ServerTls) -> list[Server]:
        most = self._limits.connections
        counted = AcceptedSockets(limit=2 * most, per_address=most, refuse=self._intake.refuse)
        return [
            await self._serve(sock=listener, ssl=tls, ssl_handshake_timeout=HANDSHAKE_SECONDS)
            for listener in await open_listeners(host, port, counted)
        ]

    async def _serve(self, **where: Any) -> Server:
        return await serve(
            self._handle,
            **where,
            process_request=self._admit,
            compression=None,
            max_size=self._limits.message_bytes,
            max_queue=MESSAGES_WAITING,
            ping_interval=PING_INTERVAL_SECONDS,
            ping_timeout=PONG_TIMEOUT_SECONDS,
            close_timeout=2,
            server_header=None,
            create_connection=bounded_by(self._memory),
            logger=_websocket_logger(),
        )

    def _begin(self) -> None:
        """Start the background tasks."""
        self._started = self._monotonic()
        self._flush_task = asyncio.create_task(self._flush_logs())
        self._hello_task = asyncio.create_task(self._send_hellos())
        for task in (self._flush_task, self._hello_task):
            task.add_done_callback(_report_failure)

    async def stop(self) -> None:
        """Send the shutdown message to the agents and close the logs."""
        if not self._servers:
            return
        self._stopping = True
        self._flush_wanted.set()
        self._hello_task.cancel()
        await asyncio.wait([self._hello_task, self._flush_task])
        async with self._flushed:  # agents that began to wait after the last flush
            self._flushed.notify_all()
        self._broadcast_shutdown()
        for server in self._servers:
            server.close(reason="Terminating")
        for server in self._servers:
            await server.wait_closed()
        self._servers, self._listener = [], None
        await self._records.write(everything=True)
        await asyncio.to_thread(self._logs.close)

    async def reconfigure(self, settings: CollectorSettings, pack: Pack, certificates: ssl.SSLContext | None) -> None:
        """Apply settings that need no restart, other queries, and certificates for new connections."""
        self._settings = settings
        self._intake.agents.set_timeout(settings.agent_timeout)
        self._intake.hosts.set_limit(settings.hosts_max)
        if self._tls is not None and certificates is not None:
            self._tls.use(certificates)
            await self._end_revoked(settings.tls.crl)
        await self._replace_queries(pack)

    async def _end_revoked(self, crl: str | None) -> None:
        """End the connections of those whose certificate was revoked meanwhile."""
        if crl is None:
            return
        lists = await asyncio.to_thread(revocations.read, crl)
        for client in list(self._clients):
            serial = client.certificate_serial
            if serial is not None and any(serial in one.serials for one in lists):
                named = client.origin.certificate
                log.warning("closed the connection of %s (%s): its certificate was revoked", client.peer, named)
                disconnect(client, "the certificate was revoked", CloseCode.POLICY_VIOLATION)

    async def _replace_queries(self, pack: Pack) -> None:
        """Cancel queries that the pack does not have, install those that are new, and leave the others alone."""
        wanted = _all_queries(pack)
        kept, cancelled = {}, {}
        for query_id, query in self._queries.items():
            if query in wanted:
                wanted.remove(query)
                kept[query_id] = query
            else:
                cancelled[query_id] = query
        new = {f"za_{_unique()}": query for query in wanted}
        async with self._disk:
            replaced = self._intake.use(pack)
            self._queries = kept | new
            await asyncio.to_thread(_end_logs, replaced)
        for client in list(self._clients):
            for frame in self._query_changes(client, cancelled, new):
                if client.connection.transport.get_write_buffer_size() > SEND_BYTES:
                    disconnect(client, "did not read; it gets the other queries when it connects again")
                    break
                broadcast([client.connection], frame)

    def _query_changes(
        self, client: CollectorClient, cancelled: Mapping[str, PackQuery], new: Mapping[str, PackQuery]
    ) -> Iterator[str]:
        """The frames that cancel and install queries for the agents of a connection."""
        for agent_id in client.agent_ids:
            for query_id, query in cancelled.items():
                for topic in filter(client.subscribes_to, _topics(query, agent_id)):
                    yield protocol.cancel_query(topic, self.instance, query_id)
            for query_id, query in new.items():
                for topic in filter(client.subscribes_to, self._topics_for(query, agent_id)):
                    yield protocol.install_query(topic, self.instance, query_id, query.query)

    def _topics_for(self, query: PackQuery, agent_id: str) -> Iterable[str]:
        """The topics that bring a query to an agent; none if the agent does not know the query's dialect."""
        if query.query.dialect is not None and not self._intake.agents.has_feature(agent_id, protocol.DIALECTS):
            self._report_dialect(agent_id, query.query.dialect)
            return ()
        return _topics(query, agent_id)

    def _report_dialect(self, agent_id: str, dialect: str) -> None:
        """Report once per connection that an agent does not get queries in a dialect."""
        if agent_id not in self._without_dialects:
            self._without_dialects.add(agent_id)
            self._intake.report(
                "WARNING",
                f"agent {agent_id} does not support dialects, and does not get the queries in that of {dialect}",
            )

    @property
    def address(self) -> tuple[str, int]:
        """The listening address and port. Raises LookupError if there are none."""
        if not self._servers or self._listener is not None:
            raise LookupError("the collector does not listen")
        host, port, *_ = next(iter(self._servers[0].sockets)).getsockname()
        return host, port

    @property
    def place(self) -> str:
        """The listening address, for messages."""
        try:
            host, port = self.address
        except LookupError:
            return "in the agent"
        return f"on {host} port {port}"

    @property
    def stats(self) -> CollectorStats:
        """The current state."""
        counters = self._intake.counters
        return CollectorStats(
            started=self._started,
            connections=self._connections,
            unread_bytes=self._memory.pool_used_bytes,
            agents=tuple(self._intake.agents),
            connected=frozenset().union(*(client.agent_ids for client in self._clients)),
            hosts=self._intake.hosts.counts(),
            hosts_evicted=self._intake.hosts.evicted,
            hosts_unremembered=self._intake.hosts.unremembered,
            hosts_error=self._records.error,
            hosts_errors=self._records.errors,
            conflicts=counters.conflicts,
            logs=tuple(LogStats(file.path, file.rows, file.dropped) for file in self._logs.files.values()),
            messages=counters.messages,
            rows=counters.rows,
            refused=counters.refused,
            ignored=counters.ignored,
            agent_errors=counters.agent_errors,
            disk_errors=self._logs.errors,
            disk_error=self._logs.last_error if self._logs.failing else None,
            archive=self._logs.archive_stats,
            recent_errors=tuple(counters.recent),
        )

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if self._connections < self._limits.connections:
            return None
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, BoundedConnection)
        client = CollectorClient(connection)
        self._connections += 1
        try:
            if await self._open(client):
                self._clients.add(client)
                while True:
                    await self._answer(client, self._handle_message(client, await connection.receive()))
                    await self._wait_for_disk(client)
        except ConnectionClosed as error:
            if error.sent and not error.rcvd_then_sent and error.sent.code != CloseCode.GOING_AWAY:
                self._intake.refuse(f"closed the connection to {client.peer}: {error.sent.code} {error.sent.reason}")
        finally:
            self._connections -= 1
            self._clients.discard(client)
            for agent_id in self._holders.release(client):
                self._intake.left(agent_id)
                self._without_dialects.discard(agent_id)

    async def _open(self, client: CollectorClient) -> bool:
        """Check path and name, read and acknowledge the subscription. Returns False if the client was refused."""
        request = client.connection.request
        assert request is not None
        if request.path != PATH:
            return await _refuse(client, "invalid_uri", f"Invalid URI - use {PATH}")
        if not all(map(_APPLICATION_NAME.fullmatch, request.headers.get_all("X-Application-Name"))):
            return await _refuse(client, "invalid_application_name", "Invalid X-Application-Name")
        client.gateway = _gateway(request.headers.get_all("X-Application-Name"))
        problem = await self._subscribe(client)
        if problem is not None:
            return await _refuse(client, "deserialization_failed", problem)
        client.connection.subscribed()
        await client.connection.send(protocol.ack(f"{protocol.COLLECTOR_ENDPOINT}{next(self._numbers)}", ZEEK_VERSION))
        return True

    async def _subscribe(self, client: CollectorClient) -> str | None:
        """Read the client's subscription. Returns the error, if any. The message itself is not kept."""
        try:
            async with asyncio.timeout(OPENING_TIMEOUT_SECONDS):
                client.topics = self._subscription(await client.connection.receive())
        except TimeoutError:
            return "no subscription in time"
        except ProtocolError as error:
            self._intake.refuse(f"subscription from {client.peer}: {error}")
            return "subscriptions not an array of strings"
        return None

    def _subscription(self, raw: bytes) -> tuple[str, ...]:
        topics = protocol.read_subscription(raw)
        if len(topics) > self._limits.per_connection:
            raise ProtocolError(f"more than {self._limits.per_connection} subscriptions")
        if long := next((topic for topic in topics if byte_length(topic) > message_limits.TOPIC_BYTES_MAX), None):
            raise ProtocolError(f"a topic is longer than {message_limits.TOPIC_BYTES_MAX:,} bytes: {clipped(long)}")
        if sum(map(byte_length, topics)) > message_limits.SUBSCRIPTION_BYTES_MAX:
            raise ProtocolError(f"subscriptions of more than {message_limits.SUBSCRIPTION_BYTES_MAX:,} bytes")
        return tuple(topics)

    def _handle_message(self, client: CollectorClient, raw: bytes) -> KnownAgent | ProtocolError | None:
        """Handle a message. Returns the agent of a hello, which is not admitted yet, or the error.

        The message itself is not kept: a client that does not read its answer would keep it in memory.
        """
        try:
            message = protocol.read_message(raw)
            if not isinstance(message, Message):
                raise ProtocolError("message is not an event")
            if not message.topic.startswith(self._topics):
                self._intake.counters.ignored += 1
                return None
            event = protocol.agent_event(message)
            agent_id = event.context.agent_id
            if not isinstance(event, AgentHello) and self._holders.holder(agent_id) not in (None, client):
                raise ProtocolError(f"agent {clipped(agent_id)} has another connection")
            if not isinstance(event, AgentHello) and not self._may_speak_for(client, agent_id):
                raise ProtocolError(f"agent {clipped(agent_id)} is not the one that the certificate names")
            if isinstance(event, AgentLeft):
                self._agent_left(client, agent_id)
                return None
            return self._intake.handle(event)
        except ProtocolError as error:
            only = next(iter(client.agent_ids)) if len(client.agent_ids) == 1 else None
            self._intake.refuse(f"message from {client.peer}: {error}", only)
            return ProtocolError(str(error))

    def _agent_left(self, client: CollectorClient, agent_id: str) -> None:
        """A gateway has lost an agent: as if the agent's own connection had ended."""
        if agent_id in client.agent_ids:
            self._holders.drop(agent_id)
            self._intake.left(agent_id)
            self._without_dialects.discard(agent_id)

    async def _answer(self, client: CollectorClient, outcome: KnownAgent | ProtocolError | None) -> None:
        if isinstance(outcome, ProtocolError):
            await client.connection.send(protocol.error("deserialization_failed", "failed to create Zeek event"))
        elif outcome is not None:
            await self._welcome(client, outcome)

    async def _welcome(self, client: CollectorClient, agent: KnownAgent) -> None:
        """Admit the agent of a hello, and send it what it needs if it has joined or reconnected."""
        if not self._may_speak_for(client, agent.id):
            named = client.origin.certificate
            self._refused_hello(client, agent, f"its certificate is that of {named} (collector.tls.ids)")
            if client.agent_ids:
                await client.connection.send(protocol.error("agent_id_not_certified", ID_NOT_CERTIFIED))
            else:
                await _refuse(client, "agent_id_not_certified", ID_NOT_CERTIFIED)
            return
        if agent.id not in client.agent_ids and self._is_full(client):
            await self._answer(client, self._refused_hello(client, agent, "too many agents on one connection"))
            return
        try:
            lost = await self._holders.claim(agent, client)
        except IdInUseError as refused:
            await self._turn_away(client, agent, refused.holder)
            return
        if lost is not None:
            self._end_replaced(agent, lost, client)
        if self._intake.agents.lacks_room(agent.id):
            self._make_room(client)
        try:
            known = self._intake.hello(agent, client.origin)
        except ProtocolError as error:
            self._holders.drop(agent.id)
            await self._answer(client, self._refused_hello(client, agent, str(error)))
            return
        if known.state != "update" or lost is not None:
            await self._publish(client, self._opening_frames(client, known.id))

    def _is_full(self, client: CollectorClient) -> bool:
        """Whether a connection has as many agents as it may have."""
        if client.gateway is None:
            return len(client.agent_ids) >= self._limits.per_connection
        of_gateways = sum(len(one.agent_ids) for one in self._clients if one.gateway is not None)
        return len(client.agent_ids) >= self._limits.per_gateway or of_gateways >= self._limits.gateway_agents

    def _may_speak_for(self, client: CollectorClient, agent_id: str) -> bool:
        return self._settings.tls.ids != "certificate" or client.may_speak_for(agent_id)

    def _make_room(self, newcomer: CollectorClient) -> None:
        """Make room for another agent at the cost of those that are away, or else of the connection with most agents.

        Otherwise a few connections that make up ids would keep all other agents out.
        """
        self._intake.make_room()
        if not self._intake.agents.is_full:
            return
        others = (client for client in self._clients if client.gateway is None)  # gateways have a limit of their own
        most = max(others, key=lambda client: len(client.agent_ids), default=newcomer)
        if most is newcomer or len(most.agent_ids) <= len(newcomer.agent_ids):
            return
        reason = f"too many agents, of which this connection has {len(most.agent_ids):,}"
        for agent_id in self._holders.release(most):
            self._intake.left(agent_id)
        disconnect(most, reason, CloseCode.TRY_AGAIN_LATER)
        self._intake.make_room()

    def _refused_hello(self, client: CollectorClient, agent: KnownAgent, why: str) -> ProtocolError:
        self._intake.refuse(f"message from {client.peer}: hello from {agent.id}: {why}")
        return ProtocolError(why)

    async def _turn_away(self, client: CollectorClient, agent: KnownAgent, holder: Claim) -> None:
        """Refuse an agent whose id another one uses, and close its connection unless that has other agents."""
        second = client.claim(agent)
        self._intake.conflict(
            agent.id,
            f"agent {agent.id} is connected twice: {holder} answers, so {second} ({agent.name}) is refused. "
            "One of them is a cloned host, or uses an id that is not its own",
            "ERROR",
        )
        if client.agent_ids:
            await client.connection.send(protocol.error("agent_id_in_use", f"{agent.id}: {ID_IN_USE}"))
        else:
            await _refuse(client, "agent_id_in_use", ID_IN_USE)

    def _end_replaced(self, agent: KnownAgent, lost: Claim, client: CollectorClient) -> None:
        """End the connection that has lost its agent to another one."""
        claim = client.claim(agent)
        if claim.is_same_agent(lost) or lost.client.connection.state is not State.OPEN:
            notice = "agent %s has connected again from %s; its connection from %s ends"
            log.info(notice, agent.id, client.peer, lost.client.peer)
        else:
            self._intake.conflict(
                agent.id, f"agent {agent.id}: {lost} does not answer and is replaced by {claim} ({agent.name})"
            )
        if not lost.client.agent_ids:
            disconnect(lost.client, "replaced by another connection")

    def _opening_frames(self, client: CollectorClient, agent_id: str) -> Iterable[tuple[str, str]]:
        """Topic and frame of a hello and of all queries, for an agent that has joined or reconnected."""
        topic = protocol.host_topic(agent_id)
        yield topic, protocol.zeek_hello(topic, self._hello(client))
        for query_id, query in self._queries.items():
            for topic in self._topics_for(query, agent_id):
                yield topic, protocol.install_query(topic, self.instance, query_id, query.query)

    def _hello(self, client: CollectorClient) -> ZeekHello:
        features = frozenset() if client.gateway is None else frozenset({protocol.LEFT})
        return ZeekHello(self.instance, ZEEK_VERSION, ZEEK_VERSION_NUMBER, features=features)

    async def _publish(self, sender: CollectorClient, frames: Iterable[tuple[str, str]]) -> None:
        """Send to all subscribers, but wait only for the agent that the frames are for."""
        for topic, frame in frames:
            self._broadcast(topic, frame, but=sender)
            if sender.subscribes_to(topic):
                await sender.connection.send(frame)

    def _broadcast(self, topic: str, frame: str, but: CollectorClient | None = None) -> None:
        for client in self._clients:
            if client is not but and client.subscribes_to(topic):
                _send_soon(client, frame)

    def _broadcast_shutdown(self) -> None:
        for query_id, query in self._queries.items():
            for group in query.groups:
                topic = protocol.group_topic(group)
                self._broadcast(topic, protocol.cancel_query(topic, self.instance, query_id))
        topic = protocol.group_topic("all")
        self._broadcast(topic, protocol.zeek_shutdown(topic, self.instance))

    async def _send_hellos(self) -> None:
        topic = protocol.group_topic("all")
        while True:
            await asyncio.sleep(HELLO_INTERVAL_SECONDS)
            for client in self._clients:
                if client.subscribes_to(topic):
                    _send_soon(client, protocol.zeek_hello(topic, self._hello(client)))

    async def _flush_logs(self) -> None:
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_SECONDS):
                    await self._flush_wanted.wait()
            self._flush_wanted.clear()
            self._intake.expire()
            failing = self._logs.failing
            async with self._disk:
                await asyncio.to_thread(self._logs.flush)
            if self._logs.failing != failing:
                self._log_disk_state()
            async with self._flushed:
                self._flushed.notify_all()
            await self._records.write()

    async def _wait_for_disk(self, client: CollectorClient) -> None:
        """Pause reading from an agent while too much waits for a slow disk, but not while the disk fails."""
        if self._logs.pending_bytes < BACKLOG_BYTES or self._logs.failing or self._stopping:
            return
        self._flush_wanted.set()
        client.waits_for_disk = True
        try:
            async with self._flushed:
                if not self._stopping:
                    await self._flushed.wait()
        finally:
            client.waits_for_disk = False

    def _log_disk_state(self) -> None:
        if self._logs.failing:
            log.error("%s; lines are buffered in memory and retried", self._logs.last_error)
        else:
            log.info("logs are writable again")

    def _warn_if_reachable(self, addresses: Iterable[str]) -> None:
        reachable = [text for text in addresses if not ipaddress.ip_address(text.partition("%")[0]).is_loopback]
        if reachable and self._settings.tls.client_ca is None:
            self.warning = (
                f"listening on {', '.join(reachable)}, which is not loopback: "
                "anyone who can reach the port can write to these logs; collector.tls.client_ca restricts that to "
                "agents with a certificate"
            )
            log.warning("%s", self.warning)


def _gateway(applications: Iterable[str]) -> str | None:
    """The name of the gateway that a client's application is."""
    for name in applications:
        if (match := _GATEWAY.fullmatch(name)) is not None:
            return match[1]
    return None


async def _refuse(client: CollectorClient, code: str, context: str) -> bool:
    """Send the error and close. Always returns False."""
    await client.connection.send(protocol.error(code, context))
    await client.connection.close(CloseCode.POLICY_VIOLATION, context)
    return False


def _end_logs(files: Iterable[LogFile]) -> None:
    """Write what these logs have left, and move them away for others of the same name."""
    for file in files:
        try:
            file.flush()
            file.rotate()
        except OSError as error:
            log.error("cannot end the log %s: %s", file.path, error.strerror)


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task of the collector has failed: %s", error, exc_info=error)


def _all_queries(pack: Pack) -> list[PackQuery]:
    """The queries of a pack; decorators come first, so that their rows are there for the others."""
    return [PackQuery(decorator.query, ("all",), ()) for decorator in pack.decorators] + list(pack.queries)


def _topics(query: PackQuery, agent_id: str) -> Iterable[str]:
    if not query.is_for(agent_id):
        return
    if agent_id in query.hosts:
        yield protocol.host_topic(agent_id)
    for group in query.groups:
        yield protocol.group_topic(group, agent_id)


def _send_soon(client: CollectorClient, frame: str) -> None:
    if client.connection.transport.get_write_buffer_size() < SEND_BYTES:
        broadcast([client.connection], frame)


def _websocket_logger() -> logging.Logger:
    """The library's log, without a traceback for each client that does not use WebSocket."""
    quiet = logging.getLogger("zeek_agent.collector.websocket")
    quiet.setLevel(logging.WARNING)
    quiet.addFilter(_not_a_failed_handshake)
    return quiet


def _not_a_failed_handshake(record: logging.LogRecord) -> bool:
    return record.msg != "opening handshake failed"


def _unique() -> str:
    """A name that is unique per start, in the format of Zeek's `unique_id`."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(17))
