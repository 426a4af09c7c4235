"""Times and durations as text: the SQL functions `timestamp` and `ago`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from zeek_agent.errors import SqlError
from zeek_agent.text import clipped

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(\.\d{1,9})?)?\s?([Zz]|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_NUMBER: Final = re.compile(r"\d{9,18}(\.\d{1,18})?", re.ASCII)
"""Seconds since the epoch; fewer digits are more likely a year, or a date without hyphens."""
_DURATION: Final = re.compile(r"(?:\d{1,15}(?:\.\d{1,15})?\s*[a-zA-Z]+[\s,]*)+", re.ASCII)
_PART: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([a-zA-Z]+)", re.ASCII)
_TEXT_CHARACTERS_MAX: Final = 200
_UNITS: Final = {
    "us": 1e-6,
    "usec": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "d": 86_400.0,
    "day": 86_400.0,
    "w": 604_800.0,
    "week": 604_800.0,
}


def timestamp(value: Any) -> float | None:
    """The time in seconds since the epoch, from a text such as `2026-11-28T03:20:00Z`, `2026-11-28 04:20:00.5+01:00` or
    `2026-11-28`; in UTC unless the text has an offset. Numbers are returned as they are.
    """
    if value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    content = value.strip() if isinstance(value, str) and len(value) <= _TEXT_CHARACTERS_MAX else ""
    if _NUMBER.fullmatch(content):
        return float(content)
    found = _TIME.fullmatch(content)
    try:
        if found is not None:
            return _seconds(found)
    except ValueError:  # such as February 30
        pass
    raise SqlError(f"timestamp: {_shown(value)} is not a time; write it like '2026-11-28T03:20:00Z' or '2026-11-28'")


def _seconds(found: re.Match[str]) -> float:
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC)
    if offset is not None and offset not in "Zz":
        hours, minutes = int(offset[:3]), int(offset[0] + offset[-2:])
        moment = moment.replace(tzinfo=timezone(timedelta(hours=hours, minutes=minutes)))
    return (moment - _EPOCH).total_seconds() + float(fraction or 0)


def ago(now: Callable[[], float], duration: Any) -> float | None:
    """The time that long before the statement began, in seconds since the epoch: `ago('10 minutes')`, `ago('1h 30m')`.
    Units are `s`, `min`, `h`, `d`, `w`, `ms` and `us`, or their names. A number is in seconds.
    """
    if duration is None:
        return None
    if isinstance(duration, int | float):
        return now() - duration
    content = duration.strip() if isinstance(duration, str) and len(duration) <= _TEXT_CHARACTERS_MAX else ""
    if _DURATION.fullmatch(content):
        parts = [(float(number), _unit(unit.lower())) for number, unit in _PART.findall(content)]
        if all(seconds is not None for _, seconds in parts):
            return now() - sum(number * (seconds or 0.0) for number, seconds in parts)
    raise SqlError(f"ago: {_shown(duration)} is not a duration; write it like '10 minutes', '1h 30m' or '2 days'")


def _unit(name: str) -> float | None:
    return _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))


def _shown(value: Any) -> str:
    return repr(clipped(value, 40)) if isinstance(value, str) else repr(value)[:60]
