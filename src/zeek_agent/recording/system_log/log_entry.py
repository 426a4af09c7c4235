"""Entries of the system's log, from any source, as rows of the table `system_logs_events`."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

SYSTEM_LOGS_EVENTS: Final = "system_logs_events"
MESSAGE_BYTES: Final = 65_536
"""Maximum of a message, and more than syslog daemons accept; the rest is cut off."""


class SystemLogEntry(Struct, frozen=True, gc=False):  # its values are scalars, so it is in no reference cycle
    """A row; None for values that a source does not provide."""

    time: float
    process: str | None
    level: str | None
    message: str | None
    eventid: str | None = None
    pid: int | None = None
    uid: int | None = None
    exe: str | None = None
    unit: str | None = None
    identifier: str | None = None
    facility: int | None = None
    cursor: str | None = None


def bounded(message: bytes) -> bytes:
    """The message, truncated if it is too long, between two characters if it is UTF-8."""
    if len(message) <= MESSAGE_BYTES:
        return message
    end = MESSAGE_BYTES
    while end > MESSAGE_BYTES - 4 and message[end] & 0xC0 == 0x80:
        end -= 1
    return message[:end]
