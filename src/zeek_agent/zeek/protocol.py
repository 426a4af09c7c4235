"""The Zeek Agent's API, version 1, as messages on Zeek's WebSocket: topics, events and records, both ways.

The agent writes hellos, rows, errors and a shutdown message, and reads Zeek's requests; a server (the collector) does
the reverse. Writing returns the JSON text of one frame. Reading takes a frame's bytes: `read_message` returns its kind,
`zeek_event` and `agent_event` its contents. Records travel as vectors by position; trailing fields that a newer peer
adds are ignored. All messages are in this module, because most are written by one side and read by the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from msgspec import Struct, field

from zeek_agent.queries.subscriptions import Change, Query, Subscription
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.broker_json import Data, ProtocolError

if TYPE_CHECKING:
    from zeek_agent.schema import Value

T = TypeVar("T", bound=Data)

OLDEST_PACKAGE: Final = 200_020_008
"""The first version of Zeek's package (2.0.2-8) that supports this API."""

AGENT_HELLO: Final = "ZeekAgentAPI::agent_hello_v1"
AGENT_SHUTDOWN: Final = "ZeekAgentAPI::agent_shutdown_v1"
AGENT_ERROR: Final = "ZeekAgentAPI::agent_error_v1"
ZEEK_HELLO: Final = "ZeekAgentAPI::zeek_hello_v1"
ZEEK_SHUTDOWN: Final = "ZeekAgentAPI::zeek_shutdown_v1"
INSTALL_QUERY: Final = "ZeekAgentAPI::install_query_v1"
CANCEL_QUERY: Final = "ZeekAgentAPI::cancel_query_v1"
ROWS: Final = "ZeekAgentAPI::rows_v1"
"""A query with this event requests its rows in batches."""
ROWS_ACK: Final = "ZeekAgentAPI::rows_ack_v1"
GATEWAY_APPLICATION: Final = "zeek-agent-gateway/"
"""Beginning of the application's name of a gateway's WebSocket: `zeek-agent-gateway/VERSION/NAME`."""
AGENT_LEFT: Final = "ZeekAgentAPI::agent_left_v1"
"""A gateway has lost an agent that did not shut down."""
BATCHES: Final = "batches"
"""The feature, named in both hellos, of sending and accepting rows in batches."""
VIA: Final = "via"
"""The feature of a package that addresses an agent behind a gateway at a topic of that gateway (`via_topic`). Such an
agent's hello has the feature `via/GATEWAY`."""
LEFT: Final = "left"
"""The feature of a package, or a collector, that understands `AGENT_LEFT`."""
DIALECTS: Final = "dialects"
"""The feature, named in an agent's hello, of queries with a dialect: an additional field of theirs."""

HELLO_FIELDS: Final = (
    "agent_id",
    "instance_id",
    "hostname",
    "addresses",
    "platform",
    "os_name",
    "kernel_name",
    "kernel_version",
    "kernel_arch",
    "agent_version",
    "uptime",
    "tables",
)
"""Fields of `AgentHelloV1` in package 2.4."""
BROKER_INDEX: Final = HELLO_FIELDS.index("uptime")
HELLO_FIELDS_BROKER: Final = (*HELLO_FIELDS[:BROKER_INDEX], "broker", *HELLO_FIELDS[BROKER_INDEX:])
"""The same for packages up to 2.3, which come with Zeek before 8.1."""

BROKER_FRAME_BYTES: Final = 2048
"""Minimum payload of a text frame for Broker's own server, which drops a client when it receives a shorter one in
pieces, as happens with several frames in flight (zeek/broker#458) and on any network. Blanks may follow the JSON."""

_QUERY_TOPICS: Final = "/zeek-agent/query/"
_ENUM: Final = "ZeekAgent::"
_QUERY_FIELDS: Final = 7
"""Those of version 1. A query with a dialect has it as the next field, for agents that announce `DIALECTS`."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_VERSION = re.compile(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(?:-([0-9]{1,6}))?\b")


def host_topic(agent_id: str) -> str:
    """Topic of messages from Zeek to one agent."""
    return f"/zeek-agent/query/host/{agent_id}"


def group_topic(group: str, agent_id: str | None = None) -> str:
    """Topic of messages from Zeek to the agents of a group, or to one agent as its member."""
    return f"/zeek-agent/query/group/{group}" if agent_id is None else f"/zeek-agent/query/group/{agent_id}/{group}"


def via_topic(gateway: str, topic: str = "") -> str:
    """Topic of messages to an agent behind a gateway, in place of its host or group topic."""
    return f"/zeek-agent/query/via/{gateway}/{topic.removeprefix(_QUERY_TOPICS)}"


def without_via(gateway: str, topic: str) -> str:
    """The agent's own topic for one of `via_topic`; any other as it is."""
    via = via_topic(gateway)
    return _QUERY_TOPICS + topic[len(via) :] if topic.startswith(via) else topic


def response_topic(agent_id: str, instance: str = "all") -> str:
    """Topic of messages from an agent to one Zeek instance, or to all."""
    return f"/zeek-agent/response/{instance}/{agent_id}"


def subscriptions(agent_id: str, groups: Iterable[str], platform: str) -> list[str]:
    """The topics of an agent. Zeek lower-cases group names, so the agent also subscribes to those in lower case."""
    topics = [host_topic(agent_id)]
    for name in ("all", platform, *groups):
        for group in (name, name.lower()):
            topics += [group_topic(group), group_topic(group, agent_id)]
    return list(dict.fromkeys(topics))


COLLECTOR_ENDPOINT: Final = "collector-websocket-"
"""How the names begin that a collector has for its side of a connection."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The server's acknowledgement of the subscription."""

    endpoint: str
    version: str

    @property
    def is_broker(self) -> bool:
        """Whether it is Broker's own WebSocket server, of Zeek before 8.1, whose package expects 13 hello fields."""
        return _UUID.fullmatch(self.endpoint) is not None

    @property
    def is_collector(self) -> bool:
        """Whether it is a collector, whose version is not a Zeek's: it only imitates one."""
        return self.endpoint.startswith(COLLECTOR_ENDPOINT)

    @property
    def lacks_backend(self) -> bool:
        """Whether Zeek runs without a cluster backend, in which case it accepts events and loses them all."""
        return self.endpoint.startswith("-")


@dataclass(frozen=True, slots=True)
class Error:
    """The server could not process a message, which it does not identify."""

    code: str
    context: str


@dataclass(frozen=True, slots=True)
class Message:
    """A received event, and the topic to which it was published."""

    topic: str
    event: str
    arguments: Sequence[Data]


@dataclass(frozen=True, slots=True)
class Context:
    """Source, time (seconds since the epoch) and query of a report."""

    agent_id: str
    host_time: float
    query_id: str | None = None
    change: Change | None = None
    cookie: str | None = None


@dataclass(frozen=True, slots=True)
class ZeekHello:
    """A Zeek instance announces itself. `package_version` may be empty."""

    instance: str
    version: str = ""
    version_number: int = 0
    package_version: str = ""
    features: frozenset[str] = frozenset()
    """Features of a package beyond version 1 of the API; a stock package has none."""

    @property
    def package_number(self) -> int | None:
        """The package's version as `major·10⁸ + minor·10⁶ + patch·10⁴ + commit`; None if it is not a version."""
        match = _VERSION.match(self.package_version)
        if match is None:
            return None
        major, minor, patch, commit = (int(part or 0) for part in match.groups())
        return major * 10**8 + minor * 10**6 + patch * 10**4 + commit


@dataclass(frozen=True, slots=True)
class ZeekShutdown:
    instance: str


@dataclass(frozen=True, slots=True)
class InstallQuery:
    instance: str
    query_id: str
    query: Query


@dataclass(frozen=True, slots=True)
class CancelQuery:
    instance: str
    query_id: str


@dataclass(frozen=True, slots=True)
class RowsAck:
    """The script's handlers have processed the batches of a window up to `index`."""

    instance: str
    query_id: str
    stream: str
    high: int
    index: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The identity of a batch: the query's stream, the event store's window (after `low`, up to `high`; both 0 unless
    it is an event query's), the number within the report, and whether it is the report's last."""

    store: str
    stream: str
    low: int
    high: int
    index: int
    last: bool


@dataclass(frozen=True, slots=True)
class AgentHello:
    """`columns` is the agent's row of `zeek_agent`: 12 fields, or 13 from an agent connected to an old package.

    An agent with features sends them as an additional field, which other packages ignore.
    """

    context: Context
    columns: broker_json.Vector

    @property
    def features(self) -> frozenset[str]:
        """Features of the agent beyond version 1 of the API."""
        match self.columns.data[len(HELLO_FIELDS_BROKER if self._has_broker else HELLO_FIELDS) :]:
            case [broker_json.Set(data=members), *_]:
                return frozenset(member.data for member in members if isinstance(member, broker_json.String))
        return frozenset()

    def named(self) -> dict[str, Value]:
        """The fields that the agent sent, as cells by name."""
        names = HELLO_FIELDS_BROKER if self._has_broker else HELLO_FIELDS
        return dict(zip(names, broker_json.cells(self.columns), strict=False))

    @property
    def _has_broker(self) -> bool:
        fields = self.columns.data
        return len(fields) > BROKER_INDEX and isinstance(fields[BROKER_INDEX], broker_json.String)


@dataclass(frozen=True, slots=True)
class AgentShutdown:
    context: Context


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """A gateway has lost an agent."""

    context: Context
    gateway: str


@dataclass(frozen=True, slots=True)
class AgentError:
    context: Context
    message: str


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A row of a query's result; `event` is the query's event."""

    event: str
    context: Context
    columns: broker_json.Vector


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """Rows of a query's result, as a JSON array of objects."""

    context: Context
    batch: Batch
    rows: str


ZeekEvent: TypeAlias = ZeekHello | ZeekShutdown | InstallQuery | CancelQuery | RowsAck
AgentEvent: TypeAlias = AgentHello | AgentShutdown | AgentLeft | AgentError | ResultRow | ResultBatch


class _Envelope(Struct):
    """Any object on the wire; its fields determine its kind."""

    type: str = ""
    endpoint: str = ""
    version: str = ""
    code: str = ""
    context: str = ""
    topic: str | None = None
    data_type: str = field(default="", name="@data-type")
    data: list[Data] | None = None


_ENVELOPE: Final = broker_json.MessageReader(_Envelope)
_TOPICS: Final = broker_json.MessageReader(list[str])


def read_message(raw: bytes | str, *, repair: bool = True) -> Ack | Error | Message:
    """The message in a frame. Raises ProtocolError for anything else; without `repair`, for loose JSON, too."""
    envelope: _Envelope = _ENVELOPE.read(raw, repair=repair)
    if envelope.type == "ack":
        return Ack(envelope.endpoint, envelope.version)
    if envelope.type == "error":
        return Error(envelope.code, envelope.context)
    if envelope.topic is None:
        raise ProtocolError("message has no topic")
    match envelope.data:
        case [
            broker_json.Count(data=1),
            broker_json.Count(data=1),
            broker_json.Vector(data=[broker_json.String(data=event), arguments, *_]),
        ] if isinstance(arguments, broker_json.Vector):
            return Message(envelope.topic, event, arguments.data)
    raise ProtocolError("message is not an event of format version 1")


def read_subscription(raw: bytes | str) -> list[str]:
    """The topics of a client's first message. Raises ProtocolError when it is not an array of strings."""
    topics: list[str] = _TOPICS.read(raw)
    return topics


def zeek_event(message: Message) -> ZeekEvent | None:
    """The request of a Zeek instance; None for an event outside this API. Raises ProtocolError for a malformed one."""
    arguments = message.arguments
    if message.event == ZEEK_HELLO:
        return _zeek_hello(_text(arguments, 0, "zeek_instance"), _field(arguments, 1, broker_json.Vector, "info").data)
    if message.event == ZEEK_SHUTDOWN:
        return ZeekShutdown(_text(arguments, 0, "zeek_instance"))
    if message.event == INSTALL_QUERY:
        record = _field(arguments, 2, broker_json.Vector, "query").data
        return InstallQuery(_text(arguments, 0, "zeek_instance"), _text(arguments, 1, "query_id"), _query(record))
    if message.event == CANCEL_QUERY:
        return CancelQuery(_text(arguments, 0, "zeek_instance"), _text(arguments, 1, "query_id"))
    if message.event == ROWS_ACK:
        names = ("zeek_instance", "query_id", "stream")
        instance, query_id, stream = (_text(arguments, position, name) for position, name in enumerate(names))
        return RowsAck(instance, query_id, stream, _count(arguments, 3, "high"), _count(arguments, 4, "index"))
    return None


def agent_event(message: Message) -> AgentEvent:
    """The event of an agent; one outside this API is a result row. Raises ProtocolError for a malformed one."""
    arguments = message.arguments
    context = _context(_field(arguments, 0, broker_json.Vector, "ctx").data)
    if message.event == AGENT_HELLO:
        return AgentHello(context, _field(arguments, 1, broker_json.Vector, "columns"))
    if message.event == AGENT_SHUTDOWN:
        return AgentShutdown(context)
    if message.event == AGENT_LEFT:
        return AgentLeft(context, _text(arguments, 1, "gateway"))
    if message.event == AGENT_ERROR:
        return AgentError(context, _text(arguments, 1, "msg"))
    if message.event == ROWS:
        return ResultBatch(
            context, _batch(_field(arguments, 1, broker_json.Vector, "batch").data), _text(arguments, 2, "rows")
        )
    return ResultRow(message.event, context, _field(arguments, 1, broker_json.Vector, "columns"))


def _zeek_hello(instance: str, info: Sequence[Data]) -> ZeekHello:
    return ZeekHello(
        instance,
        _text(info, 0, "version_string"),
        _count(info, 1, "version_number"),
        _optional_text(info, 2, "package_version") or "",
        _names(info, 3, "features"),
    )


def _batch(record: Sequence[Data]) -> Batch:
    return Batch(
        store=_text(record, 0, "store"),
        stream=_text(record, 1, "stream"),
        low=_count(record, 2, "low"),
        high=_count(record, 3, "high"),
        index=_count(record, 4, "index"),
        last=_field(record, 5, broker_json.Boolean, "last").data,
    )


def _query(record: Sequence[Data]) -> Query:
    """A `ZeekAgent::Query`. Fields beyond the dialect, from a newer Zeek, are ignored."""
    if len(record) < _QUERY_FIELDS:
        raise ProtocolError(f"query has {len(record)} fields instead of {_QUERY_FIELDS}")
    schedule = _optional(record, 1, broker_json.Timespan, "schedule_")
    subscription = _optional(record, 2, broker_json.EnumValue, "subscription")
    return Query(
        sql=_text(record, 0, "sql_stmt"),
        schedule=None if schedule is None else broker_json.timespan_seconds(schedule.data),
        subscription=_enumerator(Subscription, subscription),
        event=_text(_field(record, 3, broker_json.Vector, "event_").data, 0, "event_"),
        cookie=_optional_text(record, 4, "cookie"),
        requires_tables=_names(record, 5, "requires_tables"),
        if_missing_tables=_names(record, 6, "if_missing_tables"),
        dialect=_optional_text(record, _QUERY_FIELDS, "dialect"),
    )


def _context(record: Sequence[Data]) -> Context:
    return Context(
        agent_id=_text(record, 0, "agent_id"),
        host_time=broker_json.timestamp_seconds(_field(record, 1, broker_json.Timestamp, "host_time").data),
        query_id=_optional_text(record, 2, "query_id"),
        change=_enumerator(Change, _optional(record, 3, broker_json.EnumValue, "change")),
        cookie=_optional_text(record, 4, "cookie"),
    )


E = TypeVar("E", Subscription, Change)


def _enumerator(kind: type[E], value: broker_json.EnumValue | None) -> E | None:
    """The member with that name; None for an unknown one, which a newer peer may send."""
    try:
        return None if value is None else kind(value.data.removeprefix(_ENUM))
    except ValueError:
        return None


def _field(values: Sequence[Data], index: int, kind: type[T], name: str) -> T:
    value = values[index] if index < len(values) else None
    if isinstance(value, kind):
        return value
    found = "missing" if value is None else f"a {type(value).__name__.lower()}"
    raise ProtocolError(f"{name} is {found} instead of a {kind.__name__.lower()}")


def _optional(values: Sequence[Data], index: int, kind: type[T], name: str) -> T | None:
    if index >= len(values) or isinstance(values[index], broker_json.Nothing):
        return None
    return _field(values, index, kind, name)


def _text(values: Sequence[Data], index: int, name: str) -> str:
    return _field(values, index, broker_json.String, name).data


def _count(values: Sequence[Data], index: int, name: str) -> int:
    return _field(values, index, broker_json.Count, name).data


def _optional_text(values: Sequence[Data], index: int, name: str) -> str | None:
    value = _optional(values, index, broker_json.String, name)
    return None if value is None else value.data


def _names(values: Sequence[Data], index: int, name: str) -> frozenset[str]:
    members = _optional(values, index, broker_json.Set, name)
    if members is None:
        return frozenset()
    return frozenset(_text(members.data, position, name) for position in range(len(members.data)))


def subscription_message(topics: Sequence[str]) -> str:
    """A client's first message."""
    return f"[{','.join(broker_json.quoted(topic) for topic in topics)}]"


def event_frame(topic: str, event: str) -> tuple[str, str]:
    """The text before and after the encoded, comma-separated arguments of an event's frame."""
    head = (
        f'{{"type":"data-message","topic":{broker_json.quoted(topic)},"@data-type":"vector","data":['
        f"{broker_json.count(1)},{broker_json.count(1)},"
        f'{{"@data-type":"vector","data":[{broker_json.string(event)},{{"@data-type":"vector","data":['
    )
    return head, "]}]}]}"


def event_message(topic: str, event: str, *arguments: str) -> str:
    """An event with encoded arguments."""
    head, tail = event_frame(topic, event)
    return f"{head}{','.join(arguments)}{tail}"


def context_record(context: Context) -> str:
    """An encoded `ZeekAgent::Context`."""
    return broker_json.vector(
        (
            broker_json.string(context.agent_id),
            broker_json.timestamp(context.host_time),
            _or_none(context.query_id),
            broker_json.NONE if context.change is None else broker_json.enum(_ENUM + context.change),
            _or_none(context.cookie),
        )
    )


def agent_hello(context: Context, columns: str) -> str:
    """`columns` is the encoded row of `zeek_agent`."""
    return event_message(response_topic(context.agent_id), AGENT_HELLO, context_record(context), columns)


def agent_shutdown(context: Context) -> str:
    return event_message(response_topic(context.agent_id), AGENT_SHUTDOWN, context_record(context))


def agent_left(context: Context, gateway: str) -> str:
    """For peers with the feature `LEFT`."""
    arguments = (context_record(context), broker_json.string(gateway))
    return event_message(response_topic(context.agent_id), AGENT_LEFT, *arguments)


def agent_error(instance: str, context: Context, message: str) -> str:
    topic = response_topic(context.agent_id, instance)
    return event_message(topic, AGENT_ERROR, context_record(context), broker_json.host_text(message))


def rows(topic: str, context: Context, batch: Batch, objects: str) -> str:
    """Rows in a batch; `objects` is their JSON text."""
    record = broker_json.vector(
        (
            broker_json.string(batch.store),
            broker_json.string(batch.stream),
            broker_json.count(batch.low),
            broker_json.count(batch.high),
            broker_json.count(batch.index),
            broker_json.boolean(batch.last),
        )
    )
    return event_message(topic, ROWS, context_record(context), record, broker_json.string(objects))


def rows_ack(topic: str, ack: RowsAck) -> str:
    texts = (broker_json.string(text) for text in (ack.instance, ack.query_id, ack.stream))
    return event_message(topic, ROWS_ACK, *texts, broker_json.count(ack.high), broker_json.count(ack.index))


def ack(endpoint: str, version: str) -> str:
    return f'{{"type":"ack","endpoint":{broker_json.quoted(endpoint)},"version":{broker_json.quoted(version)}}}'


def error(code: str, context: str) -> str:
    return f'{{"type":"error","code":{broker_json.quoted(code)},"context":{broker_json.quoted(context)}}}'


def zeek_hello(topic: str, hello: ZeekHello) -> str:
    info = [
        broker_json.string(hello.version),
        broker_json.count(hello.version_number),
        broker_json.string(hello.package_version),
    ]
    if hello.features:
        info.append(broker_json.set_of(broker_json.string(name) for name in sorted(hello.features)))
    return event_message(topic, ZEEK_HELLO, broker_json.string(hello.instance), broker_json.vector(info))


def zeek_shutdown(topic: str, instance: str) -> str:
    return event_message(topic, ZEEK_SHUTDOWN, broker_json.string(instance))


def install_query(topic: str, instance: str, query_id: str, query: Query) -> str:
    return event_message(
        topic, INSTALL_QUERY, broker_json.string(instance), broker_json.string(query_id), query_record(query)
    )


def cancel_query(topic: str, instance: str, query_id: str) -> str:
    return event_message(topic, CANCEL_QUERY, broker_json.string(instance), broker_json.string(query_id))


def query_record(query: Query) -> str:
    """An encoded `ZeekAgent::Query`; only one with a dialect has more fields than version 1."""
    fields = [
        broker_json.string(query.sql),
        broker_json.NONE if query.schedule is None else broker_json.timespan(query.schedule),
        broker_json.NONE if query.subscription is None else broker_json.enum(_ENUM + query.subscription),
        broker_json.vector([broker_json.string(query.event)]),
        _or_none(query.cookie),
        broker_json.set_of(broker_json.string(name) for name in sorted(query.requires_tables)),
        broker_json.set_of(broker_json.string(name) for name in sorted(query.if_missing_tables)),
    ]
    if query.dialect is not None:
        fields.append(broker_json.string(query.dialect))
    return broker_json.vector(fields)


def _or_none(text: str | None) -> str:
    return broker_json.NONE if text is None else broker_json.string(text)
