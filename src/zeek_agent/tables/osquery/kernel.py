"""Kernel modules and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from zeek_agent.host.linux import sysctl
from zeek_agent.host.linux.kernel_modules import kernel_modules
from zeek_agent.host.linux.sysctl import KernelParameter
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

modules = osquery_table(
    "kernel_modules",
    "loaded kernel modules",
    description="One row per module in `/proc/modules`; none on a kernel without modules.",
    columns=[
        Column("name", "text", "name of the module"),
        Column("size", "int", "size in bytes"),
        Column("used_by", "text", "modules that need it, separated by commas; `-` if there are none"),
        Column("status", "text", "`Live`, `Loading` or `Unloading`"),
        Column("address", "text", "always `0x0000000000000000`: addresses in the kernel are not shown"),
    ],
    examples=["SELECT name, used_by FROM kernel_modules WHERE status = 'Live'"],
)

controls = osquery_table(
    "system_controls",
    "kernel parameters",
    description=(
        "One row per parameter in `/proc/sys`, as sysctl(8) shows them. Parameters that only root may read are empty, "
        "and those that are keys (`stable_secret`, `tcp_fastopen_key`) are null."
    ),
    columns=[
        Column("name", "text", "name with dots, such as `net.ipv4.ip_forward`"),
        Column("oid", "text", "always empty on Linux"),
        Column("subsystem", "text", "first component of the name"),
        Column("current_value", "text", "value in the kernel"),
        Column(
            "config_value",
            "text",
            "value in `/etc/sysctl.conf` or the directories `sysctl.d`; empty if there is none",
        ),
        Column("type", "text", "always `string` on Linux"),
    ],
    foreign="field_name",
    examples=[
        "SELECT current_value, config_value FROM system_controls WHERE name = 'net.ipv4.ip_forward'",
        "SELECT name, current_value FROM system_controls WHERE subsystem = 'kernel'",
    ],
)

_NO_ADDRESS: Final = "0x0000000000000000"
"""What the kernel shows to those who may not see addresses."""


@modules.snapshot
def loaded(wanted: Constraints) -> Iterator[Row]:
    for module in kernel_modules(wanted.context.proc):
        yield *module, _NO_ADDRESS


@controls.snapshot
def parameters(wanted: Constraints) -> Iterator[Row]:
    configured = sysctl.configured() if wanted.needs("config_value") else {}
    for each in _parameters(wanted):
        yield each.name, "", each.subsystem, each.value, configured.get(each.name, ""), "string"


def _parameters(wanted: Constraints) -> Iterable[KernelParameter]:
    root = Path(wanted.context.proc, "sys")
    names, subsystems = wanted.equal("name"), wanted.equal("subsystem")
    if names is not None:
        found = (sysctl.parameter(root, str(name)) for name in names)
        return (each for each in found if each is not None)
    if subsystems is not None:
        return (each for name in subsystems for each in sysctl.parameters(root, str(name), wanted.check))
    return sysctl.parameters(root, check=wanted.check)


TABLES = (modules, controls)
