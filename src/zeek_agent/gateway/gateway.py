"""A running gateway: its connections to the bus and to Zeek, and what it does at intervals."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent import __version__, destination
from zeek_agent.bus import link as bus_link
from zeek_agent.bus import subjects
from zeek_agent.bus.credentials import claims
from zeek_agent.bus.link import Link, NoListenerError
from zeek_agent.bus.messages import BEAT_SECONDS, PEER_BEAT_SECONDS, SILENCE_SECONDS, Again
from zeek_agent.bus.subjects import Down, Peer
from zeek_agent.errors import UsageError
from zeek_agent.gateway import agent_tokens
from zeek_agent.gateway.admission import Admission, SameNameError
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.core import Core
from zeek_agent.gateway.downlink import Downlink
from zeek_agent.gateway.stats import GatewayStats
from zeek_agent.gateway.uplink import Uplink
from zeek_agent.gateway.zeek_side import ZeekSide
from zeek_agent.text import clipped
from zeek_agent.zeek import protocol, tls

if TYPE_CHECKING:
    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.config.server_sections import GatewaySettings

log = logging.getLogger(__name__)

APPLICATION: Final = protocol.GATEWAY_APPLICATION + __version__
RETRY_SECONDS: Final = (0.2, 5.0)
"""Shortest and longest pause between attempts to connect to the bus."""
DRAIN_SECONDS: Final = 10.0
"""Time for Zeek to acknowledge what it was sent when the gateway stops."""
LINK_GRACE_SECONDS: Final = 15.0
"""Agents whose gateway had lost the bus may come back within this time before Zeek is notified."""
PING_SECONDS: Final = 1.0
_SERVER: Final = re.compile(r"(nats|tls)://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?/?", re.ASCII)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")


def name_of_host(hostname: str) -> str:
    """The name of a gateway that has none in its settings."""
    return _NOT_IN_NAMES.sub("-", hostname).strip("-")[:64] or "gateway"


class Gateway:
    """`run` serves agents until it is cancelled, after `drain`. Raises UsageError for settings that cannot be used."""

    def __init__(
        self,
        settings: GatewaySettings,
        zeek: ZeekSettings,
        *,
        hostname: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        own = _read_credentials(settings)
        holder = None if own is None else claims(own).name
        name = settings.name or holder or name_of_host(hostname)
        cluster = settings.cluster
        if not settings.servers:
            raise UsageError("gateway.servers: no NATS server is set (--nats nats://host:4222)")
        if cluster is None:
            raise UsageError("gateway.cluster: the name of the Zeek cluster is not set (--cluster NAME)")
        for setting, text in (("cluster", cluster), ("name", name)):
            if not subjects.is_name(text):
                raise UsageError(f"gateway.{setting}: only letters, digits, - and _, at most 64: {clipped(text)!r}")
        if holder not in (None, name):
            raise UsageError(_OTHER_NAME.format(file=settings.credentials, holder=clipped(holder or ""), name=name))
        for server in settings.servers:
            if _SERVER.fullmatch(server) is None:
                raise UsageError(f"gateway.servers: not a NATS server: {clipped(server)!r}; write nats://host:port")
        self._settings = settings
        self._monotonic = monotonic
        self._tls = _tls(settings)
        side = ZeekSide(
            destination.parse(settings.zeek),
            zeek,
            application=f"{APPLICATION}/{name}",
            topics=(protocol.host_topic(""), protocol.group_topic(""), protocol.via_topic(name)),
            on_connected=self._on_zeek,
            on_message=self._on_message,
            on_lost=self._on_zeek_lost,
            monotonic=monotonic,
        )
        self._core = Core(name, cluster, settings, side, clock, monotonic)
        if own is not None:
            self._core.tokens.trust = agent_tokens.trust_of(own)
        self._downlink = Downlink(self._core)
        self._uplink = Uplink(self._core, self._downlink)
        self._admission = Admission(self._core, self._downlink)
        self._link: Link | None = None
        self._listening: list[Callable[[], Awaitable[None]]] = []
        self._zeek_changed = asyncio.Event()
        self._void_sessions = 0
        self._is_void = True
        """Whether agents may have sessions of an earlier life of the gateway, which the next beacon ends."""
        self._departed: dict[str, float] = {}
        self._server_error: str | None = None
        self._bus_reconnects = self._bus_dropped = self._problems = 0
        self._fatal: asyncio.Future[None] | None = None

    @property
    def core(self) -> Core:
        """The gateway's state, for tests and figures."""
        return self._core

    async def run(self) -> None:
        """Serve agents. Raises SameNameError if another gateway has the same name."""
        self._fatal = asyncio.get_running_loop().create_future()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("connection to Zeek", self._core.zeek.run()),
                ("connection to the bus", self._keep_connected()),
                ("hellos to Zeek", self._downlink.send_hellos()),
                ("intervals", self._tick()),
                ("sessions to other gateways", self._admission.doubles.run()),
            )
        ]
        try:
            await asyncio.wait([self._fatal, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for done in (self._fatal, *tasks):
                if done.done() and not done.cancelled():
                    done.result()
        finally:
            self._admission.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def reconfigure(self, settings: GatewaySettings) -> None:
        """Apply the settings that can change in a running gateway; the caller keeps the others as they are."""
        self._settings = self._core.settings = settings

    async def drain(self) -> None:
        """Send the agents to other gateways, and wait for Zeek's acknowledgements."""
        core = self._core
        core.is_draining = True
        await self._stop_listening()
        self._admission.publish_beat(leaving=True)
        sessions = list(core.sessions)
        if sessions:
            log.info("draining: %d agents are sent to other gateways", len(sessions))
        step = max(1, int(self._settings.drain_per_second / 10))
        for begin in range(0, len(sessions), step):
            for session in sessions[begin : begin + step]:
                core.say(session, Down.AGAIN, Again(1.0))
            await asyncio.sleep(step / self._settings.drain_per_second if begin + step < len(sessions) else 0)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await core.zeek.drained()
                while len(core.outbox) and self._link is not None:
                    await asyncio.sleep(0.02)
        if self._link is not None:
            with suppress(ConnectionError, TimeoutError):
                await self._link.flush(1)

    # Zeek.

    def _on_zeek(self, _ack: protocol.Ack) -> None:
        self._downlink.connected()
        self._zeek_changed.set()

    def _on_zeek_lost(self) -> None:
        self._downlink.lost()
        self._zeek_changed.set()

    async def _on_message(self, raw: bytes, message: protocol.Message) -> None:
        await self._downlink.receive(raw, message)

    # The bus.

    async def _keep_connected(self) -> None:
        pause, longest = RETRY_SECONDS
        logged = ""
        while True:
            began = self._monotonic()
            try:
                await self._connect_and_work()
            except SameNameError as error:
                assert self._fatal is not None
                if not self._fatal.done():
                    self._fatal.set_exception(error)
                return
            except (ConnectionError, OSError, TimeoutError, UsageError) as error:
                text = clipped(str(error) or type(error).__name__)
                log.log(logging.DEBUG if text == logged else logging.WARNING, "bus: %s; retrying", text)
                logged = self._server_error = text
            if self._monotonic() - began > longest:
                pause, logged = RETRY_SECONDS[0], ""
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            self._bus_reconnects += 1

    async def _connect_and_work(self) -> None:
        core, settings = self._core, self._settings
        own = await asyncio.to_thread(_credentials, settings, core.name)
        core.tokens.trust = None if own is None else agent_tokens.trust_of(own)
        link = await bus_link.connect(
            settings.servers,
            name=f"{APPLICATION}/{core.name}",
            inbox=subjects.peer(core.cluster, Peer.REPLY, f"{core.name}.inbox"),
            credentials=own,
            tls=self._tls,
            tls_hostname=settings.tls.server_name,
            on_problem=self._note_problem,
        )
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sender: asyncio.Task[None] | None = None
        try:
            link.require_payloads()
            core.outbox.clear()
            core.payload_bytes_max = link.payload_bytes_max
            await self._subscribe(link, failed)
            self._link = link
            self._admission.began = self._monotonic()
            log.info("connected to the bus at %s, version %s", link.server, link.server_version)
            self._zeek_changed.set()
            sender = asyncio.create_task(core.outbox.run(link))
            parts = [asyncio.ensure_future(link.ended()), sender, asyncio.create_task(self._follow_zeek(link)), failed]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in parts:
                    if part.done():
                        part.result()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
        finally:
            self._link = None
            self._listening.clear()
            self._bus_dropped += link.dropped
            self._lose_sessions()
            with suppress(ConnectionError):
                await link.close()

    def _note_problem(self, problem: str) -> None:
        """Log the first, tenth, hundredth… problem that the server reports, or a handler has."""
        self._problems += 1
        is_power_of_ten = str(self._problems).rstrip("0") == "1"
        level = logging.WARNING if is_power_of_ten else logging.DEBUG
        log.log(level, "the bus reports a problem: %s (%d times)", problem, self._problems)

    async def _subscribe(self, link: Link, failed: asyncio.Future[None]) -> None:
        """Everything but hellos, which are only for gateways that have Zeek."""
        core, admission = self._core, self._admission

        async def beat(received: bus_link.Received) -> None:
            try:
                await admission.receive_beat(received)
            except SameNameError as error:
                if not failed.done():
                    failed.set_exception(error)

        await link.subscribe(subjects.all_up(core.name), self._uplink.receive)
        await link.subscribe(subjects.who(), admission.receive_who)
        await link.subscribe(subjects.peers(core.cluster, Peer.BEAT), beat)
        await link.subscribe(subjects.peers(core.cluster, Peer.CLAIM), admission.receive_claim)
        await link.subscribe(subjects.peer(core.cluster, Peer.PING, core.name), admission.receive_ping)
        await link.subscribe(f"{subjects.peer(core.cluster, Peer.REPLY, core.name)}.*", admission.receive_reply)

    async def _follow_zeek(self, link: Link) -> None:
        """Receive hellos while Zeek is there, so that agents otherwise get an error, or another gateway, at once."""
        core = self._core
        self._admission.publish_beat()
        await asyncio.sleep(PEER_BEAT_SECONDS / 2)  # the other gateways answer with theirs
        while True:
            await self._zeek_changed.wait()
            self._zeek_changed.clear()
            if core.is_ready and not self._listening:
                hellos = subjects.hello(core.cluster)
                end = await link.subscribe(hellos, self._admission.receive_hello, subjects.GATEWAYS)
                await link.flush()
                self._listening.append(end)
                self._admission.publish_beat()
                self._publish_beacon()
            elif not core.is_ready:
                await self._stop_listening()
                self._admission.publish_beat()

    async def _stop_listening(self) -> None:
        while self._listening:
            with suppress(ConnectionError):
                await self._listening.pop()()

    def _publish_beacon(self) -> None:
        """The first one since the bus was lost, or since the start, ends the sessions that agents had here before."""
        core = self._core
        gone = core.name if self._is_void else ""
        spread = self._void_sessions / self._settings.hellos_per_second
        self._admission.publish_beacon(gone=gone, spread=spread)
        if core.is_ready:
            self._is_void, self._void_sessions = False, 0

    def _lose_sessions(self) -> None:
        """The bus is gone: messages in both directions are lost, so that all sessions begin again."""
        core = self._core
        core.outbox.clear()
        sessions = list(core.sessions)
        deadline = self._monotonic() + LINK_GRACE_SECONDS
        for session in sessions:
            core.end(session, "bus lost", report=False)
            if not session.is_shut_down and session.hello_id:
                self._departed[session.agent_id] = deadline
        self._void_sessions = max(self._void_sessions, len(sessions))
        self._is_void = True

    # Intervals.

    async def _tick(self) -> None:
        core, admission = self._core, self._admission
        beacon_at = self._monotonic() + BEAT_SECONDS
        while True:
            await asyncio.sleep(PEER_BEAT_SECONDS)
            now = self._monotonic()
            self._report_departed(now)
            core.publish_grants()
            for session in core.sessions:
                if now - session.heard > SILENCE_SECONDS:
                    core.end(session, "silent", again=Again(1.0))
                elif core.tokens.has_expired(session.proof):
                    core.end_for(session, Cause.IDENTITY, "its token has expired")
            link = self._link
            if link is None:
                continue
            admission.publish_beat(leaving=core.is_draining)
            for name in core.peers.silent(now):
                await self._check_peer(link, name)
            if now >= beacon_at and not core.is_draining:
                beacon_at = now + BEAT_SECONDS
                spread = min(len(core.sessions) / self._settings.hellos_per_second, BEAT_SECONDS)
                admission.publish_beacon(spread=spread)

    async def _check_peer(self, link: Link, name: str) -> None:
        """Ask a silent gateway whether it is there; without a listener, its agents are invited."""
        core = self._core
        subject = subjects.peer(core.cluster, Peer.PING, name)
        try:
            await link.request(subject, b"", PING_SECONDS)
        except NoListenerError:
            beat = core.peers.lost(name)
            if beat is not None:
                log.warning("gateway %s of cluster %s is gone; its %d agents move", name, core.cluster, beat.agents)
                spread = beat.agents / self._settings.hellos_per_second
                self._admission.publish_beacon(gone=name, spread=spread)
        except (TimeoutError, ConnectionError) as error:
            log.debug("gateway %s is silent: %s", name, error or "no answer")

    def _report_departed(self, now: float) -> None:
        """Notify Zeek of agents that have not come back after the bus was lost."""
        for agent_id, deadline in list(self._departed.items()):
            if self._core.sessions.get(agent_id) is not None:
                del self._departed[agent_id]
            elif deadline <= now:
                del self._departed[agent_id]
                self._core.report_left(agent_id)

    def stats(self) -> GatewayStats:
        """The current state."""
        core, zeek, now = self._core, self._core.zeek, self._monotonic()
        want = core.credits.oldest_want()
        return GatewayStats(
            gateway=core.name,
            cluster=core.cluster,
            zeek=str(zeek.destination),
            bus_connected=self._link is not None,
            bus_server="" if self._link is None else self._link.server,
            zeek_connected=zeek.ack is not None,
            zeek_version="" if zeek.ack is None or zeek.ack.is_collector else zeek.ack.version,
            agents=len(core.sessions),
            peers=len(core.peers.known),
            grants_waiting=core.credits.waiting,
            oldest_want_seconds=0.0 if want is None else now - want,
            places_used=core.credits.used,
            places=self._settings.places,
            oldest_unacknowledged_seconds=0.0 if zeek.oldest is None else now - zeek.oldest,
            zeek_waiting_bytes=zeek.waiting_bytes,
            zeek_window_bytes=zeek.window_bytes,
            zeek_sent_bytes=zeek.sent_bytes,
            zeek_reconnects=zeek.reconnects,
            zeek_bad_messages=zeek.bad_messages,
            outbox_messages=len(core.outbox),
            outbox_bytes=core.outbox.waiting_bytes,
            bus_dropped=self._bus_dropped + (0 if self._link is None else self._link.dropped),
            bus_reconnects=self._bus_reconnects,
            grants=core.credits.granted,
            grants_overdue=core.credits.overdue,
            grants_lapsed=core.credits.lapsed,
            late_batches=core.credits.late,
            hellos_due=len(core.hellos),
            counters=core.counters,
        )


_OTHER_NAME: Final = (
    "gateway.credentials: {file} is for the gateway {holder!r}, not {name!r}, which it does not let receive anything: "
    "set gateway.name, or use the file of that gateway"
)


def _credentials(settings: GatewaySettings, name: str) -> str | None:
    """The text of the credentials' file, which may have changed. Raises UsageError if the gateway cannot use it."""
    text = _read_credentials(settings)
    if text is not None and (holder := claims(text).name) != name:
        raise UsageError(_OTHER_NAME.format(file=settings.credentials, holder=clipped(holder), name=name))
    return text


def _read_credentials(settings: GatewaySettings) -> str | None:
    if settings.credentials is None:
        return None
    try:
        return Path(settings.credentials).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"gateway.credentials: cannot read {settings.credentials}: {error}") from None


def _tls(settings: GatewaySettings) -> ssl.SSLContext | None:
    """The context for servers that require TLS; None if no server is named `tls://` and no setting asks for it."""
    encrypted = any(server.startswith("tls://") for server in settings.servers)
    wanted = encrypted or settings.tls.ca_file or settings.tls.certificate
    return tls.client_context(settings.tls) if wanted else None
