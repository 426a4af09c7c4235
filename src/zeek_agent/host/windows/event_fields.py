"""The fields of Windows' events: the column that each one fills, or why it is dropped.

The mappings in `recording/windows/` read these fields and no others; docs/platforms.md has the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SECURITY: Final = "Microsoft-Windows-Security-Auditing"
SYSMON: Final = "Microsoft-Windows-Sysmon"
SECURITY_CHANNEL: Final = "Security"
SYSMON_CHANNEL: Final = "Microsoft-Windows-Sysmon/Operational"


@dataclass(frozen=True, slots=True)
class EventFields:
    """The fields of one kind of event. `mapped` has the columns of each, `dropped` the reason."""

    name: str
    table: str
    mapped: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, str]


_NO_COLUMN: Final = "no column of the table is meant for it"
_OF_FILE: Final = "describes the file, not the process"
_IN_PARENT: Final = "is in the parent's own row"
_IN_PROCESS: Final = "is in the process's row in processes_events"
_INTERNAL: Final = "number or name that only Windows uses"
_RULE: Final = "name of a rule in Sysmon's configuration"
_REVERSE_LOOKUP: Final = "from a reverse lookup by Sysmon, not what the process looked up"
_PORT_NAME: Final = "a name for the port number"
_CLIENT_TEXT: Final = "text that the client chose; the address is recorded"
_SECRET_HINT: Final = "describes cryptography of the logon, not who logged on"

_USER: Final = ("user",)
_SUBJECT: Final[Mapping[str, tuple[str, ...]]] = {
    "SubjectUserSid": ("sid",),
    "SubjectUserName": _USER,
    "SubjectDomainName": _USER,
    "SubjectLogonId": ("session",),
}
_EXE: Final = ("exe", "name")
_TIME: Final = ("time",)
_ENTITY: Final = ("entity_id", "parent_entity_id")

FIELDS: Final[Mapping[tuple[str, int], EventFields]] = {
    (SECURITY, 4688): EventFields(
        "a process was created",
        "processes_events",
        {
            **_SUBJECT,
            "NewProcessId": ("pid", "entity_id"),
            "NewProcessName": _EXE,
            "ProcessId": ("ppid", "parent_entity_id"),
            "CommandLine": ("cmdline", "argv"),
            "TargetUserSid": ("sid",),
            "TargetUserName": _USER,
            "TargetDomainName": _USER,
            "TargetLogonId": ("session",),
            "ParentProcessName": ("parent_exe", "parent_name"),
        },
        {"TokenElevationType": _NO_COLUMN, "MandatoryLabel": _NO_COLUMN},
    ),
    (SECURITY, 4689): EventFields(
        "a process ended",
        "processes_events",
        {**_SUBJECT, "Status": ("exit_code",), "ProcessId": ("pid", "entity_id"), "ProcessName": _EXE},
        {},
    ),
    (SECURITY, 4624): EventFields(
        "an account logged on",
        "logins_events",
        {
            "SubjectUserName": _USER,
            "SubjectDomainName": _USER,
            "TargetUserName": ("user", "target_user"),
            "TargetDomainName": ("user", "target_user"),
            "TargetLogonId": ("session",),
            "TargetOutboundUserName": ("target_user",),
            "TargetOutboundDomainName": ("target_user",),
            "LogonType": ("action", "method"),
            "AuthenticationPackageName": ("method",),
            "ProcessId": ("pid", "entity_id"),
            "ProcessName": ("process",),
            "IpAddress": ("remote_addr",),
            "IpPort": ("remote_port",),
        },
        {
            "SubjectUserSid": _NO_COLUMN,
            "SubjectLogonId": "the logon of the service that asked for this one",
            "TargetUserSid": _NO_COLUMN,
            "LogonProcessName": _INTERNAL,
            "WorkstationName": _CLIENT_TEXT,
            "LogonGuid": _INTERNAL,
            "TransmittedServices": _INTERNAL,
            "LmPackageName": _SECRET_HINT,
            "KeyLength": _SECRET_HINT,
            "ImpersonationLevel": _INTERNAL,
            "RestrictedAdminMode": _NO_COLUMN,
            "RemoteCredentialGuard": _NO_COLUMN,
            "VirtualAccount": _NO_COLUMN,
            "TargetLinkedLogonId": _NO_COLUMN,
            "ElevatedToken": _NO_COLUMN,
        },
    ),
    (SECURITY, 4625): EventFields(
        "an account failed to log on",
        "logins_events",
        {
            "TargetUserName": _USER,
            "TargetDomainName": _USER,
            "Status": ("reason",),
            "SubStatus": ("reason",),
            "LogonType": ("method",),
            "AuthenticationPackageName": ("method",),
            "ProcessId": ("pid", "entity_id"),
            "ProcessName": ("process",),
            "IpAddress": ("remote_addr",),
            "IpPort": ("remote_port",),
        },
        {
            "SubjectUserSid": _NO_COLUMN,
            "SubjectUserName": _NO_COLUMN,
            "SubjectDomainName": _NO_COLUMN,
            "SubjectLogonId": _NO_COLUMN,
            "TargetUserSid": "Windows does not set it for a logon that failed",
            "FailureReason": "the number of a text; SubStatus has the reason",
            "LogonProcessName": _INTERNAL,
            "WorkstationName": _CLIENT_TEXT,
            "TransmittedServices": _INTERNAL,
            "LmPackageName": _SECRET_HINT,
            "KeyLength": _SECRET_HINT,
        },
    ),
    (SECURITY, 4634): EventFields(
        "an account logged off",
        "logins_events",
        {
            "TargetUserName": _USER,
            "TargetDomainName": _USER,
            "TargetLogonId": ("session",),
            "LogonType": ("action", "method"),
        },
        {"TargetUserSid": _NO_COLUMN},
    ),
    (SECURITY, 5156): EventFields(
        "the filtering platform permitted a connection",
        "sockets_events",
        {
            "ProcessID": ("pid", "entity_id"),
            "Application": ("exe", "process"),
            "Direction": ("direction",),
            "SourceAddress": ("local_addr", "family", "community_id"),
            "SourcePort": ("local_port", "community_id"),
            "DestAddress": ("remote_addr", "community_id"),
            "DestPort": ("remote_port", "community_id"),
            "Protocol": ("protocol", "community_id"),
        },
        {
            "FilterRTID": _INTERNAL,
            "LayerName": _INTERNAL,
            "LayerRTID": _INTERNAL,
            "RemoteUserID": _NO_COLUMN,
            "RemoteMachineID": _NO_COLUMN,
        },
    ),
    (SYSMON, 1): EventFields(
        "a process was created",
        "processes_events",
        {
            "UtcTime": _TIME,
            "ProcessGuid": ("entity_id",),
            "ProcessId": ("pid", "entity_id"),
            "Image": _EXE,
            "CommandLine": ("cmdline", "argv"),
            "CurrentDirectory": ("cwd",),
            "User": _USER,
            "LogonId": ("session",),
            "ParentProcessGuid": ("parent_entity_id",),
            "ParentProcessId": ("ppid", "parent_entity_id"),
            "ParentImage": ("parent_exe", "parent_name"),
        },
        {
            "RuleName": _RULE,
            "FileVersion": _OF_FILE,
            "Description": _OF_FILE,
            "Product": _OF_FILE,
            "Company": _OF_FILE,
            "OriginalFileName": _OF_FILE,
            "LogonGuid": _INTERNAL,
            "TerminalSessionId": _NO_COLUMN,
            "IntegrityLevel": _NO_COLUMN,
            "Hashes": _NO_COLUMN,
            "ParentCommandLine": _IN_PARENT,
            "ParentUser": _IN_PARENT,
        },
    ),
    (SYSMON, 5): EventFields(
        "a process ended",
        "processes_events",
        {
            "UtcTime": _TIME,
            "ProcessGuid": ("entity_id",),
            "ProcessId": ("pid", "entity_id"),
            "Image": _EXE,
            "User": _USER,
        },
        {"RuleName": _RULE},
    ),
    (SYSMON, 3): EventFields(
        "a process opened or accepted a connection",
        "sockets_events",
        {
            "UtcTime": _TIME,
            "ProcessGuid": _ENTITY,
            "ProcessId": ("pid", "entity_id"),
            "Image": ("exe", "process"),
            "User": _USER,
            "Protocol": ("protocol", "community_id"),
            "Initiated": ("direction", "local_addr", "local_port", "remote_addr", "remote_port"),
            "SourceIp": ("local_addr", "remote_addr", "family", "community_id"),
            "SourcePort": ("local_port", "remote_port", "community_id"),
            "DestinationIp": ("remote_addr", "local_addr", "community_id"),
            "DestinationPort": ("remote_port", "local_port", "community_id"),
        },
        {
            "RuleName": _RULE,
            "SourceIsIpv6": "is visible from the address",
            "SourceHostname": _REVERSE_LOOKUP,
            "SourcePortName": _PORT_NAME,
            "DestinationIsIpv6": "is visible from the address",
            "DestinationHostname": _REVERSE_LOOKUP,
            "DestinationPortName": _PORT_NAME,
        },
    ),
    (SYSMON, 22): EventFields(
        "a process looked up a name",
        "dns_events",
        {
            "UtcTime": _TIME,
            "ProcessGuid": _ENTITY,
            "ProcessId": ("pid", "entity_id"),
            "QueryName": ("query",),
            "QueryStatus": ("rcode",),
            "QueryResults": ("answers",),
            "Image": ("exe", "process"),
        },
        {"RuleName": _RULE, "User": _IN_PROCESS},
    ),
}
