"""The agent's tables of osquery have osquery's columns (`linux_tables.json`: its table specifications for Linux)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scratch_host import Rows, on_scratch_host, select

from zeek_agent.contract import problems
from zeek_agent.table import EventView, LookupTable, Table
from zeek_agent.tables import builtin_tables
from zeek_agent.tables.osquery import TABLES
from zeek_agent.tables.osquery._declaration import OWN_NAMES

SPECIFIED: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("linux_tables.json").read_text())
COLLATIONS = {
    "apt_sources": {"version": "version_dpkg"},
    "arp_cache": {"mac": "nocase"},
    "block_devices": {"uuid": "nocase"},
    "chrome_extensions": {"manifest_hash": "nocase", "version": "version"},
    "deb_packages": {"version": "version_dpkg"},
    "disk_encryption": {"uuid": "nocase"},
    "firefox_addons": {"version": "version"},
    "hash": {"md5": "nocase", "sha1": "nocase", "sha256": "nocase"},
    "interface_details": {"mac": "nocase"},
    "kernel_info": {"version": "version"},
    "npm_packages": {"version": "version"},
    "os_version": {"version": "version"},
    "osquery_extensions": {"sdk_version": "version", "version": "version"},
    "osquery_info": {"config_hash": "nocase", "uuid": "nocase", "version": "version"},
    "osquery_packs": {"version": "version"},
    "platform_info": {"version": "version"},
    "python_packages": {"version": "version"},
    "rpm_packages": {"sha1": "nocase", "version": "version_rhel"},
    "system_info": {"uuid": "nocase"},
    "usb_devices": {"model_id": "nocase", "vendor_id": "nocase", "version": "version"},
    "users": {"uuid": "nocase"},
    "vscode_extensions": {"uuid": "nocase", "version": "version"},
}
"""By the table specifications of osquery 5.23."""
TYPES = {
    "BIGINT": "int",
    "DATETIME": "text",
    "DOUBLE": "real",
    "INTEGER": "int",
    "TEXT": "text",
    "UNSIGNED_BIGINT": "count",
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.osquery_name)
def test_columns_have_the_names_types_and_order_of_osquery(table: Table) -> None:
    assert table.osquery_name is not None
    specified = {name: flags.split() for name, flags in SPECIFIED[table.osquery_name].items()}
    types = {name: TYPES[flags[0]] for name, flags in specified.items()}
    shown = [name for name, flags in specified.items() if "hidden" not in flags]
    assert all(not column.added for column in table.columns)
    if isinstance(table, EventView):  # no column of a view can be hidden: some follow the others, some are left out
        assert [column.name for column in table.columns][: len(shown)] == shown
        assert {column.name: column.type for column in table.columns}.items() <= types.items()
        return
    assert isinstance(table, LookupTable)
    assert {column.name: column.type for column in table.columns} == types
    assert [column.name for column in table.columns if not column.hidden] == shown
    assert table.required == {name for name, flags in specified.items() if "required" in flags}


def test_text_compares_as_in_osquery() -> None:
    """Except in views, which have no collations, and for ids of Docker, which are compared by their beginnings."""
    declared = {
        table.osquery_name: {column.name: column.collation for column in table.columns if column.collation}
        for table in TABLES
        if not isinstance(table, EventView) and not str(table.osquery_name).startswith("docker_")
    }
    assert {name: collations for name, collations in declared.items() if collations} == COLLATIONS


def test_other_names_of_tables_and_columns_are_those_of_osquery() -> None:
    aliases = {table.osquery_names[0]: table.osquery_names[1:] for table in TABLES if len(table.osquery_names) > 1}
    assert aliases == {"etc_hosts": ("hosts",), "syslog_events": ("syslog",), "yara_file": ("yara",)}
    assert select("SELECT date_time = datetime AS same FROM time") == [{"same": 1}]
    assert select("SELECT count(*) = (SELECT count(*) FROM etc_hosts) AS same FROM hosts") == [{"same": 1}]


@pytest.mark.root
def test_versions_of_the_system_compare_as_versions(tmp_path: Path) -> None:
    def scene() -> Rows:
        Path("/etc/os-release").unlink()
        Path("/etc/os-release").write_text('VERSION="10.04 (ten)"\nVERSION_ID=10.04\n')
        return select("SELECT version FROM os_version WHERE version > '9.10'")

    assert on_scratch_host(scene, tmp_path) == [{"version": "10.04 (ten)"}]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.osquery_name)
def test_declarations_rows_and_examples_are_sound(table: Table) -> None:
    assert problems(table) == []


def test_only_names_that_the_agent_has_are_not_plain() -> None:
    own = {table.name for table in builtin_tables("linux") if table not in TABLES}
    assert {table.name for table in TABLES}.isdisjoint(own)
    for table in TABLES:
        assert table.name == (
            f"osquery_{table.osquery_name}" if table.osquery_name in OWN_NAMES else table.osquery_name
        )
