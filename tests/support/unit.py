"""The systemd units, read as systemd.syntax(7) has it, and a program's privileges as the agent's sets them."""

from __future__ import annotations

from pathlib import Path

import zeek_agent

UNIT = Path(zeek_agent.__file__).parent / "service" / "zeek-agent.service"
FILES_UNIT = UNIT.with_name("zeek-agent-files@.service")
GATEWAY_UNIT = UNIT.with_name("zeek-agent-gateway.service")


def unit_settings(unit: Path = UNIT) -> dict[str, list[str]]:
    """The words of each setting of the section Service; those of a setting that is repeated add up."""
    settings: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, words = line.partition("=")
            settings.setdefault(name, []).extend(words.split())
    return settings


def with_units_privileges(*without: str) -> list[str]:
    """A command's prefix: root with the unit's capabilities, but for some, and as few as they stay."""
    names = [name for name in unit_settings()["CapabilityBoundingSet"] if name not in without]
    allowed = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names)
    return ["setpriv", "--bounding-set", f"-all,{allowed}", "--no-new-privs"]
