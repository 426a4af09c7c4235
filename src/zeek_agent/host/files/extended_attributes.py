"""Extended attributes of files (xattr(7)), with file capabilities as text like libcap's."""

from __future__ import annotations

import base64
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from zeek_agent.text import from_bytes, from_os

CAPABILITY: Final = "security.capability"
_CAPABILITY_NAMES: Final = tuple(
    f"cap_{name}"
    for name in """chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace
    sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control
    setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf
    checkpoint_restore""".split()  # noqa: SIM905
)
_REVISIONS: Final = {1: "<III", 2: "<IIIII", 3: "<IIIIII"}
"""`struct vfs_cap_data` by its revision: flags, then permitted and inheritable of 32 capabilities each; root's id."""
_EFFECTIVE, _PERMITTED, _INHERITABLE = 1, 2, 4
_LETTERS: Final = ((_EFFECTIVE, "e"), (_INHERITABLE, "i"), (_PERMITTED, "p"))


class ExtendedAttribute(NamedTuple):
    """An attribute; `is_base64` if the value is not a text that ends with a zero byte, as security labels do."""

    key: str
    value: str
    is_base64: bool


def extended_attributes(descriptor: int) -> Iterator[ExtendedAttribute]:
    """The attributes of an open file, by name. Raises OSError."""
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return  # this file system has none
        raise
    for name in sorted(names, key=lambda name: (name != CAPABILITY, name)):
        try:
            value = os.getxattr(descriptor, name)
        except OSError as error:
            if error.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
                continue  # removed meanwhile
            raise
        text = capabilities_text(value) if name == CAPABILITY else None
        if text is not None:
            yield ExtendedAttribute(name, text, is_base64=False)
        else:
            yield ExtendedAttribute(from_os(name), *_shown(value))


def _shown(value: bytes) -> tuple[str, bool]:
    text = value.removesuffix(b"\0")
    if len(text) < len(value) and all(0x20 <= byte < 0x7F for byte in text):
        return from_bytes(text), False
    return base64.b64encode(text).decode(), True


def capabilities_text(value: bytes) -> str | None:
    """The text of a `security.capability` attribute, as cap_to_text(3) has it; None for an unknown format."""
    if len(value) < 4:
        return None
    (flags,) = struct.unpack_from("<I", value)
    layout = _REVISIONS.get(flags >> 24)
    if layout is None or struct.calcsize(layout) != len(value):
        return None
    words = struct.unpack(layout, value)
    permitted, inheritable = words[1], words[2]
    if len(words) >= 5:
        permitted |= words[3] << 32
        inheritable |= words[4] << 32
    states = [
        _PERMITTED * (permitted >> number & 1) | _INHERITABLE * (inheritable >> number & 1)
        for number in range(len(_CAPABILITY_NAMES))
    ]
    if flags & _EFFECTIVE:
        states = [state | _EFFECTIVE if state else 0 for state in states]
    return _states_text(states)


def _states_text(states: list[int]) -> str:
    """The most common state is the base; each other one follows with the capabilities that have it."""
    base = max(range(8), key=lambda state: (states.count(state), -state))
    clauses = [f"={_letters(base)}"] if base else []
    for state in reversed(range(8)):
        names = [name for name, each in zip(_CAPABILITY_NAMES, states, strict=True) if each == state]
        if state != base and names:
            added, removed = _letters(state & ~base), _letters(base & ~state)
            sign = "+" if clauses else "="
            changes = f"{sign}{added}" * bool(added) + f"-{removed}" * bool(removed)
            clauses.append(",".join(names) + changes)
    return " ".join(clauses) or "="


def _letters(state: int) -> str:
    return "".join(letter for bit, letter in _LETTERS if state & bit)
