"""Packages of the system's package managers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from zeek_agent.errors import SqlError
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import NAMESPACE_COLUMNS
from zeek_agent.text import to_bytes

DPKG_DIRECTORY: Final = "/var/lib/dpkg"
RPM_DIRECTORIES: Final = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")

deb_packages = osquery_table(
    "deb_packages",
    "packages installed by dpkg",
    description=(
        "One row per package that is not entirely removed. Packages whose configuration files are left have the status "
        "`deinstall ok config-files`. `version` compares by `version_dpkg`."
    ),
    columns=[
        Column("name", "text", "name of the package"),
        Column("version", "text", "version, with epoch and revision", collation="version_dpkg"),
        Column("source", "text", "source package, with its version if that differs; empty if it has the same name"),
        Column("size", "int", "installed size in KiB"),
        Column("arch", "text", "architecture, such as `amd64` or `all`"),
        Column("revision", "text", "revision, the part of the version after the last `-`"),
        Column("status", "text", "wanted state, error flag and state, such as `install ok installed`"),
        Column("maintainer", "text", "maintainer"),
        Column("section", "text", "section, such as `net`"),
        Column("priority", "text", "priority, such as `required`"),
        Column("admindir", "text", f"dpkg's directory, `{DPKG_DIRECTORY}` unless the statement names another one"),
        *NAMESPACE_COLUMNS,
    ],
    decisive=["admindir"],
    opens_files=True,
    examples=[
        "SELECT name, version FROM deb_packages WHERE name = 'openssl'",
        "SELECT name, version FROM deb_packages WHERE name = 'bash' AND version < '5.2'",
    ],
)


@deb_packages.snapshot
def installed_by_dpkg(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.files.globbing import open_gate
    from zeek_agent.host.packages import dpkg

    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check)
    names = wanted.equal("name")
    for directory in sorted(map(str, wanted.equal("admindir") or {DPKG_DIRECTORY})):
        path = os.fsdecode(to_bytes(directory))
        if not path.startswith("/"):
            continue
        for package in dpkg.deb_packages(gate, path, wanted.check, wanted.report):
            if names is None or package.name in names:
                yield (
                    package.name,
                    package.version,
                    package.source,
                    package.size,
                    package.architecture,
                    package.revision,
                    package.status,
                    package.maintainer,
                    package.section,
                    package.priority or "unknown",
                    directory,
                    None,
                    None,
                )


rpm_packages = osquery_table(
    "rpm_packages",
    "packages installed by rpm",
    description=(
        "One row per package, from the database `rpmdb.sqlite` in `/usr/lib/sysimage/rpm` or `/var/lib/rpm`; those of "
        "older kinds (Berkeley DB, `ndb`) are not read. `version` compares by `version_rhel`."
    ),
    columns=[
        Column("name", "text", "name of the package"),
        Column("version", "text", "version, without epoch and release", collation="version_rhel"),
        Column("release", "text", "release"),
        Column("source", "text", "file of the source package"),
        Column("size", "int", "size of the installed files in bytes"),
        Column("sha1", "text", "SHA-1 of the header, as it was signed", collation="nocase"),
        Column("arch", "text", "architecture, such as `x86_64` or `noarch`"),
        Column("epoch", "int", "epoch; null without one"),
        Column("install_time", "int", "when it was installed, in seconds since 1970"),
        Column("vendor", "text", "distributor"),
        Column("package_group", "text", "group, such as `Applications/Internet`"),
        *NAMESPACE_COLUMNS,
    ],
    examples=["SELECT name, version, release FROM rpm_packages WHERE name = 'openssl'"],
)


@rpm_packages.snapshot
def installed_by_rpm(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.packages import rpm

    names = wanted.equal("name")
    try:
        database = rpm.database_in(RPM_DIRECTORIES)
        if database is None:
            return
        asked = None if names is None else [name for name in names if isinstance(name, str)]
        for package in rpm.rpm_packages(database, asked, wanted.check, wanted.report):
            yield *package, None, None
    except rpm.RpmError as error:
        raise SqlError(f"table rpm_packages: {error}") from error


TABLES = (deb_packages, rpm_packages)
