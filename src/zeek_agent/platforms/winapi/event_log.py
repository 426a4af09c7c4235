"""Windows' event logs: subscriptions that are pulled from (wevtapi.dll), and what is known of a log.

The functions are declared in winevt.h and synchapi.h. All handles of the API are closed here.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_int, c_uint32, c_uint64, c_void_p, c_wchar_p
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

from zeek_agent.platforms import winapi


class Code(IntEnum):
    """Errors of winerror.h that are handled."""

    NONE = 0
    FILE_NOT_FOUND = 2
    ACCESS_DENIED = 5
    INVALID_HANDLE = 6
    INSUFFICIENT_BUFFER = 122
    NO_MORE_ITEMS = 259
    NOT_FOUND = 1168
    TIMEOUT = 1460
    SERVER_UNAVAILABLE = 1722
    CALL_FAILED = 1726
    INVALID_BOUND = 1734
    INVALID_OPERATION = 4317
    INVALID_QUERY = 15001
    CHANNEL_NOT_FOUND = 15007
    RESULT_STALE = 15011
    INVALID_POSITION = 15012


_MEANINGS: Final[dict[int, str]] = {
    Code.NONE: "this system has no event logs",
    Code.ACCESS_DENIED: "access is denied: that takes an administrator, or a member of Event Log Readers",
    Code.SERVER_UNAVAILABLE: "the service Windows Event Log is not running",
    Code.CHANNEL_NOT_FOUND: "there is no such log",
    Code.RESULT_STALE: "the log was cleared or has wrapped around",
    Code.INVALID_POSITION: "the log was cleared or has wrapped around",
}

START_AT_OLDEST: Final = 2
START_AFTER_BOOKMARK: Final = 3
_QUERY_CHANNEL: Final = 0x1
_QUERY_REVERSE: Final = 0x200
_OPEN_CHANNEL: Final = 1
_RENDER_XML: Final = 1
_MESSAGE_OF_EVENT: Final = 1
_LOG_NUMBER_OF_RECORDS: Final = 5
_LOG_OLDEST_RECORD: Final = 6
_WAIT_FAILED: Final = 0xFFFF_FFFF
_WAIT_OBJECT_0: Final = 0

_READ_MILLISECONDS: Final = 500
_BUFFER_BYTES: Final = 1 << 16
_BUFFER_BYTES_MAX: Final = 1 << 23
"""A rendered event has 64 KiB of values, escaped and in UTF-16: less than 1 MiB."""
_MESSAGE_CHARACTERS_MAX: Final = 1 << 17
_PUBLISHERS_MAX: Final = 64

Handle: TypeAlias = int


class Variant(ctypes.Structure):
    """EVT_VARIANT, of which integers are read here."""

    _fields_ = (("value", c_uint64), ("count", c_uint32), ("type", c_uint32))


class EventLogError(OSError):
    """A call of the API failed. `code` is the number that GetLastError returned."""

    def __init__(self, call: str, code: int) -> None:
        self.code = code
        super().__init__(f"{call}: {_MEANINGS.get(code) or _text_of(code)} (error {code})")


class LogRange(NamedTuple):
    """The numbers of the oldest and of the newest record of a log, both 0 if it is empty."""

    oldest: int
    newest: int


class RenderedEvent(NamedTuple):
    """An event as XML, or None if it could not be rendered, and the message that its publisher makes of it."""

    xml: str | None
    message: str | None = None


PROTOTYPES: Final[dict[str, tuple[object, Sequence[object]]]] = {
    "EvtSubscribe": (
        c_void_p,
        (c_void_p, c_void_p, c_wchar_p, c_wchar_p, c_void_p, c_void_p, c_void_p, c_uint32),
    ),
    "EvtQuery": (c_void_p, (c_void_p, c_wchar_p, c_wchar_p, c_uint32)),
    "EvtNext": (c_int, (c_void_p, c_uint32, POINTER(c_void_p), c_uint32, c_uint32, POINTER(c_uint32))),
    "EvtRender": (
        c_int,
        (c_void_p, c_void_p, c_uint32, c_uint32, c_void_p, POINTER(c_uint32), POINTER(c_uint32)),
    ),
    "EvtClose": (c_int, (c_void_p,)),
    "EvtCreateBookmark": (c_void_p, (c_wchar_p,)),
    "EvtOpenLog": (c_void_p, (c_void_p, c_wchar_p, c_uint32)),
    "EvtGetLogInfo": (c_int, (c_void_p, c_uint32, c_uint32, POINTER(Variant), POINTER(c_uint32))),
    "EvtOpenPublisherMetadata": (c_void_p, (c_void_p, c_wchar_p, c_wchar_p, c_uint32, c_uint32)),
    "EvtFormatMessage": (
        c_int,
        (
            *(c_void_p, c_void_p, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32),
            *(c_void_p, POINTER(c_uint32)),
        ),
    ),
}
"""Result and arguments of each function of wevtapi.dll. BOOL is an int; EVT_HANDLE and HANDLE are pointers."""

KERNEL_PROTOTYPES: Final[dict[str, tuple[object, Sequence[object]]]] = {
    "CreateEventW": (c_void_p, (c_void_p, c_int, c_int, c_wchar_p)),
    "SetEvent": (c_int, (c_void_p,)),
    "ResetEvent": (c_int, (c_void_p,)),
    "WaitForSingleObject": (c_uint32, (c_void_p, c_uint32)),
    "CloseHandle": (c_int, (c_void_p,)),
}
"""The same for kernel32.dll."""


class EventLog:
    """The API. Thread-safe, apart from its subscriptions, of which each belongs to one thread at a time."""

    def __init__(self, wevtapi: Any = None, kernel32: Any = None, last_error: Callable[[], int] | None = None) -> None:
        """Without arguments, those of Windows. Raises OSError elsewhere."""
        self._wevtapi = winapi.library("wevtapi") if wevtapi is None else wevtapi
        self._kernel32 = winapi.library("kernel32") if kernel32 is None else kernel32
        self._last_error = _last_error if last_error is None else last_error
        _declare(self._wevtapi, PROTOTYPES)
        _declare(self._kernel32, KERNEL_PROTOTYPES)

    def log_range(self, channel: str) -> LogRange:
        """The records that a log has now. Raises EventLogError."""
        log = self._checked("EvtOpenLog", self._wevtapi.EvtOpenLog(None, channel, _OPEN_CHANNEL))
        with self._closing(log):
            count = self._log_number(log, _LOG_NUMBER_OF_RECORDS)
            oldest = self._log_number(log, _LOG_OLDEST_RECORD)
        return LogRange(oldest, oldest + count - 1) if count else LogRange(0, 0)

    def has_event(self, channel: str, query: str) -> bool:
        """Whether the log has an event that matches an XPath query. Raises EventLogError."""
        flags = _QUERY_CHANNEL | _QUERY_REVERSE
        results = self._checked("EvtQuery", self._wevtapi.EvtQuery(None, channel, query, flags))
        with self._closing(results):
            events = self.next_events(results, 1)
            self.close_all(events)
            return bool(events)

    def subscribe(self, channel: str, query: str, after: int | None) -> Subscription:
        """Subscribe to the events that match an XPath query: those after a record, or else all.

        Raises EventLogError.
        """
        signal = self._checked("CreateEventW", self._kernel32.CreateEventW(None, True, True, None))
        bookmark = None
        try:
            if after is not None:
                text = bookmark_xml(channel, after)
                bookmark = self._checked("EvtCreateBookmark", self._wevtapi.EvtCreateBookmark(text))
            flags = START_AT_OLDEST if bookmark is None else START_AFTER_BOOKMARK
            results = self._checked(
                "EvtSubscribe",
                self._wevtapi.EvtSubscribe(None, signal, channel, query, bookmark, None, None, flags),
            )
        except BaseException:
            self._kernel32.CloseHandle(signal)
            raise
        finally:
            if bookmark is not None:
                self._wevtapi.EvtClose(bookmark)
        return Subscription(self, results, signal)

    def _checked(self, call: str, handle: Handle | None) -> Handle:
        if not handle:
            raise EventLogError(call, self._last_error())
        return handle

    def _log_number(self, log: Handle, what: int) -> int:
        value, used = Variant(), c_uint32()
        size = ctypes.sizeof(value)
        if not self._wevtapi.EvtGetLogInfo(log, what, size, ctypes.byref(value), ctypes.byref(used)):
            raise EventLogError("EvtGetLogInfo", self._last_error())
        return int(value.value)

    def next_events(self, results: Handle, count: int) -> list[Handle]:
        """Up to `count` events, to be closed; none if there are no more. Raises EventLogError."""
        events, returned = (c_void_p * count)(), c_uint32()
        if not self._wevtapi.EvtNext(results, count, events, _READ_MILLISECONDS, 0, ctypes.byref(returned)):
            code = self._last_error()
            if code not in {Code.NO_MORE_ITEMS, Code.TIMEOUT}:
                raise EventLogError("EvtNext", code)
            return []
        return [event for event in events[: returned.value] if event]

    def render(self, event: Handle, size: int = _BUFFER_BYTES) -> str:
        """An event as XML. Raises EventLogError."""
        buffer, used, count = ctypes.create_string_buffer(size), c_uint32(), c_uint32()
        arguments = (_RENDER_XML, size, buffer, ctypes.byref(used), ctypes.byref(count))
        if self._wevtapi.EvtRender(None, event, *arguments):
            return buffer.raw[: min(used.value, size) & ~1].decode("utf-16-le", "surrogatepass").rstrip("\0")
        code = self._last_error()
        if code == Code.INSUFFICIENT_BUFFER and size < used.value <= _BUFFER_BYTES_MAX:
            return self.render(event, used.value)
        raise EventLogError("EvtRender", code)

    def message(self, event: Handle, publisher: Handle, size: int = 2_048) -> str | None:
        """The message of an event in the system's language; None if the publisher has none."""
        buffer, used = ctypes.create_string_buffer(2 * size), c_uint32()
        arguments = (0, 0, None, _MESSAGE_OF_EVENT, size, buffer, ctypes.byref(used))
        if self._wevtapi.EvtFormatMessage(publisher, event, *arguments):
            characters = min(used.value, size)
            return buffer.raw[: 2 * characters].decode("utf-16-le", "replace").rstrip("\0")
        if self._last_error() == Code.INSUFFICIENT_BUFFER and size < used.value <= _MESSAGE_CHARACTERS_MAX:
            return self.message(event, publisher, used.value)
        return None

    def publisher(self, name: str) -> Handle | None:
        """The texts of a publisher, to be closed; None if it is not installed."""
        return self._wevtapi.EvtOpenPublisherMetadata(None, name, None, 0, 0) or None

    def wait(self, signal: Handle, seconds: float) -> None:
        """Wait until a signal is set or the time is over, and reset it. Raises EventLogError.

        It is reset before events are read, so that one that arrives meanwhile sets it again.
        """
        result = self._kernel32.WaitForSingleObject(signal, int(seconds * 1_000))
        if result == _WAIT_FAILED:
            raise EventLogError("WaitForSingleObject", self._last_error())
        if result == _WAIT_OBJECT_0:
            self._kernel32.ResetEvent(signal)

    def set_signal(self, signal: Handle) -> None:
        self._kernel32.SetEvent(signal)

    def close_signal(self, signal: Handle) -> None:
        self._kernel32.CloseHandle(signal)

    def close_all(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            self._wevtapi.EvtClose(handle)

    @contextmanager
    def _closing(self, handle: Handle) -> Iterator[None]:
        try:
            yield
        finally:
            self._wevtapi.EvtClose(handle)


class Subscription:
    """A subscription to a log. `wake` may be called from any thread, everything else from one at a time."""

    def __init__(self, api: EventLog, results: Handle, signal: Handle) -> None:
        self._api = api
        self._results: Handle | None = results
        self._signal: Handle | None = signal
        self._lock = threading.Lock()
        self._publishers: OrderedDict[str, Handle | None] = OrderedDict()

    def wait(self, seconds: float) -> None:
        """Wait until there are events, `wake` is called, or the time is over. Raises EventLogError."""
        if self._signal is not None:
            self._api.wait(self._signal, seconds)

    def wake(self) -> None:
        """End `wait` now."""
        with self._lock:  # the handle's number may be another one's once it is closed
            if self._signal is not None:
                self._api.set_signal(self._signal)

    def read(self, count: int, publisher_of: Callable[[str], str | None] | None = None) -> list[RenderedEvent]:
        """Up to `count` events; none if there are no more at present. Raises EventLogError.

        `publisher_of` returns the publisher of an event (XML); with it, events have their messages.
        """
        api = self._api
        assert self._results is not None
        events = api.next_events(self._results, count)
        try:
            return [self._rendered(event, publisher_of) for event in events]
        finally:
            api.close_all(events)

    def _rendered(self, event: Handle, publisher_of: Callable[[str], str | None] | None) -> RenderedEvent:
        api = self._api
        try:
            xml = api.render(event)
        except EventLogError:
            return RenderedEvent(None)
        name = publisher_of(xml) if publisher_of is not None else None
        publisher = self._publisher(name) if name else None
        return RenderedEvent(xml, None if publisher is None else api.message(event, publisher))

    def _publisher(self, name: str) -> Handle | None:
        """The texts of a publisher; None if it is not installed."""
        if name not in self._publishers:
            self._publishers[name] = self._api.publisher(name)
            if len(self._publishers) > _PUBLISHERS_MAX:
                _, oldest = self._publishers.popitem(last=False)
                self._api.close_all([oldest] if oldest else [])
        return self._publishers[name]

    def close(self) -> None:
        """End the subscription. May be called twice."""
        api = self._api
        publishers, self._publishers = self._publishers, OrderedDict()
        results, self._results = self._results, None
        with self._lock:
            signal, self._signal = self._signal, None
        handles = [*publishers.values(), results]
        api.close_all([handle for handle in handles if handle])
        if signal is not None:
            api.close_signal(signal)


def bookmark_xml(channel: str, record: int) -> str:
    """The bookmark of a record, as EvtRender writes bookmarks."""
    return f"<BookmarkList><Bookmark Channel='{channel}' RecordId='{record}' IsCurrent='true'/></BookmarkList>"


def _declare(library: Any, prototypes: dict[str, tuple[object, Sequence[object]]]) -> None:
    for name, (result, arguments) in prototypes.items():
        function = winapi.function(library, name)
        function.restype, function.argtypes = result, list(arguments)


def _last_error() -> int:
    if sys.platform == "win32":
        return ctypes.get_last_error()
    raise winapi.NotWindowsError("GetLastError")


def _text_of(code: int) -> str:
    """Windows' text of an error, in the system's language."""
    text = "Windows' error"
    if sys.platform == "win32":
        text = ctypes.FormatError(code).strip() or text
    return text
