"""The command line: parse, call, print. Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import click

from zeek_agent import __version__
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.text import visible

if TYPE_CHECKING:
    from zeek_agent.config import Config
    from zeek_agent.terminal.console import Printer

NAME: Final = "zeek-agent"
MODES: Final = ("table", "json", "csv", "line")


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


def _warn(message: str) -> None:
    sys.stderr.write(f"{NAME}: {visible(message)}\n")


def _fail(message: str, code: int) -> int:
    _warn(message)
    return code


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
        from zeek_agent import config

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
        return config.load(self.config_file, flags=values, warn=warn or _warn, refuse=refuse)


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name=NAME)
def commands() -> None:
    """Give Zeek an SQL view of this host: processes, sockets, users and files."""


@commands.command()
@click.option("--zeek", "-z", multiple=True, metavar="URL", help="Zeek to connect to: ws://…, wss://… or HOST[:PORT].")
@click.option("--insecure", is_flag=True, help="Accept any certificate of a wss:// Zeek.")
@click.option("--ca-file", metavar="FILE", help="CA certificates to trust for wss://, instead of the system's.")
@click.option("--group", multiple=True, metavar="NAME", help="Group that this agent belongs to; Zeek can query groups.")
@click.option("--logs", metavar="DIR", help="Logs of the embedded collector, which runs without --zeek (./logs).")
@click.option(
    "--log-format", type=click.Choice(["tsv", "json", "osquery"]), help="Format of the embedded collector's logs."
)
@click.option(
    "--pack",
    "packs",
    multiple=True,
    metavar="FILE",
    help="Query pack of the embedded collector, or a pattern of names.",
)
@click.option("--osquery-socket", metavar="PATH", help="Extensions socket of the osquery to connect to.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Minimum level of the agent's own log.",
)
@_settings
def run(
    given: Given,
    *,
    zeek: Sequence[str],
    insecure: bool,
    ca_file: str | None,
    group: Sequence[str],
    logs: str | None,
    log_format: str | None,
    packs: Sequence[str],
    osquery_socket: str | None,
    log_level: str | None,
) -> int:
    """Run the agent until SIGTERM or SIGINT."""
    flags = {
        "zeek.destinations": list(zeek) or None,
        "zeek.groups": list(group) or None,
        "zeek.tls.insecure": insecure or None,
        "zeek.tls.ca_file": ca_file,
        "collector.logs": logs,
        "collector.format": log_format,
        **_pack_settings(packs),
        "osquery.socket": osquery_socket,
        "log.level": log_level,
    }

    return _run_agent(given, flags)


def _run_agent(given: Given, flags: Mapping[str, object]) -> int:
    """Run the agent with these settings of flags, by their dotted names; None for those that were not given."""

    def read() -> tuple[Config, Mapping[str, str], list[str]]:
        warnings: list[str] = []
        return *given.load(flags, warnings.append), warnings

    from zeek_agent.containment import agent_capabilities, file_watchers
    from zeek_agent.recording import bpf_objects
    from zeek_agent.signals import HangupSignal

    hangup = HangupSignal()
    first = [read()]
    watchers = file_watchers.launched(first[0][0].sources)
    dropped = agent_capabilities.drop_for(first[0][0])
    early = bpf_objects.EarlyObjects(first[0][0].sources)
    try:
        from zeek_agent import platforms
        from zeek_agent.agent import run_agent
        from zeek_agent.reload import Loaded
        from zeek_agent.terminal import config_check

        def load() -> Loaded:
            is_reload = not first
            config, origins, warnings = read() if is_reload else first.pop()
            config_check.check_files_and_groups(config)
            if is_reload:
                config_check.check_contents(config)
            return Loaded(config, origins, warnings)

        return platforms.HERE.run(run_agent(load, early, dropped, hangup, watchers))
    finally:
        early.close()
        if watchers is not None:
            watchers.close()
        hangup.ignore()


def _pack_settings(packs: Sequence[str]) -> dict[str, object]:
    """The settings for `--pack`, which replaces all configured packs."""
    return {"collector.pack": packs[0], "collector.packs": list(packs[1:])} if packs else {}


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


_DIALECT: Final = click.option(
    "--dialect",
    type=click.Choice(["osquery"]),
    help="Dialect of statements: names of osquery's tables mean the tables with osquery's columns.",
)


@commands.command(cls=StatementCommand)
@click.argument("sql")
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
@_DIALECT
@_settings
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
    _printer(mode).write(columns, rows)
    sys.stdout.flush()
    if notice is not None:
        _warn(notice)
    for note in notes:
        _warn(note.message)
    return 0 if all(note.warning for note in notes) else 1


@commands.command()
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
@_DIALECT
@_settings
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
        shell = Shell(responder, _printer(mode), sys.stderr, pager, dialect=None if dialect is None else "osquery")
        if interactive:
            shell.run_interactive(paths.locate(config).history)
            return 0
        shell.run_script(sys.stdin)
        return 1 if shell.failed else 0
    finally:
        responder.close()


@commands.command()
@click.argument("name", required=False)
@click.option("--zeek", is_flag=True, help="Print record types for Zeek scripts.")
@click.option(
    "--new-plugin",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Create a Python package that adds tables, named like DIR, with a table and tests to begin from.",
)
@_settings
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


@commands.command()
@click.option(
    "--format", "-f", "form", type=click.Choice(["text", "json", "prometheus"]), default="text", help="Output format."
)
@_settings
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
    width = _printer("table").width
    click.echo(status_report.as_json(report) if form == "json" else status_report.as_text(report, width), nl=False)


@commands.command()
@_settings
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


@commands.command()
@click.option("--since", metavar="AGO", help="Begin with recorded events: `10min`, `1h30m`, or a time in UTC.")
@click.option(
    "--process", "processes", multiple=True, metavar="NAME", help="A process id, a name, or the path of an executable."
)
@click.option("--user", "users", multiple=True, metavar="USER", help="A user name or id.")
@click.option("--address", "addresses", multiple=True, metavar="ADDRESS", help="An address or block of an endpoint.")
@click.option("--port", "ports", multiple=True, type=click.IntRange(0, 65535), help="A port of an endpoint.")
@click.option("--container", "containers", multiple=True, metavar="ID", help="The beginning of a container id.")
@click.option("--format", "-f", "form", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@_settings
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
    watch.run(lambda: responders.connect(config), filters, sys.stdout, _warn, json=form == "json", since=start)


@commands.command()
@click.option("--format", "-f", "form", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@click.option("--zeek", "-z", multiple=True, metavar="URL", help="Zeek to test, instead of the configured ones.")
@_settings
def doctor(given: Given, *, form: str, zeek: Sequence[str]) -> int:
    """Check requirements and capabilities on this host, with advice. Exit code 1 if `run` would fail."""
    from zeek_agent.terminal import doctor

    config, origins = given.load({"zeek.destinations": list(zeek) or None})
    checks = doctor.run_checks(config, origins)
    click.echo(doctor.as_json(checks) if form == "json" else doctor.as_text(checks, sys.stdout.isatty()), nl=False)
    return 1 if any(check.verdict == "fail" for check in checks) else 0


@commands.group("config")
def config_group() -> None:
    """Inspect the configuration."""


@config_group.command("check")
@_settings
def config_check(given: Given) -> int:
    """Check the configuration for `run`, and print settings that differ from the defaults, with their origin.

    All errors are reported, one per line, with those of the query pack, whose statements are compiled and compared with
    the types of their logs' fields. Exit code 2 if there are any.
    """
    from zeek_agent import config
    from zeek_agent.terminal import config_check

    refused: list[UsageError] = []
    loaded, origins = given.load(refuse=refused.append)
    errors, warnings = config_check.all_problems(loaded)
    for message in (*map(str, refused), *errors, *warnings):
        _warn(message)
    if refused or errors:
        return 2
    file = config.config_file(given.config_file, os.environ)
    click.echo(f"the configuration is valid ({file or 'no file'})")
    for name, value, origin, default in config.rows(loaded, origins):
        if origin != "default":
            click.echo(visible(f"{name} = {value}    from {origin}, default {'unset' if default is None else default}"))
    return 0


@commands.command()
@click.option("--listen", metavar="HOST:PORT", help="Address to listen on (127.0.0.1:27759).")
@click.option("--logs", metavar="DIR", help="Log directory (./logs).")
@click.option(
    "--pack",
    "packs",
    multiple=True,
    metavar="FILE",
    help="Query pack instead of the default one, or a pattern of names.",
)
@click.option("--log-format", type=click.Choice(["tsv", "json", "osquery"]), help="Format of the logs (tsv).")
@click.option("--certificate", metavar="FILE", help="Certificate of the collector (PEM): agents connect to wss://.")
@click.option("--key", metavar="FILE", help="Private key of the certificate, if it is in another file.")
@click.option("--client-ca", metavar="FILE", help="CA certificates that sign those of agents, which then need one.")
@_settings
def collector(
    given: Given,
    *,
    listen: str | None,
    logs: str | None,
    packs: Sequence[str],
    log_format: str | None,
    certificate: str | None,
    key: str | None,
    client_ca: str | None,
) -> None:
    """Run a collector in place of Zeek: query agents with a pack and write Zeek logs, until SIGTERM or SIGINT.

    SIGHUP reads the configuration, the pack and the certificates again. If one of them is invalid, nothing changes.
    """
    flags = {
        "collector.listen": listen,
        "collector.logs": logs,
        **_pack_settings(packs),
        "collector.format": log_format,
        "collector.tls.certificate": certificate,
        "collector.tls.key": key,
        "collector.tls.client_ca": client_ca,
    }
    from zeek_agent.signals import HangupSignal

    hangup = HangupSignal()

    from zeek_agent import platforms
    from zeek_agent.reload import Loaded
    from zeek_agent.standalone import run_collector

    def load() -> Loaded:
        warnings: list[str] = []
        config, origins = given.load(flags, warnings.append)
        return Loaded(config, origins, warnings)

    try:
        platforms.HERE.run(run_collector(load, hangup))
    finally:
        hangup.ignore()


@commands.command()
@click.option("--zeek", metavar="URL", help="The Zeek or collector (ws://127.0.0.1:27759).")
@click.option("--nats", "servers", multiple=True, metavar="URL", help="NATS server (nats://host:port, tls://…).")
@click.option("--cluster", metavar="NAME", help="Name of the Zeek cluster, the same for all its gateways.")
@click.option(
    "--name", metavar="NAME", help="Name of this gateway; default: that in its credentials, or the host name."
)
@_settings
def gateway(given: Given, *, zeek: str | None, servers: Sequence[str], cluster: str | None, name: str | None) -> None:
    """Connect agents on a NATS bus with one Zeek or collector, until SIGTERM or SIGINT.

    The gateway speaks for all its agents over one WebSocket. It needs no state: several gateways of one cluster share
    the agents, and if one ends, its agents move to the others.

    SIGHUP reads the configuration again, and applies the limits on agents and the log level.
    """
    from zeek_agent.signals import HangupSignal

    hangup = HangupSignal()

    from zeek_agent import platforms
    from zeek_agent.gateway_program import run_gateway
    from zeek_agent.reload import Loaded

    flags = {
        "gateway.zeek": zeek,
        "gateway.servers": tuple(servers) or None,
        "gateway.cluster": cluster,
        "gateway.name": name,
    }

    def load() -> Loaded:
        warnings: list[str] = []
        config, origins = given.load(flags, warnings.append)
        return Loaded(config, origins, warnings)

    try:
        platforms.HERE.run(run_gateway(load, hangup))
    finally:
        hangup.ignore()


@commands.command()
@click.option("--connected", is_flag=True, help="Only hosts that are connected.")
@click.option("--offline", is_flag=True, help="Only hosts that are offline.")
@click.option("--losses", is_flag=True, help="Only hosts with losses, gaps, errors or a conflict about their id.")
@click.option("--host", "patterns", multiple=True, metavar="NAME", help="A host name, agent id or address; * and ?.")
@click.option("--logs", metavar="DIR", help="Log directory of the collector, if not the configured one.")
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
@_settings
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
    host_list.write(_printer(mode), known, wanted)
    for notice in known.notices:
        _warn(notice)


@commands.group("pack")
def pack_group() -> None:
    """Work with query packs."""


@pack_group.command("check")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_settings
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
        _warn(text)
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
            _warn(f"{file}: {text}")
    else:
        script = zeek_script.script(*pack_file.load(file))
    if output is None:
        click.echo(script, nl=False)
        return
    try:
        output.write_text(script, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None


@commands.group("service")
def service_group() -> None:
    """Install the agent as a service of systemd, launchd or Windows, after an installation with pipx or uv."""


@service_group.command("install")
@click.option("--gateway", is_flag=True, help="The unit of `zeek-agent gateway`, not those of the agent.")
@click.option("--no-start", is_flag=True, help="Do not enable and start the service.")
def service_install(*, gateway: bool, no_start: bool) -> None:
    """Write the systemd units for this program, and a configuration if there is none; enable and start the service.

    On macOS, write the property list of a daemon for launchd; on Windows, create the service `ZeekAgent`. A gateway is
    not started until `gateway.servers` and `gateway.cluster` are set. Run it again after an upgrade. Distribution
    packages contain the units and do not need this.
    """
    from zeek_agent.service import managers

    for line in managers.of_this_system(gateway=gateway).install(start=not no_start):
        click.echo(line)


@service_group.command("uninstall")
@click.option("--gateway", is_flag=True, help="The unit of `zeek-agent gateway`, not those of the agent.")
@click.option("--purge", is_flag=True, help="Remove recorded events, logs and the configuration, too.")
def service_uninstall(*, gateway: bool, purge: bool) -> None:
    """Stop the service and remove what `service install` has installed. `service remove` is the same."""
    from zeek_agent.service import managers

    if gateway and purge:
        raise click.UsageError("--purge removes what an agent has; a gateway has nothing but the configuration")
    for line in managers.of_this_system(gateway=gateway).uninstall(purge=purge):
        click.echo(line)


service_group.add_command(service_uninstall, "remove")


@service_group.command("run", hidden=True)
@_settings
def service_run(given: Given) -> int:
    """Run the agent as the Windows service; only the service control manager can do this."""
    from zeek_agent import platforms

    if platforms.HERE.key != "win32":
        raise UsageError("this is for Windows: `zeek-agent run` runs the agent")
    from zeek_agent.service import windows_service

    def work() -> int:
        config, _ = given.load()
        return _run_agent(given, {} if config.log.file else {"log.file": windows_service.LOG_FILE})

    return windows_service.run(work)


@commands.command("files-helper", hidden=True)
def files_helper() -> None:
    """Watch files for the connection that is standard input; zeek-agent-files.socket starts it."""
    from zeek_agent.containment import own_code

    command = own_code.command("zeek_agent.files_helper.__main__")
    os.execv(command[0], command)


@commands.command()
@click.argument("url", required=False)
@click.argument("token", required=False)
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="File with the token.")
@click.option("--renew", is_flag=True, help="Renew the credentials now, with the same keys; takes no arguments.")
@_settings
def enroll(given: Given, *, url: str | None, token: str | None, token_file: Path | None, renew: bool) -> None:
    """Enrol this host with a fleet: make its keys, and have them signed.

    URL is that of a NATS server or of the enrolment service: tls+nats://HOST[:PORT], nats://… or https://…. The TOKEN
    of `zeek-agent fleet token` is read from standard input if it is `-` or missing; as an argument, other users of this
    host can see it. Keys and certificates are in `fleet` below the state directory. A running agent renews them itself.
    """
    from zeek_agent import identity, paths
    from zeek_agent.host.hostname import hostname

    config, _ = given.load()
    places = paths.locate(config)
    if renew and (url or token or token_file):
        raise UsageError("--renew takes no URL and no token: both are those of the enrolment")
    if not renew and url is None:
        raise UsageError("the URL of the enrolment service is missing")
    with _fleet_packages():
        from zeek_agent.fleet import enrolling, tokens
    agent_id = identity.establish(places.identity, config.agent.id).agent
    name = hostname(config.agent.hostname)
    if renew or url is None:
        enrolled = enrolling.renew(places.fleet, agent_id, name)
    else:
        target = enrolling.parse_url(url)
        if token is None or token == "-":
            text = _token_text(token_file)
        else:
            text = token
            _warn("other users can see a token on the command line: use - or --token-file for one with several uses")
        enrolled = enrolling.enroll(places.fleet, target, tokens.read(text), agent_id, name)
    what = f"{'renewed' if renew else 'enrolled'} {agent_id} of site {enrolled.site}"
    click.echo(f"{what}, valid for {enrolled.days} days: {places.fleet}")


def _token_text(file: Path | None) -> str:
    if file is None:
        return sys.stdin.readline(8192)
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"cannot read the token in {file}") from None


@contextmanager
def _fleet_packages() -> Iterator[None]:
    """For imports of what needs the extra `fleet`. Raises ZeekAgentError if its packages are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("zeek_agent"):
            raise
        raise ZeekAgentError(f"{error.name} is not installed: install zeek-agent[fleet]") from None


@commands.group("fleet")
def fleet_group() -> None:
    """Administer a fleet: the identities of agents, gateways and NATS servers."""


_FLEET_DIRECTORY: Final = click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")


@fleet_group.command("init")
@_FLEET_DIRECTORY
@click.option("--name", required=True, help="Name of the fleet.")
@click.option("--hub", "hubs", multiple=True, metavar="HOST", help="Name or address of a NATS hub (localhost).")
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="NAME[=HOST]",
    help="Site with a NATS server of its own, which dials the hubs.",
)
@click.option(
    "--roaming", multiple=True, metavar="SITE", help="One of these sites, whose server also passes roaming agents."
)
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="NAME[=CLUSTER]",
    help="Gateway, and the Zeek cluster that it is for (zeek).",
)
@click.option("--enrolment", multiple=True, metavar="HOST", help="Name of the enrolment service (those of the hubs).")
@click.option("--collector", multiple=True, metavar="HOST", help="Name of a collector (those of the hubs).")
def fleet_init(
    *,
    directory: Path,
    name: str,
    hubs: Sequence[str],
    sites: Sequence[str],
    roaming: Sequence[str],
    gateways: Sequence[str],
    enrolment: Sequence[str],
    collector: Sequence[str],
) -> None:
    """Make a fleet in the new directory DIR: keys, certificates, configurations, units; see its README.md."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration as fleet
    of_cluster = dict(fleet.parse_gateway(each) for each in gateways or ("gw1",))
    made = fleet.initialize(
        directory,
        name,
        hubs=hubs or ("localhost",),
        sites=fleet.parse_sites(sites, roaming),
        gateways=of_cluster,
        now=time.time(),
        enrolment=enrolment,
        collector=collector,
    )
    for path in made:
        click.echo(path)


@fleet_group.command("hub")
@_FLEET_DIRECTORY
@click.argument("host")
def fleet_hub(*, directory: Path, host: str) -> None:
    """Add the NATS hub HOST, or renew its certificate."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration
        from zeek_agent.fleet.directory import Place
    administration.write_hub(Place(directory), host, time.time())


@fleet_group.command("site")
@_FLEET_DIRECTORY
@click.argument("name")
@click.option("--host", "hosts", multiple=True, help="Name or address of its NATS server (NAME).")
@click.option("--cluster", "clusters", multiple=True, help="Zeek cluster that its agents may reach (all).")
@click.option("--roaming/--no-roaming", default=None, help="Whether its server also passes roaming agents (no).")
@click.option("--passes", multiple=True, metavar="SITE", help="Another site, whose server is connected to this one's.")
def fleet_site(
    *,
    directory: Path,
    name: str,
    hosts: Sequence[str],
    clusters: Sequence[str],
    roaming: bool | None,
    passes: Sequence[str],
) -> None:
    """Add the site NAME, or renew its certificate and credentials. What is not given stays as it was.

    Its server passes agents of this site only, which are enrolled with a token of `fleet token --site NAME`.
    """
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration
        from zeek_agent.fleet.directory import Place
    place = Place(directory)
    site = administration.changed_site(place, name, hosts=hosts, clusters=clusters, passes=passes, is_roaming=roaming)
    if administration.write_site(place, site, time.time()):
        _warn(
            "the site's earlier credentials permit more and are revoked: copy the new ones to its server, then run "
            "zeek-agent fleet revoke DIR to push that"
        )


@fleet_group.command("gateway")
@_FLEET_DIRECTORY
@click.argument("name")
@click.option("--cluster", "clusters", multiple=True, help="Zeek cluster that it is for (zeek).")
def fleet_gateway(*, directory: Path, name: str, clusters: Sequence[str]) -> None:
    """Add the gateway NAME, or renew its credentials."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration
        from zeek_agent.fleet.directory import Place
    administration.write_gateway(Place(directory), name, tuple(clusters) or ("zeek",), time.time())


@fleet_group.command("services")
@_FLEET_DIRECTORY
def fleet_services(*, directory: Path) -> None:
    """Renew certificates and credentials of the enrolment service, the collector and operators."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration
        from zeek_agent.fleet.directory import Place
    administration.write_services(Place(directory), time.time())


@fleet_group.command("token")
@_FLEET_DIRECTORY
@click.option("--uses", type=click.IntRange(1, 100_000), default=1, help="Number of agents that it admits (1).")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Group of these agents on the bus.")
@click.option("--site", metavar="NAME", help="Site of these agents; hub: they connect to hubs only.")
@click.option("--roaming", is_flag=True, help="These agents move between sites. The default in a fleet without sites.")
@click.option("--expires", default="7d", metavar="TIME", help="Life of the token, such as 7d, 12h or 30min (7d).")
def fleet_token(
    *, directory: Path, uses: int, groups: Sequence[str], site: str | None, roaming: bool, expires: str
) -> None:
    """Print a new enrolment token, a secret that admits agents. The registry keeps its public key only."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration
        from zeek_agent.fleet.directory import Place
    lifetime = administration.parse_lifetime(expires)
    place = Place(directory)
    home = administration.token_site(place, site, is_roaming=roaming)
    text = administration.make_token(
        place, uses=uses, groups=groups, site=home, lifetime_seconds=lifetime, now=time.time()
    )
    click.echo(text)


@fleet_group.command("enrolment")
@_FLEET_DIRECTORY
@click.option("--listen", metavar="HOST:PORT", help="Address for enrolment over HTTPS, too.")
@click.option("--server", "servers", multiple=True, metavar="URL", help="NATS server, instead of the fleet's hubs.")
@click.option("--no-bus", is_flag=True, help="Do not connect to NATS, only serve HTTPS.")
@_settings
def fleet_enrolment(given: Given, *, directory: Path, listen: str | None, servers: Sequence[str], no_bus: bool) -> int:
    """Run the enrolment service until SIGTERM or SIGINT. DIR is the fleet's directory, or a copy of its enrolment/."""
    import asyncio

    from zeek_agent import logbook

    with _fleet_packages():
        from zeek_agent.fleet import service
        from zeek_agent.fleet.directory import Place
    config, _ = given.load()
    logbook.set_up(config.log)
    place = Place(directory)
    bus = () if no_bus else tuple(servers) or place.settings().servers
    return asyncio.run(service.run(place, bus, listen))


@fleet_group.command("revoke")
@_FLEET_DIRECTORY
@click.argument("names", nargs=-1, metavar="[ID]...")
@click.option("--server", "servers", multiple=True, metavar="URL", help="NATS server, instead of the fleet's hubs.")
def fleet_revoke(*, directory: Path, names: Sequence[str], servers: Sequence[str]) -> int:
    """Revoke agents by id or key, gateways and leaves by `gateway:NAME` and `leaf:SITE`, and push that to all servers.

    Their connections end at once, and their credentials are refused from then on. Without ID, earlier revocations are
    pushed again. Exit code 1 if a server of the fleet has not confirmed.
    """
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration, configurations, pushing
        from zeek_agent.fleet.directory import Place
    place, now = Place(directory), time.time()
    for one in administration.revoke(place, names, now):
        click.echo(visible(f"revoked {one.key}{f' of {one.agent.id} ({one.agent.hostname})' if one.agent else ''}"))
    if not place.has_keys:
        _warn("the keys to push it to the servers are elsewhere: run zeek-agent fleet revoke DIR KEY there, too")
        return 1
    fleet = place.fleet()
    confirmed = pushing.push(
        tuple(servers) or configurations.client_urls(fleet.hubs),
        place.keys / "server-ca.pem",
        administration.pusher_credentials(place, now),
        administration.account_tokens(place),
    )
    click.echo(f"confirmed by {', '.join(map(visible, confirmed))}")
    missing = sorted(configurations.server_names(fleet) - set(confirmed))
    if missing:
        _warn(f"not confirmed by {', '.join(missing)}: they learn it when they are connected to another server")
    return 1 if missing else 0


@fleet_group.command("agents")
@_FLEET_DIRECTORY
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
def fleet_agents(*, directory: Path, mode: str) -> None:
    """Print the registered agents: id, host name, site, state, groups, life of the credentials, key."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration
        from zeek_agent.fleet.directory import Place
    now = time.time()
    rows = [administration.agent_line(row, now) for row in administration.agents(Place(directory))]
    _printer(mode).write(administration.AGENT_COLUMNS, rows)


def _printer(mode: str) -> Printer:
    from zeek_agent.terminal.console import Mode, Printer

    return Printer.for_stream(sys.stdout, Mode(mode), os.environ)
