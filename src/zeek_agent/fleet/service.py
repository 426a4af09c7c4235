"""The enrolment service: the one process with the keys that sign agents. Serves the bus, HTTPS, or both."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

from zeek_agent.bus import link, subjects
from zeek_agent.bus.link import Received
from zeek_agent.destination import parse_listen
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.fleet import directory, issuing, nkey, roles
from zeek_agent.fleet.directory import Place
from zeek_agent.fleet.https import HttpsServer
from zeek_agent.fleet.issuing import Enrolment, Issuer
from zeek_agent.fleet.registry import Registry
from zeek_agent.signals import stop_signals

log = logging.getLogger("zeek_agent.fleet")

RECONNECT_SECONDS: Final = (1.0, 30.0)
"""Shortest and longest time between attempts to connect to the bus."""
WAITING_MAX: Final = 1_000
"""Requests that wait to be answered; further ones are not answered, and their agents ask again."""
WAITING_PER_SITE: Final = 500
"""Of one site, whose server may have been taken; those by HTTPS count as one."""


async def run(place: Place, servers: Sequence[str], listen: str | None) -> int:
    """Answer requests until SIGTERM or SIGINT. Raises ZeekAgentError if it cannot start."""
    with stop_signals() as stopped:
        async with Service(place, servers, listen):
            log.info("%s: stopping", await stopped)
    return 0


class Service:
    """The running service, as a context manager. `servers` are those of the bus, `listen` HOST:PORT for HTTPS."""

    def __init__(self, place: Place, servers: Sequence[str], listen: str | None) -> None:
        if not servers and listen is None:
            raise UsageError("no servers of the bus and no address for HTTPS: nothing to serve")
        self._place = place
        self._servers = servers
        self._listen = listen
        self._parts = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._waiting: Counter[str | None] = Counter()
        self.dropped = 0
        self.port = 0
        """The port for HTTPS."""
        self.connected = asyncio.Event()
        """Set while there is a connection to the bus."""

    async def __aenter__(self) -> Service:
        place, settings = self._place, self._place.settings()
        issuer = Issuer(
            place.key(f"role-{roles.AGENT}"),
            settings.account,
            place.authority("agents-ca"),
            directory.read_text(place.enrolment / "ca.pem"),
        )
        registry = Registry(place.registry)
        self._parts.callback(registry.close)
        self._enrolment = Enrolment(issuer, registry)
        try:
            if self._listen is not None:
                host, port = parse_listen(self._listen)
                https = HttpsServer(self._answer_https)
                files = (place.enrolment / name for name in ("server.pem", "server.key", "agents-ca.pem"))
                self.port = await https.start(host, port, *files)
                self._parts.push_async_callback(https.stop)
                log.info("enrolment over HTTPS on %s port %d", host, self.port)
            if self._servers:
                task = asyncio.create_task(self._serve_bus())
                self._parts.push_async_callback(_cancelled, task)
        except ValueError as error:
            await self._parts.aclose()
            raise UsageError(f"--listen {self._listen}: {error}") from None
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    @property
    def granted(self) -> int:
        return self._enrolment.granted

    @property
    def refused(self) -> int:
        return self._enrolment.refused

    async def _answer(self, decide: Callable[[], bytes], site: str | None = None) -> bytes | None:
        """One decision at a time, outside of the loop: it writes to the disk."""
        if self._waiting[site] >= WAITING_PER_SITE or self._waiting.total() >= WAITING_MAX:
            self.dropped += 1
            if self.dropped.bit_count() == 1:
                log.warning("%d requests were not answered: more than %d wait", self.dropped, WAITING_PER_SITE)
            return None
        self._waiting[site] += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(decide)
        finally:
            self._waiting[site] -= 1
            if not self._waiting[site]:
                del self._waiting[site]

    async def _answer_https(self, payload: bytes, address: str, renewing: str | None) -> bytes:
        def decide() -> bytes:
            return self._enrolment.answer(payload, address, renewing=renewing, address=address)

        answer = await self._answer(decide)
        if answer is None:
            raise ConnectionError("too many requests wait")
        return answer

    async def _serve_bus(self) -> None:
        """Stay connected to the bus and answer."""
        wait = RECONNECT_SECONDS[0]
        while True:
            try:
                await self._connection()
                wait = RECONNECT_SECONDS[0]
            except (ZeekAgentError, OSError) as error:
                log.warning("enrolment has no connection to the bus: %s; the next attempt is in %d s", error, wait)
            self.connected.clear()
            await asyncio.sleep(wait)
            wait = min(2 * wait, RECONNECT_SECONDS[1])

    async def _connection(self) -> None:
        enrolment = self._place.enrolment
        context = ssl.create_default_context(cafile=str(enrolment / "ca.pem"))
        credentials = directory.read_text(enrolment / "enrolment.creds")
        bus = await link.connect(
            self._servers,
            name="enrolment",
            inbox=subjects.operator_inbox("enrolment"),
            credentials=credentials,
            tls=context,
        )
        pending: set[asyncio.Task[None]] = set()

        async def receive(message: Received) -> None:
            task = asyncio.create_task(reply(message))
            pending.add(task)
            task.add_done_callback(pending.discard)

        async def reply(message: Received) -> None:
            try:
                asker = _asker(message.subject)
            except ValueError as error:
                self._enrolment.refuse("?", "the bus", str(error))
                return
            if not subjects.is_reply_to(asker.inbox, message.reply):
                what = f"it asks for the reply at {message.reply[: issuing.SOURCE_CHARACTERS]!r}, not in its own inbox"
                self._enrolment.refuse(asker.agent_id or asker.token or "?", "the bus", what)
                return
            source = f"the bus ({message.reply[: issuing.SOURCE_CHARACTERS]})"
            answer = await self._answer(
                lambda: self._enrolment.answer(
                    message.payload, source, renewing=asker.agent_id, token=asker.token, site=asker.site
                ),
                asker.site,
            )
            if answer is not None:
                try:
                    await bus.publish(message.reply, answer)
                except ConnectionError as error:
                    log.debug("an answer was lost: %s", error)

        try:
            await bus.subscribe(subjects.all_enrolments(), receive, queue="enrolment")
            await bus.subscribe(subjects.renewal(), receive, queue="enrolment")
            await bus.flush()
            self.connected.set()
            log.info("enrolment over the bus, by %s", bus.server)
            await bus.ended()
        finally:
            for task in pending:
                task.cancel()
            await bus.close()


class _Asker(NamedTuple):
    """Who has published a request, as its subject proves: an agent, or the holder of the token with that public key.

    A server of the site, if it has been taken, can publish the same.
    """

    inbox: str
    site: str
    agent_id: str | None = None
    token: str | None = None


def _asker(subject: str) -> _Asker:
    """Raises ValueError for another subject."""
    match subject.split("."):
        case ["za", "v1", "enrol", site, key] if subjects.is_name(site) and nkey.decoded(key) is not None:
            return _Asker(subjects.bootstrap_inbox(site, key), site, token=key)
    agent = subjects.read_renewal(subject)
    return _Asker(subjects.inbox(agent), agent.site, agent.agent_id)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
