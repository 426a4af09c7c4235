"""Security descriptors of files and directories as text (SDDL): who may change them.

Reference: Security Descriptor String Format and ACE Strings in Microsoft's documentation of Win32.
"""

from __future__ import annotations

import re
from typing import Final

EVERYONE: Final = "WD"
TRUSTED: Final = frozenset(
    {
        *("SY", "S-1-5-18", "BA", "S-1-5-32-544", "LA", "CO", "S-1-3-0", "OW", "S-1-3-4"),
        "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
    }
)
"""The system, administrators, whoever creates or owns a file, and the installer of Windows (TrustedInstaller)."""

_WRITING: Final = 0x2 | 0x4 | 0x40 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x1000_0000 | 0x4000_0000
"""FILE_ADD_FILE, FILE_ADD_SUBDIRECTORY, FILE_DELETE_CHILD, DELETE, WRITE_DAC, WRITE_OWNER, generic all and write."""
_WRITING_NAMES: Final = frozenset({"FA", "FW", "GA", "GW", "SD", "WD", "WO", "DC", "LC", "DT"})
_REPLACING: Final = 0x40 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x1000_0000
"""FILE_DELETE_CHILD, DELETE (to rename the directory), WRITE_DAC, WRITE_OWNER, generic all."""
_REPLACING_NAMES: Final = frozenset({"FA", "GA", "SD", "WD", "WO", "DT"})
_DENYING: Final = frozenset({"D", "OD", "XD"})
_OWNER: Final = re.compile(r"O:(S-1-(?:0x[0-9A-Fa-f]+|\d+)(?:-\d+)+|[A-Z]{2})")
_LIST: Final = re.compile(r"D:([A-Z_]*)((?:\(.*\))?)", re.DOTALL)
_ENTRY: Final = re.compile(r"\((\w+);([^;()]*);([^;()]*);[^;()]*;[^;()]*;([^;()]+)")
_INHERIT_ONLY: Final = "IO"
_NO_LIST: Final = "NO_ACCESS_CONTROL"


def writers(sddl: str) -> frozenset[str]:
    """Who may create, replace or delete files, by a directory's descriptor, other than the system and administrators.

    They are SIDs or SDDL's names: `BU` are all users, `WD` is everyone. Without an access
    list, everyone may. The owner is included, because an owner can change the list.
    """
    return _permitted(sddl, _WRITING, _WRITING_NAMES)


def replacers(sddl: str) -> frozenset[str]:
    """The same for who may replace an existing directory that is in this one."""
    return _permitted(sddl, _REPLACING, _REPLACING_NAMES)


def _permitted(sddl: str, mask: int, names: frozenset[str]) -> frozenset[str]:
    """Whom a descriptor permits one of these rights, other than the system and administrators."""
    owner = _OWNER.match(sddl)
    found = {EVERYONE if owner is None else owner[1]}
    entries = _LIST.search(sddl, 0 if owner is None else owner.end())
    if entries is None or _NO_LIST in entries[1]:
        found.add(EVERYONE)
    else:
        for kind, flags, rights, trustee in _ENTRY.findall(entries[2]):
            if kind not in _DENYING and _INHERIT_ONLY not in re.findall("..", flags) and _has(rights, mask, names):
                found.add(trustee)
    return frozenset(found - TRUSTED)


def _has(rights: str, mask: int, names: frozenset[str]) -> bool:
    if re.fullmatch("0[xX][0-9a-fA-F]+", rights):
        return bool(int(rights, 16) & mask)
    if rights.isdigit():
        return bool(int(rights, 8 if rights.startswith("0") else 10) & mask)
    return not names.isdisjoint(re.findall("..", rights))
