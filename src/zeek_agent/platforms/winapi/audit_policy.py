"""The audit policy, which decides on the events of the Security log (advapi32.dll, ntsecapi.h)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, c_ubyte, c_uint16, c_uint32, c_void_p
from typing import Any, Final, NamedTuple
from uuid import UUID

from zeek_agent.platforms import winapi
from zeek_agent.platforms.winapi import registry

_SUCCESS: Final = 1
_COMMAND_LINE_KEY: Final = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System\Audit"
_COMMAND_LINE_VALUE: Final = "ProcessCreationIncludeCmdLine_Enabled"


class Subcategory(NamedTuple):
    """A part of the policy. Its name depends on the system's language, its GUID does not."""

    name: str
    guid: str

    @property
    def remedy(self) -> str:
        """The command that switches it on."""
        return f"auditpol /set /subcategory:{{{self.guid}}} /success:enable"


PROCESS_CREATION: Final = Subcategory("Process Creation", "0CCE922B-69AE-11D9-BED3-505054503030")
PROCESS_TERMINATION: Final = Subcategory("Process Termination", "0CCE922C-69AE-11D9-BED3-505054503030")
LOGON: Final = Subcategory("Logon", "0CCE9215-69AE-11D9-BED3-505054503030")
LOGOFF: Final = Subcategory("Logoff", "0CCE9216-69AE-11D9-BED3-505054503030")
CONNECTIONS: Final = Subcategory("Filtering Platform Connection", "0CCE9226-69AE-11D9-BED3-505054503030")


class Guid(ctypes.Structure):
    """GUID of guiddef.h."""

    _fields_ = (("first", c_uint32), ("second", c_uint16), ("third", c_uint16), ("rest", c_ubyte * 8))


class AuditPolicyInformation(ctypes.Structure):
    """AUDIT_POLICY_INFORMATION."""

    _fields_ = (("subcategory", Guid), ("auditing", c_uint32), ("category", Guid))


def query_policy(
    subcategory: Subcategory, advapi32: Any = None, last_error: Callable[[], OSError] = winapi.last_error
) -> bool:
    """Whether successes of this kind are audited. Raises OSError, also for users who must not know."""
    advapi32 = winapi.library("advapi32") if advapi32 is None else advapi32
    query, free = winapi.function(advapi32, "AuditQuerySystemPolicy"), winapi.function(advapi32, "AuditFree")
    query.restype, query.argtypes = c_ubyte, [POINTER(Guid), c_uint32, POINTER(POINTER(AuditPolicyInformation))]
    free.restype, free.argtypes = None, [c_void_p]
    guid = Guid.from_buffer_copy(UUID(subcategory.guid).bytes_le)
    found = POINTER(AuditPolicyInformation)()
    if not query(ctypes.byref(guid), 1, ctypes.byref(found)):
        raise last_error()
    try:
        return bool(found[0].auditing & _SUCCESS)
    finally:
        free(found)


def has_command_lines() -> bool:
    """Whether events of process creation contain the command line."""
    if sys.platform == "win32":
        try:
            return registry.value(_COMMAND_LINE_KEY, _COMMAND_LINE_VALUE) == 1
        except FileNotFoundError:
            return False
    raise winapi.NotWindowsError("winreg")
