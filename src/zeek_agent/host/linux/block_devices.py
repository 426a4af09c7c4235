"""Block devices: sysfs, udev's records of their contents, or else libblkid's."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.text import from_bytes

SYS: Final = Path("/sys")
UDEV: Final = Path("/run/udev/data")
_FILE_BYTES_MAX: Final = 4_096
_DIGITS_MAX: Final = 18
_ENCODED: Final = re.compile(rb"\\x([0-9a-fA-F]{2})")
_DEVICE_NUMBER: Final = re.compile(r"[0-9]+:[0-9]+")


class Contents(NamedTuple):
    """What is on a device: the superblock's values; empty if there is none."""

    uuid: str = ""
    kind: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A device; texts are empty if the kernel has none. `size` is in sectors of 512 bytes."""

    name: str
    """The path in /dev."""
    parent: str
    """The disk of a partition; of a device on top of others the first of these."""
    vendor: str
    model: str
    serial: str
    size: int | None
    block_size: int | None
    number: str
    """`major:minor`."""
    mapper_uuid: str
    """Of a device-mapper device: its id, which begins with the name of the program that made it."""


def block_devices(sys: Path) -> dict[str, BlockDevice]:
    """All devices by name. A child has the vendor, model and serial number of its parent."""
    directories = {}
    for entry in sorted(_entries(sys / "class/block")):
        with suppress(OSError):
            directory = Path(os.path.realpath(sys / "class/block" / entry, strict=True))
            if (directory / "uevent").exists():
                directories[f"/dev/{from_bytes(os.fsencode(directory.name))}"] = directory
    found: dict[str, BlockDevice] = {}
    for name in directories:
        _add(name, directories, found, frozenset())
    return found


def _entries(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []


def _add(name: str, directories: dict[str, Path], found: dict[str, BlockDevice], above: frozenset[str]) -> None:
    """Add a device after its parents."""
    if name in found:
        return
    device = _device(name, directories[name])
    if device.parent in directories and device.parent not in above:
        _add(device.parent, directories, found, above | {name})
        parent = found[device.parent]
        device = replace(device, vendor=parent.vendor, model=parent.model, serial=parent.serial)
    found[name] = device


def _device(name: str, directory: Path) -> BlockDevice:
    above = directory.parent.name
    if above == "block":
        above = next(iter(sorted(_entries(directory / "slaves"))), "")
    return BlockDevice(
        name,
        f"/dev/{from_bytes(os.fsencode(above))}" if above else "",
        _first(directory, "device/vendor", "device/device/vendor"),
        _first(directory, "device/model"),
        _first(directory, "device/wwid", "device/serial"),
        _number(_first(directory, "size")),
        _number(_first(directory, "queue/logical_block_size")),
        _first(directory, "dev"),
        _first(directory, "dm/uuid"),
    )


def _first(directory: Path, *names: str) -> str:
    """The text of the first of these files that has one."""
    for name in names:
        try:
            with (directory / name).open("rb") as file:
                text = file.read(_FILE_BYTES_MAX).strip(b"\n\t \0")
        except OSError:
            continue  # this kind of device does not have it
        if text:
            return from_bytes(text)
    return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None


def open_device(name: str, number: str) -> int:
    """A descriptor to read the device with that number; the caller closes it. Raises OSError, also for another one."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode) and number == f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}":
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "is not the device in sysfs", name)


def contents_of(
    devices: Iterable[BlockDevice], report: Callable[[str], None], udev: Path
) -> Iterator[tuple[BlockDevice, Contents]]:
    """The devices with their contents: as udev has recorded them, or as libblkid finds them on the device."""
    for device in devices:
        recorded = _recorded(udev, device.number)
        yield device, _probed(device, report) if recorded is None else recorded


def _recorded(udev: Path, number: str) -> Contents | None:
    """What udev found when the device last changed; None without a record."""
    if _DEVICE_NUMBER.fullmatch(number) is None:
        return None
    try:
        lines = (udev / f"b{number}").read_bytes().split(b"\n")
    except OSError:
        return None
    values = dict(line[2:].partition(b"=")[::2] for line in lines if line.startswith(b"E:"))
    return Contents(*(_decoded(values, name) for name in (b"ID_FS_UUID", b"ID_FS_TYPE", b"ID_FS_LABEL")))


def _decoded(values: dict[bytes, bytes], name: bytes) -> str:
    encoded = values.get(name + b"_ENC")
    if encoded is None:
        return from_bytes(values.get(name, b""))
    return from_bytes(_ENCODED.sub(lambda found: bytes([int(found[1], 16)]), encoded))


def _probed(device: BlockDevice, report: Callable[[str], None]) -> Contents:
    if not device.size:
        return Contents()  # no medium
    from zeek_agent.host.linux.libblkid import LibblkidError, probe

    try:
        descriptor = open_device(device.name, device.number)
        try:
            return Contents(*probe(descriptor, device.size * 512))
        finally:
            os.close(descriptor)
    except LibblkidError as error:
        report(f"no uuid, type and label of block devices: {error}")
    except OSError:
        return Contents()  # removed, or without a node in /dev
    return Contents()
