"""SQL values as arguments of functions: conversions that follow SQLite's casts."""

from __future__ import annotations

import re
from typing import Any, Final

from zeek_agent.errors import SqlError
from zeek_agent.text import to_bytes

_REAL: Final = re.compile(r"[ \t-\r]*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?[ \t-\r]*", re.ASCII)


def as_text(value: Any) -> str:
    """The value as SQLite casts it to text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        shown = f"{value:.15g}"
        return shown if any(character in shown for character in ".einf") else shown + ".0"
    return str(value)


def as_bytes(value: Any) -> bytes:
    """The bytes of a blob, or of the value's text as they are on the host: see `zeek_agent.text`."""
    return value if isinstance(value, bytes) else to_bytes(as_text(value))


def as_number(value: Any) -> int:
    """The value as an integer. Raises SqlError for anything that is not a number."""
    try:
        return int(value)
    except (ValueError, OverflowError) as error:
        raise SqlError(f"{value!r} is not a number") from error


def as_real(value: Any) -> float | None:
    """A number, or a text that is one, as a float; None for anything else."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and _REAL.fullmatch(value):
        return float(value)
    return None
