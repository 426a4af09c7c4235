"""Units of systemd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zeek_agent.errors import SqlError
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

SYSTEM_BUS: Final = "/run/dbus/system_bus_socket"
BOOTED: Final = "/run/systemd/system"
"""Exists if systemd is the host's init (sd_booted(3))."""
_PROPERTIES: Final = {
    "unit_file_state": ("UnitFileState", "Unit"),
    "fragment_path": ("FragmentPath", "Unit"),
    "user": ("User", "Service"),
    "source_path": ("SourcePath", "Unit"),
}
"""Columns that are properties of a unit, with the interface that has them."""

systemd_units = osquery_table(
    "systemd_units",
    "units that systemd has loaded",
    description=(
        "One row per unit that systemd has in memory, as in `systemctl list-units --all`: also units that others refer "
        "to and that have no file. Empty on a host without systemd."
    ),
    columns=[
        Column("id", "text", "name of the unit, such as `ssh.service`"),
        Column("description", "text", "description"),
        Column("load_state", "text", "whether its file was read: `loaded`, `not-found`, `masked`, `error`, …"),
        Column("active_state", "text", "`active`, `inactive`, `failed`, `activating`, …"),
        Column("sub_state", "text", "the state by the unit's type, such as `running` or `mounted`"),
        Column("unit_file_state", "text", "`enabled`, `disabled`, `static`, `generated`, …; empty without a file"),
        Column("following", "text", "the unit whose state this one follows; mostly empty"),
        Column("object_path", "text", "D-Bus object of the unit"),
        Column("job_id", "int", "its queued job; 0 without one"),
        Column("job_type", "text", "type of the job, such as `start`; empty without one"),
        Column("job_path", "text", "D-Bus object of the job; `/` without one"),
        Column("fragment_path", "text", "file of the unit; empty without one"),
        Column("user", "text", "configured user of a service; empty if there is none"),
        Column("source_path", "text", "file from which the unit was generated; empty if it was not"),
    ],
    privileges=Privileges(unix_sockets=(SYSTEM_BUS,)),
    examples=[
        "SELECT id, active_state, fragment_path FROM systemd_units WHERE id = 'ssh.service'",
        "SELECT id, user FROM systemd_units WHERE active_state = 'failed'",
    ],
)


@systemd_units.snapshot
def loaded(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.dbus.messages import DbusError
    from zeek_agent.host.linux.systemd_units import units

    names = wanted.equal("id")
    properties = dict(_PROPERTIES[column] for column in _PROPERTIES if wanted.needs(column))
    try:
        for unit in units(SYSTEM_BUS, properties, lambda name: names is None or name in names, wanted.check):
            values = {column: unit.properties.get(name, "") for column, (name, _) in _PROPERTIES.items()}
            yield (
                *unit[:5],
                values["unit_file_state"],
                *unit[5:10],
                values["fragment_path"],
                values["user"],
                values["source_path"],
            )
    except DbusError as error:
        raise SqlError(f"table systemd_units: {error}") from error
    except OSError as error:
        if not Path(BOOTED).exists():
            return  # another init
        raise SqlError(f"table systemd_units: {SYSTEM_BUS} does not answer: {error.strerror}") from error


TABLES = (systemd_units,)
