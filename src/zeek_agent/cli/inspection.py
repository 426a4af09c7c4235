"""The commands that ask the running agent, or read the host, the configuration and a collector's records."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from zeek_agent.cli.options import DIALECT, MODES, Given, StatementCommand, print_warning, printer, settings_options
from zeek_agent.errors import UsageError
from zeek_agent.text import visible


@click.command(cls=StatementCommand)
@click.argument("sql")
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
@DIALECT
@settings_options
def query(given: Given, *, sql: str, mode: str, dialect: str | None) -> int:
    """Run one SQL statement and print its rows; SQL `-` is read from standard input.

    The statement is sent to a running agent. Without one, it runs in a worker process if root runs the command, or else
    in this process; standard error says so, and how old the newest recorded event is.
    """
    from zeek_agent.terminal import responders

    config, origins = given.load()
    responder = responders.open_responder(config, origins)
    try:
        text = sys.stdin.read() if sql == "-" else sql
        columns, rows, notes = responders.query(responder, text, "full" if dialect is None else "osquery")
        notice = responder.notice
    finally:
        responder.close()
    printer(mode).write(columns, rows)
    sys.stdout.flush()
    if notice is not None:
        print_warning(notice)
    for note in notes:
        print_warning(note.message)
    return 0 if all(note.warning for note in notes) else 1


@click.command()
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
@DIALECT
@settings_options
def shell(given: Given, *, mode: str, dialect: str | None) -> int:
    """Run SQL interactively; `.help` lists commands. Statements can also be piped in."""
    from zeek_agent import paths
    from zeek_agent.terminal import responders
    from zeek_agent.terminal.pager import Pager
    from zeek_agent.terminal.shell import Shell

    config, origins = given.load()
    responder = responders.open_responder(config, origins)
    try:
        interactive = sys.stdin.isatty()
        pager = Pager.from_environment(os.environ) if interactive and sys.stdout.isatty() else None
        shell = Shell(responder, printer(mode), sys.stderr, pager, dialect=None if dialect is None else "osquery")
        if interactive:
            shell.run_interactive(paths.locate(config).history)
            return 0
        shell.run_script(sys.stdin)
        return 1 if shell.failed else 0
    finally:
        responder.close()


@click.command()
@click.argument("name", required=False)
@click.option("--zeek", is_flag=True, help="Print record types for Zeek scripts.")
@click.option(
    "--new-plugin",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Create a Python package that adds tables, named like DIR, with a table and tests to begin from.",
)
@settings_options
def tables(given: Given, *, name: str | None, zeek: bool, new_plugin: Path | None) -> None:
    """List the tables, own ones and those of plug-ins included, or describe one."""
    if new_plugin is not None:
        from zeek_agent.terminal import new_plugin as package

        if name is not None or zeek:
            raise UsageError("--new-plugin takes no name of a table and no --zeek")
        for file in package.create(new_plugin):
            click.echo(str(file))
        return
    from zeek_agent.terminal import responders, table_text
    from zeek_agent.terminal.shell import find_table

    config, origins = given.load()
    responder = responders.open_responder(config, origins)
    try:
        declared = responders.tables(responder)
    finally:
        responder.close()
    if name is not None:
        table = find_table(declared, name)
        click.echo(table_text.zeek_record(table) if zeek else table_text.describe_table(table), nl=False)
    elif zeek:
        click.echo("\n".join(map(table_text.zeek_record, declared)), nl=False)
    else:
        click.echo(table_text.list_tables(declared), nl=False)


@click.command()
@click.option(
    "--format", "-f", "form", type=click.Choice(["text", "json", "prometheus"]), default="text", help="Output format."
)
@settings_options
def status(given: Given, *, form: str) -> None:
    """Show the running agent: identity, connections, sources, queries, worker processes, event store.

    Exit code 1 if none is running.
    """
    from zeek_agent.terminal import responders, status_report

    config, _ = given.load()
    responder = responders.connect(config)
    try:
        if form == "prometheus":
            click.echo(responders.metrics(responder), nl=False)
            return
        report = status_report.gather_status(responder)
    finally:
        responder.close()
    width = printer("table").width
    click.echo(status_report.as_json(report) if form == "json" else status_report.as_text(report, width), nl=False)


@click.command()
@settings_options
def reload(given: Given) -> None:
    """Have the running agent read its configuration again, as SIGHUP does, and print what was applied.

    An invalid configuration is an error, and nothing of it is applied. Settings that need a restart are listed. The
    agent reads the file that it was started with; options of this command only say which agent is meant.
    """
    from zeek_agent.terminal import responders

    config, _ = given.load()
    responder = responders.connect(config)
    try:
        click.echo(responders.reload(responder))
    finally:
        responder.close()


@click.command()
@click.option("--since", metavar="AGO", help="Begin with recorded events: `10min`, `1h30m`, or a time in UTC.")
@click.option(
    "--process", "processes", multiple=True, metavar="NAME", help="A process id, a name, or the path of an executable."
)
@click.option("--user", "users", multiple=True, metavar="USER", help="A user name or id.")
@click.option("--address", "addresses", multiple=True, metavar="ADDRESS", help="An address or block of an endpoint.")
@click.option("--port", "ports", multiple=True, type=click.IntRange(0, 65535), help="A port of an endpoint.")
@click.option("--container", "containers", multiple=True, metavar="ID", help="The beginning of a container id.")
@click.option("--format", "-f", "form", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@settings_options
def watch(
    given: Given,
    *,
    since: str | None,
    processes: Sequence[str],
    users: Sequence[str],
    addresses: Sequence[str],
    ports: Sequence[int],
    containers: Sequence[str],
    form: str,
) -> None:
    """Print events of processes and connections as the running agent records them, one line each.

    An option can be repeated: events that match any of its values are shown. Of different options, all must match.
    `*` and `?` are wildcards in NAME. Addresses and ports select connections. Exit code 1 if no agent is running; if it
    ends later, the command waits for it and continues where it was.
    """
    from zeek_agent.terminal import responders, watch
    from zeek_agent.terminal.watch_query import Filters

    config, _ = given.load()
    filters = Filters(processes, users, addresses, ports, containers)
    start = None if since is None else watch.start_time(since)
    watch.run(lambda: responders.connect(config), filters, sys.stdout, print_warning, json=form == "json", since=start)


@click.command()
@click.option("--format", "-f", "form", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@click.option("--zeek", "-z", multiple=True, metavar="URL", help="Zeek to test, instead of the configured ones.")
@settings_options
def doctor(given: Given, *, form: str, zeek: Sequence[str]) -> int:
    """Check requirements and capabilities on this host, with advice. Exit code 1 if `run` would fail."""
    from zeek_agent.terminal import doctor

    config, origins = given.load({"zeek.destinations": list(zeek) or None})
    checks = doctor.run_checks(config, origins)
    click.echo(doctor.as_json(checks) if form == "json" else doctor.as_text(checks, sys.stdout.isatty()), nl=False)
    return 1 if any(check.verdict == "fail" for check in checks) else 0


@click.group("config")
def config_group() -> None:
    """Inspect the configuration."""


@config_group.command("check")
@settings_options
def config_check(given: Given) -> int:
    """Check the configuration for `run`, and print settings that differ from the defaults, with their origin.

    All errors are reported, one per line, with those of the query pack, whose statements are compiled and compared with
    the types of their logs' fields. Exit code 2 if there are any.
    """
    from zeek_agent.config import declarations, loading
    from zeek_agent.terminal import config_check

    refused: list[UsageError] = []
    loaded, origins = given.load(refuse=refused.append)
    errors, warnings = config_check.all_problems(loaded)
    for message in (*map(str, refused), *errors, *warnings):
        print_warning(message)
    if refused or errors:
        return 2
    file = loading.config_file(given.config_file, os.environ)
    click.echo(f"the configuration is valid ({file or 'no file'})")
    for name, value, origin, default in declarations.rows(loaded, origins):
        if origin != "default":
            click.echo(visible(f"{name} = {value}    from {origin}, default {'unset' if default is None else default}"))
    return 0


@click.command()
@click.option("--connected", is_flag=True, help="Only hosts that are connected.")
@click.option("--offline", is_flag=True, help="Only hosts that are offline.")
@click.option("--losses", is_flag=True, help="Only hosts with losses, gaps, errors or a conflict about their id.")
@click.option("--host", "patterns", multiple=True, metavar="NAME", help="A host name, agent id or address; * and ?.")
@click.option("--logs", metavar="DIR", help="Log directory of the collector, if not the configured one.")
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
@settings_options
def hosts(
    given: Given, *, connected: bool, offline: bool, losses: bool, patterns: Sequence[str], logs: str | None, mode: str
) -> None:
    """Print the hosts that a collector knows: identity, state, when it was first and last seen, losses and errors.

    They are read from the log directory, also while no collector runs; the state of hosts that were not offline is then
    `unknown`. Without `--logs` it is the directory of the running agent's embedded collector, or else the configured
    one. If several options select hosts, all must match. A table has the main columns, the other formats have all. Exit
    code 1 if no hosts have been recorded.
    """
    from zeek_agent.terminal import host_list

    config, origins = given.load({"collector.logs": logs})
    directory = host_list.directory(config, origins)
    known = host_list.read(directory)
    wanted = host_list.Filters(connected=connected, offline=offline, losses=losses, patterns=patterns)
    host_list.write(printer(mode), known, wanted)
    for notice in known.notices:
        print_warning(notice)
