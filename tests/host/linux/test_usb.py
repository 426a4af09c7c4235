"""USB devices, from files of the documented shape: this kernel may have no USB."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeek_agent.host.linux.usb import UsbDevice, usb_devices
from zeek_agent.text import from_bytes

STICK = {
    "uevent": "MAJOR=189\nMINOR=129\nDEVNAME=bus/usb/002/002\nDEVTYPE=usb_device\nTYPE=0/0/0\nBUSNUM=002\n",
    "dev": "189:129\n",
    "busnum": "2\n",
    "devnum": "2\n",
    "manufacturer": "Maker\n",
    "idVendor": "0781\n",
    "product": " Stick \xff\n",
    "idProduct": "5581\n",
    "bcdDevice": "0100\n",
    "serial": "4C53\n",
    "removable": "removable\n",
}


def plug(sysfs: Path, name: str, attributes: dict[str, str]) -> Path:
    place = sysfs / "bus/usb/devices" / name
    place.mkdir(parents=True)
    for attribute, text in attributes.items():
        (place / attribute).write_bytes(text.encode("latin-1"))
    return place


def test_devices_have_names_of_the_hardware_database_or_their_own(tmp_path: Path) -> None:
    plug(tmp_path, "2-1", STICK)
    plug(tmp_path, "2-1:1.0", {"uevent": "DEVTYPE=usb_interface\n"})
    plug(tmp_path, "usb1", {"uevent": "DEVTYPE=usb_device\nTYPE=9/0/1\n", "dev": "189:0", "busnum": "1"})
    udev = tmp_path / "udev"
    udev.mkdir()
    (udev / "c189:129").write_text("I:123\nE:ID_VENDOR_FROM_DATABASE=SanDisk Corp.\nE:ID_BUS=usb\nG:systemd\n")
    stick, hub = usb_devices(str(tmp_path), str(udev))
    ids = ("SanDisk Corp.", "0781", from_bytes(b"Stick \xff"), "5581")
    assert stick == UsbDevice(2, 2, *ids, "0100", "4C53", ("0", "0", "0"), "removable")
    assert hub == UsbDevice(1, 0, "", "", "", "", "", "", ("9", "0", "1"), "unknown")


def test_a_device_that_is_unplugged_meanwhile_is_left_out(tmp_path: Path) -> None:
    place = plug(tmp_path, "2-1", STICK)
    plug(tmp_path, "2-2", STICK)
    (place / "uevent").unlink()
    assert len(list(usb_devices(str(tmp_path), str(tmp_path)))) == 1


def test_without_usb_there_are_none(tmp_path: Path) -> None:
    assert list(usb_devices(str(tmp_path), str(tmp_path))) == []


@pytest.mark.skipif(not Path("/sys/bus/usb/devices").exists(), reason="this machine has no USB")
def test_devices_of_this_machine_have_ids() -> None:
    assert all(len(device.vendor_id) == 4 for device in usb_devices())
