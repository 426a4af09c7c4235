"""The firmware's description of the computer: SMBIOS structures (DMTF DSP0134), from sysfs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zeek_agent.text import from_bytes

FIRMWARE: Final = 0
PROCESSOR: Final = 4
TABLES: Final = "/sys/firmware/dmi/tables/DMI"

_END: Final = 127
_HEADER_BYTES: Final = 4
_TABLE_BYTES_MAX: Final = 1 << 20


class Structure:
    """One structure. A field that it is too short for, because the firmware is older than the field, is None."""

    def __init__(self, kind: int, formatted: bytes, texts: list[bytes]) -> None:
        self.kind = kind
        self._formatted = formatted
        self._texts = texts

    def byte(self, offset: int) -> int | None:
        return self._formatted[offset] if offset < len(self._formatted) else None

    def word(self, offset: int) -> int | None:
        field = self._formatted[offset : offset + 2]
        return int.from_bytes(field, "little") if len(field) == 2 else None

    def text(self, offset: int) -> str:
        """The text whose number is in that field, without blanks at its end; empty without one."""
        number = self.byte(offset)
        return from_bytes(self._texts[number - 1]).rstrip() if number and number <= len(self._texts) else ""


def structures(path: str = TABLES) -> Iterator[Structure]:
    """All structures; none if the computer has no SMBIOS or it is not accessible. A damaged table ends early."""
    try:
        with Path(path).open("rb") as file:
            table = file.read(_TABLE_BYTES_MAX)
    except OSError:
        return
    at = 0
    while at + _HEADER_BYTES <= len(table):
        kind, length = table[at], table[at + 1]
        end = table.find(b"\0\0", at + length)
        if kind == _END or length < _HEADER_BYTES or end < 0:
            return
        yield Structure(kind, table[at : at + length], table[at + length : end].split(b"\0"))
        at = end + 2
