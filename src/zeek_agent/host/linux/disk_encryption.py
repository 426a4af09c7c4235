"""Encryption of block devices: those of dm-crypt, by the ids that cryptsetup gives them, and LUKS headers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from zeek_agent.host.linux.block_devices import BlockDevice, open_device
from zeek_agent.text import escaped, from_bytes

_PREFIX: Final = "CRYPT-"
_UNENCRYPTED: Final = frozenset({"INTEGRITY", "SUBDEV", "TEMP", "VERITY"})
"""What cryptsetup also makes."""
_LUKS_MAGIC: Final = b"LUKS\xba\xbe"
_LUKS1_BYTES: Final = 72
_LUKS2_BINARY_BYTES: Final = 4_096
_LUKS2_BYTES_MAX: Final = 4 << 20
"""The largest header of LUKS2, with its JSON area."""


class _Segment(msgspec.Struct):
    type: str = ""
    encryption: str = ""


class _Metadata(msgspec.Struct):
    segments: dict[str, _Segment] = {}


def encryption_of(device: BlockDevice, devices: Mapping[str, BlockDevice], report: Callable[[str], None]) -> str | None:
    """Format and cipher of an encrypted device, or of the one that it is on top of; None if there is none."""
    seen: set[str] = set()
    current: BlockDevice | None = device
    while current is not None and current.name not in seen:
        seen.add(current.name)
        if current.mapper_uuid.startswith(_PREFIX):
            kind = current.mapper_uuid.split("-", 2)[1]
            if kind not in _UNENCRYPTED:
                return "-".join(filter(None, (kind, _cipher(devices.get(current.parent), report))))
        current = devices.get(current.parent)
    return None


def _cipher(below: BlockDevice | None, report: Callable[[str], None]) -> str:
    """Cipher and mode in the LUKS header of a device; empty without one, as for plain dm-crypt."""
    if below is None:
        return ""
    try:
        descriptor = open_device(below.name, below.number)
        try:
            return luks_cipher(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return ""  # a service has a /dev of its own, without disks
    except OSError as error:
        report(f"table disk_encryption: no cipher of {escaped(below.name)}: {error.strerror or error}")
        return ""


def luks_cipher(descriptor: int) -> str:
    """Cipher and mode, such as `aes-xts-plain64`, in the LUKS header of an open device or image; empty without one.

    Raises OSError.
    """
    header = os.pread(descriptor, _LUKS2_BINARY_BYTES, 0)
    if not header.startswith(_LUKS_MAGIC) or len(header) < _LUKS1_BYTES:
        return ""
    version = int.from_bytes(header[6:8], "big")
    if version == 1:
        return "-".join(from_bytes(name.split(b"\0", 1)[0]) for name in (header[8:40], header[40:72]))
    size = int.from_bytes(header[8:16], "big")
    if version != 2 or not _LUKS2_BINARY_BYTES < size <= _LUKS2_BYTES_MAX:
        return ""
    area = os.pread(descriptor, size - _LUKS2_BINARY_BYTES, _LUKS2_BINARY_BYTES)
    try:
        metadata = msgspec.json.decode(area.split(b"\0", 1)[0], type=_Metadata)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""
    return next((segment.encryption for segment in metadata.segments.values() if segment.type == "crypt"), "")
