"""Reads one event of a Windows event log, as EvtRender and `wevtutil qe` write it.

The values of an event are chosen by whoever caused it, so the parser accepts no more of XML than such events contain:
document types, entity declarations, comments and processing instructions are refused, and size, depth and number of
fields are bounded. Characters that XML does not permit, which names and command lines of Windows can contain, become
U+FFFD: they must not make an event unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NoReturn
from xml.parsers import expat

from msgspec import Struct

NAMESPACE: Final = "http://schemas.microsoft.com/win/2004/08/events/event"
CHARACTERS_MAX: Final = 1 << 20
"""Longest event. Windows limits an event's data to 64 KiB, which escaping makes six times as long at most."""
DEPTH_MAX: Final = 16
FIELDS_MAX: Final = 512
ATTRIBUTES_MAX: Final = 1_024
"""In the whole event, with declarations of namespaces."""

FILETIME_EPOCH: Final = 116_444_736_000_000_000
"""The Unix epoch as a FILETIME: in units of 100 ns since 1601."""
_COUNT_MAX: Final = 2**64 - 1

_REPLACEMENT: Final = "\ufffd"
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_REFERENCE: Final = re.compile(r"&#(?:x([0-9a-fA-F]{1,8})|([0-9]{1,10}));")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z?", re.ASCII)
_DECIMAL: Final = re.compile(r"\d{1,20}", re.ASCII)


class EventXmlError(ValueError):
    """An event that cannot be read; the message is the reason, without the event's contents."""


class WindowsEvent(Struct, frozen=True):
    """An event. `data` has the named values of EventData or UserData, `unnamed` those without a name, in order.

    `filetime` is when it was logged, in units of 100 ns since 1601; `process_id` is the process that logged it, which
    for most events is that of a service.
    """

    provider: str
    event_id: int
    version: int
    level: int
    keywords: int
    filetime: int
    record_id: int
    process_id: int | None
    channel: str
    computer: str
    user_sid: str | None
    data: Mapping[str, str]
    unnamed: tuple[str, ...]

    @property
    def time(self) -> float:
        """When it was logged, in seconds since the epoch."""
        return epoch_seconds(self.filetime)


def parse_event(xml: str) -> WindowsEvent:
    """Read an event. Raises EventXmlError for anything else."""
    if len(xml) > CHARACTERS_MAX:
        raise EventXmlError(f"longer than {CHARACTERS_MAX:,} characters")
    reader = _Reader()
    try:
        reader.parser.Parse(_permitted(xml).encode(), True)
    except expat.ExpatError as error:
        raise EventXmlError(f"not well-formed: {error}") from error
    return reader.event()


def epoch_seconds(filetime: int) -> float:
    """A FILETIME as seconds since the Unix epoch."""
    return (filetime - FILETIME_EPOCH) / 1e7


def parse_time(text: str) -> int:
    """A time in UTC with up to 9 digits of a second, as a FILETIME. Raises ValueError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not a time")
    whole = datetime.fromisoformat(f"{match[1]}T{match[2]}").replace(tzinfo=UTC)
    since_epoch = (whole - datetime(1970, 1, 1, tzinfo=UTC)) // _SECOND
    return since_epoch * 10_000_000 + int((match[3] or "0").ljust(9, "0")[:7]) + FILETIME_EPOCH


_SECOND: Final = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)


class _Reader:
    """Collects an event's values from the parser's calls."""

    def __init__(self) -> None:
        self.parser = parser = expat.ParserCreate("utf-8", namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.StartNamespaceDeclHandler = lambda *_: self._count_attributes(1)
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        for name in (
            *("StartDoctypeDeclHandler", "EntityDeclHandler", "AttlistDeclHandler", "ElementDeclHandler"),
            *("NotationDeclHandler", "UnparsedEntityDeclHandler", "ExternalEntityRefHandler", "SkippedEntityHandler"),
        ):
            setattr(parser, name, _refuse_declaration)
        parser.ProcessingInstructionHandler = _refuse_instruction
        parser.CommentHandler = _refuse_comment
        self._path: list[str] = []
        self._pieces: list[str] = []
        self._name: str | None = None
        self._is_leaf = False
        self._attributes = 0
        self._fields = 0
        self._system: dict[str, str] = {}
        self._data: dict[str, str] = {}
        self._unnamed: list[str] = []

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count_attributes(len(attributes))
        if len(self._path) >= DEPTH_MAX:
            raise EventXmlError(f"more than {DEPTH_MAX} levels")
        self._path.append(_local_name(name, is_foreign=self._path[1:2] == ["UserData"]))
        if len(self._path) == 1 and self._path != ["Event"]:
            raise EventXmlError("the root is not an event")
        self._pieces = []
        self._is_leaf = True
        if self._path[1:2] == ["System"]:
            self._start_of_system(attributes)
        elif self._path[1:] == ["EventData", "Data"]:
            self._name = attributes.get("Name")

    def _count_attributes(self, count: int) -> None:
        self._attributes += count
        if self._attributes > ATTRIBUTES_MAX:
            raise EventXmlError(f"more than {ATTRIBUTES_MAX:,} attributes")

    def _start_of_system(self, attributes: dict[str, str]) -> None:
        """Attributes of System's elements, as `Provider@Name`."""
        if len(self._path) == 3:
            for attribute, value in attributes.items():
                self._set(f"{self._path[2]}@{attribute}", value)

    def _end(self, _: str) -> None:
        text, self._pieces = "".join(self._pieces), []
        match self._path[1:]:
            case ["System", element] if self._is_leaf:
                self._set(element, text)
            case ["EventData", "Data"]:
                self._add(self._name, text)
            case ["UserData", *_, element] if self._is_leaf:
                self._add(element, text)
        self._is_leaf = False
        self._path.pop()

    def _text(self, text: str) -> None:
        self._pieces.append(text)

    def _set(self, name: str, value: str) -> None:
        if name in self._system:
            raise EventXmlError(f"{name} occurs twice")
        self._system[name] = value

    def _add(self, name: str | None, value: str) -> None:
        self._fields += 1
        if self._fields > FIELDS_MAX:
            raise EventXmlError(f"more than {FIELDS_MAX} values")
        if name is None or name in self._data:
            self._unnamed.append(value)
        else:
            self._data[name] = value

    def event(self) -> WindowsEvent:
        """The event that was read."""
        system = self._system
        return WindowsEvent(
            provider=self._required("Provider@Name"),
            event_id=self._number("EventID", 0xFFFF),
            version=self._number("Version", 0xFF, "0"),
            level=self._number("Level", 0xFF, "0"),
            keywords=_hexadecimal(system.get("Keywords", "0x0")),
            filetime=self._time(),
            record_id=self._number("EventRecordID", _COUNT_MAX),
            process_id=self._number("Execution@ProcessID", 0xFFFF_FFFF) if "Execution@ProcessID" in system else None,
            channel=self._required("Channel"),
            computer=self._required("Computer"),
            user_sid=system.get("Security@UserID") or None,
            data=self._data,
            unnamed=tuple(self._unnamed),
        )

    def _required(self, name: str) -> str:
        value = self._system.get(name)
        if not value:
            raise EventXmlError(f"{name} is missing")
        return value

    def _number(self, name: str, largest: int, default: str | None = None) -> int:
        value = self._required(name) if default is None else self._system.get(name) or default
        if _DECIMAL.fullmatch(value) is None or int(value) > largest:
            raise EventXmlError(f"{name} is not a number up to {largest}")
        return int(value)

    def _time(self) -> int:
        try:
            return parse_time(self._required("TimeCreated@SystemTime"))
        except EventXmlError:
            raise
        except ValueError as error:
            raise EventXmlError("TimeCreated@SystemTime is not a time") from error


def _local_name(name: str, *, is_foreign: bool) -> str:
    """An element's name without its namespace, which must be that of events, except in UserData."""
    namespace, _, local = name.rpartition(" ")
    if not is_foreign and namespace != NAMESPACE:
        raise EventXmlError("an element is not in the namespace of events")
    return local


def _hexadecimal(text: str) -> int:
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text) is None:
        raise EventXmlError("Keywords is not a hexadecimal number")
    return int(text, 16)


def _permitted(xml: str) -> str:
    """The text with each character that XML 1.0 does not permit, also as a reference, replaced."""
    xml = _NOT_XML.sub(_REPLACEMENT, xml)
    return _REFERENCE.sub(_permitted_reference, xml) if "&#" in xml else xml


def _permitted_reference(match: re.Match[str]) -> str:
    code = int(match[1], 16) if match[1] else int(match[2])
    is_permitted = code <= 0x10FFFF and _NOT_XML.match(chr(code)) is None
    return match[0] if is_permitted else _REPLACEMENT


def _refuse_declaration(*_: object) -> NoReturn:
    raise EventXmlError("it has a document type or declares entities")


def _refuse_instruction(*_: object) -> NoReturn:
    raise EventXmlError("it has a processing instruction")


def _refuse_comment(*_: object) -> NoReturn:
    raise EventXmlError("it has a comment")
