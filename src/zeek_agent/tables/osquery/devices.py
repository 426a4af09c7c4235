"""Devices of the host."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.linux import usb
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

usb_devices = osquery_table(
    "usb_devices",
    "devices on the USB buses",
    description="One row per device and hub. Names are those of udev's hardware database, or else the device's own.",
    columns=[
        Column("usb_address", "int", "number of the bus"),
        Column("usb_port", "int", "number of the device on its bus"),
        Column("vendor", "text", "name of the vendor"),
        Column("vendor_id", "text", "id of the vendor, four hexadecimal digits", collation="nocase"),
        Column("version", "text", "version of the device, such as `0100` for 1.00", collation="version"),
        Column("model", "text", "name of the product"),
        Column("model_id", "text", "id of the product, four hexadecimal digits", collation="nocase"),
        Column("serial", "text", "serial number"),
        Column("class", "text", "USB class, as a decimal number"),
        Column("subclass", "text", "USB subclass"),
        Column("protocol", "text", "USB protocol"),
        Column("removable", "int", "1, or -1 if it is unknown whether the device can be unplugged"),
    ],
    examples=["SELECT vendor, model, serial FROM usb_devices"],
)


@usb_devices.snapshot
def plugged_in(wanted: Constraints) -> Iterator[Row]:
    for device in usb.usb_devices():
        yield (
            device.bus,
            device.number,
            device.vendor,
            device.vendor_id,
            device.release,
            device.product,
            device.product_id,
            device.serial,
            *device.type,
            -1 if device.removable == "unknown" else 1,
        )


TABLES = (usb_devices,)
