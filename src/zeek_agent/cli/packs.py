"""The commands on query packs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from zeek_agent.cli.options import Given, print_warning, settings_options
from zeek_agent.errors import UsageError


@click.group("pack")
def pack_group() -> None:
    """Work with query packs."""


@pack_group.command("check")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options
def pack_check(given: Given, *, files: Sequence[str], as_json: bool) -> int:
    """Check which queries of packs run on this host, and why the others do not.

    FILE is a query pack, a pack or configuration of osquery, or a pattern of names. The running agent compiles each
    statement with its tables, and those of a running osquery; without an agent, this command does. Exit code 1 if a
    query does not run here, unless it is for other platforms.
    """
    from zeek_agent.terminal import pack_report, responders

    config, origins = given.load()
    responder = responders.open_responder(config, origins)
    try:
        report = pack_report.check(responder, files)
        notice = responder.notice
    finally:
        responder.close()
    click.echo(pack_report.as_json(report) if as_json else pack_report.as_text(report), nl=False)
    for text in (*report.notices, *((notice,) if notice else ())):
        print_warning(text)
    return 0 if report.all_run else 1


@pack_group.command("zeek")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="PATH", help="File to write instead of standard output."
)
def pack_zeek(*, file: Path | None, output: Path | None) -> None:
    """Write a Zeek script for the query pack FILE: its queries, and a log for their rows. Default: the default pack.

    FILE may be a pack or configuration of osquery, too; standard error names what is left out of it.
    """
    from zeek_agent.collector import osquery_pack, osquery_queries, pack_file, zeek_script

    if file is not None and osquery_pack.is_osquery(file):
        loaded, left_out = osquery_queries.for_zeek(file)
        script = zeek_script.script(loaded, str(file))
        for text in left_out:
            print_warning(f"{file}: {text}")
    else:
        script = zeek_script.script(*pack_file.load(file))
    if output is None:
        click.echo(script, nl=False)
        return
    try:
        output.write_text(script, "utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
