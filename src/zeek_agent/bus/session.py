"""A session with a gateway: the connection that carries sessions with its Zeek, for as long as the gateway has that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import NoListenerError
from zeek_agent.bus.messages import Ack, Again, BadMessageError, Grant, Want, Welcome
from zeek_agent.bus.oversized import Refit
from zeek_agent.bus.sender import BusSender
from zeek_agent.bus.subjects import Address, Down, Up
from zeek_agent.zeek.connection_errors import UnusableError
from zeek_agent.zeek.session import first_to_end

if TYPE_CHECKING:
    from zeek_agent.bus.link import Link
    from zeek_agent.zeek.instance import Traffic
    from zeek_agent.zeek.session import Session

log = logging.getLogger(__name__)

FRAMES_WAITING_MAX: Final = 10_000
"""Frames of Zeek that were received and not handled yet."""
FRAME_BYTES_WAITING_MAX: Final = 16 * 1024 * 1024
"""Their size in bytes. Zeek's installation of all queries has some 100 KB."""
GONE: Final = "is gone"
PING_ANSWER_SECONDS: Final = 0.2
"""Shortest interval between answers to pings."""


@dataclass(frozen=True, slots=True)
class Times:
    """Intervals and limits of sessions, in seconds; each is described in `messages`, but for the last ones."""

    beat: float = messages.BEAT_SECONDS
    silence: float = messages.SILENCE_SECONDS
    hello: float = messages.HELLO_SECONDS
    grant: float = messages.GRANT_SECONDS
    probe: float = messages.ANSWER_SECONDS
    tick: float = 2.0
    """Interval of these checks."""
    uninvited: float = 120.0
    """Without a beacon, an agent says hello to a cluster after a random time of about this length."""
    server: float = 30.0
    """Interval of checks that the server answers, and the limit on its answer."""


class SessionOverError(ConnectionError):
    """The gateway has ended the session; the agent says hello again after `seconds`."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class ZeekAwayError(ConnectionError):
    """The gateway has lost Zeek; the session with the gateway continues."""


class BusTransport:
    """Carries one session with Zeek, as `zeek.transport.Transport`."""

    def __init__(self, sender: BusSender, frame_bytes_max: int, close: Callable[[], asyncio.Task[None]]) -> None:
        self.sender = sender
        self.frame_bytes_max = frame_bytes_max
        """Longest frame that can be sent."""
        self._close = close
        self._frames: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._received = asyncio.Event()
        self._end: ConnectionError | None = None

    def add(self, frame: bytes) -> None:
        """Queue a received frame. Raises UnusableError if the gateway sends faster than the agent reads."""
        if self._end is not None:
            return
        if len(self._frames) >= FRAMES_WAITING_MAX or self._waiting_bytes + len(frame) > FRAME_BYTES_WAITING_MAX:
            raise UnusableError("sends messages faster than the agent handles them")
        self._frames.append(frame)
        self._waiting_bytes += len(frame)
        self._received.set()

    def end(self, error: ConnectionError) -> None:
        """End sending and, once all received frames are read, receiving."""
        if self._end is None:
            self._end = error
            self.sender.close(str(error))
            self._received.set()

    async def recv(self) -> bytes:
        while not self._frames:
            if self._end is not None:
                raise self._end
            self._received.clear()
            await self._received.wait()
        frame = self._frames.popleft()
        self._waiting_bytes -= len(frame)
        return frame

    async def close(self) -> None:
        await asyncio.shield(self._close())

    def abort(self) -> None:
        self._close()


class BusSession:
    """The agent's side of a session. `receive` takes what the gateway sends; `run` ends only by raising the cause.

    `begin` makes the session with Zeek for a transport and the gateway's welcome.
    """

    def __init__(
        self,
        link: Link,
        welcome: Welcome,
        address: Address,
        *,
        title: str,
        traffic: Traffic,
        frame_bytes_max: int,
        begin: Callable[[BusTransport, Welcome], Session],
        times: Times,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.welcome = welcome
        self.zeek: Session | None = None
        """The session with Zeek, while the gateway has Zeek."""
        self.away_since: float | None = None
        """Since when the gateway has no Zeek."""
        self._link = link
        self._title = title
        self._frame_bytes_max = frame_bytes_max
        self._begin = begin
        self._times = times
        self._clock = clock
        self._monotonic = monotonic
        self._up_prefix = subjects.up(welcome.gateway, address, welcome.session, Up.BEAT).removesuffix(Up.BEAT)
        self._nobody = subjects.down(address, welcome.session, Down.NOBODY)
        self._refit = Refit(traffic, link.payload_bytes_max, clock)
        self._ended_bytes = 0
        self._transport = self._opened_transport(welcome)
        self._has_zeek = asyncio.Event()
        self._has_zeek.set()
        self._heard_at = monotonic()
        self._beat_at = monotonic()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pinged = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._problems: Counter[str] = Counter()

    @property
    def sent_bytes(self) -> int:
        """Bytes of frames sent in this session."""
        return self._ended_bytes + self._transport.sender.sent_bytes

    async def run(self) -> None:
        """Have sessions with Zeek until this session ends. Raises ConnectionError, or the error of the last one."""
        try:
            await first_to_end(self._serve_zeek(), self._wait_for_end(), self._check_gateway(), self._answer_pings())
        finally:
            self._transport.end(ConnectionError("the session with the gateway is over"))

    def heard_beacon(self) -> None:
        """A beacon of its gateway."""
        self._heard_at = self._monotonic()

    def gateway_is_gone(self, seconds: float) -> None:
        """Another gateway reports that this one is gone; the agent says hello after a part of so many seconds."""
        self._finish(SessionOverError(GONE, seconds))

    def receive(self, kind: Down, payload: bytes) -> None:
        """Handle a message of the gateway; one that is malformed or not expected is skipped and counted."""
        self._heard_at = self._monotonic()
        try:
            self._handle(kind, payload)
        except BadMessageError as error:
            self._log_problem(kind.value, f"skipped a message of {self._title}: {error}")
        except UnusableError as error:
            self._finish(error)

    def _handle(self, kind: Down, payload: bytes) -> None:
        transport = self._transport
        match kind:
            case Down.FRAME:
                if len(payload) > self._frame_bytes_max:
                    raise BadMessageError(f"a frame of {len(payload):,} bytes, {self._frame_bytes_max:,} at most")
                transport.add(payload)
            case Down.ACK:
                transport.sender.acknowledge(messages.read(payload, Ack))
            case Down.GRANT:
                transport.sender.grant(messages.read(payload, Grant))
            case Down.GONE:
                self._has_zeek.clear()
                self.away_since = self.away_since or self._clock()
                transport.end(ZeekAwayError("the gateway has lost Zeek"))
            case Down.BACK:
                self._zeek_is_back(messages.read(payload, Welcome))
            case Down.AGAIN:
                again = messages.read(payload, Again)
                text = f"ended the session: {again.reason}" if again.reason else "asks for another session"
                self._finish(SessionOverError(text, again.seconds))
            case Down.PING:
                self._pinged.set()
            case Down.NOBODY:
                self._finish(UnusableError(GONE))

    def _zeek_is_back(self, welcome: Welcome) -> None:
        """Frames that follow this message are for the next session with Zeek."""
        if (welcome.gateway, welcome.session) != (self.welcome.gateway, self.welcome.session):
            raise BadMessageError("a welcome of another session")
        self.welcome = welcome
        self.away_since = None
        self._transport.end(ZeekAwayError("the gateway has another connection to Zeek"))
        self._ended_bytes += self._transport.sender.sent_bytes
        self._transport = self._opened_transport(welcome, self._transport.sender.last_want)
        self._has_zeek.set()

    def _opened_transport(self, welcome: Welcome, last_want: int = 0) -> BusTransport:
        sender = BusSender(
            self._publish_batch,
            self._publish_want,
            self._refit,
            last_number=welcome.first - 1,
            last_want=last_want,
            grant_seconds=self._times.grant,
            monotonic=self._monotonic,
        )
        return BusTransport(sender, self._refit.limit_bytes, self._close)

    async def _serve_zeek(self) -> None:
        """One session with Zeek after another, while the gateway has it."""
        while True:
            await self._has_zeek.wait()
            transport = self._transport
            self.zeek = self._begin(transport, self.welcome)
            try:
                await first_to_end(self.zeek.run(), transport.sender.run())
            except ZeekAwayError as error:
                log.info("%s: %s", self._title, error)
            finally:
                self.zeek = None
                transport.end(ConnectionError("the session with Zeek is over"))

    async def _wait_for_end(self) -> None:
        await self._over

    async def _check_gateway(self) -> None:
        """Send beats; end the session if the gateway is silent or gone."""
        times = self._times
        while True:
            await asyncio.sleep(min(times.tick, times.beat))
            now = self._monotonic()
            if (silence := now - self._heard_at) > times.silence:
                raise UnusableError(f"has been silent for {silence:.0f} s")
            since = self._transport.sender.unanswered_since
            owes = since is not None and now - since > times.probe and self._beat_at < since + times.probe
            if owes or now - self._beat_at >= times.beat - times.tick / 2:
                await self._beat()

    async def _beat(self) -> None:
        """Send a beat as a request: the server answers it at once if there is no listener, else the gateway does."""
        self._beat_at = self._monotonic()
        try:
            await self._link.request(self._up(Up.BEAT), b"", self._times.hello)
            self._heard_at = self._monotonic()
        except NoListenerError:
            raise UnusableError(GONE) from None
        except TimeoutError:
            log.debug("%s did not answer a beat", self._title)

    async def _answer_pings(self) -> None:
        while True:
            await self._pinged.wait()
            self._pinged.clear()
            await self._link.publish(self._up(Up.BEAT))
            await asyncio.sleep(PING_ANSWER_SECONDS)

    def _up(self, kind: Up) -> str:
        return self._up_prefix + kind

    async def _publish_batch(self, number: int, payload: bytes) -> None:
        await self._link.publish(f"{self._up_prefix}{Up.BATCH}.{number}", payload, self._nobody)

    async def _publish_want(self, want: Want) -> None:
        await self._link.publish(self._up(Up.WANT), messages.encode(want), self._nobody)

    def _close(self) -> asyncio.Task[None]:
        """Say goodbye to the gateway, once."""
        if self._closing is None:
            self._closing = asyncio.create_task(self.say_bye(), name="end of a session on the bus")
        return self._closing

    async def say_bye(self) -> None:
        """End the session at the gateway, if the bus still works."""
        try:
            await self._link.publish(self._up(Up.BYE))
            await self._link.flush()
        except ConnectionError as error:
            log.debug("could not end the session with %s: %s", self._title, error)

    def _finish(self, error: ConnectionError) -> None:
        if not self._over.done():
            self._over.set_exception(error)
            self._over.exception()

    def _log_problem(self, kind: str, text: str) -> None:
        """Log the first, tenth, hundredth… message of its kind that was skipped."""
        self._problems[kind] += 1
        times = self._problems[kind]
        is_power_of_ten = str(times).rstrip("0") == "1"
        log.log(logging.WARNING if is_power_of_ten else logging.DEBUG, "%s%s", text, f" ({times} times)" * (times > 1))
