"""Values of JSON, CSV and text fields as cells of a column's Zeek type.

A value of another type is not converted but becomes unset, with a note. Text that consists of a number is a number,
because many programs write numbers as text.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from zeek_agent.own_tables.declarations import OwnColumn
from zeek_agent.schema import Row, Value, ZeekType
from zeek_agent.text import clipped, to_bytes, visible

EXACT_MAX: Final = 2**53
"""Up to here a float represents every integer exactly."""
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
TIME_MAX: Final = 253_402_300_800.0
"""The year 10000: neither Zeek nor Python can write later dates."""
NESTING_MAX: Final = 64
"""Levels of a record."""
UNSIGNED_MAX: Final = 2**64 - 1
"""The largest integer of a record that MessagePack, and so a worker process, can pass on."""
SHOWN: Final = 60
"""Characters of a value in a note."""
_DIVISORS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_NUMBER_CHARACTERS: Final = 100
_PORT: Final = re.compile(r"([0-9]{1,5})/(tcp|udp|icmp|unknown)")
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}
_ARTICLES: Final = {"int": "an integer", "address": "an address", "interval": "an interval", "enum": "text"}


class MisfitError(ValueError):
    """A value is not of its column's type."""


Converter = Callable[[Any], Value]


def converter(column: OwnColumn) -> Converter:
    """A function that turns a decoded value, which is not None, into a cell. It raises MisfitError."""
    zeek_type = ZeekType.parse(column.type)
    if zeek_type.name in ("time", "interval"):
        divisor = _DIVISORS[column.unit]
        one = _time if zeek_type.name == "time" else _real
        return lambda value: one(value, divisor)
    return _converter(zeek_type)


def _converter(zeek_type: ZeekType) -> Converter:
    if zeek_type.element is None:
        return _SCALARS[zeek_type.name]
    element, is_set = _converter(zeek_type.element), zeek_type.name == "set"

    def members(value: Any) -> Value:
        if isinstance(value, str) and value.startswith("["):
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise MisfitError from None
        if not isinstance(value, list):
            raise MisfitError
        cells = [element(member) for member in value]
        return _unique(cells) if is_set else cells

    return members


def _unique(cells: list[Value]) -> Sequence[Value]:
    """The members without those that are there already, which a set of Zeek's would not have either."""
    found: list[Value] = []
    seen: set[bytes] = set()
    for cell in cells:
        if (key := msgspec.msgpack.encode(cell)) not in seen:
            seen.add(key)
            found.append(cell)
    return found


def _integer(value: Any, low: int = INTEGER_MIN) -> int:
    is_text = isinstance(value, str) and _WHOLE.fullmatch(value)
    if is_text or (isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_MAX):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= INTEGER_MAX:
        return value
    raise MisfitError


def _count(value: Any) -> int:
    return _integer(value, 0)


def _real(value: Any, divisor: int = 1) -> float:
    if isinstance(value, str) and len(value) <= _NUMBER_CHARACTERS and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = value / divisor
        except OverflowError:
            raise MisfitError from None
        if math.isfinite(number):
            return number
    raise MisfitError


def _time(value: Any, divisor: int = 1) -> float:
    """Seconds since the epoch, from a number or a time in RFC 3339 with its offset from UTC."""
    try:
        seconds = _real(value, divisor)
    except MisfitError:
        seconds = _parsed_time(value)
    if 0 <= seconds < TIME_MAX:
        return seconds
    raise MisfitError


def _parsed_time(value: Any) -> float:
    if not isinstance(value, str) or len(value) > _NUMBER_CHARACTERS:
        raise MisfitError
    try:
        found = datetime.fromisoformat(value)
        if found.tzinfo is not None:
            return found.timestamp()
    except (ValueError, OverflowError):
        pass
    raise MisfitError


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    raise MisfitError


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    raise MisfitError


def _blob(value: Any) -> bytes:
    return to_bytes(_text(value))


def _address(value: Any) -> str:
    try:
        if isinstance(value, str) and "%" not in value:
            return str(ipaddress.ip_address(value))
    except ValueError:
        pass
    raise MisfitError


def _port(value: Any) -> Value:
    """From `80/tcp`, `[80, "tcp"]` or `{"port": 80, "proto": "tcp"}`."""
    match value:
        case str() if found := _PORT.fullmatch(value):
            number, protocol = int(found[1]), found[2]
        case [int(number), str(protocol)] | {"port": int(number), "proto": str(protocol)}:
            pass
        case _:
            raise MisfitError
    if isinstance(number, bool) or not 0 <= number <= 65_535 or protocol not in ("tcp", "udp", "icmp", "unknown"):
        raise MisfitError
    return number, protocol


def _record(value: Any) -> Mapping[str, Value]:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MisfitError from None
    if isinstance(value, dict) and _can_be_passed_on(value):
        return value
    raise MisfitError


def _can_be_passed_on(value: Any) -> bool:
    """Whether what reads the value on its way can recurse into its levels, and represent its integers."""
    level = [value]
    for _ in range(NESTING_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if any(isinstance(one, int) and not INTEGER_MIN <= one <= UNSIGNED_MAX for one in level):
            return False
        if not level:
            return True
    return False


_SCALARS: Final[Mapping[str, Converter]] = {
    "address": _address,
    "blob": _blob,
    "bool": _bool,
    "count": _count,
    "enum": _text,
    "int": _integer,
    "interval": _real,
    "port": _port,
    "real": _real,
    "record": _record,
    "text": _text,
    "time": _time,
}


class Notes:
    """What had to be left out of rows: counted by cause, with an example of each unless that is not for the reader."""

    def __init__(self, *, examples: bool = True) -> None:
        self.shows_examples = examples
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, cause: str, example: str = "") -> None:
        if self.shows_examples and cause not in self._counts and example:
            self._examples[cause] = visible(clipped(example, SHOWN))
        self._counts[cause] += 1

    def texts(self) -> list[str]:
        """One sentence per cause."""
        return [
            f"{cause}: {count}" + (f", such as {self._examples[cause]}" if cause in self._examples else "")
            for cause, count in self._counts.items()
        ]


class Cells:
    """Makes rows of one table's columns from the values of each."""

    def __init__(self, columns: Sequence[OwnColumn], notes: Notes, wanted: frozenset[str] | None = None) -> None:
        """Values of columns that are not `wanted` are left out; None: all are."""
        self._converters = [
            (column, converter(column) if wanted is None or column.name in wanted else None) for column in columns
        ]
        self._notes = notes

    def row(self, value_of: Callable[[int, OwnColumn], Any]) -> Row:
        """The row with the values that the function returns for each column and its position."""
        return [
            None if convert is None else self._cell(convert, column, value_of(index, column))
            for index, (column, convert) in enumerate(self._converters)
        ]

    def _cell(self, convert: Converter, column: OwnColumn, value: Any) -> Value:
        if value is None:
            return None
        try:
            return convert(value)
        except MisfitError:
            wanted = _ARTICLES.get(column.type, f"a {column.type}" if "[" not in column.type else column.type)
            if column.type == "text":
                wanted = "text"
            self._notes.add(f"values of column {column.name} that are not {wanted} and are unset", repr(value)[:SHOWN])
            return None
