"""osquery's tables, with osquery's names, columns and values, from this agent: one module per family.

They are for statements that were written for osquery. Where the agent has a table of its own of the same name, that
keeps the name, except in osquery's dialect. Each module whose name does not begin with an underscore has a sequence
`TABLES`; a new module needs no other entry.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from zeek_agent.table import Table

_MODULES: Final = (module.name for module in iter_modules(__path__) if not module.name.startswith("_"))

TABLES: Final[tuple[Table, ...]] = tuple(
    table for name in _MODULES for table in import_module(f"{__name__}.{name}").TABLES
)
