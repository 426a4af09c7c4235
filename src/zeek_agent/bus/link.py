"""One connection to a NATS server, from its handshake to its end; whoever uses it makes the next one.

The client library's own reconnecting and buffering are off: what is published while there is no connection fails at
once, so that rows wait in the agent's store, which is bounded and survives a restart.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from zeek_agent.text import clipped

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 10
"""For TCP, TLS and NATS' handshake with one server."""
CLOSE_SECONDS: Final = 1
"""For the end of a connection."""
PING_SECONDS: Final = 20
"""Interval of pings; two without an answer end the connection."""
PAYLOAD_BYTES_MIN: Final = 64 * 1024
"""Shortest `max_payload` of a usable server."""
PENDING_MESSAGES: Final = 65_536
"""Received messages of one subscription that wait for their handler; the library drops further ones."""
PENDING_BYTES: Final = 64 * 1024 * 1024
"""Their size in bytes."""


class NoListenerError(ConnectionError):
    """Nobody receives a request: no gateway, or a network between that is cut."""


class Received(NamedTuple):
    """A message; `reply` is the subject of the answer to a request, or empty."""

    subject: str
    payload: bytes
    reply: str


Handler = Callable[[Received], Awaitable[None]]


class Link:
    """An open connection. All methods raise ConnectionError once it has ended."""

    def __init__(self, client: Client, url: str, ended: asyncio.Future[None]) -> None:
        self._client = client
        self.url = url
        """The server's URL, as `connect` was given it."""
        self._ended = ended
        self.dropped = 0
        """Received messages that the library dropped, because their handler was too slow."""

    @property
    def is_open(self) -> bool:
        return self._client.is_connected and not self._ended.done()

    @property
    def server(self) -> str:
        """The server's address, as `host:port`."""
        url = self._client.connected_url
        return url.netloc if url is not None else ""

    @property
    def server_name(self) -> str:
        """The server's own name; `zeek-agent fleet init` calls that of a site `leaf-SITE`."""
        info = self._client._server_info  # noqa: SLF001 - the library does not offer it
        return str(info.get("server_name", ""))

    @property
    def server_version(self) -> str:
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    @property
    def payload_bytes_max(self) -> int:
        """Longest payload that the server accepts."""
        return self._client.max_payload

    def require_payloads(self) -> None:
        """Raises ConnectionError for a server that accepts short messages only."""
        if self.payload_bytes_max < PAYLOAD_BYTES_MIN:
            raise ConnectionError(
                f"{self.server} accepts messages of {self.payload_bytes_max:,} bytes only: raise its max_payload to "
                f"{PAYLOAD_BYTES_MIN:,} or more, the default is 1 MB"
            )

    async def ended(self) -> None:
        """Wait for the end of the connection, and raise ConnectionError with its cause."""
        await asyncio.shield(self._ended)

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Hand a message to the server. It may still be lost: who needs to know asks for an answer.

        `reply` is the subject for answers; without listeners the server sends an empty one there.
        """
        with _as_connection_error():
            await self._client.publish(subject, payload, reply)

    async def flush(self, seconds: int = CONNECT_SECONDS) -> None:
        """Wait until the server has everything that was published before."""
        with _as_connection_error():
            await self._client.flush(seconds)

    async def request(self, subject: str, payload: bytes, seconds: float) -> bytes:
        """The first answer. Raises NoListenerError without a listener, TimeoutError without an answer in time."""
        with _as_connection_error():
            answer = await self._client.request(subject, payload, timeout=seconds)
            return answer.data

    async def subscribe(self, subject: str, handle: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Call `handle` for each message, one after another. Returns the function that ends the subscription."""

        async def receive(message: Msg) -> None:
            await handle(Received(message.subject, message.data, message.reply))

        with _as_connection_error():
            subscription = await self._client.subscribe(
                subject,
                queue,
                cb=receive,
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )

        async def end() -> None:
            if self.is_open:
                with _as_connection_error():
                    await subscription.unsubscribe()

        return end

    async def close(self) -> None:
        await _close(self._client)


async def connect(
    servers: Sequence[str],
    *,
    name: str,
    inbox: str,
    credentials: str | None = None,
    tls: ssl.SSLContext | None = None,
    tls_hostname: str | None = None,
    on_problem: Callable[[str], None] = lambda _: None,
    avoided: Collection[str] = (),
) -> Link:
    """Connect to the first of the servers (`nats://host:port`, `tls://…`) that answers, in random order.

    Those that are `avoided` are tried last.
    `inbox` is the prefix of the subjects at which answers arrive, `credentials` the text of a .creds file: a user's JWT
    and seed. A server of which a `tls://` URL demands TLS gets nothing without. `on_problem` is called with what the
    server reports later, such as a permission that is missing. Raises ConnectionError with the last server's fault.
    """
    fault = ConnectionError("no servers are configured")
    for server in sorted(random.sample(servers, len(servers)), key=lambda server: server in avoided):
        try:
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                return await _connect(server, name, inbox, credentials, tls, tls_hostname, on_problem)
        except TimeoutError:
            fault = ConnectionError(f"{server} does not answer")
        except ConnectionError as error:
            fault = ConnectionError(f"{server}: {error}")
    raise fault


async def _connect(  # noqa: PLR0917 - those of `connect`
    server: str,
    name: str,
    inbox: str,
    credentials: str | None,
    tls: ssl.SSLContext | None,
    tls_hostname: str | None,
    on_problem: Callable[[str], None],
) -> Link:
    from nats.aio.client import RawCredentials
    from nats.errors import NoServersError, SlowConsumerError

    from zeek_agent.bus.nats_client import BoundedClient, TlsClient

    logging.getLogger("asyncio").addFilter(_is_not_about_eof)  # the same filter is added once
    client = TlsClient() if server.startswith("tls:") else BoundedClient()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    link = Link(client, server, ended)
    causes: deque[str] = deque(maxlen=1)

    async def on_error(error: Exception) -> None:
        if isinstance(error, SlowConsumerError):
            link.dropped += 1
            return
        causes.append(_words_of(error))
        if client.is_connected:
            on_problem(causes[-1])

    async def on_end() -> None:
        if not ended.done():
            cause = causes[-1] if causes else "closed by the server"
            ended.set_exception(ConnectionError(f"connection to the bus lost: {cause}"))
            ended.exception()  # it may end when nobody waits for that

    try:
        with _as_connection_error():
            await client.connect(
                [server],
                name=name,
                inbox_prefix=inbox,
                error_cb=on_error,
                disconnected_cb=on_end,
                closed_cb=on_end,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_SECONDS,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=2,
                pending_size=-1,
                user_credentials=None if credentials is None else RawCredentials(credentials),
                tls=tls,
                tls_hostname=tls_hostname,
            )
    except BaseException as error:
        await _close(client)  # the library leaves its socket open
        if isinstance(error, ConnectionError) and isinstance(error.__cause__, NoServersError) and causes:
            raise ConnectionError(causes[-1]) from error
        if isinstance(error, _OF_SOMETHING_ELSE):
            what = f"it is not a NATS server, or the credentials are damaged: {_words_of(error)}"
            raise ConnectionError(what) from error
        raise
    return link


async def _close(client: Client) -> None:
    """The library waits for ever after a TLS handshake that failed."""
    cancelled = _times_cancelled()
    with suppress(TimeoutError, AssertionError):  # the latter if its server's URL could not be read
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()
    if _times_cancelled() > cancelled:  # the library does not pass that on
        raise asyncio.CancelledError


def _is_not_about_eof(record: logging.LogRecord) -> bool:
    """asyncio warns of each TLS connection that a server ends or refuses; the cause is logged anyway."""
    return not str(record.msg).startswith("returning true from eof_received()")


class _as_connection_error:  # noqa: N801 - used as a statement
    """The library's errors as ConnectionError, those of requests as NoListenerError and TimeoutError.

    A task that is cancelled meanwhile ends: the library, and `asyncio.wait_for` before Python 3.12, may return an
    answer or raise an error instead, and the task would go on for ever.
    """

    def __enter__(self) -> None:
        self._cancelled = _times_cancelled()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from nats import errors

        if _times_cancelled() > self._cancelled and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError from error
        if isinstance(error, errors.NoRespondersError):
            raise NoListenerError("no listener there") from error
        if isinstance(error, errors.TimeoutError) and not isinstance(error, errors.FlushTimeoutError):
            raise TimeoutError from error
        if isinstance(error, errors.Error | OSError) and not isinstance(error, ConnectionError):
            raise ConnectionError(_words_of(error)) from error


def _times_cancelled() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


_OF_SOMETHING_ELSE: Final = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What the library raises for a server's description or line that it cannot read."""


def _words_of(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return clipped(str(error) or type(error).__name__)
