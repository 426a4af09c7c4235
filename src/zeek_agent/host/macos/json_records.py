"""JSON records that programs of macOS write, one per line, and values in them, whatever their type.

Text in a record is a name, path or argument of any process. Bytes that are not UTF-8 and unpaired surrogates are not
valid JSON, but may occur: the former are kept, in the form of `text.py`, the latter become U+FFFD.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from zeek_agent.text import from_bytes

_Record = TypeVar("_Record")

_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u(?P<lone>[dD][89a-fA-F][0-9a-fA-F]{2})|u(?P<private>[eE][fF][89a-fA-F][0-9a-fA-F])|.)",
    re.DOTALL,
)
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MICROSECONDS_MAX: Final = (1 << 53) - 1
"""More than any `datetime`, and exact as a float."""


class MalformedRecordError(ValueError):
    """A line or a part of a record that is not JSON, or not of the type that it needs to be."""


def decoded(raw: bytes | msgspec.Raw, record: type[_Record]) -> _Record:
    """A JSON object as `record`, a Struct; other fields are skipped. Raises MalformedRecordError."""
    try:
        return msgspec.json.decode(raw, type=record)
    except msgspec.DecodeError as error:
        raise MalformedRecordError(str(error)) from None
    except RecursionError:
        raise MalformedRecordError("JSON is nested too deeply") from None


def valid_json(line: bytes) -> bytes:
    """The line with all text in the form of `text.py`, which is valid JSON if the rest of the line is."""
    if not line.isascii():
        line = from_bytes(line).encode()
    return _ESCAPE.sub(_valid_escape, line) if rb"\u" in line else line


def _valid_escape(match: re.Match[bytes]) -> bytes:
    if match["lone"] is not None:
        return rb"\ufffd"
    if match["private"] is not None:
        return from_bytes(chr(int(match["private"], 16)).encode()).encode()
    return match[0]


def text(value: Any) -> str | None:
    """A text that is not empty, up to its first NUL, which the system's strings cannot contain."""
    return value.partition("\0")[0] or None if isinstance(value, str) else None


def count(value: Any, highest: int = (1 << 63) - 1) -> int | None:
    """A whole number from 0 to `highest`."""
    return value if type(value) is int and 0 <= value <= highest else None


def unsigned(value: Any) -> int | None:
    """A number of 32 bits; one written as a negative number is the same bits without a sign."""
    return value & 0xFFFF_FFFF if type(value) is int and -(1 << 31) <= value < 1 << 32 else None


def member(value: Any, *names: str) -> Any:
    """A member of nested objects; None if one of them is missing or not an object."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def microseconds(value: Any) -> int | None:
    """A time as whole microseconds since the epoch: RFC 3339, or a number of microseconds."""
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value) is not None:
        try:
            value = (datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND
        except (ValueError, OverflowError):
            return None
    return count(value, _MICROSECONDS_MAX)
