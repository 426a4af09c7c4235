"""The commands that run until they are stopped: the agent, the collector, the gateway."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from zeek_agent.cli.options import Given, pack_settings, settings_options

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.reload import Loaded


@click.command()
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
@settings_options
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
        **pack_settings(packs),
        "osquery.socket": osquery_socket,
        "log.level": log_level,
    }

    return run_with_flags(given, flags)


def run_with_flags(given: Given, flags: Mapping[str, object]) -> int:
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


@click.command()
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
@settings_options
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
        **pack_settings(packs),
        "collector.format": log_format,
        "collector.tls.certificate": certificate,
        "collector.tls.key": key,
        "collector.tls.client_ca": client_ca,
    }
    from zeek_agent.signals import HangupSignal

    hangup = HangupSignal()

    from zeek_agent import platforms
    from zeek_agent.standalone import run_collector

    try:
        platforms.HERE.run(run_collector(partial(_loaded, given, flags), hangup))
    finally:
        hangup.ignore()


@click.command()
@click.option("--zeek", metavar="URL", help="The Zeek or collector (ws://127.0.0.1:27759).")
@click.option("--nats", "servers", multiple=True, metavar="URL", help="NATS server (nats://host:port, tls://…).")
@click.option("--cluster", metavar="NAME", help="Name of the Zeek cluster, the same for all its gateways.")
@click.option(
    "--name", metavar="NAME", help="Name of this gateway; default: that in its credentials, or the host name."
)
@settings_options
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

    flags = {
        "gateway.zeek": zeek,
        "gateway.servers": tuple(servers) or None,
        "gateway.cluster": cluster,
        "gateway.name": name,
    }

    try:
        platforms.HERE.run(run_gateway(partial(_loaded, given, flags), hangup))
    finally:
        hangup.ignore()


@click.command("files-helper", hidden=True)
def files_helper() -> None:
    """Watch files for the connection that is standard input; zeek-agent-files.socket starts it."""
    from zeek_agent.containment import own_code

    command = own_code.command("zeek_agent.files_helper.__main__")
    os.execv(command[0], command)


def _loaded(given: Given, flags: Mapping[str, object]) -> Loaded:
    """The configuration with these flags, and the warnings about it."""
    from zeek_agent.reload import Loaded

    warnings: list[str] = []
    config, origins = given.load(flags, warnings.append)
    return Loaded(config, origins, warnings)
