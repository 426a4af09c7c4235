"""Packages of the system's package managers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.text import to_bytes

DPKG_DIRECTORY: Final = "/var/lib/dpkg"
_NO_NAMESPACE: Final = "always null: the agent does not enter containers"

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
        Column("pid_with_namespace", "int", _NO_NAMESPACE, hidden=True),
        Column("mount_namespace_id", "text", _NO_NAMESPACE, hidden=True),
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


TABLES = (deb_packages,)
