"""osquery's tables of packages, compared with the package managers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asking import READS_ALL

from zeek_agent.access import AccessPolicy
from zeek_agent.config import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.schema import Column
from zeek_agent.table import Table, TableContext
from zeek_agent.tables.osquery import packages

DPKG = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs dpkg-query(1)")
FIELDS = {
    "name": "Package",
    "version": "Version",
    "source": "Source",
    "size": "Installed-Size",
    "arch": "Architecture",
    "status": "Status",
    "maintainer": "Maintainer",
    "section": "Section",
    "priority": "Priority",
}


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    opened = Database(packages.TABLES, TableContext(NoAgent(), READS_ALL), LimitSettings())
    yield opened
    await opened.aclose()


async def rows(db: Database, sql: str) -> list[dict[str, Any]]:
    result = await db.query(sql)
    assert result.errors == ()
    return [dict(zip((column.name for column in result.columns), row, strict=True)) for row in result.rows]


def by_dpkg(*arguments: str) -> list[dict[str, str]]:
    """The same columns from dpkg-query."""
    show = "\\001".join(f"${{{field}}}" for field in FIELDS.values()).replace("\\001", "\x01") + "\x02"
    output = subprocess.run(["dpkg-query", *arguments, "-W", "-f", show], capture_output=True, check=True, text=True)
    return [dict(zip(FIELDS, one.split("\x01"), strict=True)) for one in output.stdout.split("\x02")[:-1]]


def debian_package(place: Path, name: str, version: str, **fields: str) -> Path:
    """A package without files, made by dpkg-deb."""
    control = place / f"{name}-tree/DEBIAN/control"
    control.parent.mkdir(parents=True)
    values = {
        "Package": name,
        "Version": version,
        "Architecture": "all",
        "Maintainer": "Somebody <somebody@example.org>",
        "Description": "a test",
        **fields,
    }
    control.write_text("".join(f"{field.replace('_', '-')}: {value}\n" for field, value in values.items()))
    made = place / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", str(control.parents[1]), str(made)], check=True, capture_output=True)
    return made


@pytest.fixture
def admindir(tmp_path: Path) -> Path:
    """An empty database of dpkg."""
    place = tmp_path / "dpkg [of a test]"
    for name in ("info", "updates", "triggers"):
        (place / name).mkdir(parents=True)
    (place / "status").touch()
    return place


def dpkg(admindir: Path, *arguments: str) -> None:
    root = admindir.with_name("root")
    root.mkdir(exist_ok=True)
    options = [f"--admindir={admindir}", f"--instdir={root}", "--force-not-root", "--force-script-chrootless"]
    command = ["dpkg", *options, f"--log={root}/log", *arguments]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


# deb_packages


@DPKG
async def test_the_packages_of_this_system_are_those_of_dpkg(db: Database) -> None:
    expected = {(one["name"], one["arch"]): one for one in by_dpkg() if "not-installed" not in one["status"]}
    found = await rows(db, "SELECT * FROM deb_packages")
    assert len(found) == len(expected) > 100
    for row in found:
        assert {name: str(row[name] or "") for name in FIELDS} == expected[row["name"], row["arch"]]
        described = f"-{row['revision']}" if row["revision"] else ""
        assert row["version"].endswith(described)
        assert ("-" in row["version"]) == bool(described)
        assert row["admindir"] == "/var/lib/dpkg"


@DPKG
async def test_an_installed_upgraded_and_removed_package_is_shown_so(db: Database, admindir: Path) -> None:
    sql = f"SELECT * FROM deb_packages WHERE admindir = '{admindir}'"
    assert await rows(db, sql) == []
    fields = {"Section": "net", "Priority": "extra", "Source": "seed (1.0)", "Installed_Size": "17"}
    dpkg(admindir, "--install", str(debian_package(admindir.parent, "one", "2:1.10-3~x", **fields)))
    (row,) = await rows(db, sql)
    assert row == {
        "name": "one",
        "version": "2:1.10-3~x",
        "source": "seed (1.0)",
        "size": 17,
        "arch": "all",
        "revision": "3~x",
        "status": "install ok installed",
        "maintainer": "Somebody <somebody@example.org>",
        "section": "net",
        "priority": "extra",
        "admindir": str(admindir),
    }
    assert {name: str(row[name]) for name in FIELDS} == by_dpkg(f"--admindir={admindir}")[0]
    (admindir.parent / "one-tree").rename(admindir.parent / "one-before")
    dpkg(admindir, "--install", str(debian_package(admindir.parent, "one", "0:2:2")))
    (row,) = await rows(db, sql)
    assert (row["version"], row["revision"], row["size"], row["source"]) == ("0:2:2", "", None, "")
    assert row["version"] == by_dpkg(f"--admindir={admindir}")[0]["version"]
    dpkg(admindir, "--purge", "one")
    assert await rows(db, sql) == []


@DPKG
async def test_what_dpkg_has_not_merged_yet_counts(db: Database, admindir: Path) -> None:
    (admindir / "status").write_text(paragraph("one", "0:1.0-1") + paragraph("two", "1"))
    (admindir / "updates/0000").write_text(paragraph("one", "1.1-1", "install ok unpacked"))
    (admindir / "updates/0001").write_text(paragraph("two", "1", "deinstall ok not-installed"))
    (admindir / "updates/tmp.i").write_text(paragraph("three", "1"))
    (row,) = await rows(db, f"SELECT * FROM deb_packages WHERE admindir = '{admindir}'")
    (expected,) = (one for one in by_dpkg(f"--admindir={admindir}") if "not-installed" not in one["status"])
    assert row["status"] == "install ok unpacked"
    assert {name: str(row[name] or "") for name in FIELDS} == expected | {"priority": "unknown"}


async def test_versions_compare_as_debian_versions(db: Database, admindir: Path) -> None:
    versions = ("1.9", "1.10", "1:0.5")
    (admindir / "status").write_text("".join(paragraph(f"p{number}", one) for number, one in enumerate(versions)))
    where = f"FROM deb_packages WHERE admindir = '{admindir}'"
    assert await rows(db, f"SELECT name {where} AND version > '1.9'") == [{"name": "p1"}, {"name": "p2"}]
    assert await rows(db, f"SELECT name {where} AND version = '1.10' LIMIT 1") == [{"name": "p1"}]
    assert await rows(db, f"SELECT name {where} AND version IN ('1:0.5', '1.9') ORDER BY version DESC") == [
        {"name": "p2"},
        {"name": "p0"},
    ]
    assert await rows(db, f"SELECT max(version) AS newest {where}") == [{"newest": "1:0.5"}]
    assert await rows(db, f"SELECT name {where} AND version > '1.9' COLLATE BINARY") == [{"name": "p2"}]


async def test_a_hostile_database_costs_entries_only(db: Database, admindir: Path) -> None:
    junk = b"\n\nno field at all\n\nPackage:\nVersion: 1\n\n" + b"x" * 1_000_000 + b"\n\n\0\0: \xff\n\n"
    last = b"pAcKaGe:  odd\xff\nStatus: install ok installed\nInstalled-Size: " + b"9" * 40 + b"\nVersion: -\n \n"
    (admindir / "status").write_bytes(paragraph("one", "1").encode() + junk + last)
    result = await db.query(f"SELECT name, version, size FROM deb_packages WHERE admindir = '{admindir}'")
    assert result.rows == [("one", "1", None), ("odd\uefff", "-", None)]
    assert result.errors == (f"4 entries without a name in the package database {admindir}",)


async def test_databases_in_other_places_need_permission(admindir: Path) -> None:
    (admindir / "status").write_text(paragraph("one", "1"))
    db = Database(packages.TABLES, TableContext(NoAgent(), AccessPolicy()), LimitSettings())
    try:
        result = await db.query(f"SELECT name FROM deb_packages WHERE admindir = '{admindir}'")
        assert result.rows == []
        assert "access.files_allow" in result.files.summary()
    finally:
        await db.aclose()


def paragraph(name: str, version: str, status: str = "install ok installed") -> str:
    fields = {"Package": name, "Status": status, "Maintainer": "x", "Architecture": "all", "Version": version}
    return "".join(f"{field}: {value}\n" for field, value in fields.items()) + "Description: a test\n\n"


# Collations


def test_only_text_of_snapshot_tables_has_a_collation() -> None:
    with pytest.raises(ValueError, match="only text has a collation"):
        Column("size", "count", "size", collation="version")
    with pytest.raises(ValueError, match="snapshot table"):
        Table(
            "releases", "releases", description="Releases.", kind="events",
            columns=[Column("version", "text", "version", collation="version")],
        )  # fmt: skip
