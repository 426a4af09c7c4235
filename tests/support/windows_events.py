"""Events of Windows' logs, made up in the shape that Microsoft documents. None of them was recorded on a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from zeek_agent.host.windows.event_fields import SECURITY, SECURITY_CHANNEL, SYSMON, SYSMON_CHANNEL
from zeek_agent.host.windows.event_xml import NAMESPACE

BOOT: Final = "5b1f0c9d2e47"
TIME: Final = "2026-03-04T05:06:07.1234567Z"
ALICE: Final = "S-1-5-21-1004336348-1177238915-682003330-1001"
SYSTEM: Final = "S-1-5-18"
GUID: Final = "{7c1f5c3a-0e2b-69a7-c500-00000000a200}"
PARENT_GUID: Final = "{7c1f5c3a-0a11-69a7-3100-00000000a200}"

DEFAULTS: Final[Mapping[tuple[str, int], Mapping[str, str]]] = {
    (SECURITY, 4688): {
        "SubjectUserSid": SYSTEM,
        "SubjectUserName": "PC7$",
        "SubjectDomainName": "EXAMPLE",
        "SubjectLogonId": "0x3e7",
        "NewProcessId": "0x1a2c",
        "NewProcessName": r"C:\Windows\System32\whoami.exe",
        "TokenElevationType": "%%1936",
        "ProcessId": "0x9c4",
        "CommandLine": r'"C:\Windows\System32\whoami.exe" /priv /fo "csv list"',
        "TargetUserSid": ALICE,
        "TargetUserName": "alice",
        "TargetDomainName": "EXAMPLE",
        "TargetLogonId": "0x5d2f1a",
        "ParentProcessName": r"C:\Windows\System32\cmd.exe",
        "MandatoryLabel": "S-1-16-12288",
    },
    (SECURITY, 4689): {
        "SubjectUserSid": ALICE,
        "SubjectUserName": "alice",
        "SubjectDomainName": "EXAMPLE",
        "SubjectLogonId": "0x5d2f1a",
        "Status": "0xc000013a",
        "ProcessId": "0x1a2c",
        "ProcessName": r"C:\Windows\System32\whoami.exe",
    },
    (SECURITY, 4624): {
        "SubjectUserSid": SYSTEM,
        "SubjectUserName": "PC7$",
        "SubjectDomainName": "EXAMPLE",
        "SubjectLogonId": "0x3e7",
        "TargetUserSid": ALICE,
        "TargetUserName": "alice",
        "TargetDomainName": "EXAMPLE",
        "TargetLogonId": "0x5d2f1a",
        "LogonType": "10",
        "LogonProcessName": "User32 ",
        "AuthenticationPackageName": "Negotiate",
        "WorkstationName": "PC7",
        "LogonGuid": "{00000000-0000-0000-0000-000000000000}",
        "TransmittedServices": "-",
        "LmPackageName": "-",
        "KeyLength": "0",
        "ProcessId": "0x4f0",
        "ProcessName": r"C:\Windows\System32\svchost.exe",
        "IpAddress": "192.0.2.44",
        "IpPort": "50211",
        "ImpersonationLevel": "%%1833",
        "RestrictedAdminMode": "%%1843",
        "RemoteCredentialGuard": "-",
        "TargetOutboundUserName": "-",
        "TargetOutboundDomainName": "-",
        "VirtualAccount": "%%1843",
        "TargetLinkedLogonId": "0x5d2f3b",
        "ElevatedToken": "%%1842",
    },
    (SECURITY, 4625): {
        "SubjectUserSid": "S-1-0-0",
        "SubjectUserName": "-",
        "SubjectDomainName": "-",
        "SubjectLogonId": "0x0",
        "TargetUserSid": "S-1-0-0",
        "TargetUserName": "mallory",
        "TargetDomainName": "EXAMPLE",
        "Status": "0xc000006d",
        "FailureReason": "%%2313",
        "SubStatus": "0xc000006a",
        "LogonType": "3",
        "LogonProcessName": "NtLmSsp ",
        "AuthenticationPackageName": "NTLM",
        "WorkstationName": "LAPTOP9",
        "TransmittedServices": "-",
        "LmPackageName": "-",
        "KeyLength": "0",
        "ProcessId": "0x2b8",
        "ProcessName": r"C:\Windows\System32\lsass.exe",
        "IpAddress": "2001:db8::44",
        "IpPort": "50212",
    },
    (SECURITY, 4634): {
        "TargetUserSid": ALICE,
        "TargetUserName": "alice",
        "TargetDomainName": "EXAMPLE",
        "TargetLogonId": "0x5d2f1a",
        "LogonType": "10",
    },
    (SECURITY, 5156): {
        "ProcessID": "6700",
        "Application": r"\device\harddiskvolume2\tools\listener.exe",
        "Direction": "%%14592",
        "SourceAddress": "198.51.100.7",
        "SourcePort": "8443",
        "DestAddress": "192.0.2.44",
        "DestPort": "50213",
        "Protocol": "6",
        "FilterRTID": "84576",
        "LayerName": "%%14610",
        "LayerRTID": "44",
        "RemoteUserID": "S-1-0-0",
        "RemoteMachineID": "S-1-0-0",
    },
    (SYSMON, 1): {
        "RuleName": "-",
        "UtcTime": "2026-03-04 05:06:07.120",
        "ProcessGuid": GUID,
        "ProcessId": "6700",
        "Image": r"C:\Windows\System32\whoami.exe",
        "FileVersion": "10.0.26100.1",
        "Description": "whoami - displays logged on user information",
        "Product": "Example Product",
        "Company": "Example",
        "OriginalFileName": "whoami.exe",
        "CommandLine": r'"C:\Windows\System32\whoami.exe" /priv /fo "csv list"',
        "CurrentDirectory": "C:\\Users\\alice\\",
        "User": r"EXAMPLE\alice",
        "LogonGuid": "{7c1f5c3a-0a01-69a7-1a2f-5d0000000000}",
        "LogonId": "0x5d2f1a",
        "TerminalSessionId": "1",
        "IntegrityLevel": "Medium",
        "Hashes": "SHA256=" + "AB" * 32,
        "ParentProcessGuid": PARENT_GUID,
        "ParentProcessId": "2500",
        "ParentImage": r"C:\Windows\System32\cmd.exe",
        "ParentCommandLine": "cmd.exe",
        "ParentUser": r"EXAMPLE\alice",
    },
    (SYSMON, 5): {
        "RuleName": "-",
        "UtcTime": "2026-03-04 05:06:09.120",
        "ProcessGuid": GUID,
        "ProcessId": "6700",
        "Image": r"C:\Windows\System32\whoami.exe",
        "User": r"EXAMPLE\alice",
    },
    (SYSMON, 3): {
        "RuleName": "-",
        "UtcTime": "2026-03-04 05:06:08.120",
        "ProcessGuid": GUID,
        "ProcessId": "6700",
        "Image": r"C:\tools\client.exe",
        "User": r"EXAMPLE\alice",
        "Protocol": "tcp",
        "Initiated": "true",
        "SourceIsIpv6": "false",
        "SourceIp": "198.51.100.7",
        "SourceHostname": "-",
        "SourcePort": "50213",
        "SourcePortName": "-",
        "DestinationIsIpv6": "false",
        "DestinationIp": "192.0.2.80",
        "DestinationHostname": "-",
        "DestinationPort": "443",
        "DestinationPortName": "https",
    },
    (SYSMON, 22): {
        "RuleName": "-",
        "UtcTime": "2026-03-04 05:06:08.100",
        "ProcessGuid": GUID,
        "ProcessId": "6700",
        "QueryName": "www.Example.com",
        "QueryStatus": "0",
        "QueryResults": "type:  5 edge.example.net;::ffff:192.0.2.80;2001:db8::80;",
        "Image": r"C:\tools\client.exe",
        "User": r"EXAMPLE\alice",
    },
}
"""The values of a typical event of each kind."""

CHANNELS: Final = {SECURITY: SECURITY_CHANNEL, SYSMON: SYSMON_CHANNEL}
KINDS: Final = tuple(DEFAULTS)


def event_xml(
    provider: str,
    event_id: int,
    changes: Mapping[str, str] | None = None,
    *,
    record: int = 1,
    time: str = TIME,
    channel: str | None = None,
    without: str | None = None,
) -> str:
    """An event of this kind with some values changed, or one left out."""
    values = {**DEFAULTS.get((provider, event_id), {}), **(changes or {})}
    data = "".join(
        f"<Data Name={quoteattr(name)}>{escape(value)}</Data>" for name, value in values.items() if name != without
    )
    channel = channel or CHANNELS.get(provider, "Application")
    return (
        f"<Event xmlns='{NAMESPACE}'><System><Provider Name='{provider}' "
        f"Guid='{{54849625-5478-4994-a5ba-3e3b0328c30d}}'/><EventID>{event_id}</EventID><Version>2</Version>"
        f"<Level>0</Level><Task>13312</Task><Opcode>0</Opcode><Keywords>0x8020000000000000</Keywords>"
        f"<TimeCreated SystemTime='{time}'/><EventRecordID>{record}</EventRecordID><Correlation/>"
        f"<Execution ProcessID='4' ThreadID='7648'/><Channel>{channel}</Channel><Computer>pc7.example</Computer>"
        f"<Security/></System><EventData>{data}</EventData></Event>"
    )
