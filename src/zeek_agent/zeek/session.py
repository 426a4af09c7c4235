"""One connection to Zeek, from the acknowledgement to its end: hellos, Zeek instances and their requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.database.results import Result, ResultColumn
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.schema import ZeekType
from zeek_agent.text import STATEMENT_SHOWN, byte_length, clipped
from zeek_agent.zeek import broker_json, message_limits, protocol
from zeek_agent.zeek.connection_errors import UnusableError
from zeek_agent.zeek.instance import Instance, Traffic
from zeek_agent.zeek.protocol import Context, InstallQuery, RowsAck, ZeekEvent, ZeekHello, ZeekShutdown

if TYPE_CHECKING:
    from zeek_agent.config.sections import ZeekSettings
    from zeek_agent.database.database import SqlDatabase
    from zeek_agent.identity import Identity
    from zeek_agent.queries.installed import Installed
    from zeek_agent.queries.runner import QueryRunner
    from zeek_agent.queries.subscriptions import Query
    from zeek_agent.zeek.transport import Transport

log = logging.getLogger(__name__)

HELLO_RETRY_SECONDS_MAX: Final = 5.0
"""Maximum delay until a failed hello is retried."""
QUEUED_ERRORS_MAX: Final = 100
"""Error reports waiting for a slow Zeek; further ones are only logged."""
HELLO_REPLY_SECONDS: Final = 1.0
"""A first hello of a Zeek within this time is the reply to ours; a later one means that Zeek missed ours."""
HELLO_CHECK_INTERVAL_SECONDS: Final = 2.0
"""Interval of checks for changes that Zeek needs immediately."""
_WATCHED: Final = tuple(map(protocol.HELLO_FIELDS.index, ("hostname", "addresses", "tables")))
_BROKER: Final = ResultColumn("broker", ZeekType("text"))
_FEATURES: Final = ResultColumn("features", ZeekType.parse("set[text]"))


class Session:
    """The agent's side of an acknowledged connection. `run` ends only by raising the cause."""

    def __init__(
        self,
        transport: Transport,
        ack: protocol.Ack,
        topics: frozenset[str],
        *,
        url: str,
        identity: Identity,
        settings: ZeekSettings,
        database: SqlDatabase,
        runner: QueryRunner,
        traffic: Traffic,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ack = ack
        self.sender = transport.sender
        self.instances: dict[str, Instance] = {}
        self._transport = transport
        self._topics = topics
        self._url = url
        self._identity = identity
        self._settings = settings
        self._database = database
        self._runner = runner
        self._traffic = traffic
        self._clock = clock
        self._monotonic = monotonic
        self._errors: asyncio.Queue[bytes] = asyncio.Queue(QUEUED_ERRORS_MAX)
        self._problems: Counter[str] = Counter()
        self._hello_at = monotonic()
        self._hello_wanted = asyncio.Event()
        self._last_sent: tuple[object, ...] | None = None

    def queries(self, instance: Instance) -> list[Installed]:
        """The queries currently installed by an instance."""
        return [one for one in self._runner.installed if one.recipient is instance]

    async def run(self) -> None:
        """Run until the connection ends. Raises ConnectionClosed or ConnectionError with the cause."""
        try:
            await first_to_end(
                self._read(), self._send_hellos(), self._watch_hello(), self._send_errors(), self._check_liveness()
            )
        finally:
            for instance_id in list(self.instances):
                self._drop(instance_id)

    async def send_shutdown(self, seconds: float) -> None:
        """Cancel all queries, send the shutdown message and close, within `seconds` in total."""
        for instance_id in list(self.instances):
            self._drop(instance_id)
        message = protocol.agent_shutdown(Context(self._identity.agent, self._clock()))
        try:
            async with asyncio.timeout(seconds):
                await self.sender.send([message.encode()])
                await self._transport.close()
        except (TimeoutError, ConnectionError) as error:
            log.info("could not send the shutdown message to Zeek at %s: %s", self._url, error or "it does not read")
            self._transport.abort()

    async def _send_hellos(self) -> None:
        """Send the agent's row of `zeek_agent` at the start, at each interval and on request, under one query id."""
        query_id = f"agent_hello_{secrets.token_hex(11)}"
        while True:
            pause = self._settings.hello_interval
            try:
                columns = await self._hello_record()
            except SqlError as error:
                self._log_problem("hello", f"cannot send hello to Zeek at {self._url}: {error}")
                pause = min(pause, HELLO_RETRY_SECONDS_MAX)
            else:
                context = Context(self._identity.agent, self._clock(), query_id)
                await self.sender.send([protocol.agent_hello(context, columns).encode()])
                self._hello_at = self._monotonic()
            self._hello_wanted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hello_wanted.wait()

    async def _watch_hello(self) -> None:
        """Request a hello as soon as the host name, addresses or tables differ from those in the last one."""
        while True:
            await asyncio.sleep(HELLO_CHECK_INTERVAL_SECONDS)
            try:
                watched = _watched(await self._hello_row())
            except SqlError as error:
                log.debug("cannot check for updates: %s", error)
            else:
                if self._last_sent is not None and watched != self._last_sent:
                    self._hello_wanted.set()

    async def _hello_row(self) -> Result:
        return await self._database.own_rows("zeek_agent")

    async def _hello_record(self) -> str:
        result = await self._hello_row()
        self._last_sent = _watched(result)
        columns, row = tuple(result.columns), tuple(result.rows[0])
        if self.ack.is_broker:
            index = protocol.BROKER_INDEX
            columns = (*columns[:index], _BROKER, *columns[index:])
            row = (*row[:index], "n/a", *row[index:])
        else:
            columns, row = (*columns, _FEATURES), (*row, (protocol.BATCHES, protocol.DIALECTS))
        return broker_json.row_encoder(columns)(row)

    async def _check_liveness(self) -> None:
        """Ping an idle connection, end a dead one, and remove instances that have timed out."""
        settings = self._settings
        tick = min(settings.ping_interval, settings.pong_timeout / 4, settings.instance_timeout / 4)
        while True:
            await asyncio.sleep(tick)
            now = self._monotonic()
            since = self.sender.waiting_since
            if since is not None and now - since > settings.pong_timeout:
                raise UnusableError(f"sent no pong for {now - since:.0f} s")
            if since is None:
                await self._ping()
            for instance in list(self.instances.values()):
                if now - instance.last_seen > settings.instance_timeout:
                    log.info("Zeek instance %s at %s has timed out", instance.id, self._url)
                    self._drop(instance.id)

    async def _ping(self) -> None:
        try:
            async with asyncio.timeout(self._settings.pong_timeout):
                await self.sender.send([])
        except TimeoutError:
            raise UnusableError(f"did not read for {self._settings.pong_timeout:g} s") from None

    async def _read(self) -> None:
        """Handle Zeek's messages. A malformed message of any kind is skipped and counted."""
        while True:
            raw = await self._transport.recv()
            try:
                message = protocol.read_message(raw)
                if isinstance(message, protocol.Error):
                    reported = clipped(f"{message.code}: {message.context}")
                    self._log_problem("error", f"Zeek at {self._url} reports {reported}")
                elif isinstance(message, protocol.Message) and message.topic.rstrip("/") in self._topics:
                    event = protocol.zeek_event(message)
                    if event is not None:
                        await self._handle(event)
            except broker_json.ProtocolError as error:
                self._log_problem("message", f"skipped a message of Zeek at {self._url}: {error}")

    async def _handle(self, event: ZeekEvent) -> None:
        if isinstance(event, ZeekShutdown):
            if event.instance in self.instances:
                log.info("Zeek instance %s at %s is shutting down", event.instance, self._url)
                self._drop(event.instance, in_order=True)
            return
        if reason := message_limits.excess(event):
            self._refuse(event, reason)
            return
        instance = self._instance(event.instance)
        if instance is None:
            return
        if isinstance(event, ZeekHello):
            self._handle_hello(instance, event)
        elif instance.is_disabled:
            log.debug("ignored %s of disabled Zeek instance %s", type(event).__name__, instance.id)
        elif isinstance(event, InstallQuery):
            await self._install(instance, event)
        elif isinstance(event, RowsAck):
            instance.acknowledge(event)
        else:
            self._cancel(instance, event.query_id)

    def _refuse(self, event: ZeekEvent, reason: str) -> None:
        """Skip a message that exceeds a limit, and report an error to the instance if it can be identified."""
        self._log_problem("size", f"skipped a message of Zeek at {self._url}: {reason}")
        if byte_length(event.instance) > message_limits.NAME_BYTES_MAX:
            return
        instance = self._instance(event.instance)
        if instance is None or instance.is_disabled:
            return
        if isinstance(event, InstallQuery):
            known = event.query_id if byte_length(event.query_id) <= message_limits.NAME_BYTES_MAX else None
            self._post_error(instance, f"could not install query ({reason})", known)
        elif isinstance(event, ZeekHello):
            self._post_error(instance, f"could not process hello ({reason})")

    def _instance(self, instance_id: str) -> Instance | None:
        """The instance with that id, created if it is new; None if there are too many."""
        instance = self.instances.get(instance_id)
        if instance is None:
            if len(self.instances) >= self._settings.instances_max:
                self._log_problem("instances", f"too many Zeek instances at {self._url}: {instance_id} is ignored")
                return None
            kind = "collector" if self.ack.is_collector else "Zeek instance"
            log.info("new %s %s at %s", kind, instance_id, self._url)
            instance = self.instances[instance_id] = Instance(
                id=instance_id,
                agent_id=self._identity.agent,
                identity=self._url,
                sender=self.sender,
                settings=self._settings,
                traffic=self._traffic,
                last_seen=self._monotonic(),
                clock=self._clock,
            )
        instance.last_seen = self._monotonic()
        return instance

    def _handle_hello(self, instance: Instance, hello: ZeekHello) -> None:
        if instance.hello is None and self._monotonic() - self._hello_at > HELLO_REPLY_SECONDS:
            self._hello_wanted.set()
        instance.hello = hello
        was_disabled = instance.is_disabled
        number = hello.package_number
        instance.is_disabled = number is not None and number < protocol.OLDEST_PACKAGE
        if instance.is_disabled and not was_disabled:
            message = f"Zeek package version {hello.package_version} is too old; version 2.0.2-8 or newer is needed"
            log.warning("Zeek instance %s at %s is ignored: %s", instance.id, self._url, message)
            self._runner.drop(instance)
            self._post_error(instance, message)

    async def _install(self, instance: Instance, event: InstallQuery) -> None:
        query = event.query
        try:
            self._database.check_length(query.sql, self._url)
        except LimitError as error:
            message = f"could not compile query (failed to compile SQL statement: {clipped(query.sql)} ({error}))"
            self._post_error(instance, message, event.query_id, query.cookie)
            return
        if limit := self._exceeded_limit(instance, query):
            message = f"could not install query (limit of {limit}): {clipped(query.sql, STATEMENT_SHOWN)}"
            self._log_problem("queries", f"Zeek instance {instance.id} at {self._url}: {message}")
            self._post_error(instance, message, event.query_id, query.cookie)
            return
        await self._runner.install(instance, event.query_id, event.query)

    def _exceeded_limit(self, instance: Instance, query: Query) -> str | None:
        """The limit that another query would exceed."""
        number, texts = 0, query.size_bytes
        for one in self._runner.installed:
            number += one.recipient is instance
            if isinstance(one.recipient, Instance) and one.recipient.sender is self.sender:
                texts += one.size_bytes
        if number >= self._settings.queries_max:
            return f"{self._settings.queries_max} queries"
        if texts > message_limits.INSTALLED_BYTES_MAX:
            return f"{message_limits.INSTALLED_BYTES_MAX:,} bytes for the texts of all queries of this connection"
        return None

    def _cancel(self, instance: Instance, query_id: str) -> None:
        """Cancel a query of this instance; an instance cannot cancel those of others."""
        if any(one.query_id == query_id for one in self.queries(instance)):
            self._runner.cancel(query_id)
        else:
            log.debug("Zeek instance %s has no query %s to cancel", instance.id, query_id)

    def _drop(self, instance_id: str, *, in_order: bool = False) -> None:
        instance = self.instances.pop(instance_id, None)
        if instance is not None:
            self._runner.drop(instance, in_order=in_order)

    def _post_error(
        self, instance: Instance, message: str, query_id: str | None = None, cookie: str | None = None
    ) -> None:
        """Queue an error without blocking the reader; if the queue is full, it is only logged."""
        frame = instance.error_frame(message, query_id, cookie)
        try:
            self._errors.put_nowait(frame)
        except asyncio.QueueFull:
            self._log_problem("errors", f"Zeek at {self._url} does not accept more errors: {message}")

    async def _send_errors(self) -> None:
        while True:
            await self.sender.send([await self._errors.get()])

    def _log_problem(self, kind: str, text: str) -> None:
        """Log a protocol error of the peer: the first, tenth, hundredth… of its kind on this connection."""
        self._problems[kind] += 1
        times = self._problems[kind]
        is_power_of_ten = str(times).rstrip("0") == "1"
        log.log(logging.WARNING if is_power_of_ten else logging.DEBUG, "%s%s", text, f" ({times} times)" * (times > 1))


def _watched(hello: Result) -> tuple[object, ...]:
    """The fields of a hello whose changes Zeek needs immediately."""
    return tuple(hello.rows[0][index] for index in _WATCHED)


async def first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, normally by an exception; then cancel the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
