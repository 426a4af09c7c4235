"""Checks of `zeek-agent doctor` for a bus: credentials, servers, permissions, gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent import identity
from zeek_agent.bus import connection, credentials, messages, subjects
from zeek_agent.bus.messages import BadMessageError, Beacon
from zeek_agent.bus.subjects import Address, Up
from zeek_agent.errors import UsageError
from zeek_agent.terminal.check import Check

if TYPE_CHECKING:
    from zeek_agent.bus.credentials import BusFiles, User
    from zeek_agent.bus.link import Link, Received
    from zeek_agent.config.declarations import Config
    from zeek_agent.destination import Destination
    from zeek_agent.paths import Paths

SERVER_VERSION_MIN: Final = (2, 12, 7)
_WHY_VERSION: Final = (
    "older ones have known faults in authentication (CVE-2023-47090, CVE-2026-58253) or tell each leaf node about the "
    "agents of all others: upgrade nats-server to 2.12.7 or later"
)
_LEAF: Final = "leaf-"
"""Begins the names of servers of sites, as `zeek-agent fleet init` calls them."""
_WHY_SITE: Final = (
    "a site's server passes only what agents of that site send: name a server of the agent's own site or a hub, or let "
    "this one pass that site, too (`zeek-agent fleet site`)"
)
_CLOCK_SECONDS: Final = 60.0
"""Difference of clocks that is noted."""
_EXPIRES_SOON_SECONDS: Final = 3 * 86_400.0
_ANSWER_SECONDS: Final = 2.0
"""For gateways to answer."""
_REPORT_SECONDS: Final = 1.0
"""For the server to report a permission that is missing."""
_REPORT_TRIES: Final = 20
_STRANGER: Final = "doctor-another-agent"
"""The id of an agent, and the name of a site, for which this one must not speak."""


def checks(config: Config, places: Paths, target: Destination, clock: float | None = None) -> list[Check]:
    """All checks of a bus, as the agent would connect to it; `clock` is the time of day."""
    try:
        connection.require_packages(target)
        files = credentials.locate(config.bus, places.state)
    except UsageError as error:
        return [Check("bus", "fail", str(error))]
    stored = identity.read(places.identity)
    agent_id = config.agent.id or (stored.id if stored is not None else "")
    found = list(_credentials(files, agent_id, time.time() if clock is None else clock))
    if not agent_id:
        return [*found, Check("bus", "warn", "the agent has no id yet", "start it once, or enroll it, and try again")]
    try:
        user = credentials.user(files, agent_id)
    except UsageError:
        return found  # which has it
    return [*found, *asyncio.run(_servers(target, files, user))]


def _credentials(files: BusFiles, agent_id: str, now: float) -> Iterator[Check]:
    file = files.credentials
    if file is None:
        advice = "without, a server that checks identities refuses the agent: `zeek-agent enroll` gets credentials"
        yield Check("bus credentials", "warn", "none", advice)
        return
    try:
        claims = credentials.claims(credentials.read(file))
        site = claims.site
    except UsageError as error:
        yield Check("bus credentials", "fail", str(error), "`zeek-agent enroll` gets new ones")
        return
    if exposure := _exposure(file):
        yield Check("bus credentials", "fail", exposure, "whoever reads them can speak for this agent: chmod 600")
    if agent_id and claims.name != subjects.token(agent_id):
        yield Check(
            "bus credentials",
            "fail",
            f"{file} is for {claims.name!r}, and this agent is {agent_id!r}",
            "an agent can only use the credentials that were issued to its id: `zeek-agent enroll` gets some",
        )
    elif claims.expires and claims.expires <= now:
        ago = f"{(now - claims.expires) / 3600:.1f} hours ago"
        advice = "`zeek-agent enroll` gets new ones; if that cannot be, check the host's clock"
        yield Check("bus credentials", "fail", f"{file} expired {ago}", advice)
    elif (begins := max(claims.issued, claims.valid_from)) > now + _CLOCK_SECONDS:
        found = f"{file} will be valid in {begins - now:.0f} s only"
        yield Check("bus credentials", "fail", found, "the host's clock is slow: set it, and have NTP keep it")
    elif claims.expires and claims.expires - now < _EXPIRES_SOON_SECONDS:
        advice = "a running agent renews them in time, if the enrolment service is reachable"
        yield Check("bus credentials", "warn", f"{file} expires in {(claims.expires - now) / 3600:.0f} hours", advice)
    else:
        until = f"{(claims.expires - now) / 86_400:.0f} days" if claims.expires else "ever"
        yield Check("bus credentials", "ok", f"{file}, for {claims.name} of site {site}, valid for {until}")


def _exposure(file: Path) -> str | None:
    mode = file.stat().st_mode & 0o777
    return f"{file} has mode {mode:03o}" if mode & 0o077 else None


async def _servers(target: Destination, files: BusFiles, user: User) -> list[Check]:
    """Each server by itself; permissions at the first that works."""
    found: list[Check] = []
    is_examined = False
    for host, port in ((target.host, target.port), *target.others):
        server = replace(target, host=host, port=port, others=())
        problems: list[str] = []
        try:
            link = await connection.open_link(server, files, user, "zeek-agent doctor", problems.append)
        except (OSError, UsageError) as error:
            found.append(Check("bus", "fail", connection.explain(error, server), "`zeek-agent run` keeps retrying"))
            continue
        try:
            found += _server(server, link)
            if not is_examined:
                is_examined = True
                found += await _permissions(link, user.address, problems)
            found.append(await _gateways(server, link, user.address))
        except OSError as error:
            found.append(Check("bus", "fail", connection.explain(error, server), "`zeek-agent run` keeps retrying"))
        finally:
            await link.close()
    return found


def _server(server: Destination, link: Link) -> Iterator[Check]:
    version = tuple(int(part) for part in link.server_version.split("."))
    verdict = f"{server}, NATS {link.server_version}"
    if version < SERVER_VERSION_MIN:
        yield Check("bus", "warn", verdict, _WHY_VERSION)
    else:
        yield Check("bus", "ok", verdict)
    if not server.is_tls:
        yield Check("bus TLS", "warn", f"{server} without TLS", "others on the way can read along: write tls+nats://")
    if link.payload_bytes_max < messages.BATCH_BYTES_MAX:
        found = f"{server} accepts messages of {link.payload_bytes_max:,} bytes only"
        yield Check("bus", "warn", found, "longer rows are left out: raise max_payload of all servers to 1 MB")


async def _permissions(link: Link, agent: Address, problems: list[str]) -> list[Check]:
    """Whether the agent may do what it has to, and may not speak or listen for others."""
    stranger = Address(_STRANGER, _STRANGER)
    await link.subscribe(subjects.sessions_down(agent), _ignore)
    await link.subscribe(subjects.all_agents(), _ignore)
    await link.publish(subjects.up("doctor", agent, "doctor", Up.BEAT))
    if lacking := await _reported(link, problems):
        advice = "the credentials are another agent's, or their permissions are not those of `zeek-agent fleet init`"
        return [Check("bus permissions", "fail", f"the server reports: {'; '.join(lacking)}", advice)]
    await link.publish(subjects.up("doctor", stranger, "doctor", Up.BEAT))
    may_speak = not await _reported(link, problems)
    await link.subscribe(subjects.sessions_down(stranger), _ignore)
    may_listen = not await _reported(link, problems)
    if may_speak or may_listen:
        what = " and ".join(["speak"] * may_speak + ["listen"] * may_listen)
        advice = "the server does not separate agents: set it up with `zeek-agent fleet init`"
        return [Check("bus permissions", "warn", f"this agent may {what} for any other", advice)]
    return [Check("bus permissions", "ok", "this agent may speak and listen for itself only")]


async def _reported(link: Link, problems: list[str]) -> list[str]:
    """What the server reports of what was just sent; its reports may arrive after its answer."""
    await link.flush()
    for _ in range(_REPORT_TRIES):
        if problems:
            break
        await asyncio.sleep(_REPORT_SECONDS / _REPORT_TRIES)
    found = list(problems)
    problems.clear()
    return found


async def _ignore(_: Received) -> None:
    pass


async def _gateways(server: Destination, link: Link, agent: Address) -> Check:
    """The gateways that answer now through a server."""
    found: set[str] = set()

    async def heard(message: Received) -> None:
        try:
            beacon = messages.read(message.payload, Beacon)
        except BadMessageError:
            return  # it is empty if there is no gateway
        if subjects.is_name(beacon.cluster):
            found.add(f"{beacon.cluster} by {beacon.gateway}")

    replies = f"{subjects.inbox(agent)}.doctor.1"  # deeper than what a running agent listens to
    await link.subscribe(replies, heard)
    await link.publish(subjects.who(agent), reply=replies)
    await asyncio.sleep(_ANSWER_SECONDS)
    if not found:
        verdict = f"none answers through {server}"
        if link.server_name.startswith(_LEAF) and link.server_name != f"{_LEAF}{agent.site}":
            verdict += f", a server of site {link.server_name.removeprefix(_LEAF)}; this agent is of site {agent.site}"
            return Check("gateways", "warn", verdict, _WHY_SITE)
        return Check("gateways", "warn", verdict, "start `zeek-agent gateway` next to Zeek, or check its log")
    return Check("gateways", "ok", f"{', '.join(sorted(found))} through {server}")
