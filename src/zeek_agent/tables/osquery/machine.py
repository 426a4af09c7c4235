"""The computer, its firmware and processors, and the operating system."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zeek_agent.host.linux import machine, smbios
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

NOT_ENTERED: Final = "always null: the agent does not enter containers"

os_version = osquery_table(
    "os_version",
    "the operating system",
    description="One row, from os-release(5) and, where they exist, /etc/redhat-release or /etc/gentoo-release.",
    columns=[
        Column("name", "text", "name of the distribution, such as `Debian GNU/Linux`"),
        Column("version", "text", "version for people, such as `12 (bookworm)`", collation="version"),
        Column("major", "int", "first part of the version"),
        Column("minor", "int", "second part, or 0"),
        Column("patch", "int", "third part, or 0"),
        Column("build", "text", "build id of the image (BUILD_ID)"),
        Column(
            "platform", "text", "short name of the distribution (ID), such as `debian`; `rhel` for all of its family"
        ),
        Column("platform_like", "text", "names of similar distributions (ID_LIKE)"),
        Column("codename", "text", "code name of the release"),
        Column("arch", "text", "architecture of the machine, such as `x86_64`"),
        Column("pid_with_namespace", "int", NOT_ENTERED, hidden=True),
        Column("mount_namespace_id", "text", NOT_ENTERED, hidden=True),
    ],
    foreign="extra install_date:int revision:int",
    examples=["SELECT name, version, platform FROM os_version"],
)

system_info = osquery_table(
    "system_info",
    "the computer",
    description="One row. Columns about the hardware are null where the firmware does not describe it (SMBIOS).",
    columns=[
        Column("hostname", "text", "the host's name, with its domain if /etc/hosts has it"),
        Column(
            "uuid", "text", "the hardware's UUID, or one made of the agent's id where it has none", collation="nocase"
        ),
        Column("cpu_type", "text", "architecture, such as `x86_64`"),
        Column("cpu_subtype", "text", "the processor's model number; 0 if the kernel does not tell"),
        Column("cpu_brand", "text", "name of the processor"),
        Column("cpu_physical_cores", "int", "number of cores"),
        Column("cpu_logical_cores", "int", "number of processors that the kernel uses"),
        Column("cpu_sockets", "int", "number of processor chips"),
        Column("cpu_microcode", "text", "version of the microcode"),
        Column("physical_memory", "int", "bytes of memory"),
        Column("hardware_vendor", "text", "vendor of the computer"),
        Column("hardware_model", "text", "model of the computer; empty if unknown"),
        Column("hardware_version", "text", "version of the computer"),
        Column("hardware_serial", "text", "serial number of the computer"),
        Column("board_vendor", "text", "vendor of the main board"),
        Column("board_model", "text", "model of the main board"),
        Column("board_version", "text", "version of the main board"),
        Column("board_serial", "text", "serial number of the main board"),
        Column("computer_name", "text", "the host's name without its domain"),
        Column("local_hostname", "text", "the same as `hostname`"),
    ],
    foreign="emulated_cpu_type",
    examples=["SELECT hostname, uuid, cpu_brand, physical_memory FROM system_info"],
)

kernel_info = osquery_table(
    "kernel_info",
    "the running kernel",
    description="One row.",
    columns=[
        Column("version", "text", "release, such as `6.1.0-18-amd64`", collation="version"),
        Column("arguments", "text", "arguments that the kernel was booted with, without the following two"),
        Column("path", "text", "path of the kernel's image (BOOT_IMAGE)"),
        Column("device", "text", "device of the root file system (root)"),
    ],
    examples=["SELECT version, path FROM kernel_info"],
)

cpu_info = osquery_table(
    "cpu_info",
    "processors as the firmware describes them",
    description="One row per processor socket. Without SMBIOS, as in many virtual machines, the table is empty.",
    columns=[
        Column("device_id", "text", "kind and number, such as `CPU0`"),
        Column("model", "text", "name of the processor"),
        Column("manufacturer", "text", "manufacturer of the processor"),
        Column("processor_type", "text", "3 central, 4 math, 5 DSP, 6 video processor"),
        Column("cpu_status", "int", "status byte of the structure: 65 if the socket has an enabled processor"),
        Column("number_of_cores", "text", "number of cores"),
        Column("logical_processors", "int", "number of threads"),
        Column("address_width", "text", "`64` or `32` bits"),
        Column("current_clock_speed", "int", "MHz at boot"),
        Column("max_clock_speed", "int", "MHz that the socket supports"),
        Column("socket_designation", "text", "name of the socket"),
    ],
    foreign=("availability load_percentage:int number_of_efficiency_cores:int number_of_performance_cores:int"),
    examples=["SELECT device_id, model, number_of_cores FROM cpu_info"],
)

platform_info = osquery_table(
    "platform_info",
    "the firmware",
    description="One row. Without SMBIOS, as in many virtual machines, the table is empty.",
    columns=[
        Column("vendor", "text", "vendor of the firmware"),
        Column("version", "text", "version of the firmware", collation="version"),
        Column("date", "text", "release date of the firmware"),
        Column("revision", "text", "major and minor revision, such as `4.6`"),
        Column("extra", "text", "always empty"),
        Column("firmware_type", "text", "`uefi` or `bios`"),
        Column("address", "text", "segment where it is loaded, such as `0xe800`"),
        Column("size", "text", "its size in bytes"),
        Column("volume_size", "int", "always 0"),
    ],
    examples=["SELECT vendor, version, date FROM platform_info"],
)

_RELEASE: Final = re.compile(r"([\w\s]+) .* (\d+)\.(\d+)\.?(\w+)?")
_FAMILIES: Final = {"rhel": "/etc/redhat-release", "gentoo": "/etc/gentoo-release"}
_KINDS: Final = {3: "CPU", 4: "MATH", 5: "DSP", 6: "GPU"}
_IN_A_WORD: Final = 0xFF
"""A byte with this value means that the number is in a field of its own, which has two bytes."""
_64_BIT: Final = 1 << 2


@os_version.snapshot
def operating_system(wanted: Constraints) -> Iterator[Row]:
    yield (*os_of("/"), None, None)


def os_of(root: str) -> Row:
    """The columns until `arch` for the system below that directory."""
    release = machine.os_release(root)
    numbers = (release.get("VERSION_ID", "").split(".", 2) if release.get("VERSION_ID") else []) + ["0"] * 3
    name, version, platform_like = release.get("NAME", "Unknown"), release.get("VERSION"), release.get("ID_LIKE")
    build, kind = release.get("BUILD_ID"), release.get("ID", "posix")
    for family, path in _FAMILIES.items():
        text = machine.content(f"{root}{path}")
        if text is not None:
            kind = platform_like = family
            version, build = " ".join(text.split()), ""
            if found := _RELEASE.search(version):
                name, numbers = found[1], [found[2], found[3], found[4] or "0"]
            break
    codename = next((value for key, value in reversed(release.items()) if "CODENAME" in key), None)
    return name, version, *map(_number, numbers[:3]), build, kind, platform_like, codename, platform.machine()


@system_info.snapshot
def computer(wanted: Constraints) -> Iterator[Row]:
    agent = wanted.context.agent
    hostname = machine.canonical_hostname(agent.hostname)
    listed = machine.processors()
    first, online = listed[0] if listed else {}, os.cpu_count() or 1
    siblings = _number(first.get("siblings", ""))
    vendor, model, version = (machine.dmi(name) for name in ("sys_vendor", "product_name", "product_version"))
    if (vendor or "").lower() == "lenovo":  # which has the two the other way round
        model, version = version, model
    yield (
        hostname,
        machine.host_uuid(agent.id),
        platform.machine(),
        first.get("model", "0"),
        first.get("model name"),
        machine.physical_cores(listed) or online,
        online,
        online // siblings if siblings else None,
        first.get("microcode"),
        machine.physical_memory(),
        vendor,
        model or "",
        version,
        *map(machine.dmi, ("product_serial", "board_vendor", "board_name", "board_version", "board_serial")),
        agent.hostname,
        hostname,
    )


@kernel_info.snapshot
def kernel(wanted: Constraints) -> Iterator[Row]:
    yield kernel_of("/")


def kernel_of(root: str) -> Row:
    """The row for the kernel whose files are below that directory."""
    given: dict[str, str] = {}
    others = []
    for argument in (machine.content(f"{root}proc/cmdline") or "").split():
        name, separator, value = argument.partition("=")
        if separator and name in {"BOOT_IMAGE", "root"}:
            given[name] = value
        else:
            others.append(argument)
    words = (machine.content(f"{root}proc/version") or "").split()
    version = words[2] if len(words) > 2 and words[1] == "version" else None
    return version, " ".join(others), given.get("BOOT_IMAGE"), given.get("root")


@cpu_info.snapshot
def sockets(wanted: Constraints) -> Iterator[Row]:
    return processors_of(smbios.TABLES)


def processors_of(tables: str) -> Iterator[Row]:
    """The rows for SMBIOS structures in that file."""
    number = 0
    for one in smbios.structures(tables):
        if one.kind != smbios.PROCESSOR:
            continue
        kind, features = one.byte(0x05), one.word(0x26)
        name = _KINDS.get(kind or 0)
        cores, threads = _counted(one, 0x23, 0x2A), _counted(one, 0x25, 0x2E)
        yield (
            None if name is None else f"{name}{number}",
            one.text(0x10),
            one.text(0x07),
            None if kind is None else str(kind),
            one.byte(0x18),
            None if cores is None else str(cores),
            threads,
            None if features is None else "64" if features & _64_BIT else "32",
            one.word(0x16),
            one.word(0x14),
            one.text(0x04),
        )
        number += name is not None


@platform_info.snapshot
def firmware(wanted: Constraints) -> Iterator[Row]:
    return firmware_of(smbios.TABLES)


def firmware_of(tables: str) -> Iterator[Row]:
    """The rows for SMBIOS structures in that file."""
    kind = "uefi" if Path("/sys/firmware/efi").exists() else "bios"
    for one in smbios.structures(tables):
        if one.kind == smbios.FIRMWARE:
            address, blocks, major, minor = one.word(0x06), one.byte(0x09), one.byte(0x14), one.byte(0x15)
            yield (
                one.text(0x04),
                one.text(0x05),
                one.text(0x08),
                None if major is None or minor is None else f"{major}.{minor}",
                "",
                kind,
                None if address is None else f"0x{address:04x}",
                None if blocks is None else str((blocks + 1) << 16),
                0,
            )


def _counted(one: smbios.Structure, byte: int, word: int) -> int | None:
    number = one.byte(byte)
    return one.word(word) or number if number == _IN_A_WORD else number


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


TABLES = (os_version, system_info, kernel_info, cpu_info, platform_info)
