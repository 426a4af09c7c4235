"""Manual pages and shell completions, from the declarations of commands and settings.

`reference` writes them to `packaging/`, from where packages take them.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Final

import click
from click import shell_completion

from zeek_agent.cli.options import NAME
from zeek_agent.cli.program import commands
from zeek_agent.config import declarations
from zeek_agent.platforms.linux import Linux

COMPLETIONS: Final = {"bash": f"{NAME}.bash", "zsh": f"_{NAME}", "fish": f"{NAME}.fish"}
"""File names by shell."""
_VARIABLE: Final = "_ZEEK_AGENT_COMPLETE"
"""The environment variable by which click's completion scripts call the program."""
_LONG_DEFAULT: Final = 200
_FILES: Final = (
    (str(Linux.system_configuration), "configuration of root's agent"),
    (str(Linux.system_state), "identity, recorded events and delivery states"),
    (str(Linux.system_control), "control socket of root's agent"),
    ("/var/log/zeek-agent/logs", "logs of the embedded collector, if the agent is a service"),
)


def pages() -> Mapping[str, str]:
    """The text of each file, by its name."""
    return {
        f"{NAME}.1": program_page(),
        f"{NAME}.toml.5": configuration_page(),
        **{f"completions/{name}": completion(shell) for shell, name in COMPLETIONS.items()},
    }


def program_page() -> str:
    """zeek-agent(1)"""
    lines = [
        _title(NAME, 1),
        ".SH NAME",
        f"{_text(NAME)} \\- SQL view of a host for Zeek",
        ".SH SYNOPSIS",
        f".B {_text(NAME)}",
        ".I COMMAND",
        r"[\fIOPTION\fR]...",
        ".SH DESCRIPTION",
        *_paragraphs(inspect.cleandoc(commands.help or "")),
        ".SH COMMANDS",
        *(line for path, command in _commands(commands) for line in _command(path, command)),
        ".SH EXIT STATUS",
        ".TP", "0", "success",
        ".TP", "1", "failure",
        ".TP", "2", "usage error or invalid configuration",
        ".SH FILES",
        *(line for path, meaning in _FILES for line in (".TP", f".I {_text(path)}", _text(meaning))),
        ".SH ENVIRONMENT",
        ".TP", r"\fBZEEK_AGENT_\fISECTION\fB__\fIKEY\fR", "a setting, as in",
        r".BR zeek\-agent.toml (5)",
        ".TP", ".B ZEEK_AGENT_CONFIG", "the configuration file",
        ".SH SEE ALSO",
        r".BR zeek\-agent.toml (5)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """zeek-agent.toml(5)"""
    lines = [
        _title(f"{NAME}.toml", 5),
        ".SH NAME",
        f"{_text(NAME)}.toml \\- configuration of the Zeek Agent",
        ".SH SYNOPSIS",
        f".I {_text(str(Linux.system_configuration))}",
        ".SH DESCRIPTION",
        "A TOML file. Every setting has a default; unknown keys and invalid values are errors, which",
        r".B zeek\-agent config check",
        "lists.",
    ]
    by_section = itertools.groupby(declarations.settings().values(), lambda one: one.name.rpartition(".")[0])
    for section, settings in by_section:
        lines.append(f".SH {f'[{section}]' if section else 'TOP LEVEL'}")
        for one in settings:
            lines += [".TP", f".B {_text(one.name.rpartition('.')[2])}", _text(f"{one.summary} ({one.expected})")]
            lines += [".br", _default(one)]
    lines += [".SH SEE ALSO", r".BR zeek\-agent (1)"]
    return "\n".join(lines) + "\n"


def completion(shell: str) -> str:
    """The shell's completion script."""
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None
    complete = kind(commands, {}, NAME, _VARIABLE)
    return (complete.source_template % complete.source_vars()).strip() + "\n"


def _default(one: declarations.Setting) -> str:
    if one.default is None:
        return "Default: unset"
    value = declarations.literal(one.default)
    return "Default: a list, see the configuration file" if len(value) > _LONG_DEFAULT else f"Default: {_text(value)}"


def _title(name: str, section: int) -> str:
    return f'.TH {_text(name).upper()} {section} "" "Zeek Agent" "Zeek Agent"'


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"{NAME} {path}")
    yield f".SS {_text(f'{NAME} {path}')} {_text(' '.join(command.collect_usage_pieces(context)))}"
    yield from _paragraphs(inspect.cleandoc(command.help or ""))
    for option in command.params:
        if isinstance(option, click.Option) and (record := option.get_help_record(context)) is not None:
            names, meaning = record
            yield from (".TP", f".B {_text(names)}", _text(meaning))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Markdown as roff: links without their targets, code in bold."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text
