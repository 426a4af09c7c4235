"""The calls of Windows' event log functions, with functions that stand in for them on any system."""

from __future__ import annotations

import ctypes
import sys

import pytest
from fake_wevtapi import FakeWindows
from windows_events import event_xml

from zeek_agent.host.windows.event_fields import SECURITY
from zeek_agent.platforms.winapi import NotWindowsError, audit_policy
from zeek_agent.platforms.winapi.audit_policy import AuditPolicyInformation, Guid
from zeek_agent.platforms.winapi.event_log import (
    KERNEL_PROTOTYPES,
    PROTOTYPES,
    Code,
    EventLog,
    EventLogError,
    LogRange,
    Variant,
    bookmark_xml,
)

CHANNEL = "Security"


def written(windows: FakeWindows, count: int, **changes: str) -> None:
    for _ in range(count):
        windows.write(CHANNEL, lambda number: event_xml(SECURITY, 4634, changes, record=number))


def test_structs_have_the_sizes_of_windows_headers() -> None:
    assert ctypes.sizeof(Variant) == 16
    assert ctypes.sizeof(Guid) == 16
    assert ctypes.sizeof(AuditPolicyInformation) == 36
    assert (AuditPolicyInformation.auditing.offset, AuditPolicyInformation.category.offset) == (16, 20)
    assert (Variant.count.offset, Variant.type.offset) == (8, 12)


def test_every_function_has_its_result_and_arguments() -> None:
    windows = FakeWindows()
    api = windows.api()
    for name, (result, arguments) in {**PROTOTYPES, **KERNEL_PROTOTYPES}.items():
        library = api._wevtapi if name in PROTOTYPES else api._kernel32
        assert getattr(library, name).restype is result
        assert getattr(library, name).argtypes == list(arguments)
        assert result in {ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has these functions")
def test_other_systems_have_no_event_logs() -> None:
    with pytest.raises(NotWindowsError, match="exists on Windows only"):
        EventLog()
    with pytest.raises(NotWindowsError):
        audit_policy.query_policy(audit_policy.LOGON)
    with pytest.raises(NotWindowsError):
        audit_policy.has_command_lines()


def test_a_log_has_an_oldest_and_a_newest_record() -> None:
    windows = FakeWindows()
    assert windows.api().log_range(CHANNEL) == LogRange(0, 0)
    windows.logs[CHANNEL].room = 3
    written(windows, 5)
    assert windows.api().log_range(CHANNEL) == LogRange(3, 5)
    assert windows.open_handles == []


def test_events_are_searched_by_a_query() -> None:
    windows = FakeWindows()
    api = windows.api()
    assert not api.has_event(CHANNEL, "*")
    written(windows, 1)
    assert api.has_event(CHANNEL, "*[System[(EventID=4634)]]")
    assert not api.has_event(CHANNEL, "*[System[(EventID=4624)]]")
    assert windows.open_handles == []


def test_a_subscription_has_the_events_after_a_record_in_batches() -> None:
    windows = FakeWindows()
    written(windows, 5)
    subscription = windows.api().subscribe(CHANNEL, "*", 2)
    batches = [subscription.read(2), subscription.read(2), subscription.read(2)]
    assert [len(batch) for batch in batches] == [2, 1, 0]
    assert "<EventRecordID>3<" in (batches[0][0].xml or "")
    subscription.close()
    subscription.close()
    assert windows.open_handles == []


def test_an_event_of_any_length_is_rendered_whole() -> None:
    windows = FakeWindows()
    written(windows, 1, TargetUserName="ä" * 200_000)
    subscription = windows.api().subscribe(CHANNEL, "*", None)
    (event,) = subscription.read(10)
    assert (event.xml or "").count("ä") == 200_000
    subscription.close()


def test_an_event_that_cannot_be_rendered_does_not_hide_the_others() -> None:
    windows = FakeWindows()
    written(windows, 3)
    subscription = windows.api().subscribe(CHANNEL, "*", None)
    windows.errors["EvtRender"] = [0, 13]
    assert [event.xml is None for event in subscription.read(10)] == [False, True, False]
    subscription.close()
    assert windows.open_handles == []


def test_messages_come_from_publishers_of_which_some_are_kept_open() -> None:
    windows = FakeWindows()
    written(windows, 2)
    subscription = windows.api().subscribe(CHANNEL, "*", None)
    names = iter(f"publisher {number}" for number in range(200))
    for number in range(2):
        (event,) = subscription.read(1, lambda _xml: next(names))
        assert event.message == f"message of publisher {number}"
    written(windows, 100)
    for _ in range(10):
        subscription.read(10, lambda _xml: next(names))
    assert len(windows.open_handles) == 2 + 64
    subscription.close()
    assert windows.open_handles == []


def test_a_publisher_that_is_not_installed_has_no_messages() -> None:
    windows = FakeWindows()
    written(windows, 1)
    windows.errors["EvtOpenPublisherMetadata"] = [Code.FILE_NOT_FOUND]
    subscription = windows.api().subscribe(CHANNEL, "*", None)
    (event,) = subscription.read(1, lambda _xml: "gone")
    assert (event.xml is not None, event.message) == (True, None)
    subscription.close()
    assert windows.open_handles == []


@pytest.mark.parametrize("function", ["CreateEventW", "EvtCreateBookmark", "EvtSubscribe"])
def test_what_fails_leaves_no_handle_open(function: str) -> None:
    windows = FakeWindows()
    windows.errors[function] = [Code.ACCESS_DENIED]
    with pytest.raises(EventLogError, match=f"{function}: access is denied") as failed:
        windows.api().subscribe(CHANNEL, "*", 5)
    assert failed.value.code == Code.ACCESS_DENIED
    assert windows.open_handles == []


def test_waiting_ends_by_an_event_or_by_being_woken() -> None:
    windows = FakeWindows()
    subscription = windows.api().subscribe(CHANNEL, "*", None)
    subscription.wait(60)
    written(windows, 1)
    subscription.wait(60)
    assert len(subscription.read(10)) == 1
    subscription.wake()
    subscription.wait(60)
    subscription.close()
    subscription.wake()
    assert windows.open_handles == []


def test_a_bookmark_is_that_of_windows() -> None:
    assert bookmark_xml("Security", 7) == (
        "<BookmarkList><Bookmark Channel='Security' RecordId='7' IsCurrent='true'/></BookmarkList>"
    )


class _Advapi32:
    """AuditQuerySystemPolicy with an answer."""

    def __init__(self, auditing: int | None) -> None:
        self.freed = 0
        self._found = (AuditPolicyInformation * 1)()
        self._found[0].auditing = auditing or 0
        self._fails = auditing is None

        def query(_guid: object, count: int, answer: object) -> int:
            assert count == 1
            answer._obj.contents = self._found[0]  # type: ignore[attr-defined]
            return int(not self._fails)

        def free(_memory: object) -> None:
            self.freed += 1

        self.AuditQuerySystemPolicy = query
        self.AuditFree = free


@pytest.mark.parametrize(("auditing", "is_audited"), [(1, True), (3, True), (0, False), (2, False), (4, False)])
def test_the_audit_policy_counts_successes(auditing: int, is_audited: bool) -> None:
    library = _Advapi32(auditing)
    assert audit_policy.query_policy(audit_policy.PROCESS_CREATION, library, OSError) is is_audited
    assert library.freed == 1


def test_a_policy_that_must_not_be_known_is_an_error() -> None:
    library = _Advapi32(None)
    with pytest.raises(PermissionError):
        audit_policy.query_policy(audit_policy.LOGON, library, lambda: PermissionError(5, "denied"))
    assert library.freed == 0


def test_a_function_that_the_system_lacks_is_an_error_with_its_name() -> None:
    """As with Wine."""

    class Empty: ...

    with pytest.raises(OSError, match="this system has no function AuditQuerySystemPolicy"):
        audit_policy.query_policy(audit_policy.LOGON, Empty(), OSError)
    with pytest.raises(OSError, match="this system has no function EvtSubscribe"):
        EventLog(Empty(), Empty(), lambda: 0)
