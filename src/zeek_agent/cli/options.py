"""What commands share: the options that name settings, and how rows and warnings are printed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zeek_agent.errors import UsageError
from zeek_agent.text import visible

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.terminal.console import Printer


NAME: Final = "zeek-agent"
MODES: Final = ("table", "json", "csv", "line")


@dataclass(frozen=True, slots=True)
class Given:
    """Options of every command: the sources of settings."""

    config_file: Path | None
    state_dir: str | None
    assignments: Sequence[str]

    def load(
        self,
        flags: Mapping[str, object] | None = None,
        warn: Callable[[str], None] | None = None,
        refuse: Callable[[UsageError], None] | None = None,
    ) -> tuple[Config, dict[str, str]]:
        """The configuration and its origins; `flags` by dotted name, None for those that were not given.

        `warn` is called with a line for each setting under a former name; the default writes to standard error.
        `refuse` is called with each error, instead of raising the first one.
        """
        from zeek_agent.config import loading

        values: dict[str, object] = {}
        for assignment in self.assignments:
            key, equals, value = assignment.partition("=")
            if not equals:
                error = UsageError(f"--set {assignment}: expected KEY=VALUE")
                if refuse is None:
                    raise error
                refuse(error)
                continue
            values[key.strip()] = value
        flags = {"state_dir": self.state_dir, **(flags or {})}
        values |= {name: value for name, value in flags.items() if value is not None}
        return loading.load(self.config_file, flags=values, warn=warn or print_warning, refuse=refuse)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command, passed to it as its first argument."""

    @click.option(
        "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file."
    )
    @click.option("--state-dir", metavar="DIR", help="State directory, which then also contains the control socket.")
    @click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any setting, by its dotted name."
    )
    @wraps(command)
    def with_settings(
        config_file: Path | None, state_dir: str | None, assignments: Sequence[str], **options: Any
    ) -> Any:
        return command(Given(config_file, state_dir, assignments), **options)

    return with_settings


def pack_settings(packs: Sequence[str]) -> dict[str, object]:
    """The settings for `--pack`, which replaces all configured packs."""
    return {"collector.pack": packs[0], "collector.packs": list(packs[1:])} if packs else {}


DIALECT: Final = click.option(
    "--dialect",
    type=click.Choice(["osquery"]),
    help="Dialect of statements: names of osquery's tables mean the tables with osquery's columns.",
)


class StatementCommand(click.Command):
    """A command with a statement among its arguments, which may begin with a comment: `-- why`, like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move such a statement behind `--`, where click does not look for options."""
        names = {name: option for option in self.params for name in option.opts if isinstance(option, click.Option)}
        takes_value = False
        for index, argument in enumerate(args):
            if argument == "--":
                break
            if not takes_value and _is_comment(argument, names):
                return super().parse_args(ctx, [*args[:index], *args[index + 1 :], "--", argument])
            option = None if takes_value else names.get(argument)
            takes_value = option is not None and not option.is_flag and not option.count
        return super().parse_args(ctx, args)


def _is_comment(argument: str, options: Container[str]) -> bool:
    """Whether an argument that begins with `--` cannot be an option, given or mistyped."""
    match = re.fullmatch(r"(--[^\s=]+)(=.*)?", argument, re.DOTALL)
    if match is not None and (match[1] in options or "\n" not in argument):
        return False
    return argument.startswith("--")


def printer(mode: str) -> Printer:
    from zeek_agent.terminal.console import Mode, Printer

    return Printer.for_stream(sys.stdout, Mode(mode), os.environ)


def print_warning(message: str) -> None:
    sys.stderr.write(f"{NAME}: {visible(message)}\n")
