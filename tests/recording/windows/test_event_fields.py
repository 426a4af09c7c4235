"""Every field of Windows' events fills a column or is dropped for a reason, and the mappings do what the table says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
import windows_processes
from places import ROOT
from windows_events import DEFAULTS, GUID, KINDS, PARENT_GUID, event_xml

from zeek_agent.host.windows.event_fields import FIELDS, SECURITY, SYSMON
from zeek_agent.host.windows.event_xml import WindowsEvent, parse_event
from zeek_agent.recording.windows.dns_records import dns_row
from zeek_agent.recording.windows.event_mapping import MappingContext
from zeek_agent.recording.windows.login_records import login_row
from zeek_agent.recording.windows.process_records import process_row
from zeek_agent.recording.windows.socket_records import socket_row

SUBJECT: Final = "SubjectUserSid SubjectUserName SubjectDomainName SubjectLogonId"
TARGET: Final = "TargetUserSid TargetUserName TargetDomainName TargetLogonId"
DOCUMENTED: Final = {
    (SECURITY, 4688): f"{SUBJECT} NewProcessId NewProcessName TokenElevationType ProcessId CommandLine {TARGET} "
    "ParentProcessName MandatoryLabel",
    (SECURITY, 4689): f"{SUBJECT} Status ProcessId ProcessName",
    (SECURITY, 4624): f"{SUBJECT} {TARGET} LogonType LogonProcessName AuthenticationPackageName WorkstationName "
    "LogonGuid ProcessId ProcessName IpAddress IpPort",
    (SECURITY, 4625): f"{SUBJECT} TargetUserSid TargetUserName TargetDomainName Status FailureReason SubStatus "
    "LogonType ProcessId ProcessName IpAddress IpPort",
    (SECURITY, 4634): f"{TARGET} LogonType",
    (SECURITY, 5156): "ProcessID Application Direction SourceAddress SourcePort DestAddress DestPort Protocol "
    "FilterRTID LayerName LayerRTID RemoteUserID RemoteMachineID",
    (SYSMON, 1): "RuleName UtcTime ProcessGuid ProcessId Image CommandLine CurrentDirectory User LogonId Hashes "
    "ParentProcessGuid ParentProcessId ParentImage ParentCommandLine ParentUser",
    (SYSMON, 3): "RuleName UtcTime ProcessGuid ProcessId Image User Protocol Initiated SourceIp SourcePort "
    "DestinationIp DestinationPort",
    (SYSMON, 5): "RuleName UtcTime ProcessGuid ProcessId Image User",
    (SYSMON, 22): "RuleName UtcTime ProcessGuid ProcessId QueryName QueryStatus QueryResults Image User",
}
"""The fields that Microsoft documents."""

ROWS: Final[dict[str, Callable[[WindowsEvent, MappingContext], msgspec.Struct | None]]] = {
    "processes_events": process_row,
    "sockets_events": socket_row,
    "dns_events": dns_row,
    "logins_events": login_row,
}
OTHER: Final = {
    "NewProcessId": "0x1a30",
    "ProcessId": "0x1a34",
    "ProcessID": "6708",
    "ParentProcessId": "2504",
    "NewProcessName": r"C:\tools\other.exe",
    "ProcessName": r"C:\tools\other.exe",
    "ParentProcessName": r"C:\tools\other.exe",
    "Image": r"C:\tools\other.exe",
    "ParentImage": r"C:\tools\other.exe",
    "Application": r"\device\harddiskvolume2\tools\other.exe",
    "CurrentDirectory": "D:\\",
    "SubjectUserSid": "S-1-5-19",
    "TargetUserSid": "S-1-5-19",
    "SubjectLogonId": "0x77",
    "TargetLogonId": "0x77",
    "LogonId": "0x77",
    "Status": "0xc0000064",
    "SubStatus": "0xc0000064",
    "LogonType": "2",
    "IpAddress": "192.0.2.99",
    "IpPort": "999",
    "Direction": "%%14593",
    "SourceAddress": "192.0.2.99",
    "SourcePort": "999",
    "DestAddress": "192.0.2.99",
    "DestPort": "999",
    "DestinationPort": "999",
    "SourceIp": "192.0.2.99",
    "DestinationIp": "192.0.2.99",
    "Initiated": "false",
    "UtcTime": "2026-03-04 05:06:10.000",
    "ProcessGuid": "{7c1f5c3a-0000-69a7-c500-00000000a200}",
    "ParentProcessGuid": "{7c1f5c3a-0000-69a7-c500-00000000a200}",
    "QueryStatus": "9003",
    "QueryResults": "192.0.2.99;",
}
"""Another valid value of each field; `other` of those that take any text."""
SHOWING: Final = {
    **{(4688, name): {"TargetUserName": "-"} for name in SUBJECT.split()},
    **{(4624, f"Subject{part}"): {"LogonType": "9"} for part in ("UserName", "DomainName")},
    **{
        (4624, f"TargetOutbound{part}"): {"LogonType": "9", "TargetOutboundUserName": "bob"}
        for part in ("UserName", "DomainName")
    },
    (4625, "Status"): {"SubStatus": "0x0"},
}
"""Values of other fields with which a field is the one that counts."""


def row(kind: tuple[str, int], changes: dict[str, str], without: str | None = None) -> dict[str, object]:
    event = parse_event(event_xml(*kind, changes, without=without))
    found = ROWS[FIELDS[kind].table](event, windows_processes.context())
    assert found is not None
    return msgspec.structs.asdict(found)


def other(kind: tuple[str, int], field: str) -> str:
    if field == "Protocol":
        return "17" if kind == (SECURITY, 5156) else "udp"
    return OTHER.get(field, "other")


def test_the_table_has_every_documented_field_once() -> None:
    assert FIELDS.keys() == DOCUMENTED.keys()
    for kind, fields in FIELDS.items():
        assert set(DOCUMENTED[kind].split()) <= fields.mapped.keys() | fields.dropped.keys()
        assert not fields.mapped.keys() & fields.dropped.keys()
        assert all(fields.dropped.values())


def test_the_samples_have_every_field_of_the_table() -> None:
    for kind, fields in FIELDS.items():
        assert DEFAULTS[kind].keys() == fields.mapped.keys() | fields.dropped.keys()


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in FIELDS[kind].mapped], ids=str)
def test_a_mapped_field_changes_its_columns_and_no_others(kind: tuple[str, int], field: str) -> None:
    others = SHOWING.get((kind[1], field), {})
    before, after = row(kind, others), row(kind, {**others, field: other(kind, field)})
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert changed <= set(FIELDS[kind].mapped[field])


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in KINDS for field in FIELDS[kind].dropped], ids=str
)
def test_a_dropped_field_changes_nothing(kind: tuple[str, int], field: str) -> None:
    assert row(kind, {field: other(kind, field)}) == row(kind, {}) == row(kind, {}, without=field)


def test_events_of_other_kinds_have_no_row() -> None:
    context = windows_processes.context()
    for table, row_of in ROWS.items():
        for kind in KINDS:
            if FIELDS[kind].table != table:
                assert row_of(parse_event(event_xml(*kind)), context) is None
        assert row_of(parse_event(event_xml("Example", 4688)), context) is None


def test_the_guids_of_the_samples_differ() -> None:
    assert GUID != PARENT_GUID


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_documentation_has_the_same_table(kind: tuple[str, int]) -> None:
    fields, log = FIELDS[kind], "Sysmon" if kind[0] == SYSMON else "Security"
    mapped = ", ".join(f"`{name}` ({', '.join(columns)})" for name, columns in fields.mapped.items())
    dropped = ", ".join(f"`{name}`" for name in fields.dropped) or "-"
    row = f"| {log} {kind[1]}: {fields.name} | `{fields.table}` | {mapped} | {dropped} |"
    assert row in (ROOT / "docs/platforms.md").read_text().splitlines()
