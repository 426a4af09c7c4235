"""Checks of the frames of one agent, which are written again from what was read.

The agent's id is that of the bus's subject, which its credentials determine. An agent can only raise hellos, errors,
its shutdown and rows, in its own name, to Zeek instances that have addressed it, and only answer queries that it was
sent. Nothing of the agent's own text is passed on unread: JSON with a key twice could mean one thing here and another
to Zeek.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from zeek_agent.gateway import values
from zeek_agent.gateway.causes import Cause, RefusedError
from zeek_agent.gateway.sent_queries import SentQueries, SentQuery
from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek import broker_json, message_limits, protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.protocol import AgentError, AgentHello, AgentShutdown, Context, Message, ResultBatch, ResultRow

FIELDS_MAX: Final = 32
"""Fields of a hello; those of today are 14."""
HELLO_BYTES_MAX: Final = 64 * 1024
"""Longest hello, which the gateway keeps; one with all tables has 8 KB."""
_VIA: Final = f"{protocol.VIA}/"
_RESPONSES: Final = "/zeek-agent/response/"
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


@dataclass(frozen=True, slots=True)
class CheckedFrame:
    """A frame for Zeek, and the number of rows in it."""

    frame: bytes
    rows: int = 0
    is_shutdown: bool = False


@dataclass(frozen=True, slots=True)
class CheckedHello:
    """An agent's hello: its encoded fields, of which `features` and the uptime are left out.

    `host_time` is the agent's, in seconds since the epoch.
    """

    fields: tuple[str, ...]
    features: tuple[str, ...] | None
    """None if the hello has no such field, as for Broker's own server."""
    uptime: str
    host_time: float

    def record(self, uptime_index: int, features_index: int, *, via: str | None) -> str:
        """The encoded columns, with `via/GATEWAY` among the features if a gateway is given."""
        fields = list(self.fields)
        fields.insert(uptime_index, self.uptime)
        if self.features is not None or via is not None:
            names = sorted({*(self.features or ()), *((_VIA + via,) if via is not None else ())})
            fields.insert(features_index, broker_json.set_of(map(broker_json.string, names)))
        return broker_json.vector(fields)

    @property
    def has_broker(self) -> bool:
        """Whether it has the 13 fields of packages up to 2.3."""
        return self._has_broker(self.fields)

    @staticmethod
    def _has_broker(fields: tuple[str, ...]) -> bool:
        return len(fields) > protocol.BROKER_INDEX and fields[protocol.BROKER_INDEX].startswith(_STRING)

    def write(self, context: Context, via: str | None) -> bytes:
        """The frame for Zeek."""
        names = protocol.HELLO_FIELDS_BROKER if self.has_broker else protocol.HELLO_FIELDS
        record = self.record(names.index("uptime"), len(names), via=None if self.has_broker else via)
        return protocol.agent_hello(context, record).encode()


_STRING: Final = '{"@data-type":"string"'
Checked: TypeAlias = CheckedFrame | CheckedHello


def check(raw: bytes, agent_id: str, queries: SentQueries, now: float) -> Checked:
    """Check a frame of the agent. Raises RefusedError with the cause.

    `now` is on the clock on which the agent's queries end.
    """
    try:
        message = protocol.read_message(raw, repair=False)
        if not isinstance(message, Message):
            raise ProtocolError("message is not an event")
        event = protocol.agent_event(message)
        context = event.context
        if context.agent_id != agent_id:
            raise RefusedError(Cause.AGENT, f"in the name of agent {clipped(context.agent_id)}")
        instance = _instance(message.topic, agent_id, queries.instances)
        match event:
            case AgentHello():
                _require_all(instance, message.event)
                return _hello(event, agent_id, len(raw))
            case AgentShutdown():
                _require_all(instance, message.event)
                return CheckedFrame(protocol.agent_shutdown(_plain(context)).encode(), is_shutdown=True)
            case AgentError():
                return _error(event, instance, queries, now)
            case ResultBatch():
                query = _query(event.context, message.event, instance, queries, now)
                return _batch(event, query)
            case ResultRow():
                query = _query(event.context, message.event, instance, queries, now)
                return _row(event, query)
            case _:
                raise RefusedError(Cause.EVENT, f"raises the event {clipped(message.event)}")
    except ProtocolError as error:
        raise RefusedError(Cause.MALFORMED, str(error)) from None


def _instance(topic: str, agent_id: str, instances: Collection[str]) -> str:
    """The Zeek instance that a response topic of the agent names, or `all`."""
    instance = topic.removeprefix(_RESPONSES).removesuffix(f"/{agent_id}")
    if topic != protocol.response_topic(agent_id, instance):
        raise RefusedError(Cause.AGENT, f"publishes to the topic {clipped(topic)}")
    if instance != "all" and instance not in instances:
        raise RefusedError(Cause.TOPIC, f"publishes to the topic {clipped(topic)}")
    return instance


def _require_all(instance: str, event: str) -> None:
    if instance != "all":
        raise RefusedError(Cause.TOPIC, f"{event} to a single instance")


def _query(context: Context, event: str, instance: str, queries: SentQueries, now: float) -> SentQuery:
    """The query that rows answer."""
    query = None if context.query_id is None else queries.find(context.query_id, now)
    if query is None:
        raise RefusedError(Cause.QUERY, f"rows of query {clipped(context.query_id or '<none>')}, which it was not sent")
    if event != query.event:
        raise RefusedError(Cause.EVENT, f"raises the event {clipped(event)} instead of {clipped(query.event)}")
    if instance != query.instance:
        raise RefusedError(Cause.TOPIC, f"rows to {clipped(instance)} of a query of {clipped(query.instance)}")
    if context.cookie != query.cookie:
        raise RefusedError(Cause.QUERY, f"rows of query {clipped(context.query_id or '')} with another cookie")
    return query


def _plain(context: Context, query_id: str | None = None) -> Context:
    """The context of a message that does not answer a query."""
    _timestamp(context)
    return Context(context.agent_id, context.host_time, query_id)


def _timestamp(context: Context) -> None:
    if broker_json.timestamp(context.host_time) is broker_json.NONE:
        raise ProtocolError(f"not a time: {context.host_time}")


def _hello(event: AgentHello, agent_id: str, size_bytes: int) -> CheckedHello:
    _timestamp(event.context)
    if size_bytes > HELLO_BYTES_MAX:
        raise ProtocolError(f"hello of {size_bytes:,} bytes, {HELLO_BYTES_MAX:,} at most")
    columns = event.columns.data
    has_broker = len(columns) > protocol.BROKER_INDEX and isinstance(columns[protocol.BROKER_INDEX], broker_json.String)
    names = protocol.HELLO_FIELDS_BROKER if has_broker else protocol.HELLO_FIELDS
    if not len(names) <= len(columns) <= FIELDS_MAX:
        raise ProtocolError(f"hello with {len(columns)} fields")
    named = columns[0].data if isinstance(columns[0], broker_json.String) else None
    if named != agent_id:
        raise RefusedError(Cause.AGENT, f"hello with the id {clipped(str(named))}")
    features = None
    fields = [values.encode(column) for column in columns]
    if len(columns) > len(names):
        if not isinstance(columns[len(names)], broker_json.Set):
            raise ProtocolError("features of hello are not a set")
        features = tuple(sorted(name for name in event.features if not name.startswith(_VIA)))
        for name in features:
            _name(name, "feature")
        del fields[len(names)]
    uptime = fields.pop(names.index("uptime"))
    return CheckedHello(tuple(fields), features, uptime, event.context.host_time)


def _error(event: AgentError, instance: str, queries: SentQueries, now: float) -> CheckedFrame:
    context = event.context
    _timestamp(context)
    if context.query_id is not None:
        query = queries.find(context.query_id, now)
        if query is None or context.cookie not in (None, query.cookie):
            raise RefusedError(Cause.QUERY, f"error of query {clipped(context.query_id)}, which it was not sent")
        if instance not in ("all", query.instance):
            raise RefusedError(Cause.TOPIC, f"error to {clipped(instance)} about a query of {clipped(query.instance)}")
    elif context.cookie is not None:
        raise RefusedError(Cause.QUERY, "error with a cookie, but without a query")
    written = Context(context.agent_id, context.host_time, context.query_id, cookie=context.cookie)
    topic = protocol.response_topic(context.agent_id, instance)
    arguments = (protocol.context_record(written), broker_json.string(event.message))
    return CheckedFrame(protocol.event_message(topic, protocol.AGENT_ERROR, *arguments).encode())


def _batch(event: ResultBatch, query: SentQuery) -> CheckedFrame:
    context, batch = event.context, event.batch
    _timestamp(context)
    _name(batch.store, "store")
    _name(batch.stream, "stream")
    for number in (batch.low, batch.high, batch.index):
        if not 0 <= number < 2**64:
            raise ProtocolError(f"batch with the number {number}")
    try:
        rows = len(_OBJECTS.decode(event.rows))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise ProtocolError(f"rows of a batch: {error}") from None
    topic = protocol.response_topic(context.agent_id, query.instance)
    return CheckedFrame(protocol.rows(topic, context, batch, event.rows).encode(), rows)


def _row(event: ResultRow, query: SentQuery) -> CheckedFrame:
    context = event.context
    _timestamp(context)
    topic = protocol.response_topic(context.agent_id, query.instance)
    arguments = (protocol.context_record(context), values.encode(event.columns))
    return CheckedFrame(protocol.event_message(topic, query.event, *arguments).encode(), rows=1)


def _name(text: str, what: str) -> None:
    if byte_length(text) > message_limits.NAME_BYTES_MAX:
        raise ProtocolError(f"{what} of more than {message_limits.NAME_BYTES_MAX:,} bytes: {clipped(text)}")
