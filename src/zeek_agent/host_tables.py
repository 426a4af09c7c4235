"""All tables of this host: the agent's, those of plug-ins, and those that its operator has declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from zeek_agent.database.database import reserved_names
from zeek_agent.recording.registry import KINDS
from zeek_agent.tables import builtin_tables, plugin_tables

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.own_tables.declarations import OwnTable
    from zeek_agent.table import Table

_OTHER_KINDS = ("agent", "osquery")
"""What `zeek_agent_sources` and `zeek_agent_gaps` have besides the kinds of events."""


class HostTables(NamedTuple):
    """The tables, and the operator's declarations among them."""

    tables: list[Table]
    own: Sequence[OwnTable]


def host_tables(config: Config) -> HostTables:
    """Raises UsageError if a file of `tables.files` is invalid; no table of it is used then."""
    installed = [*builtin_tables(), *plugin_tables()]
    if not config.tables.files:
        return HostTables(installed, ())
    from zeek_agent.own_tables import snapshots

    own = own_tables(config, installed)
    return HostTables([*installed, *snapshots.tables(own)], own)


def own_tables(config: Config, installed: Sequence[Table] | None = None) -> Sequence[OwnTable]:
    """The operator's declarations. `installed` are the other tables. Raises UsageError."""
    if not config.tables.files:
        return ()
    from zeek_agent.own_tables import files

    others = [*builtin_tables(), *plugin_tables()] if installed is None else installed
    return files.load(config.tables.files, reserved_names(others), {*KINDS, *_OTHER_KINDS})
