"""The commands that make a fleet and change it: hubs, sites, gateways, tokens, revocation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from zeek_agent.bus import subjects
from zeek_agent.errors import UsageError
from zeek_agent.fleet import arguments, authority, configurations, directory, jwt, nkey, registry, roles, tokens
from zeek_agent.fleet.arguments import DAY_SECONDS
from zeek_agent.fleet.directory import EnrolmentSettings, Fleet, Place, Revocation, Site
from zeek_agent.fleet.issuing import CREDENTIAL_SECONDS
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.registry import AgentRow, Registry, TokenRow
from zeek_agent.text import clipped, is_text

HOST_SECONDS: Final = 365 * DAY_SECONDS
"""Life of the credentials of gateways and leaves."""
NO_END_SECONDS: Final = 100 * HOST_SECONDS
"""How long a revocation is kept of credentials that do not expire, those of the enrolment service."""
TOKEN_USES_MAX: Final = 100_000
HUB: Final = "hub"
"""The site of agents that connect to hubs only, where they are; no leaf passes it."""
RESERVED_SITES: Final = (subjects.ROAMING, HUB)
TAGS_CHARACTERS_MAX: Final = 2_000
"""Of the groups of an agent, whose JWT it sends with each hello."""
ELSEWHERE: Final = "known where the enrolment service runs, if that is in a copy of enrolment/"
_ONLINE: Final = (roles.AGENT, roles.BOOTSTRAP)
"""Roles whose signing keys the enrolment service has."""
CRL: Final = "agents.crl"
"""Revoked certificates of agents and gateways, in `enrolment/` and for collectors."""


def initialize(
    place: Path,
    name: str,
    *,
    hubs: Sequence[str],
    sites: Sequence[Site],
    gateways: Mapping[str, str],
    now: float,
    enrolment: Sequence[str] = (),
    collector: Sequence[str] = (),
) -> list[str]:
    """Make a fleet in a new directory. Returns what it made there.

    `gateways` maps names to clusters; `enrolment` and `collector` are the hosts of these services, by default the hubs.
    Raises UsageError for invalid names and for a directory that is not empty.
    """
    arguments.check_name(name)
    for host in (*hubs, *enrolment, *collector):
        arguments.check_host(host)
    arguments.require_once("--hub", hubs)
    arguments.require_once("--site", (site.name for site in sites))
    for site in sites:
        _check_site(site, [other.name for other in sites])
    for gateway, cluster in gateways.items():
        arguments.check_name(gateway)
        arguments.check_name(cluster)
    directory.create(place)
    keys = {kind: Key.generate(nkey.ACCOUNT) for kind in ("account", "system")}
    keys["operator"] = Key.generate(nkey.OPERATOR)
    of_roles = {role: Key.generate(nkey.ACCOUNT) for role in roles.TEMPLATES}
    for kind, key in keys.items():
        directory.write(place / "keys" / f"{kind}.seed", f"{key.seed}\n")
    for role, key in of_roles.items():
        where = "enrolment" if role in _ONLINE else "keys"
        directory.write(place / where / f"role-{role}.seed", f"{key.seed}\n")
    for where, kind in (("keys", "server-ca"), ("enrolment", "agents-ca")):
        pair = authority.new_authority(f"{name} {kind}", now)
        _write_pair(place / where / kind, pair)
    fleet = Fleet(
        name,
        keys["operator"].public,
        keys["account"].public,
        keys["system"].public,
        {role: key.public for role, key in of_roles.items()},
        tuple(hubs),
        tuple(enrolment or hubs),
        tuple(collector or hubs),
        tuple(sites),
        tokens_issued=int(now),
    )
    made = Place(place)
    directory.write_json(place / "fleet.json", fleet)
    write_services(made, now)
    for host in hubs:
        _write_hub(made, fleet, host, now)
    for site in sites:
        _write_site(made, site, now)
    for gateway, cluster in gateways.items():
        write_gateway(made, gateway, [cluster], now)
    _write_configurations(made)
    return sorted(str(each) for each in place.iterdir())


def write_hub(place: Place, host: str, now: float) -> None:
    """Add a hub, or renew its certificate."""
    arguments.check_host(host)
    fleet = place.fleet()
    if host not in fleet.hubs:
        fleet = replace(fleet, hubs=(*fleet.hubs, host))
        directory.write_json(place.directory / "fleet.json", fleet)
        _write_settings(place)
    _write_hub(place, fleet, host, now)
    _write_configurations(place)


def write_site(place: Place, site: Site, now: float) -> bool:
    """Add a site, or renew its certificate and credentials.

    Returns whether its earlier credentials were revoked, because they permit what the new ones do not. Servers do not
    know it yet.
    """
    fleet = place.fleet()
    others = tuple(other for other in fleet.sites if other.name != site.name)
    _check_site(site, [other.name for other in others])
    is_narrower = any(other.name == site.name and not _includes(site, other) for other in fleet.sites)
    if is_narrower:
        revoke(place, [f"{roles.LEAF}:{site.name}"], now)
        fleet = place.fleet()
    directory.write_json(place.directory / "fleet.json", replace(fleet, sites=(*others, site)))
    _write_settings(place)
    _write_site(place, site, now)
    _write_configurations(place)
    return is_narrower


def write_gateway(place: Place, name: str, clusters: Sequence[str], now: float) -> None:
    """Add a gateway, or renew its credentials and its certificate for collectors."""
    for each in (name, *clusters):
        arguments.check_name(each)
    where = place.directory / "gateways" / name
    if (where / "client.pem").exists():
        directory.remember_certificate(place, name, _serial(where))
    tags = (*roles.tags(roles.CLUSTER, clusters), *roles.tags(roles.AGENTS, [place.fleet().roles[roles.AGENT]]))
    _write_user(place, roles.GATEWAY, name, where / "gateway.creds", now, tags)
    key = authority.new_key()
    signer = place.authority("agents-ca")
    certificate = signer.gateway(name, authority.public_key(key), now, now + HOST_SECONDS)
    _write_pair(where / "client", authority.Pair(certificate, key))
    directory.write(where / "ca.pem", _server_ca(place))
    directory.write(where / "zeek-agent.toml", configurations.gateway(place.fleet(), name, clusters[0]))


def make_token(
    place: Place, *, uses: int, groups: Sequence[str], site: str, lifetime_seconds: float, now: float
) -> str:
    """A new enrolment token for agents of a site; the registry has its public key only."""
    if not all(is_text(group) for group in groups):
        raise UsageError("the name of a group is not valid UTF-8")
    if len("".join(roles.agent_tags(site, groups))) > TAGS_CHARACTERS_MAX:
        raise UsageError(f"the names of the groups have more than {TAGS_CHARACTERS_MAX:,} characters on the bus")
    settings = place.settings()
    try:
        ca = authority.der(directory.read_text(place.enrolment / "ca.pem"))
    except ValueError as error:
        raise UsageError(f"cannot use the authority {place.enrolment / 'ca.pem'}: {error}") from None
    key = Key.generate(nkey.USER)
    expires = now + lifetime_seconds
    user = jwt.user(
        "bootstrap",
        key.public,
        place.key(f"role-{roles.BOOTSTRAP}"),
        now,
        expires=expires,
        account=settings.account,
        tags=roles.tags(roles.SITE, [site]),
    )
    with registry.opened(place.registry) as opened, opened.transaction():
        opened.add_token(TokenRow(key.public, uses, 0, tuple(dict.fromkeys(groups)), now, expires, site))
    return tokens.write(key, ca, user)


def token_site(place: Place, site: str | None, *, is_roaming: bool) -> str:
    """The site of the agents that a token admits, as the command was given it. Raises UsageError."""
    sites = place.sites()
    if site is not None and is_roaming:
        raise UsageError("an agent has a site or is roaming: give --site or --roaming")
    if is_roaming or (site is None and not sites):
        return subjects.ROAMING
    if site is None:
        raise UsageError(
            f"the fleet has sites ({', '.join(sites)}): --site NAME admits agents of one, and --site {HUB} agents that "
            "connect to hubs only; no other site's server can act for them. --roaming admits agents that move between "
            "sites, such as laptops"
        )
    if site not in (*sites, HUB):
        raise UsageError(
            f"no such site: {clipped(site)!r}. Known here: {', '.join((*sites, HUB))}; `zeek-agent fleet site` adds "
            "one, and writes enrolment/enrolment.json, of which a copy elsewhere has to be renewed"
        )
    return site


class Revoked(NamedTuple):
    """A key that a command has revoked; `agent` is its entry in the registry, if it has one here."""

    key: str
    agent: AgentRow | None


def revoke(place: Place, names: Sequence[str], now: float) -> list[Revoked]:
    """Revoke agents by id or key, tokens by key, others by `ROLE:NAME`, in the registry and the account's token.

    Servers do not know it yet. Raises UsageError for unknown names; then nothing is revoked.
    """
    revoked = list(_found(place, names))
    certificates = _certificates(place, revoked, now)
    if place.registry.exists():
        with registry.opened(place.registry) as opened, opened.transaction():
            for one in revoked:
                if one.agent is not None:
                    opened.revoke(one.key, now)
                opened.void_token(one.key, now)
    if place.has_keys:
        fleet = place.fleet()
        labels = directory.labels(fleet)
        entries = {key: entry for key, entry in fleet.revoked.items() if entry.until > now}
        for one in revoked:
            entries[one.key] = Revocation(now, now + DAY_SECONDS + _lifetime_seconds(labels.get(one.key)))
        issued = max(int(now), fleet.tokens_issued + 1)
        directory.write_json(place.directory / "fleet.json", replace(fleet, revoked=entries, tokens_issued=issued))
        _write_configurations(place)
    if (place.enrolment / "agents-ca.key").exists():
        write_revocation_list(place, now, certificates)
    return revoked


def write_revocation_list(place: Place, now: float, more: Mapping[int, float] | None = None) -> None:
    """Write the list of revoked certificates: those of the last one, of revoked agents, and `more`.

    Without the registry, as where only `keys/` is, the last list keeps its entries.
    """
    signer = place.authority("agents-ca")
    file = place.enrolment / CRL
    oldest = now - HOST_SECONDS - DAY_SECONDS  # by then all certificates have expired
    try:
        before = signer.revoked(directory.read_text(file)) if file.exists() else {}
    except ValueError as error:
        raise UsageError(f"cannot use the revocation list {file}: {error}") from None
    entries = {serial: when for serial, when in before.items() if when > oldest}
    if place.registry.exists():
        with registry.opened(place.registry) as opened:
            entries |= opened.revoked_certificates(now)
    text = signer.revocation_list({**entries, **(more or {})}, now)
    directory.write(file, text)
    if place.enrolment != place.directory:
        directory.write(place.directory / "collector" / CRL, text)


def _lifetime_seconds(label: str | None) -> float:
    """The longest one of credentials, whose user is an agent or has that label."""
    if label is None:
        return CREDENTIAL_SECONDS
    return NO_END_SECONDS if label.startswith(f"{roles.ENROLMENT}:") else HOST_SECONDS


def _certificates(place: Place, revoked: Sequence[Revoked], now: float) -> dict[int, float]:
    """Serial numbers of the certificates of revoked gateways."""
    if not place.has_keys:
        return {}
    fleet = place.fleet()
    labels, found = directory.labels(fleet), {}
    for one in revoked:
        role, _, name = labels.get(one.key, "").partition(":")
        where = place.directory / "gateways" / name
        if role == roles.GATEWAY and (where / "client.pem").exists():
            serials = {_serial(where), *(int(each, 16) for each in fleet.certificates.get(name, ()))}
            found.update(dict.fromkeys(serials, now))
    return found


def _serial(gateway: Path) -> int:
    file = gateway / "client.pem"
    try:
        return authority.serial_number(directory.read_text(file))
    except ValueError as error:
        raise UsageError(f"cannot use the certificate {file}: {error}") from None


def account_tokens(place: Place) -> tuple[str, str]:
    """The current tokens of the account and of the system account."""
    fleet = place.fleet()
    operator = place.key("operator")
    of_roles = {role: (fleet.roles[role], template) for role, template in roles.TEMPLATES.items()}
    revoked = {key: int(entry.time) for key, entry in fleet.revoked.items()}
    issued = float(fleet.tokens_issued)
    return (
        jwt.account(fleet.name, fleet.account, operator, issued, roles=of_roles, revocations=revoked),
        jwt.account("SYS", fleet.system, operator, issued, revocations=revoked),
    )


def pusher_credentials(place: Place, now: float) -> str:
    """Credentials in the system account, for some minutes."""
    key = Key.generate(nkey.USER)
    return jwt.credentials(jwt.user("push", key.public, place.key("system"), now, expires=now + 300), key)


def changed_site(
    place: Place,
    name: str,
    *,
    hosts: Sequence[str],
    clusters: Sequence[str],
    passes: Sequence[str],
    is_roaming: bool | None,
) -> Site:
    """A site with what a command gives; what it does not give stays as it was."""
    before = next((site for site in place.fleet().sites if site.name == name), Site(name, (name,)))
    return replace(
        before,
        hosts=tuple(hosts) or before.hosts,
        clusters=tuple(clusters) or before.clusters,
        passes=tuple(passes) or before.passes,
        roaming=before.roaming if is_roaming is None else is_roaming,
    )


def may_be_served_elsewhere(place: Place) -> bool:
    """Whether the enrolment service seems to run from a copy: no agent has been enrolled with this registry."""
    if not place.has_keys or not place.registry.exists():
        return False
    with registry.opened(place.registry) as opened:
        return opened.agent_count() == 0


def agents(place: Place) -> list[AgentRow]:
    """All agents that were enrolled. Raises UsageError without a registry."""
    with _existing_registry(place) as opened:
        return opened.agents()


def tokens_of(place: Place) -> list[TokenRow]:
    """All enrolment tokens, the newest first. Raises UsageError without a registry."""
    with _existing_registry(place) as opened:
        return opened.tokens()


def _existing_registry(place: Place) -> AbstractContextManager[Registry]:
    if not place.registry.exists():
        raise UsageError(f"{place.enrolment} has no registry")
    return registry.opened(place.registry)


def _found(place: Place, names: Sequence[str]) -> Iterator[Revoked]:
    labels = directory.labels(place.fleet()) if place.has_keys else {}
    rows, known = (agents(place), tokens_of(place)) if place.registry.exists() else ([], [])
    for name in names:
        matching = [row for row in rows if row.revoked is None and name in (row.id, row.key)]
        others = [key for key, label in labels.items() if label in (name, f"system-{name}")]
        if matching:
            yield from (Revoked(row.key, row) for row in matching)
        elif others:
            yield from (Revoked(key, None) for key in others)
        elif any(row.key == name for row in known) or (nkey.decoded(name) is not None and place.has_keys):
            yield Revoked(name, None)
        else:
            more = f"; agents are {ELSEWHERE}: revoke it there first" if may_be_served_elsewhere(place) else ""
            raise UsageError(f"no agent, token, gateway or leaf is called {name[:80]!r}{more}")


def write_services(place: Place, now: float) -> None:
    """Write, or renew, what the enrolment service, a collector and operators need. The registry is kept."""
    fleet = place.fleet()
    base, enrolment = place.directory, place.enrolment
    _write_settings(place)
    ca = _server_ca(place)
    signer = place.authority("server-ca")
    directory.write(enrolment / "ca.pem", ca)
    _write_pair(enrolment / "server", signer.server(fleet.enrolment, now))
    _write_user(place, roles.ENROLMENT, "enrolment", enrolment / "enrolment.creds", None)
    directory.write(enrolment / "zeek-agent-enrolment.service", configurations.enrolment_unit())
    with registry.opened(place.registry):
        pass
    _write_user(place, roles.OPERATOR, "operator", base / "operator" / "operator.creds", now)
    directory.write(base / "operator" / "ca.pem", ca)
    directory.write(base / "agent" / "ca.pem", ca)
    _write_pair(base / "collector" / "server", signer.server(fleet.collector, now))
    directory.write(base / "collector" / "agents-ca.pem", directory.read_text(enrolment / "agents-ca.pem"))
    write_revocation_list(place, now)
    directory.write(base / "collector" / "zeek-agent.toml", configurations.collector(fleet))
    directory.write(base / "collector" / "zeek-agent-collector.service", configurations.collector_unit())


def _write_settings(place: Place) -> None:
    """What the enrolment service knows of the fleet."""
    fleet = place.fleet()
    servers = configurations.client_urls(fleet.hubs)
    settings = EnrolmentSettings(fleet.name, fleet.account, servers, place.sites())
    directory.write_json(place.enrolment / "enrolment.json", settings)


def _write_hub(place: Place, fleet: Fleet, host: str, now: float) -> None:
    where = place.directory / "hubs" / host
    _write_pair(where / "server", place.authority("server-ca").server([host], now, is_hub=True))
    directory.write(where / "ca.pem", _server_ca(place))
    unit = configurations.server_unit(f"NATS hub of the fleet {fleet.name}")
    directory.write(where / "zeek-agent-nats.service", unit)


def _write_site(place: Place, site: Site, now: float) -> None:
    where = place.directory / "leaves" / site.name
    _write_pair(where / "server", place.authority("server-ca").server(site.hosts, now))
    directory.write(where / "ca.pem", _server_ca(place))
    tags = (*roles.tags(roles.CLUSTER, site.clusters), *roles.tags(roles.SITE, site.passed))
    _write_user(place, roles.LEAF, site.name, where / "leaf.creds", now, tags)
    key = Key.generate(nkey.USER)
    token = jwt.user(
        site.name,
        key.public,
        place.key("system"),
        now,
        expires=now + HOST_SECONDS,
        permissions=roles.SYSTEM_OF_A_LEAF,
    )
    directory.write(where / "system.creds", jwt.credentials(token, key))
    directory.remember(place, f"system-{roles.LEAF}:{site.name}", key)
    directory.write(where / "zeek-agent-nats.service", configurations.server_unit(f"NATS server of site {site.name}"))


def _write_user(  # noqa: PLR0917 - a user's parts
    place: Place, role: str, name: str, file: Path, now: float | None, tags: tuple[str, ...] = ()
) -> None:
    """Credentials that expire after `HOST_SECONDS`, or never without `now`."""
    key = Key.generate(nkey.USER)
    expires = None if now is None else now + HOST_SECONDS
    signer, account = place.key(f"role-{role}"), place.fleet().account
    token = jwt.user(name, key.public, signer, now or time.time(), expires=expires, account=account, tags=tags)
    directory.write(file, jwt.credentials(token, key))
    directory.remember(place, f"{role}:{name}", key)


def _write_configurations(place: Place) -> None:
    """The configurations of all servers, with the current tokens, and the README."""
    fleet = place.fleet()
    operator = jwt.operator(fleet.name, place.key("operator"), fleet.system, float(fleet.tokens_issued))
    account, system = account_tokens(place)
    for host in fleet.hubs:
        text = configurations.hub(fleet, host, operator, account, system)
        directory.write(place.directory / "hubs" / host / "nats.conf", text)
    for site in fleet.sites:
        text = configurations.leaf(fleet, site.name, operator, account, system)
        directory.write(place.directory / "leaves" / site.name / "nats.conf", text)
    directory.write(place.directory / "README.md", configurations.readme(fleet))


def _write_pair(path: Path, pair: authority.Pair) -> None:
    directory.write(path.with_name(f"{path.name}.pem"), pair.certificate)
    directory.write(path.with_name(f"{path.name}.key"), pair.key)


def _server_ca(place: Place) -> str:
    return directory.read_text(place.keys / "server-ca.pem")


def _includes(site: Site, before: Site) -> bool:
    """Whether a site's server may do all that it could before."""
    has_clusters = "*" in site.clusters or set(before.clusters) <= set(site.clusters)
    return has_clusters and set(before.passed) <= set(site.passed)


def _check_site(site: Site, others: Sequence[str]) -> None:
    arguments.check_name(site.name)
    if site.name.lower() in RESERVED_SITES:
        raise UsageError(f"no site may have this name, which has a meaning of its own: {site.name!r}")
    if unknown := sorted(set(site.passes) - {site.name, *others}):
        raise UsageError(f"no such site to pass: {clipped(', '.join(unknown))}")
    for host in site.hosts:
        arguments.check_host(host)
    for cluster in site.clusters:
        if cluster != "*":
            arguments.check_name(cluster)
