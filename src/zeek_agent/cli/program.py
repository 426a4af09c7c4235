"""The program: parse, call, print. Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TextIO

import click

from zeek_agent import __version__
from zeek_agent.cli import fleet, inspection, packs, programs, service
from zeek_agent.cli.options import NAME, print_warning
from zeek_agent.errors import UsageError, ZeekAgentError


def main() -> None:
    """The program `zeek-agent`."""
    _prepare_streams()
    sys.exit(run_command(sys.argv[1:]))


def _prepare_streams() -> None:
    """Make the standard streams usable: closed ones lead to /dev/null, and any byte or character can pass.

    Output to a terminal is in its encoding, with other characters escaped, and all other output in UTF-8.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a file opened later would be a standard stream
        os.set_inheritable(null, True)
    os.close(null)
    sys.stdin = sys.stdin or _opened(0, "r")
    sys.stdout = sys.stdout or _opened(1, "w")
    sys.stderr = sys.stderr or _opened(2, "w")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def _opened(descriptor: int, mode: Literal["r", "w"]) -> TextIO:
    """A standard stream that Python has not opened; a service of Windows has descriptors that lead nowhere."""
    try:
        return open(descriptor, mode, encoding="utf-8", errors="surrogateescape", closefd=False)
    except OSError:
        return Path(os.devnull).open(mode, encoding="utf-8", errors="surrogateescape")


def run_command(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; errors are one line on standard error."""
    try:
        code = commands.main(list(arguments), prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except (click.ClickException, click.Abort, ZeekAgentError, KeyboardInterrupt) as error:
        return _explain(error)
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Handle a closed standard output: discard the rest, including output flushed at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException) -> int:
    """Print the error in one line, and return its exit code."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return 2
        case click.UsageError(ctx=context):
            path = context.command_path if context else NAME
            return _fail(f"{error.format_message()} (see {path} --help)", 2)
        case UsageError():
            return _fail(str(error), 2)
        case click.ClickException() | ZeekAgentError():
            return _fail(str(error), 1)
    return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print_warning(message)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name=NAME)
def commands() -> None:
    """Give Zeek an SQL view of this host: processes, sockets, users and files."""


for command in (
    programs.run,
    programs.collector,
    programs.gateway,
    programs.files_helper,
    inspection.query,
    inspection.shell,
    inspection.tables,
    inspection.status,
    inspection.reload,
    inspection.watch,
    inspection.doctor,
    inspection.config_group,
    inspection.hosts,
    packs.pack_group,
    service.service_group,
    fleet.enroll,
    fleet.fleet_group,
):
    commands.add_command(command)
