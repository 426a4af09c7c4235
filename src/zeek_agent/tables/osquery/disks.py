"""Block devices, and their encryption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from zeek_agent.host.linux import block_devices
from zeek_agent.host.linux.block_devices import BlockDevice, Contents
from zeek_agent.host.linux.disk_encryption import encryption_of
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

devices = osquery_table(
    "block_devices",
    "disks, partitions and other block devices",
    description=(
        "One row per block device in sysfs. `uuid`, `type` and `label` are those of the file system or other contents, "
        "as udev has recorded them; without a record the device is read (libblkid)."
    ),
    columns=[
        Column("name", "text", "path of the device in `/dev`"),
        Column("parent", "text", "the disk of a partition, or the device that this one is on top of"),
        Column("vendor", "text", "manufacturer"),
        Column("model", "text", "model of the disk"),
        Column("serial", "text", "serial number of the disk"),
        Column("size", "int", "size in sectors of 512 bytes"),
        Column("block_size", "int", "logical block size of a disk in bytes; null for a partition"),
        Column("uuid", "text", "UUID of the contents", collation="nocase"),
        Column("type", "text", "type of the contents, such as `ext4`, `swap` or `crypto_LUKS`"),
        Column("label", "text", "label of the contents"),
    ],
    examples=["SELECT name, parent, size * 512 AS bytes, type, label FROM block_devices WHERE type != ''"],
    opens_files=True,
)

disk_encryption = osquery_table(
    "disk_encryption",
    "encryption of block devices",
    description=(
        "One row per block device. A device is encrypted if it is one of dm-crypt (LUKS, plain and others), or on top "
        "of one. The device below, which holds the encrypted data, is not."
    ),
    columns=[
        Column("name", "text", "path of the device in `/dev`"),
        Column("uuid", "text", "UUID of the contents", collation="nocase"),
        Column("encrypted", "int", "1 if the device is encrypted, otherwise 0"),
        Column("type", "text", "format and cipher, such as `LUKS2-aes-xts-plain64`; empty if not encrypted"),
        Column("encryption_status", "text", "`encrypted` or `not encrypted`"),
    ],
    foreign="uid user_uuid filevault_status",
    examples=["SELECT name, type FROM disk_encryption WHERE encrypted = 1"],
    opens_files=True,
)


@devices.snapshot
def listed(wanted: Constraints) -> Iterator[Row]:
    all_devices = block_devices.block_devices(block_devices.SYS)
    needed = wanted.needs("uuid", "type", "label")
    for device, (uuid, kind, label) in described(wanted, all_devices, contents_needed=needed):
        yield (
            device.name,
            device.parent,
            device.vendor,
            device.model,
            device.serial,
            device.size,
            device.block_size,
            uuid,
            kind,
            label,
        )


@disk_encryption.snapshot
def encryption(wanted: Constraints) -> Iterator[Row]:
    all_devices = block_devices.block_devices(block_devices.SYS)
    uuid_needed = wanted.needs("uuid")
    for device, (uuid, _, _) in described(wanted, all_devices, contents_needed=uuid_needed):
        kind = encryption_of(device, all_devices, wanted.report)
        status = "not encrypted" if kind is None else "encrypted"
        yield device.name, uuid, int(kind is not None), kind or "", status


def described(
    wanted: Constraints, devices: Mapping[str, BlockDevice], *, contents_needed: bool
) -> Iterator[tuple[BlockDevice, Contents]]:
    """The devices that the statement names, with their contents if it reads these."""
    names = wanted.equal("name")
    found = [device for name, device in devices.items() if names is None or name in names]
    if not contents_needed:
        return ((device, Contents()) for device in found)
    return block_devices.contents_of(found, wanted.report, block_devices.UDEV)


TABLES = (devices, disk_encryption)
