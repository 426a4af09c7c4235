"""Checks that files and groups named by the configuration exist, and that patterns are valid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from zeek_agent.access import AccessPolicy
from zeek_agent.control.server import group_id
from zeek_agent.errors import UsageError

if TYPE_CHECKING:
    from zeek_agent.config import Config


def check_files_and_groups(config: Config) -> None:
    """Raises UsageError that names the setting, the problem and the remedy."""
    AccessPolicy(config.access)
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
