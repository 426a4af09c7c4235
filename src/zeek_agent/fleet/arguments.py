"""The arguments of the commands of a fleet. All raise UsageError for what cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from zeek_agent.bus import subjects
from zeek_agent.errors import UsageError
from zeek_agent.fleet.directory import Site
from zeek_agent.text import clipped

DAY_SECONDS: Final = 86_400.0
LIFETIME_DAYS_MAX: Final = 365
_UNITS: Final = {"min": 60.0, "h": 3600.0, "d": DAY_SECONDS}


def parse_lifetime(text: str) -> float:
    """Seconds of a text such as `7d`, `12h` or `30min`."""
    match = re.fullmatch(r"([0-9]{1,6})(min|h|d)", text.strip())
    if match is None or (seconds := int(match[1]) * _UNITS[match[2]]) <= 0 or seconds > LIFETIME_DAYS_MAX * DAY_SECONDS:
        raise UsageError(f"not a time of up to a year, such as 7d, 12h or 30min: {text[:40]!r}")
    return seconds


def parse_site(text: str) -> Site:
    """`NAME`, or `NAME=HOST[,HOST…]` with the names and addresses that its agents use for the site's server."""
    name, _, hosts = text.partition("=")
    return Site(name, tuple(filter(None, hosts.split(","))) or (name,))


def parse_sites(texts: Sequence[str], roaming: Sequence[str]) -> list[Site]:
    """The sites of `parse_site`; those named in `roaming` also pass roaming agents."""
    sites = [parse_site(each) for each in texts]
    if unknown := sorted(set(roaming) - {site.name for site in sites}):
        raise UsageError(f"--roaming: no such site: {clipped(', '.join(unknown))}")
    return [replace(site, roaming=site.name in roaming) for site in sites]


def parse_gateway(text: str) -> tuple[str, str]:
    """`NAME`, or `NAME=CLUSTER`; the cluster `zeek` by default."""
    name, _, cluster = text.partition("=")
    return name, cluster or "zeek"


def parse_gateways(texts: Sequence[str]) -> dict[str, str]:
    """The clusters of gateways by name."""
    gateways = [parse_gateway(each) for each in texts]
    require_once("--gateway", (name for name, _ in gateways))
    return dict(gateways)


def require_once(option: str, names: Iterable[str]) -> None:
    """Names become directories, in which the second of two would replace the first."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{option}: given twice: {clipped(name)!r}")
        seen.add(name)


def check_name(name: str) -> None:
    if not subjects.is_name(name):
        raise UsageError(f"not a name (letters, digits, - and _, 64 at most): {name[:80]!r}")


def check_host(host: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,250}|::1", host):
        raise UsageError(f"not a host name or address: {host[:80]!r}")
