"""Windows' event log functions, on logs in memory: what `platforms/winapi/event_log.py` calls, without Windows.

A log has room for some records and then overwrites the oldest ones. Errors are injected per function. Handles are
checked: using a closed one, or leaving one open, is found by the tests.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from ctypes import Array, _Pointer, c_void_p, memmove  # type: ignore[attr-defined]
from typing import Any

from zeek_agent.platforms.winapi.event_log import START_AFTER_BOOKMARK, Code, EventLog

_ID = re.compile(r"<EventID>(\d+)</EventID>")
_WANTED = re.compile(r"EventID=(\d+)")


class FakeLog:
    """A log: records by number, of which only the last `room` are kept."""

    def __init__(self, room: int = 10_000, first: int = 1) -> None:
        self.room = room
        self.records: dict[int, str] = {}
        self.next = first

    def write(self, make: Callable[[int], str]) -> int:
        number = self.next
        self.records[number] = make(number)
        self.next += 1
        while len(self.records) > self.room:
            del self.records[min(self.records)]
        return number

    def clear(self, *, restarts: bool) -> None:
        self.records.clear()
        if restarts:
            self.next = 1


class _Function:
    """A function of a DLL: it has a prototype, as ctypes requires."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.restype: object = None
        self.argtypes: object = None

    def __call__(self, *arguments: Any) -> Any:
        assert self.argtypes is not None, "a function was called without its prototype"
        assert len(arguments) == len(self.argtypes)  # type: ignore[arg-type]
        return self._call(*arguments)


class FakeWindows:
    """wevtapi.dll and kernel32.dll."""

    def __init__(self) -> None:
        self.logs: dict[str, FakeLog] = defaultdict(FakeLog)
        self.missing: set[str] = set()
        self.errors: dict[str, list[int]] = defaultdict(list)
        """Errors of the next calls of each function; 0: none."""
        self.calls: Counter[str] = Counter()
        self.subscribed: list[tuple[str, str, int | None]] = []
        self.handles: dict[int, object] = {}
        self.batch_max = 1_000
        self.largest_batch = 0
        self.lock = threading.RLock()
        self._last_handle = 100
        self._error = threading.local()

    def api(self) -> EventLog:
        return EventLog(_Library(self), _Library(self), lambda: self._error.code)

    @property
    def open_handles(self) -> list[object]:
        return list(self.handles.values())

    def write(self, channel: str, make: Callable[[int], str]) -> int:
        with self.lock:
            number = self.logs[channel].write(make)
            for handle in self.handles.values():
                if isinstance(handle, _Results) and handle.channel == channel and handle.signal is not None:
                    handle.signal.set()
            return number

    def fail(self, function: str) -> bool:
        with self.lock:
            self.calls[function] += 1
            code = self.errors[function].pop(0) if self.errors[function] else 0
            self.set_error(code)
            return code != 0

    def set_error(self, code: int) -> None:
        self._error.code = code

    def open(self, thing: object) -> int:
        with self.lock:
            self._last_handle += 4
            self.handles[self._last_handle] = thing
            return self._last_handle

    def close(self, handle: Any) -> int:
        with self.lock:
            del self.handles[_number(handle)]
            return 1

    def get(self, handle: Any, kind: type) -> Any:
        found = self.handles[_number(handle)]
        assert isinstance(found, kind)
        return found


class _Results:
    """What EvtSubscribe and EvtQuery return: everything behind a record that matches."""

    def __init__(self, channel: str, query: str, after: int, signal: threading.Event | None) -> None:
        self.channel = channel
        self.wanted = {int(number) for number in _WANTED.findall(query)}
        self.after = after
        self.signal = signal

    def matches(self, xml: str) -> bool:
        match = _ID.search(xml)
        return not self.wanted or (match is not None and int(match[1]) in self.wanted)


class _Event(str):
    __slots__ = ()


class _Bookmark(str):
    __slots__ = ()


class _Publisher(str):
    __slots__ = ()


class _Library:
    """A DLL."""

    def __init__(self, windows: FakeWindows) -> None:
        self._windows = windows
        self._functions: dict[str, _Function] = {}

    def __getattr__(self, name: str) -> _Function:
        if name not in self._functions:
            self._functions[name] = _Function(getattr(_Calls(self._windows), name))
        return self._functions[name]


class _Calls:
    """The functions, with the names of Windows."""

    def __init__(self, windows: FakeWindows) -> None:
        self._windows = windows

    def _channel(self, channel: str) -> bool:
        if channel in self._windows.missing:
            self._windows.set_error(Code.CHANNEL_NOT_FOUND)
            return False
        return True

    def EvtSubscribe(self, _session, signal, channel, query, bookmark, _context, _callback, flags):  # noqa: N802
        windows = self._windows
        if windows.fail("EvtSubscribe") or not self._channel(channel):
            return None
        after = None
        if flags == START_AFTER_BOOKMARK:
            match = re.search(r"RecordId='(\d+)'", windows.get(bookmark, _Bookmark))
            assert match is not None
            after = int(match[1])
        windows.subscribed.append((channel, query, after))
        return windows.open(_Results(channel, query, after or 0, windows.get(signal, threading.Event)))

    def EvtQuery(self, _session, channel, query, _flags):  # noqa: N802
        if self._windows.fail("EvtQuery") or not self._channel(channel):
            return None
        return self._windows.open(_Results(channel, query, 0, None))

    def EvtNext(self, handle, size, events, _timeout, _flags, returned):  # noqa: N802
        windows = self._windows
        with windows.lock:
            if windows.fail("EvtNext"):
                return 0
            results = windows.get(handle, _Results)
            if size > windows.batch_max:
                windows.set_error(Code.INVALID_BOUND)
                return 0
            found = []
            for number, xml in sorted(windows.logs[results.channel].records.items()):
                if number > results.after and len(found) < size:
                    results.after = number
                    if results.matches(xml):
                        found.append(windows.open(_Event(xml)))
            windows.largest_batch = max(windows.largest_batch, len(found))
            for index, event in enumerate(found):
                events[index] = event
            _set(returned, len(found))
            if not found:
                windows.set_error(Code.NO_MORE_ITEMS)
            return int(bool(found))

    def EvtRender(self, _context, event, _flags, size, buffer, used, _count):  # noqa: N802
        if self._windows.fail("EvtRender"):
            return 0
        return self._fill(buffer, size, used, self._windows.get(event, _Event), unit_bytes=1)

    def EvtFormatMessage(self, publisher, event, _id, _count, _values, _flags, size, buffer, used):  # noqa: N802
        if self._windows.fail("EvtFormatMessage"):
            return 0
        self._windows.get(event, _Event)
        text = f"message of {self._windows.get(publisher, _Publisher)}"
        return self._fill(buffer, size, used, text, unit_bytes=2)

    def _fill(self, buffer: Array[Any], size: int, used: Any, text: str, unit_bytes: int) -> int:
        data = (text + "\0").encode("utf-16-le", "surrogatepass")
        _set(used, len(data) // unit_bytes)
        if len(data) // unit_bytes > size:
            self._windows.set_error(Code.INSUFFICIENT_BUFFER)
            return 0
        memmove(buffer, data, len(data))
        return 1

    def EvtOpenPublisherMetadata(self, _session, name, _file, _locale, _flags):  # noqa: N802
        return None if self._windows.fail("EvtOpenPublisherMetadata") else self._windows.open(_Publisher(name))

    def EvtCreateBookmark(self, xml):  # noqa: N802
        return None if self._windows.fail("EvtCreateBookmark") else self._windows.open(_Bookmark(xml))

    def EvtOpenLog(self, _session, channel, _flags):  # noqa: N802
        if self._windows.fail("EvtOpenLog") or not self._channel(channel):
            return None
        return self._windows.open(self._windows.logs[channel])

    def EvtGetLogInfo(self, handle, what, _size, value, _used):  # noqa: N802
        if self._windows.fail("EvtGetLogInfo"):
            return 0
        with self._windows.lock:
            records = self._windows.get(handle, FakeLog).records
            value._obj.value = {5: len(records), 6: min(records, default=0)}[what]
        return 1

    def EvtClose(self, handle):  # noqa: N802
        return self._windows.close(handle)

    def CreateEventW(self, _attributes, _is_manual, is_set, _name):  # noqa: N802
        if self._windows.fail("CreateEventW"):
            return None
        event = threading.Event()
        if is_set:
            event.set()
        return self._windows.open(event)

    def SetEvent(self, handle):  # noqa: N802
        self._windows.get(handle, threading.Event).set()
        return 1

    def ResetEvent(self, handle):  # noqa: N802
        self._windows.get(handle, threading.Event).clear()
        return 1

    def WaitForSingleObject(self, handle, milliseconds):  # noqa: N802
        if self._windows.fail("WaitForSingleObject"):
            return 0xFFFFFFFF
        return 0 if self._windows.get(handle, threading.Event).wait(milliseconds / 1_000) else 0x102

    def CloseHandle(self, handle):  # noqa: N802
        return self._windows.close(handle)


def _number(handle: Any) -> int:
    return int(handle.value if isinstance(handle, c_void_p) else handle)


def _set(reference: Any, value: int) -> None:
    """Assign through a pointer, as `byref` makes one."""
    (reference.contents if isinstance(reference, _Pointer) else reference._obj).value = value
