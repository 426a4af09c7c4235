"""Checks that files and groups named by the configuration exist, and that patterns and the query pack are valid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from zeek_agent.access import AccessPolicy
from zeek_agent.config import AccessSettings
from zeek_agent.control.server import group_id
from zeek_agent.errors import UsageError

if TYPE_CHECKING:
    from zeek_agent.config import Config


def check_files_and_groups(config: Config) -> None:
    """Raises UsageError that names the setting, the problem and the remedy, for the first problem."""
    for problem in _problems(config):
        raise problem
    if _uses_pack(config):
        from zeek_agent.collector import pack

        pack.load(_pack_file(config), schedule=config.collector.schedule)


def all_problems(config: Config) -> tuple[list[str], list[str]]:
    """All errors and all warnings; the statements of the query pack are compiled, too."""
    errors = [str(problem) for problem in _problems(config)]
    warnings: list[str] = []
    if _uses_pack(config):
        from zeek_agent.collector import pack_check

        for found in pack_check.problems(_pack_file(config)):
            (warnings if found.is_warning else errors).append(found.text)
    return errors, warnings


def _uses_pack(config: Config) -> bool:
    return not config.zeek.destinations or config.collector.pack is not None


def _pack_file(config: Config) -> Path | None:
    return Path(config.collector.pack) if config.collector.pack else None


def _problems(config: Config) -> Iterator[UsageError]:
    yield from _access(config.access)
    tls = config.zeek.tls
    for name, file in (("ca_file", tls.ca_file), ("certificate", tls.certificate), ("key", tls.key)):
        if file is not None and not os.access(file, os.R_OK):
            yield UsageError(f"zeek.tls.{name}: cannot read {file}")
    if config.control.group is not None:
        yield from _refused(partial(group_id, config.control.group))
    if config.log.file is not None and not Path(config.log.file).absolute().parent.is_dir():
        yield UsageError(f"log.file: no such directory: {Path(config.log.file).absolute().parent}")
    for item in config.osquery.required_columns:
        if not all(item.partition(".")[::2]):
            yield UsageError(f"osquery.required_columns: expected `table.column`, got {item!r}")


def _access(settings: AccessSettings) -> Iterator[UsageError]:
    """The problems of the access rules, each by itself."""
    default = AccessSettings()
    for name, value in structs.asdict(settings).items():
        if value != getattr(default, name):
            for one in [(item,) for item in value] if isinstance(value, tuple) else [value]:
                yield from _refused(partial(AccessPolicy, structs.replace(default, **{name: one})))


def _refused(check: Callable[[], object]) -> Iterator[UsageError]:
    try:
        check()
    except UsageError as error:
        yield error
