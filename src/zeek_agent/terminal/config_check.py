"""Checks that files and groups named by the configuration exist, and that patterns are valid."""

from __future__ import annotations

import fnmatch
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.access import AccessPolicy
from zeek_agent.control.server import group_id
from zeek_agent.errors import UsageError

if TYPE_CHECKING:
    from zeek_agent.config import Config


log = logging.getLogger(__name__)

_SIMILAR: Final = 0.8
"""Similarity (difflib's ratio) from which a name is a misspelt one."""
_PLATFORMS: Final = ("linux", "darwin", "win32")


def check_table_rules(config: Config) -> None:
    """Raises UsageError for a rule on tables that matches none, with the nearest name.

    While osquery may add tables of any name, a name that resembles no other one is only logged.
    """
    from difflib import get_close_matches

    rules = [("allow", rule) for rule in config.access.tables_allow]
    rules += [("deny", rule) for rule in config.access.tables_deny]
    if not rules:
        return
    known = _table_names()
    imports = config.osquery.socket != "off"
    for kind, rule in rules:
        if any(fnmatch.fnmatchcase(name, rule) for name in known) or (imports and rule.startswith(_OSQUERY_PREFIX)):
            continue
        near = get_close_matches(rule, known, n=1, cutoff=0.5)
        similar = get_close_matches(rule, known, n=1, cutoff=_SIMILAR)
        message = f"access.tables_{kind}: there is no table {rule!r}{f'; did you mean {near[0]!r}?' if near else ''}"
        advice = "`zeek-agent tables` lists the tables"
        if not imports:
            raise UsageError(f"{message}; {advice}")
        advice += f"; for one of osquery's, write {_OSQUERY_PREFIX}{rule}"
        if similar:
            raise UsageError(f"{message}; {advice}")
        log.warning("%s; %s", message, advice)


_OSQUERY_PREFIX: Final = "osquery_"


def _table_names() -> list[str]:
    """All names of tables that rules may mean, on any platform."""
    from zeek_agent.database.database import ALIASES
    from zeek_agent.osquery.table_names import OSQUERY_TABLES
    from zeek_agent.tables import builtin_tables, plugin_tables

    names = set(OSQUERY_TABLES)
    for platform in _PLATFORMS:
        for table in (*builtin_tables(platform), *plugin_tables(platform)):
            names |= {table.name, f"{table.name}_history"} if table.kind == "events" else {table.name}
    names |= {alias for alias, name in ALIASES.items() if name in names}
    return sorted(names)


def check_files_and_groups(config: Config) -> None:
    """Raises UsageError that names the setting, the problem and the remedy."""
    AccessPolicy(config.access)
    check_table_rules(config)
    tls = config.zeek.tls
    for name, file in (("ca_file", tls.ca_file), ("certificate", tls.certificate), ("key", tls.key)):
        if file is not None and not os.access(file, os.R_OK):
            raise UsageError(f"zeek.tls.{name}: cannot read {file}")
    if config.control.group is not None:
        group_id(config.control.group)
    if config.log.file is not None and not Path(config.log.file).absolute().parent.is_dir():
        raise UsageError(f"log.file: no such directory: {Path(config.log.file).absolute().parent}")
    for item in config.osquery.required_columns:
        if not all(item.partition(".")[::2]):
            raise UsageError(f"osquery.required_columns: expected `table.column`, got {item!r}")
    if not config.zeek.destinations or config.collector.pack is not None:
        from zeek_agent.collector import pack

        pack.load(Path(config.collector.pack) if config.collector.pack else None, schedule=config.collector.schedule)
