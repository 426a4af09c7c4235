"""The connection to one Zeek, maintained for as long as the agent runs.

Each attempt connects, subscribes, waits for the acknowledgement and then runs a `Session` until that ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from zeek_agent import __version__, destination, platforms
from zeek_agent.destination import Destination
from zeek_agent.errors import UsageError
from zeek_agent.platforms import Platform
from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek import broker_json, connection_errors, message_limits, protocol, tls
from zeek_agent.zeek.instance import Traffic
from zeek_agent.zeek.lasting_connection import ConnectionState, ConnectionStatus, LastingConnection
from zeek_agent.zeek.pongs import BoundedClientConnection
from zeek_agent.zeek.session import Session
from zeek_agent.zeek.transport import WebSocketTransport

if TYPE_CHECKING:
    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.database.database import SqlDatabase
    from zeek_agent.destination import Destination
    from zeek_agent.identity import Identity
    from zeek_agent.queries.runner import QueryRunner

log = logging.getLogger(__name__)

APPLICATION: Final = f"zeek-agent/{__version__}"
"""The same name for all agents, because Zeek keeps metrics by name."""
SEND_BUFFER_BYTES: Final = 128 * 1024
"""The kernel's send buffer is small, because the answer to Zeek's ping is queued behind it."""
MESSAGES_WAITING: Final = 4
"""Messages that are read ahead, each of up to `message_bytes_max`; bounds their memory."""
WRITE_BUFFER_BYTES: Final = 32 * 1024
"""The library's write buffer, added to the kernel's."""
CLOSE_TIMEOUT_SECONDS: Final = 2.0
"""Wait for the peer's close frame, which a Zeek that does not read never sends."""
SHUTDOWN_TIMEOUT_SECONDS: Final = 3.0
"""Time to send the shutdown message; service managers wait longer before they kill the agent."""
BROKER_NOTE: Final = "%s is Broker's own server, which drops clients after short frames: padding them to %d bytes"


class _ConnectDirectly(connect):
    """The library's client without redirects, because an impostor could redirect the agent anywhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_websocket(
    target: Destination, settings: ZeekSettings, application: str, connected: socket.socket | None = None
) -> ClientConnection:
    """A WebSocket to the destination, over the `connected` socket if one is given.

    Raises OSError, WebSocketException and UsageError.
    """
    return await _ConnectDirectly(
        target.url,
        sock=connected,
        ssl=tls.client_context(settings.tls) if target.is_tls else None,
        server_hostname=settings.tls.server_name if target.is_tls else None,
        additional_headers={"X-Application-Name": application},
        compression=None,
        max_size=settings.message_bytes_max,
        max_queue=MESSAGES_WAITING,
        ping_interval=None,
        open_timeout=settings.connect_timeout,
        close_timeout=CLOSE_TIMEOUT_SECONDS,
        write_limit=WRITE_BUFFER_BYTES,
        create_connection=BoundedClientConnection,
        proxy=None,
    )


async def subscribe(websocket: ClientConnection, topics: Sequence[str], seconds: float) -> protocol.Ack:
    """Subscribe and wait for the acknowledgement. Raises UnusableError if it is missing after `seconds` or unusable."""
    await websocket.send(protocol.subscription_message(topics))
    try:
        async with asyncio.timeout(seconds):
            while not isinstance(answer := protocol.read_message(await websocket.recv(decode=False)), protocol.Ack):
                if isinstance(answer, protocol.Error):
                    raise connection_errors.UnusableError(
                        f"refused the agent: {clipped(f'{answer.code}: {answer.context}')}"
                    )
    except TimeoutError:
        raise connection_errors.UnusableError(connection_errors.NO_ACK.format(seconds=seconds)) from None
    for name in (answer.endpoint, answer.version):
        if byte_length(name) > message_limits.NAME_BYTES_MAX:
            raise connection_errors.UnusableError(
                connection_errors.LONG_NAME.format(most=message_limits.NAME_BYTES_MAX, name=clipped(name))
            )
    if answer.lacks_backend:
        raise connection_errors.UnusableError(connection_errors.NO_BACKEND)
    return answer


def limit_send_buffer(websocket: ClientConnection) -> None:
    """Keep the kernel's buffer small, behind which the answers to Zeek's pings are queued."""
    raw_socket: socket.socket = websocket.transport.get_extra_info("socket")
    raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


class ZeekConnection(LastingConnection):
    """Keeps the agent connected to one destination. Raises UsageError for an invalid destination.

    `dial` connects to a destination that is not reached over the network; it raises OSError.
    """

    def __init__(
        self,
        url: str | Destination,
        settings: ZeekSettings,
        identity: Identity,
        database: SqlDatabase,
        runner: QueryRunner,
        *,
        dial: Callable[[], Awaitable[socket.socket]] | None = None,
        platform: Platform = platforms.HERE,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        target = url if isinstance(url, Destination) else destination.parse(url)
        super().__init__(target, settings, log, clock, monotonic)
        self.traffic = Traffic()
        self._url = str(self.destination)
        self._dial = dial
        self._identity = identity
        self._database = database
        self._runner = runner
        self._topics = protocol.subscriptions(identity.agent, settings.groups, platform.group)
        self._session: Session | None = None
        self._sent_bytes = 0
        self._logged_broker = False
        if self.destination.is_tls and settings.tls.insecure:
            log.warning("%s: zeek.tls.insecure is set, its certificate is not verified", self._url)

    @property
    def session(self) -> Session | None:
        """The current session with Zeek, if any."""
        return self._session

    async def shutdown(self) -> tuple[str, ...]:
        """Send the shutdown message, close the connection and end `run` within a few seconds.

        Returns the ids of the Zeek instances that were connected.
        """
        self._stopping = True
        instances: tuple[str, ...] = ()
        if self._session is not None:
            instances = tuple(self._session.instances)
            await self._session.send_shutdown(SHUTDOWN_TIMEOUT_SECONDS)
        if self._work is not None:
            self._work.cancel()
        return instances

    def statuses(self) -> Sequence[ConnectionStatus]:
        return (self.status(),)

    def status(self) -> ConnectionStatus:
        session = self._session
        return ConnectionStatus(
            destination=self._url,
            state=self._state.value,
            since=self._since,
            endpoint=session.ack.endpoint if session else None,
            zeek_version=session.ack.version if session and not session.ack.is_collector else None,
            instances=len(session.instances) if session else 0,
            queries=sum(len(session.queries(one)) for one in session.instances.values()) if session else 0,
            queued_rows=self.traffic.queued_rows,
            unacknowledged_bytes=session.sender.window.in_flight_bytes if session else 0,
            window_bytes=session.sender.window.limit_bytes if session else self._settings.window_bytes,
            sent_rows=self.traffic.sent_rows,
            sent_bytes=self._sent_bytes + (session.sender.sent_bytes if session else 0),
            dropped_rows=self.traffic.dropped_rows.total(),
            reconnects=self._reconnects,
            last_error=self._last_error,
        )

    async def _connect_and_work(self) -> None:
        self._enter(ConnectionState.CONNECTING)
        websocket = await self._open()
        try:
            ack = await subscribe(websocket, self._topics, self._settings.ack_timeout)
            padding = protocol.BROKER_FRAME_BYTES if ack.is_broker else 0
            session = self._session = Session(
                WebSocketTransport(websocket, self._settings, self._monotonic, frame_bytes_min=padding),
                ack,
                frozenset(self._topics),
                url=self._url,
                identity=self._identity,
                settings=self._settings,
                database=self._database,
                runner=self._runner,
                traffic=self.traffic,
                clock=self._clock,
                monotonic=self._monotonic,
            )
            self._enter(ConnectionState.CONNECTED)
            self._logged_error = None
            log.info("connected to %s", self._described(ack))
            if ack.is_broker and not self._logged_broker:
                self._logged_broker = True
                log.info(BROKER_NOTE, self._url, protocol.BROKER_FRAME_BYTES)
            await session.run()
        finally:
            if self._session is not None:
                self._sent_bytes += self._session.sender.sent_bytes
                self._session = None
            await close(websocket)

    def _described(self, ack: protocol.Ack) -> str:
        """The server, with its version if it is a Zeek."""
        if not ack.is_collector:
            return f"{self.destination.title}, version {ack.version}"
        return self.destination.title if self.destination.name else f"the collector at {self._url}"

    async def _open(self) -> ClientConnection:
        connected = await self._dial() if self._dial is not None else None
        websocket = await open_websocket(self.destination, self._settings, APPLICATION, connected)
        limit_send_buffer(websocket)
        return websocket

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        return (OSError, WebSocketException, UsageError, broker_json.ProtocolError)

    def _explain(self, error: Exception) -> str:
        return connection_errors.explain(error, self.destination)


async def close(websocket: ClientConnection) -> None:
    """Close in any state with a close frame, but do not wait long for a peer that does not read."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await websocket.close()
    except TimeoutError:
        websocket.transport.abort()
