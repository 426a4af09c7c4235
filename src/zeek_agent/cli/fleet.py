"""The commands of a fleet: to enrol a host, and to administer the identities of all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from zeek_agent.cli.options import MODES, Given, print_warning, printer, settings_options
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.text import visible


@click.command()
@click.argument("url", required=False)
@click.argument("token", required=False)
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="File with the token.")
@click.option("--renew", is_flag=True, help="Renew the credentials now, with the same keys; takes no arguments.")
@settings_options
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
            print_warning(
                "other users can see a token on the command line: use - or --token-file for one with several uses"
            )
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


@click.group("fleet")
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
        from zeek_agent.fleet import administration, arguments
    made = administration.initialize(
        directory,
        name,
        hubs=hubs or ("localhost",),
        sites=arguments.parse_sites(sites, roaming),
        gateways=arguments.parse_gateways(gateways or ("gw1",)),
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
        print_warning(
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
    """Print a new enrolment token, a secret that admits agents. The registry keeps its public key only.

    DIR is the directory that the enrolment service uses: the fleet's, or a copy of its enrolment/.
    """
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration, arguments
        from zeek_agent.fleet.directory import Place
    lifetime = arguments.parse_lifetime(expires)
    place = Place(directory)
    home = administration.token_site(place, site, is_roaming=roaming)
    text = administration.make_token(
        place, uses=uses, groups=groups, site=home, lifetime_seconds=lifetime, now=time.time()
    )
    click.echo(text)
    if administration.may_be_served_elsewhere(place):
        print_warning(
            f"hosts can use it only if the enrolment service has this registry, {visible(str(place.registry))}: if it "
            "runs in a copy of enrolment/, make tokens there (zeek-agent fleet token COPY)"
        )


@fleet_group.command("enrolment")
@_FLEET_DIRECTORY
@click.option("--listen", metavar="HOST:PORT", help="Address for enrolment over HTTPS, too.")
@click.option("--server", "servers", multiple=True, metavar="URL", help="NATS server, instead of the fleet's hubs.")
@click.option("--no-bus", is_flag=True, help="Do not connect to NATS, only serve HTTPS.")
@settings_options
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

    An enrolment token is revoked by its key, which `zeek-agent fleet tokens` shows; agents that it admitted stay.

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
        print_warning(
            "the keys to push it to the servers are elsewhere: run zeek-agent fleet revoke DIR KEY there, too"
        )
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
        print_warning(f"not confirmed by {', '.join(missing)}: they learn it when they are connected to another server")
    return 1 if missing else 0


@fleet_group.command("agents")
@_FLEET_DIRECTORY
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
def fleet_agents(*, directory: Path, mode: str) -> None:
    """Print the registered agents: id, host name, site, state, groups, life of the credentials, key."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration, listing
        from zeek_agent.fleet.directory import Place
    now = time.time()
    rows = [listing.agent_line(row, now) for row in administration.agents(Place(directory))]
    printer(mode).write(listing.AGENT_COLUMNS, rows)


@fleet_group.command("tokens")
@_FLEET_DIRECTORY
@click.option("--format", "-f", "mode", type=click.Choice(MODES), default="table", help="Output format of rows.")
def fleet_tokens(*, directory: Path, mode: str) -> None:
    """Print the enrolment tokens, without their secrets: public key, state, uses, site, groups, life."""
    import time

    with _fleet_packages():
        from zeek_agent.fleet import administration, listing
        from zeek_agent.fleet.directory import Place
    now = time.time()
    rows = [listing.token_line(row, now) for row in administration.tokens_of(Place(directory))]
    printer(mode).write(listing.TOKEN_COLUMNS, rows)
