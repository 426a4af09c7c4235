"""Conversion of stored values when their column's type changes.

A value keeps its meaning or becomes NULL; the rules are in docs/architecture.md ("Upgrades of the event store").
Whatever `convert` returns can be read as a value of the new type.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable
from typing import Any, Final

from zeek_agent import text
from zeek_agent.schema import SqliteValue, ZeekType

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_EXACT_MAX: Final = 2**53
"""Up to here a REAL represents every integer exactly."""
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH: Final = {"1": 1, "true": 1, "t": 1, "0": 0, "false": 0, "f": 0}
_REALS: Final = frozenset({"real", "time", "interval"})
_TEXTS: Final = frozenset({"text", "enum"})


def keeps_values(old: ZeekType, new: ZeekType) -> bool:
    """Whether every stored value of the old type is valid for the new type unchanged."""
    if old == new or old.sqlite != new.sqlite:
        return old == new
    return new.name in _TEXTS | _REALS or new.name == "int"


def convert(value: SqliteValue, new: ZeekType) -> SqliteValue:
    """The value as stored in a column of type `new`; None when that type cannot represent it."""
    if value is None:
        return None
    try:
        converted = _SCALARS[new.name](value) if new.element is None else _compact(_members(value, new.element))
        if isinstance(converted, str):
            converted.encode()  # JSON can contain lone surrogates, which SQLite cannot store
        return converted
    except (ValueError, OverflowError, RecursionError):  # a UnicodeError or JSONDecodeError is a ValueError
        return None


def _as_text(value: SqliteValue) -> str:
    if isinstance(value, bytes):
        return text.from_bytes(value)
    if isinstance(value, bool):  # in JSON
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _as_blob(value: SqliteValue) -> bytes:
    return value if isinstance(value, bytes) else text.to_bytes(_as_text(value))


def _as_int(value: SqliteValue) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_MAX:
        value = int(value)
    if isinstance(value, int) and _INT64_MIN <= value <= _INT64_MAX:
        return int(value)
    raise ValueError("not a whole number")


def _as_count(value: SqliteValue) -> int:
    if (number := _as_int(value)) < 0:
        raise ValueError("negative")
    return number


def _as_bool(value: SqliteValue) -> int:
    number = _TRUTH.get(value.lower(), -1) if isinstance(value, str) else _as_int(value)
    if number not in (0, 1):
        raise ValueError("neither true nor false")
    return number


def _as_real(value: SqliteValue) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise ValueError("not a number")


def _as_address(value: SqliteValue) -> str:
    if not isinstance(value, str):
        raise ValueError("not an address")
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in value else socket.AF_INET, value)
    except OSError:
        raise ValueError("not an address") from None
    return value


def _as_port(value: SqliteValue) -> str:
    """`80/tcp`, `[80, "tcp"]` or `{"port": 80, "proto": "tcp"}`."""
    if not isinstance(value, str):
        raise ValueError("a port needs a protocol")
    return _compact(_port(value.split("/") if value[:1].isdigit() else json.loads(value)))


def _port(value: Any) -> list[Any]:
    match value:
        case {"port": number, "proto": str(protocol)} | [number, str(protocol)]:
            if protocol and 0 <= (port := _as_count(number)) <= 65535:
                return [port, protocol]
    raise ValueError("not a port")


def _as_record(value: SqliteValue) -> str:
    if isinstance(value, str):
        return _compact(_record(json.loads(value)))
    raise ValueError("not a record")


def _record(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError("not a record")


def _members(value: SqliteValue, element: ZeekType) -> list[Any]:
    """The members of a JSON array; any other value is the only member."""
    members: Any = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        members = json.loads(value)
    if not isinstance(members, list):
        members = [members]
    return [_member(member, element) for member in members]


def _member(value: Any, element: ZeekType) -> Any:
    """A member in JSON form; raises ValueError when it is not of the element's type."""
    if element.name == "port":
        return _port(value.split("/") if isinstance(value, str) else value)
    if element.name == "record":
        return _record(value)
    if not isinstance(value, bool | int | float | str | bytes):
        raise ValueError("not a scalar")
    converted = _SCALARS[element.name](value)
    if element.name == "bool":
        return bool(converted)
    return text.from_bytes(converted) if isinstance(converted, bytes) else converted


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_SCALARS: Final[dict[str, Callable[[Any], SqliteValue]]] = {
    **dict.fromkeys(_TEXTS, _as_text),
    **dict.fromkeys(_REALS, _as_real),
    "address": _as_address,
    "blob": _as_blob,
    "bool": _as_bool,
    "count": _as_count,
    "int": _as_int,
    "port": _as_port,
    "record": _as_record,
}
