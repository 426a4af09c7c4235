"""osquery's tables of packages, compared with the package managers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from asking import READS_ALL
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.errors import SqlError
from zeek_agent.host.packages import dpkg as dpkg_database
from zeek_agent.host.packages.dpkg import _without_zero_epoch
from zeek_agent.host.packages.rpm import RpmError, parse_header
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
    opened.scans.max_age_seconds = 0
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


async def test_a_database_with_more_packages_than_there_are_is_read_in_part(
    db: Database, admindir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpkg_database, "PACKAGES_MAX", 2)
    (admindir / "status").write_text("".join(paragraph(name, "1") for name in ("a", "b", "c", "d")))
    (admindir / "updates").mkdir(exist_ok=True)
    (admindir / "updates/0001").write_text(paragraph("a", "2"))
    result = await db.query(f"SELECT name, version FROM deb_packages WHERE admindir = '{admindir}'")
    assert result.rows == [("a", "2"), ("b", "1")]
    assert result.errors == (f"2 packages beyond the first 2 in the package database {admindir}",)


def test_a_long_version_is_read_in_linear_time() -> None:
    assert _without_zero_epoch(b"0" * 1_000_000) == b"0" * 1_000_000
    assert _without_zero_epoch(b" 00:" + b"0" * 1_000_000) == b"0" * 1_000_000
    assert _without_zero_epoch(b"00:1:2") == b"00:1:2"


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


# rpm_packages

RPM = pytest.mark.skipif(None in map(shutil.which, ("rpm", "rpmbuild")), reason="needs rpm(8) and rpmbuild(8)")
TAGS = {
    "name": "NAME",
    "version": "VERSION",
    "release": "RELEASE",
    "source": "SOURCERPM",
    "size": "SIZE",
    "sha1": "SHA1HEADER",
    "arch": "ARCH",
    "epoch": "EPOCH",
    "install_time": "INSTALLTIME",
    "vendor": "VENDOR",
    "package_group": "GROUP",
}
SPECIFICATION = """
Name: {name}
Version: {version}
Release: {release}
Summary: a test
License: none
BuildArch: noarch
{more}
%description
For a test.
%install
mkdir -p %{{buildroot}}/opt && head -c {size} /dev/zero > %{{buildroot}}/opt/{name}
%files
/opt/{name}
"""


def rpm_package(place: Path, name: str, version: str, release: str, size: int, more: str = "") -> Path:
    """A package made by rpmbuild."""
    specification = place / f"{name}-{version}.spec"
    specification.write_text(SPECIFICATION.format(name=name, version=version, release=release, size=size, more=more))
    directories = ["--define", f"_topdir {place}/build", "--define", f"_dbpath {place}/build/db"]
    subprocess.run(["rpmbuild", *directories, "-bb", str(specification)], check=True, capture_output=True)
    return place / f"build/RPMS/noarch/{name}-{version}-{release}.noarch.rpm"


def rpm(database: Path, *arguments: str) -> str:
    command = ["rpm", "--dbpath", str(database), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_rpm(database: Path) -> list[dict[str, str]]:
    show = "\\t".join(f"%{{{tag}}}" for tag in TAGS.values()) + "\\n"
    return [dict(zip(TAGS, line.split("\t"), strict=True)) for line in rpm(database, "-qa", "--qf", show).splitlines()]


@pytest.fixture
def rpmdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "rpm?#"
    place.mkdir()
    monkeypatch.setattr(packages, "RPM_DIRECTORIES", (str(tmp_path / "none"), str(place)))
    return place


async def compare_with_rpm(db: Database, rpmdb: Path) -> None:
    expected = {known["name"]: known for known in by_rpm(rpmdb)}
    found = {row["name"]: row for row in await rows(db, "SELECT * FROM rpm_packages")}
    assert set(found) == set(expected) == {"one", "two"}
    for name, row in found.items():
        shown = {column: "(none)" if value in (None, "") else str(value) for column, value in row.items()}
        assert shown == expected[name]


@RPM
async def test_installed_upgraded_and_erased_packages_are_those_of_rpm(
    db: Database, rpmdb: Path, tmp_path: Path
) -> None:
    rpm(rpmdb, "--initdb")
    assert await rows(db, "SELECT * FROM rpm_packages") == []
    more = "Epoch: 3\nVendor: Somebody für ÿ\nGroup: Applications/Internet\n"
    one = rpm_package(tmp_path, "one", "1.9", "4.el9", 12_345, more)
    two = rpm_package(tmp_path, "two", "1.10~rc1", "1", 0)
    rpm(rpmdb, "--install", "--justdb", "--nodeps", str(one), str(two))
    await compare_with_rpm(db, rpmdb)
    rpm(rpmdb, "--upgrade", "--justdb", "--nodeps", str(rpm_package(tmp_path, "one", "1.10", "1.el9", 7, more)))
    await compare_with_rpm(db, rpmdb)
    assert [row["size"] for row in await rows(db, "SELECT size FROM rpm_packages WHERE name = 'one'")] == [7]
    assert await rows(db, "SELECT name FROM rpm_packages WHERE name IN ('two', 'none')") == [{"name": "two"}]
    rpm(rpmdb, "--erase", "--justdb", "--nodeps", "one")
    assert await rows(db, "SELECT name FROM rpm_packages") == [{"name": "two"}]


@RPM
async def test_a_database_that_a_program_has_open_is_read_whole(db: Database, rpmdb: Path, tmp_path: Path) -> None:
    rpm(rpmdb, "--initdb")
    rpm(rpmdb, "--install", "--justdb", "--nodeps", str(rpm_package(tmp_path, "one", "1", "1", 0)))
    open_database = apsw.Connection(str(rpmdb / "rpmdb.sqlite"))
    try:
        open_database.execute("INSERT INTO Packages SELECT 100, blob FROM Packages")
        assert (rpmdb / "rpmdb.sqlite-wal").stat().st_size > 0
        assert len(await rows(db, "SELECT name FROM rpm_packages")) == 2
    finally:
        open_database.close()


@RPM
async def test_hostile_headers_cost_one_package_each(db: Database, rpmdb: Path, tmp_path: Path) -> None:
    rpm(rpmdb, "--initdb")
    rpm(rpmdb, "--install", "--justdb", "--nodeps", str(rpm_package(tmp_path, "one", "1", "1", 0)))
    path = rpmdb / "rpmdb.sqlite"
    changed = apsw.Connection(str(path))
    ((header,),) = changed.execute("SELECT blob FROM Packages").fetchall()
    hostile: list[object] = [b"", b"\xff" * 8, header[:-1], header[:50], 7, bytes(8), struct.pack(">II", 2**31, 8)]
    hostile.append(struct.pack(">IIIIII", 1, 4, 1000, 6, 2**32 - 1, 1) + b"xxxx")
    hostile.append(struct.pack(">IIIIII", 1, 4, 1000, 6, 0, 1) + b"xxxx")
    changed.executemany("INSERT INTO Packages(blob) VALUES (?)", [(one,) for one in hostile])
    changed.close()
    result = await db.query("SELECT name FROM rpm_packages")
    assert result.rows == [("one",)]
    assert len(result.errors) == len(hostile)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(SqlError, match="malformed"):
        await db.query("SELECT count(sha1) FROM rpm_packages")


@given(st.binary(max_size=400), st.integers(0, 12))
def test_any_header_is_a_package_or_an_error(content: bytes, entries: int) -> None:
    header = struct.pack(">II", entries, max(len(content) - entries * 16, 0)) + content
    try:
        package = parse_header(header)
    except RpmError:
        return
    assert package.name


async def test_older_databases_are_named(db: Database, rpmdb: Path) -> None:
    (rpmdb / "Packages").touch()
    with pytest.raises(SqlError, match="the package database Packages is of a kind that is not read"):
        await db.query("SELECT * FROM rpm_packages")


async def test_without_rpm_there_are_no_packages(db: Database, rpmdb: Path) -> None:
    assert await rows(db, "SELECT * FROM rpm_packages") == []
