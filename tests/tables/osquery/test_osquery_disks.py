"""osquery's tables block_devices and disk_encryption."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking_sql import ask_sql, rows_of

from zeek_agent.host.linux import block_devices, libblkid
from zeek_agent.host.linux.disk_encryption import luks_cipher


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sysfs and records of udev, instead of this host's."""
    root = tmp_path / "sys"
    (root / "class/block").mkdir(parents=True)
    (tmp_path / "udev").mkdir()
    monkeypatch.setattr(block_devices, "SYS", root)
    monkeypatch.setattr(block_devices, "UDEV", tmp_path / "udev")
    return root


def device(sys: Path, path: str, number: str, udev: str | None = "", **files: str) -> Path:
    """Add a device to such a sysfs; `__` in the name of a file is a slash."""
    directory = sys / "devices" / path
    directory.mkdir(parents=True)
    for name, text in {"uevent": "", "dev": number, "size": "100", **files}.items():
        file = directory / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (sys / "class/block" / directory.name).symlink_to(directory)
    if udev is not None:
        (sys.parent / "udev" / f"b{number}").write_text(udev)
    return directory


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A loop device with an ext4 file system."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("losetup", "mkfs.ext4", "blkid", "lsblk"))):
        pytest.skip("needs root, losetup, mkfs.ext4, blkid and lsblk")
    image = tmp_path / "image"
    with image.open("wb") as sparse:
        sparse.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-L", "a label", image], check=True)
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_new_device_has_the_values_that_blkid_and_lsblk_show(loop: str) -> None:
    (row,) = rows_of(f"SELECT * FROM block_devices WHERE name = '{loop}'")
    command = ["blkid", "--probe", "--output", "export", loop]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    superblock = dict(line.split("=", 1) for line in shown.replace("\\", "").splitlines())
    assert (row["uuid"], row["type"], row["label"]) == (superblock["UUID"], "ext4", "a label")
    command = ["lsblk", "--bytes", "--noheadings", "--output", "SIZE,LOG-SEC", loop]
    size, sector = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (row["size"] * 512, row["block_size"]) == (int(size), int(sector))
    assert (row["parent"], row["vendor"], row["model"], row["serial"]) == ("", "", "", "")


def test_the_contents_of_a_device_can_change(loop: str) -> None:
    statement = f"SELECT type, label FROM block_devices WHERE name = '{loop}'"
    assert rows_of(statement) == [{"type": "ext4", "label": "a label"}]
    subprocess.run(["wipefs", "--all", "--quiet", loop], check=True)
    assert rows_of(statement) == [{"type": "", "label": ""}]
    subprocess.run(["mkswap", "--label", "other", loop], check=True, capture_output=True)
    assert rows_of(statement) == [{"type": "swap", "label": "other"}]


def test_all_devices_of_this_host_are_listed() -> None:
    names = {f"/dev/{path.name}" for path in Path("/sys/class/block").iterdir()}
    found = {row["name"]: row for row in rows_of("SELECT name, size, block_size FROM block_devices")}
    assert found.keys() == names
    for name, row in found.items():
        place = Path("/sys/class/block", Path(name).name)
        assert str(row["size"]) == (place / "size").read_text().strip()


def test_a_partition_has_the_disks_values_and_its_own_contents(sys: Path) -> None:
    device(
        sys,
        "pci/block/sda",
        "8:0",
        size="2000",
        queue__logical_block_size="4096",
        device__model="  A Disk  ",
        device__vendor="ATA",
        device__wwid="naa.5000",
        device__serial="ignored",
    )
    record = "S:disk/by-label/x\nE:ID_FS_UUID=abc\nE:ID_FS_TYPE=ext4\nE:ID_FS_LABEL=a_b\nE:ID_FS_LABEL_ENC=a\\x20b=\n"
    device(sys, "pci/block/sda/sda1", "8:1", record, size="1000")
    disk, partition = rows_of("SELECT * FROM block_devices ORDER BY name")
    same = {"vendor": "ATA", "model": "A Disk", "serial": "naa.5000"}
    nothing = {"uuid": "", "type": "", "label": ""}
    assert disk == {"name": "/dev/sda", "parent": "", **same, "size": 2000, "block_size": 4096, **nothing}
    assert partition == {
        "name": "/dev/sda1",
        "parent": "/dev/sda",
        **same,
        "size": 1000,
        "block_size": None,
        "uuid": "abc",
        "type": "ext4",
        "label": "a b=",
    }
    assert rows_of("SELECT model FROM block_devices WHERE name = '/dev/sda1'") == [{"model": "A Disk"}]


def test_a_device_on_top_of_others_has_the_first_as_its_parent(sys: Path) -> None:
    for name, number in (("sdb", "8:16"), ("sda", "8:0")):
        device(sys, f"pci/block/{name}", number, device__model=name)
    slaves = device(sys, "virtual/block/md0", "9:0") / "slaves"
    slaves.mkdir()
    for name in ("sdb", "sda"):
        (slaves / name).symlink_to(sys / "devices/pci/block" / name)
    (row,) = rows_of("SELECT parent, model FROM block_devices WHERE name = '/dev/md0'")
    assert row == {"parent": "/dev/sda", "model": "sda"}


def test_damaged_entries_cost_their_own_values_only(sys: Path) -> None:
    device(sys, "pci/block/sda", "not a number", None, size="many")
    device(sys, "pci/block/nvme", "9:9", "garbage\nE:ID_FS_TYPE\nE:=\n", device__model="x" * 10_000)
    one = device(sys, "a/block/one", "1:1") / "slaves"
    two = device(sys, "a/block/two", "1:2") / "slaves"
    for slaves, other in ((one, "two"), (two, "one")):
        slaves.mkdir()
        (slaves / other).touch()
    (sys / "class/block/broken").symlink_to("nowhere")
    rows = rows_of("SELECT name, parent, length(model) AS model, size, type FROM block_devices ORDER BY name")
    assert [tuple(row.values()) for row in rows] == [
        ("/dev/nvme", "", 4096, 100, ""),
        ("/dev/one", "/dev/two", 0, 100, ""),
        ("/dev/sda", "", 0, None, ""),
        ("/dev/two", "/dev/one", 0, 100, ""),
    ]


def test_a_device_is_read_only_if_a_statement_uses_its_contents(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    open_device = block_devices.open_device

    def counted(name: str, number: str) -> int:
        read.append(name)
        return open_device(name, number)

    monkeypatch.setattr(block_devices, "open_device", counted)
    rows_of("SELECT name, size FROM block_devices")
    assert read == []
    rows_of(f"SELECT name, type FROM block_devices WHERE name = '{loop}'")
    assert read == [loop]


def test_without_libblkid_rows_lack_their_contents_and_an_error_says_so(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise libblkid.LibblkidError("libblkid.so.1 cannot be loaded")

    monkeypatch.setattr(libblkid, "_load", missing)
    answer = ask_sql(f"SELECT type, label FROM block_devices WHERE name = '{loop}'")
    assert answer.rows == [{"type": "", "label": ""}]
    assert ["libblkid.so.1 cannot be loaded" in error for error in answer.errors] == [True]


def formatted(image: Path, kind: bytes, mode: bytes) -> str:
    """Make a LUKS header in an image; the cipher that libcryptsetup then reads from it."""
    try:
        library = ctypes.CDLL("libcryptsetup.so.12")
    except OSError:
        pytest.skip("needs libcryptsetup")
    with image.open("wb") as sparse:
        sparse.truncate(32 << 20)
    library.crypt_get_cipher.restype = library.crypt_get_cipher_mode.restype = ctypes.c_char_p
    opened = ctypes.c_void_p()
    assert library.crypt_init(ctypes.byref(opened), bytes(image)) == 0
    try:
        library.crypt_set_iteration_time(opened, ctypes.c_uint64(1))
        size = ctypes.c_size_t(64 if mode.startswith(b"xts") else 32)
        assert library.crypt_format(opened, kind, b"aes", mode, None, None, size, None) == 0
        parts = library.crypt_get_cipher(opened), library.crypt_get_cipher_mode(opened)
        return b"-".join(parts).decode()
    finally:
        library.crypt_free(opened)


@pytest.mark.skipif(os.geteuid() != 0, reason="libcryptsetup locks in /run")
@pytest.mark.parametrize("kind", [b"LUKS1", b"LUKS2"])
@pytest.mark.parametrize("mode", [b"xts-plain64", b"cbc-essiv:sha256"])
def test_the_cipher_is_the_one_that_libcryptsetup_reads(tmp_path: Path, kind: bytes, mode: bytes) -> None:
    image = tmp_path / "image"
    shown = formatted(image, kind, mode)
    with image.open("rb") as file:
        assert luks_cipher(file.fileno()) == shown == f"aes-{mode.decode()}"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"LUKS\xba\xbe",
        b"LUKS\xba\xbe\0\x02" + b"\xff" * 100,
        b"LUKS\xba\xbe\0\x02" + (8192).to_bytes(8, "big") + bytes(4080) + b'{"segments": ["',
        b"LUKS\xba\xbe\0\x02" + (8192).to_bytes(8, "big") + bytes(4080) + b'{"segments": {"0": 1}}',
        b"LUKS\xba\xbe\0\x02" + (8192).to_bytes(8, "big") + bytes(4080) + b'{"segments": {"0": {"type": "\xff"}}}',
        b"LUKS\xba\xbe\0\x02" + (1 << 20).to_bytes(8, "big") + bytes(4080) + b'{"x": ' + b"[" * 100_000,
        b"LUKS\xba\xbe\0\x09" + bytes(200),
        os.urandom(5_000),
    ],
)
def test_damaged_headers_have_no_cipher(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "image").write_bytes(header)
    with (tmp_path / "image").open("rb") as file:
        assert luks_cipher(file.fileno()) == ""


def test_devices_of_dm_crypt_and_those_on_top_are_encrypted(sys: Path) -> None:
    device(sys, "pci/block/sda", "8:0")
    device(sys, "pci/block/sda/sda2", "8:2", "E:ID_FS_UUID=below\n")
    stack = [
        ("dm-0", "CRYPT-LUKS2-0123-root", "sda2"),
        ("dm-1", "LVM-abc", "dm-0"),
        ("dm-2", "CRYPT-VERITY-0123-usr", "sda2"),
        ("dm-3", "LVM-def", "sda2"),
        ("dm-4", "CRYPT-PLAIN-swap", "sda2"),
    ]
    for number, (name, uuid, below) in enumerate(stack):
        slaves = device(sys, f"virtual/block/{name}", f"254:{number}", dm__uuid=uuid) / "slaves"
        slaves.mkdir()
        (slaves / below).touch()
    answer = ask_sql("SELECT * FROM disk_encryption ORDER BY name")
    found = {row["name"]: (row["encrypted"], row["type"], row["encryption_status"]) for row in answer.rows}
    plain = (0, "", "not encrypted")
    assert found == {
        "/dev/dm-0": (1, "LUKS2", "encrypted"),
        "/dev/dm-1": (1, "LUKS2", "encrypted"),
        "/dev/dm-2": plain,
        "/dev/dm-3": plain,
        "/dev/dm-4": (1, "PLAIN", "encrypted"),
        "/dev/sda": plain,
        "/dev/sda2": plain,
    }
    assert [row["uuid"] for row in answer.rows if row["name"] == "/dev/sda2"] == ["below"]
    assert answer.errors == []
    assert rows_of("SELECT encrypted FROM disk_encryption WHERE name = '/dev/sda'") == [{"encrypted": 0}]


def test_the_type_has_the_cipher_of_the_device_below(sys: Path, loop: str) -> None:
    image = sys.parent / "header"
    formatted(image, b"LUKS2", b"xts-plain64")
    with image.open("rb") as header, Path(loop).open("r+b") as opened:
        opened.write(header.read(1 << 20))
    status = Path(loop).stat()
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    device(sys, f"virtual/block/{Path(loop).name}", number)
    slaves = device(sys, "virtual/block/dm-0", "254:0", dm__uuid="CRYPT-LUKS2-0123-x") / "slaves"
    slaves.mkdir()
    (slaves / Path(loop).name).touch()
    rows = rows_of("SELECT type FROM disk_encryption WHERE name = '/dev/dm-0'")
    assert rows == [{"type": "LUKS2-aes-xts-plain64"}]
