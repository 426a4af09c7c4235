"""Conversion of cells from a table's values to SQLite's, and from SQLite's to a result's.

Both directions convert whole columns of a batch: the set of types is computed in C, and a column whose values need no
conversion is returned unchanged. `ValueError` means that a cell does not fit its type; its text is for the operator.

In SQLite a port is `{"port": 80, "proto": "tcp"}`, a set or vector a JSON array, a record a JSON object. An integer
above SQLite's 2⁶³-1 (a socket cookie) is stored as decimal text and is an integer again in a result. A blob is text
as in `zeek_agent.text`, because SQLite's blobs match no LIKE or GLOB and equal no text; a result column that is the
table's column has its bytes again (`restore_blobs`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from zeek_agent import text
from zeek_agent.schema import SqliteValue, Value, ZeekType

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
UINT64_MAX: Final = 2**64 - 1
"""Bounds of SQLite's integers, and of Zeek's count."""

_INTEGERS: Final = frozenset({"count", "int"})
_REALS: Final = frozenset({"real", "time", "interval"})
_TEXTS: Final = frozenset({"text", "enum", "address"})
_NONE: Final = type(None)


class CellEncoder:
    """Converts the cells of one table column for SQLite. `max_bytes` bounds one text or blob."""

    def __init__(self, zeek_type: ZeekType) -> None:
        self._one = _encoder(zeek_type)
        self._is_blob = zeek_type.name == "blob"
        self._is_bool = zeek_type.name == "bool"
        self._plain: type | None = (
            int
            if zeek_type.name in _INTEGERS
            else float
            if zeek_type.name in _REALS
            else str
            if zeek_type.name in _TEXTS
            else None
        )

    def column(self, cells: tuple[Any, ...], max_bytes: int) -> tuple[Any, ...]:
        """The cells as SQLite stores them; the same tuple if none needs conversion. Raises ValueError."""
        kinds = set(map(type, cells))
        kinds.discard(_NONE)
        if kinds == {self._plain}:
            present = [cell for cell in cells if cell is not None] if None in cells else cells
            if self._plain is float:
                return cells
            if self._plain is int and max(present) <= INT64_MAX and min(present) >= INT64_MIN:
                return cells
            if self._plain is str and sum(map(len, present)) <= max_bytes and all(map(str.isascii, present)):
                return cells
        if self._is_bool and kinds == {bool} and None not in cells:
            return tuple(map(int, cells))
        if (
            self._is_blob
            and kinds == {bytes}
            and None not in cells
            and sum(map(len, cells)) <= max_bytes
            and all(map(bytes.isascii, cells))
        ):
            return tuple(map(bytes.decode, cells))
        return tuple([None if cell is None else _bounded(self._one(cell), max_bytes) for cell in cells])


def encode(zeek_type: ZeekType, value: Value) -> SqliteValue:
    """One cell as SQLite stores it. Raises ValueError when it does not fit the type."""
    return None if value is None else _encoder(zeek_type)(value)


class CellDecoder:
    """Converts the cells of one result column from SQLite."""

    def __init__(self, zeek_type: ZeekType) -> None:
        self._name = zeek_type.name
        self._one = _decoder(zeek_type)

    def column(self, cells: tuple[Any, ...]) -> tuple[Any, ...]:
        """The cells in result form; the same tuple if they already are. Raises ValueError."""
        kinds = set(map(type, cells))
        kinds.discard(_NONE)
        if not kinds or self._fits(kinds, cells):
            return cells
        return tuple([None if cell is None else self._one(cell) for cell in cells])

    def _fits(self, kinds: set[type], cells: tuple[Any, ...]) -> bool:
        name = self._name
        if name == "count":
            return kinds == {int} and min(cell for cell in cells if cell is not None) >= 0
        if name == "address":
            return kinds == {str} and all(_is_address(cell) for cell in set(cells) if cell is not None)
        plain = {"int": int, "text": str, "enum": str, "real": float, "time": float, "interval": float}.get(name)
        return kinds == {plain} or (name == "blob" and kinds <= {str, bytes})


def decode(zeek_type: ZeekType, stored: SqliteValue) -> Value:
    """One cell in result form. Raises ValueError when it does not fit the type."""
    return None if stored is None else _decoder(zeek_type)(stored)


# Into SQLite


def _bounded(stored: SqliteValue, max_bytes: int) -> SqliteValue:
    if isinstance(stored, str | bytes) and len(stored) * 4 > max_bytes:
        length = len(stored.encode()) if isinstance(stored, str) else len(stored)
        if length > max_bytes:
            raise ValueError(f"a value of {length} bytes is longer than {max_bytes}")
    return stored


@lru_cache(maxsize=256)
def _encoder(zeek_type: ZeekType) -> Callable[[Any], SqliteValue]:
    name = zeek_type.name
    if zeek_type.element is not None or name in {"port", "record"}:
        plain = _json_form(zeek_type)
        return lambda value: msgspec.json.encode(plain(value)).decode()
    if name in _INTEGERS:
        return _encode_integer
    if name in _REALS:
        return _encode_real
    return {"bool": _encode_bool, "blob": _encode_blob}.get(name, _encode_text)


def _encode_integer(value: Any) -> SqliteValue:
    if not isinstance(value, int):
        raise _misfit(value, "an integer")
    if INT64_MIN <= value <= INT64_MAX:
        return int(value)
    if 0 < value <= UINT64_MAX:
        return str(value)
    raise ValueError(f"{value} does not fit 64 bits")


def _encode_bool(value: Any) -> SqliteValue:
    if isinstance(value, int) and value in (0, 1):
        return int(value)
    raise _misfit(value, "true or false")


def _encode_real(value: Any) -> SqliteValue:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(value)
    raise _misfit(value, "a number")


def _encode_text(value: Any) -> SqliteValue:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, bytes):
        return text.from_bytes(value)
    raise _misfit(value, "text")


def _encode_blob(value: Any) -> SqliteValue:
    if isinstance(value, bytes | bytearray | memoryview):
        return text.from_bytes(bytes(value))
    if isinstance(value, str):
        return storable(value)
    raise _misfit(value, "bytes")


def restore_blobs(row: tuple[Any, ...], places: Iterable[int]) -> tuple[Any, ...]:
    """The row from SQLite with the bytes of the blobs at these places."""
    for place in places:
        cell = row[place]
        if isinstance(cell, str):
            row = (*row[:place], text.to_bytes(cell), *row[place + 1 :])
    return row


def storable(value: str) -> str:
    """Text that SQLite accepts: lone surrogates, which UTF-8 cannot encode, become text like host bytes (`text`)."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return text.from_bytes(value.encode(errors="surrogatepass"))
    return value


@lru_cache(maxsize=256)
def _json_form(zeek_type: ZeekType) -> Callable[[Any], Any]:
    """Converter from a value of this type to its JSON form."""
    name = zeek_type.name
    if zeek_type.element is not None:
        element = _json_form(zeek_type.element)
        return lambda value: [element(item) for item in _items(value)]
    if name == "port":
        return _json_port
    if name == "record":
        return _json_any
    if name == "bool":
        return lambda value: bool(_encode_bool(value))
    one = _encoder(zeek_type)
    if name == "blob":
        return lambda value: text.from_bytes(value) if isinstance(value, bytes) else one(value)
    return one


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _misfit(value, "a sequence")
    return value


def _json_port(value: Any) -> Any:
    number, protocol = _port(value)
    return {"port": number, "proto": protocol}


def _json_any(value: Any) -> Any:
    """A value in a record, which may be anything that JSON can represent."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, bytes):
        return text.from_bytes(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): _json_any(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_json_any(item) for item in value]
    return value


def _port(value: Any) -> tuple[int, str]:
    match value:
        case (int(number), str(protocol)) if 0 <= number <= 65535:
            return number, protocol
    raise _misfit(value, "a port")


# Out of SQLite


@lru_cache(maxsize=256)
def _decoder(zeek_type: ZeekType) -> Callable[[Any], Any]:
    name = zeek_type.name
    if zeek_type.element is not None or name in {"port", "record"}:
        plain = _result_form(zeek_type)
        return lambda stored: plain(_parse_json(stored, zeek_type))
    return _RESULT_FORMS.get(name, _decode_text)


def _parse_json(stored: Any, zeek_type: ZeekType) -> Any:
    if not isinstance(stored, str | bytes):
        raise _misfit(stored, f"JSON of a {zeek_type}")
    try:
        return msgspec.json.decode(stored)
    except (msgspec.DecodeError, RecursionError) as error:
        if zeek_type.name == "port" and isinstance(stored, str):
            return stored
        raise _misfit(stored, f"JSON of a {zeek_type}") from error


@lru_cache(maxsize=256)
def _result_form(zeek_type: ZeekType) -> Callable[[Any], Any]:
    """Converter from a parsed JSON value to result form."""
    name = zeek_type.name
    if zeek_type.element is not None:
        element = _result_form(zeek_type.element)
        arrange = _arranged if name == "set" else tuple
        return lambda value: arrange([element(item) for item in _items(value)])
    if name == "port":
        return _decode_port
    if name == "record":
        return _decode_record
    return _RESULT_FORMS.get(name, _decode_text)


def _arranged(items: list[Any]) -> tuple[Any, ...]:
    """A set's members without duplicates and in a fixed order, so that equal sets compare equal."""
    return tuple(sorted(set(items)))


def _decode_count(stored: Any) -> int:
    value = _decode_integer(stored)
    if value < 0:
        raise ValueError(f"{value} is negative")
    return value


def _decode_integer(stored: Any) -> int:
    if isinstance(stored, int):
        return int(stored)
    if isinstance(stored, float) and stored.is_integer() and abs(stored) <= 2**53:
        return int(stored)
    if isinstance(stored, str) and len(stored) <= 20 and stored.isdecimal() and INT64_MAX < int(stored) <= UINT64_MAX:
        return int(stored)
    raise _misfit(stored, "an integer")


def _decode_bool(stored: Any) -> bool:
    if isinstance(stored, int) and stored in (0, 1):
        return bool(stored)
    raise _misfit(stored, "true or false")


def _decode_real(stored: Any) -> float:
    if isinstance(stored, float | int) and not isinstance(stored, bool):
        return float(stored)
    raise _misfit(stored, "a number")


def _decode_text(stored: Any) -> str:
    if isinstance(stored, str):
        return stored
    raise _misfit(stored, "text")


def _decode_address(stored: Any) -> str:
    if isinstance(stored, str) and _is_address(stored):
        return stored
    raise _misfit(stored, "an address")


@lru_cache(maxsize=4096)
def _is_address(value: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in value else socket.AF_INET, value)
    except (OSError, ValueError):
        return False
    return True


def _decode_blob(stored: Any) -> bytes | str:
    if isinstance(stored, bytes | str):
        return stored
    raise _misfit(stored, "bytes")


def _decode_port(value: Any) -> tuple[int, str]:
    """From the JSON form, from `[80, "tcp"]`, which the event store writes, or from `80/tcp`."""
    if isinstance(value, dict):
        return _port((value.get("port"), value.get("proto")))
    if isinstance(value, list):
        return _port(value)
    if isinstance(value, str) and len(value) <= 40:
        number, _, protocol = value.partition("/")
        if number.isdecimal() and protocol:
            return _port((int(number), protocol))
    raise _misfit(value, "a port")


def _decode_record(value: Any) -> tuple[tuple[str, Any], ...]:
    if not isinstance(value, dict):
        raise _misfit(value, "a record")
    return tuple((name, _hashable(item)) for name, item in value.items())


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return _decode_record(value)
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def _misfit(value: Any, wanted: str) -> ValueError:
    shown = repr(value[:40] if isinstance(value, str | bytes) else value)
    return ValueError(f"{text.escaped(shown[:60])} is not {wanted}")


_RESULT_FORMS: Final[dict[str, Callable[[Any], Any]]] = {
    "count": _decode_count,
    "int": _decode_integer,
    "bool": _decode_bool,
    **dict.fromkeys(_REALS, _decode_real),
    "address": _decode_address,
    "blob": _decode_blob,
}
