"""Doctor's checks of Windows: logs, Sysmon and policies, with logs in memory."""

from __future__ import annotations

import pytest
from fake_wevtapi import FakeWindows
from windows_events import event_xml

from zeek_agent.host.windows.event_fields import SECURITY_CHANNEL, SYSMON, SYSMON_CHANNEL
from zeek_agent.platforms.winapi import NotWindowsError
from zeek_agent.platforms.winapi.audit_policy import CONNECTIONS, LOGOFF, Subcategory
from zeek_agent.platforms.winapi.event_log import Code, EventLog
from zeek_agent.terminal.windows_checks import checks


def audited(_: Subcategory) -> bool:
    return True


def found(windows: FakeWindows, **parts: object) -> list[tuple[str, str, str]]:
    options = {"is_audited": audited, "has_command_lines": lambda: True, **parts}
    return [(each.name, each.verdict, each.found) for each in checks(windows.api, **options)]  # type: ignore[arg-type]


def test_a_host_with_everything_has_no_warning() -> None:
    windows = FakeWindows()
    for _ in range(3):
        windows.write(SYSMON_CHANNEL, lambda number: event_xml(SYSMON, 1, record=number))
    verdicts = found(windows)
    assert {verdict for _, verdict, _ in verdicts} == {"ok"}
    assert ("Sysmon", "ok", f"{SYSMON_CHANNEL}, 3 records") in verdicts
    assert ("event logs", "ok", "System, 0 records") in verdicts
    assert windows.open_handles == []


def test_missing_sysmon_and_a_log_that_must_not_be_read_are_warnings() -> None:
    windows = FakeWindows()
    windows.missing.add(SYSMON_CHANNEL)
    windows.errors["EvtOpenLog"] = [0, 0, Code.ACCESS_DENIED]
    verdicts = found(windows)
    assert ("Sysmon", "warn", "not installed") in verdicts
    (denied,) = [each for each in verdicts if each[1] == "warn" and each[0] == "event logs"]
    assert denied[2].startswith(f"{SECURITY_CHANNEL} cannot be read: EvtOpenLog: access is denied")


def test_each_part_of_the_audit_policy_has_its_command() -> None:
    windows = FakeWindows()
    found_checks = list(checks(windows.api, lambda part: part not in {CONNECTIONS, LOGOFF}, lambda: True))
    warnings = [each for each in found_checks if each.verdict == "warn"]
    assert [each.advice for each in warnings] == [CONNECTIONS.remedy, LOGOFF.remedy]
    assert warnings[1].found == "Logoff is not audited: ends of logins are not recorded"


def test_command_lines_need_a_policy_of_their_own() -> None:
    assert ("command lines", "warn", "not in the Security log's events of new processes") in found(
        FakeWindows(), has_command_lines=lambda: False
    )


@pytest.mark.parametrize("error", [PermissionError(5, "denied"), NotWindowsError("advapi32")])
def test_what_cannot_be_found_out_is_one_warning(error: OSError) -> None:
    def refuse(*_: object) -> bool:
        raise error

    def no_logs() -> EventLog:
        raise NotWindowsError("wevtapi")

    verdicts = [(each.name, each.verdict) for each in checks(no_logs, refuse, refuse)]
    assert verdicts == [("event logs", "warn"), ("audit policy", "warn"), ("command lines", "warn")]
