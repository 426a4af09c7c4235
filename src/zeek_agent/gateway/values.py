"""Values of Broker's data model, read from an untrusted peer, as JSON that Zeek can read.

They are written again from what was read: a peer's own text could mean something else to Zeek's parser. A value that no
writer of ours produces, such as a count below zero, is refused, since Zeek would refuse the whole event.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from zeek_agent.zeek import broker_json
from zeek_agent.zeek.broker_json import Data, ProtocolError

DEPTH_MAX: Final = 16
"""Nesting of containers; rows of tables have three levels."""

_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?", re.ASCII)
_PORT: Final = re.compile(r"\d{1,5}/(tcp|udp|icmp|\?)", re.ASCII)
_SUBNET: Final = re.compile(r"([0-9a-fA-F.:]{2,45})/(\d{1,3})", re.ASCII)
_ENUM: Final = re.compile(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)*", re.ASCII)
_TIMESPAN_SECONDS_MAX: Final = 2**63 / 10**9


def encode(value: Data, depth: int = 0) -> str:
    """The value as JSON text. Raises ProtocolError for one that Zeek would not read."""
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return scalar(value.data)
    if depth >= DEPTH_MAX:
        raise ProtocolError("value is nested too deeply")
    match value:
        case broker_json.Vector(data=members):
            return broker_json.vector([encode(member, depth + 1) for member in members])
        case broker_json.Set(data=members):
            return broker_json.set_of([encode(member, depth + 1) for member in members])
        case broker_json.TableValue(data=entries):
            written = (
                f'{{"key":{encode(one.key, depth + 1)},"value":{encode(one.value, depth + 1)}}}' for one in entries
            )
            return f'{{"@data-type":"table","data":[{",".join(written)}]}}'
    return broker_json.NONE


def _checked(write: Callable[[object], str], kind: str) -> Callable[[Any], str]:
    """A writer of cells that refuses a cell which it would leave unset."""

    def encode_scalar(data: object) -> str:
        written = write(data)
        if written is broker_json.NONE:
            raise ProtocolError(f"not a {kind}: {str(data)[:80]!r}")
        return written

    return encode_scalar


def _as_is(kind: str, is_valid: Callable[[str], bool]) -> Callable[[Any], str]:
    """A writer of texts that need no quoting once they are valid."""

    def encode_text(text: str) -> str:
        if not is_valid(text):
            raise ProtocolError(f"not a {kind}: {text[:80]!r}")
        return f'{{"@data-type":"{kind}","data":"{text}"}}'

    return encode_text


def _is_timestamp(text: str) -> bool:
    return (
        _TIMESTAMP.fullmatch(text) is not None
        and broker_json.timestamp(broker_json.timestamp_seconds(text)) is not broker_json.NONE
    )


def _is_timespan(text: str) -> bool:
    return abs(broker_json.timespan_seconds(text)) < _TIMESPAN_SECONDS_MAX


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text.partition("/")[0]) <= 65535


def _is_subnet(text: str) -> bool:
    match = _SUBNET.fullmatch(text)
    if match is None or broker_json.address(match[1]) is broker_json.NONE:
        return False
    return int(match[2]) <= (128 if ":" in match[1] else 32)


_SCALARS: Final[Mapping[type, Callable[[Any], str]]] = {
    broker_json.Boolean: broker_json.boolean,
    broker_json.Count: _checked(broker_json.count, "count"),
    broker_json.Integer: _checked(broker_json.integer, "integer"),
    broker_json.Real: _checked(broker_json.real, "real"),
    broker_json.String: broker_json.string,
    broker_json.EnumValue: _as_is("enum-value", lambda text: _ENUM.fullmatch(text) is not None),
    broker_json.Address: _checked(broker_json.address, "address"),
    broker_json.Subnet: _as_is("subnet", _is_subnet),
    broker_json.Port: _as_is("port", _is_port),
    broker_json.Timestamp: _as_is("timestamp", _is_timestamp),
    broker_json.Timespan: _as_is("timespan", _is_timespan),
}
