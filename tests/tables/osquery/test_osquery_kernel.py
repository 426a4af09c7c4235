"""osquery's tables kernel_modules and system_controls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from asking_sql import rows_of
from mounting import in_mount_namespace, mount

from zeek_agent.host.linux import sysctl

MODULES = """nf_tables 311296 1103 nft_counter,nft_compat, Live 0xffffffffc0a5d000
loop 40960 0 - Loading 0x0000000000000000 (E)
damaged
big many 0 - Live 0x0
bro\\ken 7 2 - Unloading 0xffffffffc0000000
"""
VOLATILE = ("nr", "avail", "state", "random", "pid", "stat", "ns_", "count", "percpu", "load", "last")
"""Parts of names of parameters that change at any moment."""


def test_modules_are_those_of_proc_without_their_addresses(tmp_path: Path) -> None:
    (tmp_path / "modules").write_text(MODULES)
    rows = rows_of("SELECT * FROM kernel_modules", proc=str(tmp_path))
    assert [tuple(row.values()) for row in rows] == [
        ("nf_tables", 311_296, "nft_counter,nft_compat", "Live", "0x0000000000000000"),
        ("loop", 40_960, "-", "Loading", "0x0000000000000000"),
        ("bro\\ken", 7, "-", "Unloading", "0x0000000000000000"),
    ]


def test_a_loaded_module_is_listed_as_by_lsmod() -> None:
    if shutil.which("lsmod") is None or not Path("/proc/modules").exists():
        pytest.skip("needs lsmod and a kernel with modules")
    lines = subprocess.run(["lsmod"], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    shown = {fields[0]: int(fields[1]) for fields in map(str.split, lines)}
    found = {row["name"]: row["size"] for row in rows_of("SELECT name, size FROM kernel_modules")}
    assert found == shown


def test_a_kernel_without_modules_has_none(tmp_path: Path) -> None:
    assert rows_of("SELECT * FROM kernel_modules", proc=str(tmp_path)) == []


def test_parameters_are_those_that_sysctl_shows() -> None:
    shown = subprocess.run(["sysctl", "--all"], capture_output=True, text=True, check=False).stdout
    values: dict[str, list[str]] = {}
    for line in shown.splitlines():
        name, _, value = line.partition(" =")
        values.setdefault(name.replace("/", "."), []).append(value.strip())
    found = {row["name"]: row for row in rows_of("SELECT * FROM system_controls")}
    compared = [name for name in values if not any(part in name for part in (*VOLATILE, "secret", "fastopen"))]
    assert len(compared) > 300
    for name in compared:
        row = found[name]
        lines = [line.strip() for line in (row["current_value"] or "").split("\n")]
        assert [line for line in lines if line] == [line for line in values[name] if line], name
        assert (row["subsystem"], row["oid"], row["type"]) == (name.split(".")[0], "", "string")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes a parameter")
def test_a_changed_parameter_is_seen() -> None:
    name = "kernel.core_pattern"
    statement = f"SELECT current_value FROM system_controls WHERE name = '{name}'"
    (before,) = rows_of(statement)
    try:
        subprocess.run(["sysctl", "--quiet", "--write", f"{name}=/x/%p\t y"], check=True)
        assert rows_of(statement) == [{"current_value": "/x/%p\t y"}]
    finally:
        Path("/proc/sys/kernel/core_pattern").write_text(before["current_value"])
    assert rows_of(statement) == [before]


def test_names_with_dots_are_found_by_name(tmp_path: Path) -> None:
    place = tmp_path / "sys/net/ipv4/conf/eth0.100"
    place.mkdir(parents=True)
    (place / "forwarding").write_text("1\n")
    (tmp_path / "sys/net/ipv4/tcp_fastopen_key").write_text("0-1-2-3\n")
    (tmp_path / "sys/net/ipv4/flush").write_text("effect\n")
    (tmp_path / "sys/net/ipv4/flush").chmod(0o200)
    rows = rows_of("SELECT name, current_value FROM system_controls ORDER BY name", proc=str(tmp_path))
    assert [tuple(row.values()) for row in rows] == [
        ("net.ipv4.conf.eth0.100.forwarding", "1"),
        ("net.ipv4.flush", ""),
        ("net.ipv4.tcp_fastopen_key", None),
    ]
    for row in rows:
        by_name = f"SELECT current_value FROM system_controls WHERE name = '{row['name']}'"
        assert rows_of(by_name, proc=str(tmp_path)) == [{"current_value": row["current_value"]}]
    for name in ("net", "net.ipv4", "net..ipv4", "", ".", "net.none", "net./etc/passwd", "none.x"):
        assert rows_of(f"SELECT name FROM system_controls WHERE name = '{name}'", proc=str(tmp_path)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_other_mounts_are_not_entered(tmp_path: Path) -> None:
    place = tmp_path / "sys/fs/binfmt_misc"
    place.mkdir(parents=True)
    (tmp_path / "sys/fs/file-max").write_text("9\n")

    def scene() -> list[str]:
        mount("none", place, "tmpfs")
        (place / "status").write_text("enabled")
        rows = rows_of("SELECT name FROM system_controls", proc=str(tmp_path))
        rows += rows_of("SELECT name FROM system_controls WHERE name = 'fs.binfmt_misc.status'", proc=str(tmp_path))
        return [row["name"] for row in rows]

    assert in_mount_namespace(scene) == ["fs.file-max"]


def test_configured_values_are_those_of_the_last_file(tmp_path: Path) -> None:
    files = {
        "etc/sysctl.conf": b"# a.b = 0\n;a.b=0\na.b = 1\nonly.here=x y\n broken\n=\na=b=c\n\xff=\xfe\n",
        "etc/sysctl.d/10.conf": b"a.b=2\nc.d=2\n",
        "etc/sysctl.d/20.conf": b"a.b=3\n",
        "etc/sysctl.d/README": b"a.b=4\n",
        "usr/lib/sysctl.d/50.conf": b"c.d=5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    os.mkfifo(tmp_path / "etc/sysctl.d/30.conf")
    assert sysctl.configured(tmp_path) == {"a.b": "3", "only.here": "x y", "c.d": "5", "\uefff": "\ueffe"}


def test_the_configured_value_of_a_parameter_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "configured", lambda: {"kernel.ostype": "Other"})
    statement = (
        "SELECT current_value, config_value FROM system_controls WHERE name IN ('kernel.ostype', 'kernel.osrelease')"
    )
    assert rows_of(statement + " ORDER BY name DESC") == [
        {"current_value": "Linux", "config_value": "Other"},
        {"current_value": os.uname().release, "config_value": ""},
    ]


def test_a_statement_for_a_name_or_a_subsystem_reads_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    value = sysctl._value

    def counted(place: Path, mode: int) -> str | None:
        read.append(str(place))
        return value(place, mode)

    monkeypatch.setattr(sysctl, "_value", counted)
    rows_of("SELECT * FROM system_controls WHERE name = 'kernel.ostype'")
    assert read == ["/proc/sys/kernel/ostype"]
    read.clear()
    assert rows_of("SELECT * FROM system_controls WHERE subsystem = 'fs'") != []
    assert {Path(path).relative_to("/proc/sys").parts[0] for path in read} == {"fs"}
