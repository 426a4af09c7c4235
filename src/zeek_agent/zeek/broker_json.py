"""Broker's data model in JSON, as Zeek uses it on a WebSocket: reading and writing.

Each value is an object `{"@data-type": TYPE, "data": DATA}`. Reading produces one small struct per type, because Broker
is strict about types and a count is not an integer; `to_cell` turns a struct into a cell. Writing produces JSON text
directly, which is several times faster than building objects: one function per type for single values, `row_encoder`
for result rows.

Cells are those of `database.Result`: time and interval in seconds, port as `(number, protocol)`, set and vector as
tuples, record as `(key, value)` pairs. A cell that does not fit its type is written as `none`, never as another type:
Zeek would refuse the whole event.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Struct

from zeek_agent.errors import ZeekAgentError
from zeek_agent.schema import ZeekType
from zeek_agent.text import escaped, from_bytes

if TYPE_CHECKING:
    from zeek_agent.database.database import ResultColumn
    from zeek_agent.schema import Row, Value

T = TypeVar("T")
ValueEncoder: TypeAlias = "Callable[[Any], str]"


class ProtocolError(ZeekAgentError):
    """The peer sent a message that cannot be read; the error text gives the reason."""


class Nothing(Struct, tag_field="@data-type", tag="none", frozen=True):
    """An unset field. Its `data` is skipped, because small JSON can take thirty times as much memory."""

    data: ClassVar[None] = None


class Boolean(Struct, tag_field="@data-type", tag="boolean", frozen=True, gc=False):
    data: bool


class Count(Struct, tag_field="@data-type", tag="count", frozen=True, gc=False):
    data: int


class Integer(Struct, tag_field="@data-type", tag="integer", frozen=True, gc=False):
    data: int


class Real(Struct, tag_field="@data-type", tag="real", frozen=True, gc=False):
    """A double; None stands for infinity and not-a-number, which JSON lacks."""

    data: float | None


class String(Struct, tag_field="@data-type", tag="string", frozen=True, gc=False):
    data: str


class EnumValue(Struct, tag_field="@data-type", tag="enum-value", frozen=True, gc=False):
    """The enumerator's full name, `Module::NAME`."""

    data: str


class Address(Struct, tag_field="@data-type", tag="address", frozen=True, gc=False):
    data: str


class Subnet(Struct, tag_field="@data-type", tag="subnet", frozen=True, gc=False):
    """`address/prefix length`."""

    data: str


class Port(Struct, tag_field="@data-type", tag="port", frozen=True, gc=False):
    """`80/tcp`; the protocol `?` is an unknown one."""

    data: str


class Timestamp(Struct, tag_field="@data-type", tag="timestamp", frozen=True, gc=False):
    """ISO 8601, in UTC unless it names a zone."""

    data: str


class Timespan(Struct, tag_field="@data-type", tag="timespan", frozen=True, gc=False):
    """A whole number with one of the units `ns us ms s min h`."""

    data: str


class Vector(Struct, tag_field="@data-type", tag="vector", frozen=True):
    """Also a record (one element per field) and a function or event (its name)."""

    data: list[Data]


class Set(Struct, tag_field="@data-type", tag="set", frozen=True):
    data: list[Data]


class Entry(Struct, frozen=True):
    key: Data
    value: Data


class TableValue(Struct, tag_field="@data-type", tag="table", frozen=True):
    data: list[Entry]


Data: TypeAlias = (
    Nothing
    | Boolean
    | Count
    | Integer
    | Real
    | String
    | EnumValue
    | Address
    | Subnet
    | Port
    | Timestamp
    | Timespan
    | Vector
    | Set
    | TableValue
)

_TIMESPAN = re.compile(r"([+-]?[0-9]{1,25})(ns|us|ms|s|min|h)")
_UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_PORT = re.compile(r"([0-9]{1,5})(?:/(\w+|\?))?", re.ASCII)


REPAIR_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest message that is repaired, which takes up to forty times its size; the default of `zeek.message_bytes_max`."""


class MessageReader:
    """Parses a peer's messages of one shape, leniently.

    Zeek copies strings unescaped into its JSON: control characters, bytes that are not UTF-8, `\\v`, `inf`. Messages
    that the strict parser refuses are repaired and parsed again, up to a size. Host bytes become host text
    (`text.from_bytes`).
    """

    def __init__(self, shape: type[T] | Any) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(shape)

    def read(self, raw: bytes | str, *, repair: bool = True) -> Any:
        """The message. Raises ProtocolError for anything else; without `repair`, for loose JSON, too."""
        try:
            return self._decoder.decode(raw)
        except RecursionError:
            raise ProtocolError("message is nested too deeply") from None
        except (msgspec.DecodeError, ValueError) as error:
            if not repair or len(raw) > REPAIR_BYTES_MAX:
                raise ProtocolError(f"cannot read message of {len(raw):,} bytes: {error}") from None
            return self._read_repaired(raw.encode(errors="surrogatepass") if isinstance(raw, str) else raw)

    def _read_repaired(self, raw: bytes) -> Any:
        try:
            return self._decoder.decode(repaired(raw))
        except RecursionError:
            raise ProtocolError("message is nested too deeply") from None
        except (msgspec.DecodeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"cannot read message: {error}") from None


_VERTICAL_TAB = re.compile(r"(?<!\\)((?:\\\\)*)\\v")
_NOT_FINITE = re.compile(r'("data"\s*:\s*)[+-]?(?:inf|nan)\b')


def repaired(raw: bytes) -> bytes:
    """Strict JSON with the meaning of Zeek's loose JSON. Raises ValueError if it is not even that."""
    text = _VERTICAL_TAB.sub(r"\1\\u000b", from_bytes(raw))
    text = _NOT_FINITE.sub(r"\1null", text)
    loose = json.loads(text, strict=False, parse_constant=lambda _: None, parse_float=_finite)
    return json.dumps(loose, ensure_ascii=False).encode(errors="replace")


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def to_cell(value: Data) -> Value:
    """A value as a cell: seconds for time and interval, `(number, protocol)` for a port, tuples for containers.

    Raises ProtocolError for an invalid time, interval or port.
    """
    convert = _PLAIN.get(type(value))
    return value.data if convert is None else convert(value.data)  # type: ignore[return-value]


def timestamp_seconds(text: str) -> float:
    """Seconds since the epoch of an ISO time; a time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ProtocolError(f"not a timestamp: {text[:80]!r}") from None


def timespan_seconds(text: str) -> float:
    """Seconds of `500ms`."""
    match = _TIMESPAN.fullmatch(text)
    if match is None:
        raise ProtocolError(f"not a timespan: {text[:80]!r}")
    return int(match[1]) * _UNITS[match[2]] / 10**9


def port_number(text: str) -> tuple[int, str]:
    """`(80, "tcp")` of `80/tcp`; a port without a protocol is TCP's."""
    match = _PORT.fullmatch(text)
    if match is None or int(match[1]) > 65535:
        raise ProtocolError(f"not a port: {text[:80]!r}")
    protocol = match[2] or "tcp"
    return int(match[1]), "unknown" if protocol == "?" else protocol


def _members(members: list[Data]) -> tuple[Value, ...]:
    return tuple([to_cell(member) for member in members])


def _entries(entries: list[Entry]) -> tuple[tuple[Value, Value], ...]:
    return tuple([(to_cell(entry.key), to_cell(entry.value)) for entry in entries])


_PLAIN: Final[Mapping[type, Callable[[Any], Value]]] = {
    Timestamp: timestamp_seconds,
    Timespan: timespan_seconds,
    Port: port_number,
    Vector: _members,
    Set: _members,
    TableValue: _entries,
}


NONE: Final = '{"@data-type":"none","data":{}}'
_BOOLEAN: Final = {flag: f'{{"@data-type":"boolean","data":{str(flag).lower()}}}' for flag in (False, True)}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NANOSECONDS_MAX: Final = 2**63
_EPOCH: Final = datetime(1970, 1, 1)
_PROTOCOLS: Final = frozenset({"tcp", "udp", "icmp"})


def quoted(text: str) -> str:
    """The text as a JSON string, unchanged except that lone surrogates, which UTF-8 cannot encode, become U+FFFD."""
    return encode_basestring(text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text))


def string(text: str) -> str:
    """Text that a peer must receive unchanged: identifiers, cookies, SQL."""
    return f'{{"@data-type":"string","data":{quoted(text)}}}'


def host_text(value: object) -> str:
    """Text or bytes from the host, in printable form (`text.escaped`)."""
    if isinstance(value, str):
        if value.isascii() and value.isprintable() and "\\" not in value:
            return f'{{"@data-type":"string","data":{encode_basestring(value)}}}'
        return f'{{"@data-type":"string","data":{quoted(escaped(value))}}}'
    if isinstance(value, bytes):
        return host_text(from_bytes(value))
    return NONE


def enum(name: object) -> str:
    """An enumerator by its full name."""
    return f'{{"@data-type":"enum-value","data":{quoted(name)}}}' if isinstance(name, str) else NONE


def boolean(value: object) -> str:
    return _BOOLEAN[bool(value)] if isinstance(value, int) else NONE


def count(value: object) -> str:
    if isinstance(value, int) and 0 <= value < 2**64:
        return f'{{"@data-type":"count","data":{value:d}}}'
    return NONE


def integer(value: object) -> str:
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return f'{{"@data-type":"integer","data":{value:d}}}'
    return NONE


def real(value: object) -> str:
    """A double, always with a point or an exponent; infinity and not-a-number are unset."""
    number = _float(value)
    return NONE if number is None else f'{{"@data-type":"real","data":{number!r}}}'


def timestamp(seconds: object) -> str:
    """Seconds since the epoch as a UTC time with microseconds, from 1677 to 2262: Broker has 64-bit nanoseconds."""
    number = _float(seconds)
    if number is None or abs(number) * 10**9 >= _NANOSECONDS_MAX:
        return NONE
    second, microsecond = divmod(round(number * 1_000_000), 1_000_000)
    return f'{{"@data-type":"timestamp","data":"{_second(second)}.{microsecond:06d}"}}'


@lru_cache(maxsize=4096)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()


def timespan(seconds: object) -> str:
    """Seconds as a whole number of the largest unit out of `s ms us ns` that is exact."""
    number = _float(seconds)
    if number is None or abs(number) * 10**9 >= _NANOSECONDS_MAX:
        return NONE
    whole_seconds = math.floor(number)
    nanoseconds = whole_seconds * 10**9 + round((number - whole_seconds) * 10**9)
    for unit in ("s", "ms", "us"):
        whole, rest = divmod(nanoseconds, _UNITS[unit])
        if rest == 0:
            return f'{{"@data-type":"timespan","data":"{whole}{unit}"}}'
    return f'{{"@data-type":"timespan","data":"{nanoseconds}ns"}}'


def address(text: object) -> str:
    """An IPv4 or IPv6 address without its zone (`%eth0`), which Zeek refuses."""
    if not isinstance(text, str):
        return NONE
    text = text.partition("%")[0]
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return NONE
    return f'{{"@data-type":"address","data":"{text}"}}'


def port(value: object) -> str:
    """`(80, "tcp")`; Zeek knows no protocols other than TCP, UDP and ICMP."""
    match value:
        case (int(number), str(protocol)) if 0 <= number <= 65535:
            name = protocol.lower()
            return f'{{"@data-type":"port","data":"{number:d}/{name if name in _PROTOCOLS else "?"}"}}'
    return NONE


def vector(members: Iterable[str]) -> str:
    """A vector or record of encoded members."""
    return f'{{"@data-type":"vector","data":[{",".join(members)}]}}'


def set_of(members: Iterable[str]) -> str:
    """A set of encoded members."""
    return f'{{"@data-type":"set","data":[{",".join(members)}]}}'


def record(value: object) -> str:
    """A record of `files_columns`: a field has the type in its name (`c1:int`), or else the type of its value."""
    if isinstance(value, Mapping):
        return vector(_field(name, member) for name, member in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return vector(_field(*pair) for pair in value if isinstance(pair, Sequence) and len(pair) == 2)
    return NONE


def _field(name: object, value: object) -> str:
    return integer(value) if isinstance(name, str) and name.endswith(":int") else _by_value(value)


def _by_value(value: object) -> str:
    match value:
        case bool():
            return boolean(value)
        case int():
            return count(value) if value >= 0 else integer(value)
        case float():
            return real(value)
        case str() | bytes():
            return host_text(value)
        case _:
            return NONE


def _float(value: object) -> float | None:
    if not isinstance(value, float | int):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


_SCALARS: Final[Mapping[str, ValueEncoder]] = {
    "address": address,
    "blob": host_text,
    "bool": boolean,
    "count": count,
    "enum": enum,
    "int": integer,
    "interval": timespan,
    "port": port,
    "real": real,
    "record": record,
    "text": host_text,
    "time": timestamp,
}


@lru_cache(maxsize=256)
def encoder(zeek_type: ZeekType) -> ValueEncoder:
    """A function that writes cells of that type. None, and any value that does not fit, is written as `none`."""
    if zeek_type.element is None:
        return _SCALARS[zeek_type.name]
    encode_member = encoder(zeek_type.element)
    wrap = set_of if zeek_type.name == "set" else vector

    def encode_container(value: object) -> str:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes):
            return NONE
        members = (encode_member(member) for member in value)
        return wrap(member for member in members if member is not NONE)  # Zeek refuses unset members of a container

    return encode_container


def row_encoder(columns: Sequence[ResultColumn]) -> Callable[[Row], str]:
    """A function that writes rows of these columns as records, which are vectors with one member per column."""
    encoders = tuple(encoder(column.type) for column in columns)

    def encode_row(row: Row) -> str:
        cells = [encode(cell) for encode, cell in zip(encoders, row, strict=True)]
        return f'{{"@data-type":"vector","data":[{",".join(cells)}]}}'

    return encode_row


def cells(row: Vector) -> tuple[Value, ...]:
    """A received record's fields as cells."""
    return cast("tuple[Value, ...]", to_cell(row))
