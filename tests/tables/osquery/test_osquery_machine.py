"""osquery's tables of the computer and its load, compared with system tools and with files of other systems."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from children import child
from osquery_rows import selected

from zeek_agent.contract import NoAgent
from zeek_agent.host.linux import machine, smbios
from zeek_agent.tables.osquery import load
from zeek_agent.tables.osquery import machine as machine_tables
from zeek_agent.tables.osquery.machine import firmware_of, kernel_of, os_of, processors_of

OS_COLUMNS = ("name", "version", "major", "minor", "patch", "build", "platform", "platform_like", "codename", "arch")


def row(table: str) -> dict[str, Any]:
    (found,) = selected(f"SELECT * FROM {table}")
    return found


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def written(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def os_below(root: str) -> dict[str, Any]:
    return dict(zip(OS_COLUMNS, os_of(root), strict=True))


def test_the_operating_system_is_that_of_os_release() -> None:
    found, release = row("os_version"), platform.freedesktop_os_release()
    assert (found["name"], found["version"], found["platform"]) == (release["NAME"], release["VERSION"], release["ID"])
    assert found["platform_like"] == release.get("ID_LIKE")
    assert found["codename"] == release.get("VERSION_CODENAME")
    assert [found["major"], found["minor"], found["patch"]] == [*map(int, release["VERSION_ID"].split(".")), 0, 0][:3]
    assert found["arch"] == output("uname", "-m").strip()
    assert found["build"] == release.get("BUILD_ID")


def test_other_distributions_have_their_values(tmp_path: Path) -> None:
    ubuntu = {
        "etc/os-release": 'NAME="Ubuntu"\nVERSION="22.04.3 LTS (Jammy)"\nID=ubuntu\nID_LIKE=debian\n# a comment\n'
        'VERSION_ID=\'22.04\'\nVERSION_CODENAME=jammy\nUBUNTU_CODENAME=jammy\nBUILD_ID="a \\"b\\""\nno line\n'
    }
    assert os_below(written(tmp_path / "ubuntu", ubuntu)) == {
        "name": "Ubuntu",
        "version": "22.04.3 LTS (Jammy)",
        "major": 22,
        "minor": 4,
        "patch": 0,
        "build": 'a "b"',
        "platform": "ubuntu",
        "platform_like": "debian",
        "codename": "jammy",
        "arch": platform.machine(),
    }
    centos = {
        "etc/os-release": 'NAME="CentOS Linux"\nID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="7"\n',
        "etc/redhat-release": "CentOS Linux release 7.9.2009 (Core)\n",
    }
    found = os_below(written(tmp_path / "centos", centos))
    assert (found["name"], found["version"], found["platform"], found["platform_like"], found["build"]) == (
        "CentOS Linux",
        "CentOS Linux release 7.9.2009 (Core)",
        "rhel",
        "rhel",
        "",
    )
    assert (found["major"], found["minor"], found["patch"]) == (7, 9, 2009)
    nothing = os_below(str(tmp_path / "nothing"))
    assert (nothing["name"], nothing["platform"], nothing["version"], nothing["major"]) == ("Unknown", "posix", None, 0)
    rolling = os_below(written(tmp_path / "rolling", {"usr/lib/os-release": "NAME=Arch\nVERSION_ID=rolling\n"}))
    assert (rolling["name"], rolling["major"], rolling["minor"]) == ("Arch", None, 0)


def test_the_computer_is_the_one_that_lscpu_and_others_show() -> None:
    found = row("system_info")
    listed = json.loads(output("lscpu", "--json"))["lscpu"]
    shown = {field["field"].rstrip(":"): field["data"] for field in flattened(listed)}
    assert found["cpu_type"] == shown["Architecture"]
    assert (found["cpu_brand"] or "") == shown.get("Model name", "")
    assert found["cpu_logical_cores"] == int(output("nproc"))
    assert found["cpu_physical_cores"] == int(shown["Core(s) per socket"]) * int(shown["Socket(s)"])
    assert found["cpu_sockets"] in {None, int(shown["Socket(s)"])}
    assert found["cpu_subtype"] in {"0", shown.get("Model")}
    assert found["cpu_microcode"] in {None, *output("sort", "-u", "/proc/cpuinfo").split()}
    assert abs(found["physical_memory"] - int(output("free", "-b").split()[7])) < 1 << 28
    assert found["computer_name"] == NoAgent.hostname
    assert found["hostname"] == found["local_hostname"]
    for column, name in (
        ("hardware_vendor", "sys_vendor"),
        ("hardware_serial", "product_serial"),
        ("board_vendor", "board_vendor"),
        ("board_model", "board_name"),
        ("board_version", "board_version"),
        ("board_serial", "board_serial"),
    ):
        file = Path("/sys/class/dmi/id", name)
        assert found[column] == (file.read_text().strip("\n").rstrip() if file.exists() else None)


def flattened(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for field in fields for one in (field, *flattened(field.get("children", [])))]


def test_the_host_is_named_with_its_domain_as_hostname_does(tmp_path: Path) -> None:
    root = written(
        tmp_path, {"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 box.example.org Box # comment\n10.0.0.1 box\n"}
    )
    assert machine.canonical_hostname("box", root) == "box.example.org"
    assert machine.canonical_hostname("comment", root) == "comment"
    assert machine.canonical_hostname("x", str(tmp_path / "nothing")) == "x"
    name = socket.gethostname()
    assert machine.canonical_hostname(name).partition(".")[0] == name.partition(".")[0]


def test_the_uuid_is_the_hardwares_unless_it_is_a_placeholder(tmp_path: Path) -> None:
    place = "sys/class/dmi/id/product_uuid"
    real = "4C4C4544-0031-4A10-8052-B7C04F4E3432"
    assert machine.host_uuid("Hx", written(tmp_path / "real", {place: f"{real}\n"})) == real
    placeholder = written(tmp_path / "other", {place: "03000200-0400-0500-0006-000700080009\n"})
    made = machine.host_uuid("Hx", placeholder)
    assert made == machine.host_uuid("Hx", str(tmp_path / "nothing"))
    assert made != machine.host_uuid("Hy", placeholder)
    assert machine.host_uuid("", placeholder) == ""


def test_hardware_without_numbers_of_cores_has_one_core_for_each_processor(tmp_path: Path) -> None:
    both = "processor\t: 0\nphysical id\t: 0\ncore id\t\t: 0\n\nprocessor\t: 1\nphysical id\t: 0\ncore id\t\t: 0\n\n"
    assert machine.physical_cores(machine.processors(written(tmp_path / "x86", {"proc/cpuinfo": both}))) == 1
    arm = machine.processors(written(tmp_path / "arm", {"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 243.75\n\n"}))
    assert arm == [{"processor": "0", "BogoMIPS": "243.75"}]
    assert machine.physical_cores(arm) is None


def test_the_kernel_is_that_of_uname() -> None:
    found = row("kernel_info")
    assert found["version"] == output("uname", "-r").strip()
    words = [*found["arguments"].split()]
    words += [f"BOOT_IMAGE={found['path']}"] * (found["path"] is not None)
    words += [f"root={found['device']}"] * (found["device"] is not None)
    assert sorted(words) == sorted(Path("/proc/cmdline").read_text().split())


def test_image_and_root_are_columns_of_their_own(tmp_path: Path) -> None:
    files = {
        "proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-6.1 root=UUID=1234 ro quiet\n",
        "proc/version": "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) (gcc-12)\n",
    }
    root = written(tmp_path, files)
    assert kernel_of(f"{root}/") == ("6.1.0-18-amd64", "ro quiet", "/boot/vmlinuz-6.1", "UUID=1234")


def structure(kind: int, formatted: bytes, *texts: bytes) -> bytes:
    return (
        bytes([kind, len(formatted) + 4, 0, 0]) + formatted + b"".join(text + b"\0" for text in texts or (b"",)) + b"\0"
    )


def processor(kind: int = 3, cores: int = 8, *, length: int = 0x30) -> bytes:
    field = bytearray(0x30)
    field[0x04:0x08] = bytes([1, kind, 0xCD, 2])
    field[0x10] = 3
    field[0x14:0x18] = (4_000).to_bytes(2, "little") + (2_400).to_bytes(2, "little")
    field[0x18] = 0x41
    field[0x23:0x26] = bytes([cores, cores, 16])
    field[0x26:0x28] = (0x00FC).to_bytes(2, "little")
    field[0x2A:0x2C] = (300).to_bytes(2, "little")
    return structure(4, bytes(field[4:length]), b"CPU 0", b"Intel(R) Corporation", b"Xeon(R)  ")


FIRMWARE = structure(
    0,
    bytes([1, 2, 0x00, 0xE8, 3, 0x0F]) + bytes(10) + bytes([4, 6, 0xFF, 0xFF]),
    b"SeaBIOS",
    b"1.16.2",
    b"04/01/2014",
)
END = structure(127, b"")


def test_processors_and_firmware_are_those_of_smbios(tmp_path: Path) -> None:
    table = tmp_path / "DMI"
    table.write_bytes(FIRMWARE + processor() + processor(5) + processor(cores=255) + processor(9) + END + processor())
    assert list(processors_of(str(table))) == [
        ("CPU0", "Xeon(R)", "Intel(R) Corporation", "3", 0x41, "8", 16, "64", 2_400, 4_000, "CPU 0"),
        ("DSP1", "Xeon(R)", "Intel(R) Corporation", "5", 0x41, "8", 16, "64", 2_400, 4_000, "CPU 0"),
        ("CPU2", "Xeon(R)", "Intel(R) Corporation", "3", 0x41, "300", 16, "64", 2_400, 4_000, "CPU 0"),
        (None, "Xeon(R)", "Intel(R) Corporation", "9", 0x41, "8", 16, "64", 2_400, 4_000, "CPU 0"),
    ]
    ((vendor, version, date, revision, extra, kind, address, size, volume),) = firmware_of(str(table))
    assert (vendor, version, date, revision) == ("SeaBIOS", "1.16.2", "04/01/2014", "4.6")
    assert (extra, address, size, volume) == ("", "0xe800", str(1 << 20), 0)
    assert kind == ("uefi" if Path("/sys/firmware/efi").exists() else "bios")


def test_old_and_damaged_tables_of_firmware_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    table = tmp_path / "DMI"
    table.write_bytes(processor(length=0x1A))
    ((name, *_, cores, threads, width, _, _, _),) = processors_of(str(table))
    assert (name, cores, threads, width) == ("CPU0", None, None, None)
    whole = FIRMWARE + processor() + processor()
    for cut in range(len(whole)):
        table.write_bytes(whole[:cut])
        assert len(list(smbios.structures(str(table)))) <= 2
    table.write_bytes(processor() + b"\x04\x00\x00\x00\0\0" + processor())
    assert len(list(processors_of(str(table)))) == 1
    assert list(smbios.structures(str(tmp_path / "nothing"))) == []


def test_load_averages_are_those_of_proc() -> None:
    rows = selected("SELECT * FROM load_average")
    shown = Path("/proc/loadavg").read_text().split()[:3]
    assert [one["period"] for one in rows] == ["1m", "5m", "15m"]
    for one, text in zip(rows, shown, strict=True):
        assert one["average"] == f"{float(one['average']):.6f}"
        assert float(one["average"]) == pytest.approx(float(text), abs=0.5)


def test_memory_is_that_of_free() -> None:
    found = row("memory_info")
    fields = output("free", "-b", "-w").split()
    total, _, free, _, buffers, _, available = map(int, fields[8:15])
    assert found["memory_total"] == total
    assert (found["swap_total"], found["swap_free"]) == (int(fields[16]), int(fields[18]))
    for column, shown in (("memory_free", free), ("buffers", buffers), ("memory_available", available)):
        assert found[column] == pytest.approx(shown, abs=1 << 28)
    listed = {line.split()[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()}
    for column, name in (("cached", "Cached:"), ("active", "Active:"), ("inactive", "Inactive:")):
        assert found[column] == pytest.approx(listed[name], abs=1 << 28)
    assert found["swap_cached"] == listed["SwapCached:"]


def test_times_of_processors_are_those_of_proc() -> None:
    before = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")][1:]
    rows = selected("SELECT * FROM cpu_time")
    after = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")][1:]
    assert len(rows) == int(output("nproc", "--all"))
    for found, first, last in zip(rows, before, after, strict=True):
        assert f"cpu{found['core']}" == first[0]
        for value, low, high in zip(list(found.values())[1:], first[1:], last[1:], strict=True):
            assert int(low) - 1 <= value <= int(high) + 1


def test_limits_are_those_that_prlimit_sets_for_the_agent() -> None:
    with child() as pid:
        subprocess.run(["prlimit", "--pid", str(pid), "--nofile=123:456", "--core=0", "--cpu=7:unlimited"], check=True)

        class Agent(NoAgent):
            pass

        Agent.pid = pid
        rows = selected("SELECT * FROM ulimit_info", agent=Agent())
        shown = output("prlimit", "--pid", str(pid), "--raw", "--noheadings", "--output", "RESOURCE,SOFT,HARD")
    found = {one["type"]: (one["soft_limit"], one["hard_limit"]) for one in rows}
    assert found["nofile"] == ("123", "456")
    assert found["cpu"] == ("7", "unlimited")
    limits = {name.lower(): (soft, hard) for name, soft, hard in map(str.split, shown.splitlines())}
    assert {name: limits[name] for name in found} == found
    assert len(found) == 15


def test_a_host_that_hides_its_files_has_rows_of_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "content", lambda path: None)
    (memory,) = ask(load.memory_info)
    assert set(memory.values()) == {None}
    assert ask(load.cpu_time) == ask(load.ulimit_info) == []
    (computer,) = ask(machine_tables.system_info)
    assert (computer["cpu_physical_cores"], computer["cpu_sockets"]) == (os.cpu_count(), None)
    (kernel,) = ask(machine_tables.kernel_info)
    assert list(kernel.values()) == [None, "", None, None]
