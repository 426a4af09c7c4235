"""The tables: one module per family. Columns are only declared in this package.

Each module whose name does not begin with an underscore has a sequence `TABLES`; a new module needs no other entry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Final

from zeek_agent import platforms
from zeek_agent.table import Table

log = logging.getLogger(__name__)

PLUGINS: Final = "zeek_agent.tables"
"""The entry-point group of packages that add tables; each names a `Table` or several in a sequence."""


def builtin_tables(platform: str = platforms.HERE.key) -> list[Table]:
    """The agent's own tables on that platform (as `sys.platform` calls it), in the order of their modules' names."""
    families = (module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    modules = (import_module(f"{__name__}.{family}") for family in families)
    return [table for module in modules for table in module.TABLES if platform in table.platforms]


def plugin_tables(platform: str = platforms.HERE.key) -> list[Table]:
    """Tables added by other installed packages. Those that fail to load are logged and skipped."""
    return [table for table in _plugged_in() if platform in table.platforms]


def _plugged_in() -> Iterator[Table]:
    for entry_point in entry_points(group=PLUGINS):
        try:
            found = entry_point.load()
        except Exception:
            log.exception("cannot load the tables of plug-in %s (%s)", entry_point.name, entry_point.value)
            continue
        for table in found if isinstance(found, Iterable) else [found]:
            if isinstance(table, Table):
                yield table
            else:
                log.error(
                    "plug-in %s (%s) provides an object that is not a table: %r",
                    entry_point.name,
                    entry_point.value,
                    table,
                )
