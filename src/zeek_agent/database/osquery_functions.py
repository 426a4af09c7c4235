"""Functions that osquery adds to SQL, with its results: https://osquery.readthedocs.io/en/stable/introduction/sql/.

Each takes time and memory in proportion to its arguments.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import math
from typing import Any

from zeek_agent.database.sql_values import as_bytes, as_real, as_text
from zeek_agent.errors import SqlError
from zeek_agent.text import from_bytes


def md5(value: Any) -> str | None:
    """The MD5 digest of the value's bytes, in hexadecimal."""
    return None if value is None else hashlib.md5(as_bytes(value), usedforsecurity=False).hexdigest()


def sha1(value: Any) -> str | None:
    """The SHA-1 digest of the value's bytes, in hexadecimal."""
    return None if value is None else hashlib.sha1(as_bytes(value), usedforsecurity=False).hexdigest()


def sha256(value: Any) -> str | None:
    """The SHA-256 digest of the value's bytes, in hexadecimal."""
    return None if value is None else hashlib.sha256(as_bytes(value)).hexdigest()


def to_base64(value: Any) -> str | None:
    """The value's bytes in Base64."""
    return None if value is None else base64.b64encode(as_bytes(value)).decode()


def from_base64(value: Any) -> str | None:
    """The text that is encoded so; empty if it is not Base64. Line breaks and missing `=` at the end are accepted."""
    if value is None:
        return None
    digits = as_bytes(value).replace(b"\r\n", b"").replace(b"\n", b"").rstrip(b"=")
    try:
        return from_bytes(base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True))
    except binascii.Error:
        return ""


def conditional_to_base64(value: Any) -> str | None:
    """The value as text, or in Base64 if it has characters other than printable ASCII."""
    if value is None:
        return None
    raw = as_bytes(value)
    if raw.isascii() and (text := raw.decode()).isprintable():
        return text
    return base64.b64encode(raw).decode()


def inet_aton(address: Any) -> int | None:
    """The IPv4 address as a number; NULL if it is not one."""
    try:
        return None if address is None else int(ipaddress.IPv4Address(as_text(address)))
    except ValueError:
        return None


def parent_directory(path: Any) -> str | None:
    """The path without its last component and the slash before that; NULL without a slash."""
    if path is None:
        return None
    if not isinstance(path, str):
        raise SqlError("parent_directory: the path is not a text")
    directory, slash, _ = path.rpartition("/")
    return directory if slash else None


def cot(angle: Any) -> float | None:
    """The cotangent of an angle in radians; NULL if the argument is not a number."""
    radians = as_real(angle)
    if radians is None or not math.isfinite(radians):
        return None
    tangent = math.tan(radians)
    return 1.0 / tangent if tangent else math.copysign(math.inf, tangent)


class StandardDeviation:
    """Aggregate: the sample standard deviation of the values that are numbers; NULL if there are fewer than two, or the
    variance exceeds a float."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def step(self, value: Any) -> None:
        """Add a row's value by Welford's method, which stores no values."""
        number = as_real(value)
        if number is None:
            return
        self._count += 1
        deviation = number - self._mean
        self._mean += deviation / self._count
        self._squares += deviation * (number - self._mean)

    def final(self) -> float | None:
        """The result, or None for NULL."""
        if self._count < 2 or not math.isfinite(self._squares):
            return None
        return math.sqrt(self._squares / (self._count - 1))
