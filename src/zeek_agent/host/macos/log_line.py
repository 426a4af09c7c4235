"""Lines of `log stream --style ndjson`: entries of macOS's unified log, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Struct

from zeek_agent.host.macos.json_records import MalformedRecordError, count, decoded, microseconds, text, valid_json

HEADER: Final = b"Filtering the log data"
"""Begins the first line, which is not JSON; the rest is the predicate."""
LEVELS: Final[Mapping[str, str]] = {"Default": "5", "Info": "6", "Debug": "7", "Error": "3", "Fault": "2"}
"""The severity in syslog of each type of message."""
_LOSS: Final = "lossEvent"
_ID_MAX: Final = 0xFFFF_FFFF

FIELDS: Final[Mapping[str, str]] = {
    "timestamp": "time",
    "messageType": "level",
    "eventType": "counted: a loss; anything else is an entry",
    "lossCount": "counted: lost entries",
    "eventMessage": "message",
    "processImagePath": "exe, process",
    "processID": "pid",
    "userID": "uid",
    "subsystem": "identifier",
    "category": "identifier",
    "traceID": "dropped: identifies the call in the program",
    "formatString": "dropped: message has it with its values",
    "threadID": "dropped: entries are those of processes",
    "machTimestamp": "dropped: the same as timestamp, in ticks since the boot",
    "timezoneName": "dropped: time has no time zone",
    "senderImagePath": "dropped: the library that logged; exe is the program",
    "senderImageUUID": "dropped: the same",
    "senderProgramCounter": "dropped: the same",
    "processImageUUID": "dropped: identifies the build of the program",
    "bootUUID": "dropped: entries are those since the start of recording",
    "activityIdentifier": "dropped: no column shows activities",
    "parentActivityIdentifier": "dropped: no column shows activities",
    "creatorActivityID": "dropped: no column shows activities",
    "backtrace": "dropped: frames of the program's stack",
    "source": "dropped: line of the program's source, if it is known",
}
"""Each field, with the columns of `system_logs_events` that it determines, or why it has none."""


class LogRecord(NamedTuple):
    """An entry. `time` is in microseconds since the epoch; None: not known."""

    time: int
    level: str | None
    message: str | None
    exe: str | None
    pid: int | None
    uid: int | None
    subsystem: str | None
    category: str | None


class Loss(NamedTuple):
    """The number of entries that the system dropped, because it had more than `log` read."""

    entries: int


class Unreadable(NamedTuple):
    """A line that is not an entry."""

    reason: str


class _Line(Struct, rename="camel"):
    timestamp: Any = None
    message_type: Any = None
    event_type: Any = None
    event_message: Any = None
    loss_count: Any = None
    process_image_path: Any = None
    processID: Any = None  # noqa: N815 - the names of the record
    userID: Any = None  # noqa: N815
    subsystem: Any = None
    category: Any = None


ReadLine: TypeAlias = LogRecord | Loss | Unreadable


def read_line(line: bytes) -> ReadLine:
    """The entry of a line of any content. Never raises."""
    try:
        found = decoded(valid_json(line), _Line)
    except MalformedRecordError as error:
        return Unreadable(str(error))
    if found.event_type == _LOSS:
        return Loss(count(found.loss_count) or 1)
    time = microseconds(found.timestamp)
    if time is None:
        return Unreadable("the entry has no timestamp")
    message = found.event_message
    return LogRecord(
        time=time,
        level=LEVELS.get(found.message_type) if isinstance(found.message_type, str) else None,
        message=message.replace("\0", "") if isinstance(message, str) else None,
        exe=text(found.process_image_path),
        pid=count(found.processID, 0x7FFF_FFFF),
        uid=count(found.userID, _ID_MAX),
        subsystem=text(found.subsystem),
        category=text(found.category),
    )
