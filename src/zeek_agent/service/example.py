"""The example configuration: every setting with its meaning, commented out, with its default."""

from __future__ import annotations

import itertools
import textwrap

from zeek_agent.config import declarations


def example_configuration() -> str:
    """The text of a configuration file that changes nothing."""
    lines = [
        "# Configuration of the Zeek Agent, with every setting and its default. Remove the # to change one.",
        "# `zeek-agent config check` validates the file.",
    ]
    by_section = itertools.groupby(declarations.settings().values(), lambda one: one.name.rpartition(".")[0])
    for section, settings in by_section:
        lines.append("")
        if section:
            lines += [f"# {section_summary(section)}", f"[{section}]"]
        for one in settings:
            lines += textwrap.wrap(f"# {one.summary}", 118, subsequent_indent="# ")
            value = declarations.literal(one.default) if one.default is not None else '"…"'
            lines.append(f"#{one.name.rpartition('.')[2]} = {value}")
    return "\n".join(lines) + "\n"


def section_summary(section: str) -> str:
    """The first line of the section's declaration."""
    value: object = declarations.Config()
    for part in filter(None, section.split(".")):
        value = getattr(value, part)
    return "" if not section else (type(value).__doc__ or "").strip().partition("\n")[0]
