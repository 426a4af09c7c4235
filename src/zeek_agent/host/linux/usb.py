"""USB devices, from sysfs and from udev's database (/run/udev/data)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeek_agent.text import from_bytes

ATTRIBUTE_BYTES_MAX: Final = 4_096
"""The size of a page, which no attribute of sysfs exceeds."""
RECORD_BYTES_MAX: Final = 65_536
"""What is read of a device's record in udev's database; usual ones have some KB."""


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """A USB device. Ids are four hexadecimal digits, `release` is the device's version in BCD as sysfs has it.

    `type` is class, subclass and protocol, as decimal numbers. Names are '' where nobody knows them.
    """

    bus: int
    number: int
    vendor: str
    vendor_id: str
    product: str
    product_id: str
    release: str
    serial: str
    type: tuple[str, str, str]
    removable: str
    """`removable`, `fixed` or `unknown`."""


def usb_devices(sysfs: str = "/sys", udev: str = "/run/udev/data") -> Iterator[UsbDevice]:
    """The USB devices and hubs, in the order of their names; none without USB."""
    try:
        places = sorted(Path(sysfs, "bus/usb/devices").iterdir())
    except FileNotFoundError:
        return
    for place in places:
        with suppress(FileNotFoundError):  # unplugged meanwhile
            device = _device(place, udev)
            if device is not None:
                yield device


def _device(place: Path, udev: str) -> UsbDevice | None:
    """None for an interface, of which a device has several."""
    events = _properties(_read(place / "uevent", ATTRIBUTE_BYTES_MAX), "")
    if events.get("DEVTYPE") != "usb_device":
        return None
    known = _properties(_record(f"{udev}/c{_text(place / 'dev')}"), "E:")
    kind = events.get("TYPE", "").split("/")
    return UsbDevice(
        bus=int(_text(place / "busnum") or 0),
        number=int(_text(place / "devnum") or 0),
        vendor=known.get("ID_VENDOR_FROM_DATABASE") or _text(place / "manufacturer"),
        vendor_id=_text(place / "idVendor"),
        product=known.get("ID_MODEL_FROM_DATABASE") or _text(place / "product"),
        product_id=_text(place / "idProduct"),
        release=_text(place / "bcdDevice"),
        serial=_text(place / "serial"),
        type=(kind[0], kind[1], kind[2]) if len(kind) == 3 else ("", "", ""),
        removable=_text(place / "removable") or "unknown",
    )


def _text(path: Path) -> str:
    """An attribute without white space around it; '' if the device does not have it."""
    try:
        return from_bytes(_read(path, ATTRIBUTE_BYTES_MAX).strip())
    except FileNotFoundError:
        return ""


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def _record(path: str) -> bytes:
    try:
        return _read(Path(path), RECORD_BYTES_MAX)
    except FileNotFoundError:
        return b""


def _properties(text: bytes, prefix: str) -> dict[str, str]:
    """The lines `KEY=VALUE` that begin with the prefix."""
    lines = (from_bytes(line).removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix.encode()))
    return dict(line.split("=", 1) for line in lines if "=" in line)
