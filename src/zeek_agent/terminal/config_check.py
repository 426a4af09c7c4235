"""Checks that files and groups named by the configuration exist, and that patterns and the query pack are valid."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from zeek_agent import destination, paths, platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.access_defaults import SECRETS_DENY
from zeek_agent.config.sections import AccessSettings
from zeek_agent.errors import UsageError
from zeek_agent.host_tables import host_tables, own_tables

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.config.sections import SourceSettings, TlsSettings
    from zeek_agent.destination import Destination


log = logging.getLogger(__name__)

_NEAR: Final = 0.6
"""Similarity from which a name is worth suggesting."""
_SIMILAR: Final = 0.8
"""Similarity (difflib's ratio) from which a name is a misspelt one."""
_PLATFORMS: Final = ("linux", "darwin", "win32")


def _table_rules(config: Config) -> Iterator[UsageError]:
    """Rules on tables that match none, with the nearest name.

    While osquery may add tables of any name, a name that resembles no other one is only logged.
    """
    from difflib import get_close_matches

    rules = [("tables_allow", rule) for rule in config.access.tables_allow]
    rules += [("tables_deny", rule) for rule in config.access.tables_deny]
    rules += [("secrets_deny", rule) for rule in _secrets(config) if "." not in rule]
    if not rules:
        return
    known = sorted(_tables(config))
    imports = config.osquery.socket != "off"
    for setting, rule in rules:
        if any(fnmatch.fnmatchcase(name, rule) for name in known) or (imports and rule.startswith(_OSQUERY_PREFIX)):
            continue
        near = get_close_matches(rule, known, n=1, cutoff=_NEAR)
        similar = get_close_matches(rule, known, n=1, cutoff=_SIMILAR)
        message = f"access.{setting}: there is no table {rule!r}{f'; did you mean {near[0]!r}?' if near else ''}"
        advice = "`zeek-agent tables` lists the tables"
        if imports:
            advice += f"; for one of osquery's, write {_OSQUERY_PREFIX}{rule}"
        if similar or not imports:
            yield UsageError(f"{message}; {advice}")
        else:
            log.warning("%s; %s", message, advice)


def _column_rules(config: Config) -> Iterator[UsageError]:
    """Rules on columns that match none. osquery's columns are not known."""
    rules = [("columns_deny", rule) for rule in config.access.columns_deny]
    rules += [("secrets_deny", rule) for rule in _secrets(config) if "." in rule]
    if not rules:
        return
    tables = _tables(config)
    known = [f"{table}.{column}" for table, columns in tables.items() for column in columns]
    osquery = {name for name, columns in tables.items() if not columns}
    for setting, rule in rules:
        table, dot, _ = rule.rpartition(".")
        if not dot:
            yield UsageError(f"access.{setting}: expected `table.column`, got {rule!r}")
        elif not any(fnmatch.fnmatchcase(name, rule) for name in known) and not (
            config.osquery.socket != "off"
            and (table.startswith(_OSQUERY_PREFIX) or any(fnmatch.fnmatchcase(name, table) for name in osquery))
        ):
            advice = "`zeek-agent tables NAME` lists a table's columns"
            yield UsageError(f"access.{setting}: there is no column {rule!r}; {advice}")


def _secrets(config: Config) -> list[str]:
    """The rules of `access.secrets_deny` that are not default ones, whose tables need not be there."""
    return [rule for rule in config.access.secrets_deny if rule not in SECRETS_DENY]


_OSQUERY_PREFIX: Final = "osquery_"


def _tables(config: Config) -> dict[str, frozenset[str]]:
    """The columns of all tables that rules may mean, on any platform, by each name; none are known of osquery's."""
    from zeek_agent.database.database import ALIASES
    from zeek_agent.osquery.table_names import OSQUERY_TABLES
    from zeek_agent.tables import builtin_tables, plugin_tables

    tables: dict[str, frozenset[str]] = dict.fromkeys(OSQUERY_TABLES, frozenset())
    try:
        own = host_tables(config).tables
    except UsageError:
        own = []  # that is reported by itself
    for platform in _PLATFORMS:
        for table in (*builtin_tables(platform), *plugin_tables(platform), *own):
            for name in (table.name, f"{table.name}_history") if table.kind == "events" else (table.name,):
                tables[name] = tables.get(name, frozenset()).union(column.name for column in table.columns)
    tables |= {alias: tables[name] for alias, name in ALIASES.items() if name in tables}
    return tables


def check_files_and_groups(config: Config) -> None:
    """Raises UsageError that names the setting, the problem and the remedy, for the first problem."""
    for problem in _problems(config):
        raise problem
    if _uses_pack(config):
        from zeek_agent.collector import pack

        pack.load_all(config.collector.pack_names, schedule=config.collector.schedule)


def check_contents(config: Config) -> None:
    """Raises UsageError if the statements of the query pack or the files for TLS are invalid.

    An agent that starts reports these where they are used, and tries again. One that runs keeps what it has.
    """
    if _uses_pack(config) and config.collector.pack_names:
        from zeek_agent.collector import pack_check

        for found in pack_check.all_problems(config.collector.pack_names):
            if not found.is_warning:
                raise UsageError(found.text)
    if any(url.startswith("wss:") for url in config.zeek.destinations):
        from zeek_agent.zeek import tls

        tls.client_context(config.zeek.tls)
    if _bus(config):
        from zeek_agent.bus import credentials
        from zeek_agent.zeek import tls

        files = credentials.locate(config.bus, paths.locate(config).state)
        tls.client_context(files.tls, "bus.tls")
        if files.credentials is not None:
            credentials.read(files.credentials)


def all_problems(config: Config) -> tuple[list[str], list[str]]:
    """All errors and all warnings; the statements of the query pack are compiled, too."""
    errors = [str(problem) for problem in _problems(config)]
    warnings: list[str] = []
    if _uses_pack(config):
        from zeek_agent.collector import pack_check

        for found in pack_check.all_problems(config.collector.pack_names):
            (warnings if found.is_warning else errors).append(found.text)
    return errors, warnings


def _uses_pack(config: Config) -> bool:
    return not config.zeek.destinations or bool(config.collector.pack_names)


def _problems(config: Config) -> Iterator[UsageError]:
    yield from _access(config.access)
    yield from _refused(partial(own_tables, config))
    yield from _table_rules(config)
    yield from _column_rules(config)
    yield from _path_rules(config.access)
    yield from _source_backends(config.sources)
    for name, file in (*_tls_files("zeek.tls", config.zeek.tls), *_tls_files("bus.tls", config.bus.tls)):
        if file is not None and not os.access(file, os.R_OK):
            yield UsageError(f"{name}: cannot read {file}")
    if config.bus.credentials is not None and not os.access(config.bus.credentials, os.R_OK):
        yield UsageError(f"bus.credentials: cannot read {config.bus.credentials}")
    for target in _bus(config):
        from zeek_agent.bus.connection import require_packages

        yield from _refused(partial(require_packages, target))
    if config.control.group is not None:
        yield from _refused(partial(platforms.HERE.control.check_group, config.control.group, "control"))
    if config.metrics.group is not None:
        yield from _refused(partial(platforms.HERE.control.check_group, config.metrics.group, "metrics"))
    if config.log.file is not None and not Path(config.log.file).absolute().parent.is_dir():
        yield UsageError(f"log.file: no such directory: {Path(config.log.file).absolute().parent}")
    for item in config.osquery.required_columns:
        if not all(item.partition(".")[::2]):
            yield UsageError(f"osquery.required_columns: expected `table.column`, got {item!r}")


def _tls_files(section: str, settings: TlsSettings) -> Iterator[tuple[str, str | None]]:
    yield f"{section}.ca_file", settings.ca_file
    yield f"{section}.certificate", settings.certificate
    yield f"{section}.key", settings.key


def _bus(config: Config) -> list[Destination]:
    return [one for one in destination.parse_all(config.zeek.destinations) if one.is_bus]


def _access(settings: AccessSettings) -> Iterator[UsageError]:
    """The problems of the access rules, each by itself."""
    default = AccessSettings()
    for name, value in structs.asdict(settings).items():
        if value != getattr(default, name):
            for one in [(item,) for item in value] if isinstance(value, tuple) else [value]:
                yield from _refused(partial(AccessPolicy, structs.replace(default, **{name: one})))


def _path_rules(settings: AccessSettings) -> Iterator[UsageError]:
    """Rules on paths that can match none. One that probably means something else is only logged."""
    default = AccessSettings()
    for name in _PATH_RULES:
        for rule in () if getattr(settings, name) == getattr(default, name) else getattr(settings, name):
            path = rule.removeprefix("!")
            if not path.startswith(("/", "**")):
                advice = (
                    "~ is not expanded: write the directory" if path.startswith("~") else "it has to begin with / or **"
                )
                yield UsageError(f"access.{name}: {rule!r} matches no path; {advice}")
            for regex, cause in _MISUNDERSTOOD:
                if regex.search(path) is not None:
                    log.warning("access.%s: %r: %s", name, rule, cause)


def _source_backends(settings: SourceSettings) -> Iterator[UsageError]:
    """Backends of another platform, with which nothing would be recorded."""
    from zeek_agent.recording import registry

    for kind, known in registry.unknown_backends(settings).items():
        choices = ", ".join(["auto", *known, "off"])
        name = platforms.HERE.name
        yield UsageError(f"sources.{kind}: {getattr(settings, kind)} does not exist on {name}; choose one of {choices}")


_PATH_RULES: Final = ("paths_allow", "paths_deny", "files_allow")
_MISUNDERSTOOD: Final = (
    (re.compile(r"\{[^{}]*,[^{}]*\}"), "braces are not expanded: write a rule for each"),
    (re.compile(r"\$[A-Z_a-z{]"), "variables are not expanded: write the path"),
    (re.compile(r"\\[*?\[]"), "a backslash does not quote a wildcard: write [*], [?] or [[]"),
    (re.compile(r"^\s|\s$"), "begins or ends with a blank"),
)
"""What other programs understand differently."""


def _refused(check: Callable[[], object]) -> Iterator[UsageError]:
    try:
        check()
    except UsageError as error:
        yield error
