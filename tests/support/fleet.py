"""Fleets for tests: made by `fleet init`, with real servers that run what it wrote."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nats_server import NatsServer, running

from zeek_agent.bus import link, subjects
from zeek_agent.bus.link import Link
from zeek_agent.bus.subjects import ROAMING, Address
from zeek_agent.fleet import administration, directory, enrolling, issuing, jwt, nkey, roles, tokens  # noqa: F401
from zeek_agent.fleet.directory import Place, Site
from zeek_agent.fleet.enrolled import Enrolled
from zeek_agent.fleet.enrolling import Url
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.service import Service

HOST = "127.0.0.1"


def make(
    place: Path, *, sites: tuple[str, ...] = (), clusters: tuple[str, ...] = ("*",), roaming: tuple[str, ...] = ()
) -> Place:
    """A fleet of one hub, with sites, and the gateway gw1 of the cluster zeek."""
    declared = [Site(name, (HOST,), clusters, name in roaming) for name in sites]
    administration.initialize(place, "tests", hubs=(HOST,), sites=declared, gateways={"gw1": "zeek"}, now=time.time())
    return Place(place)


@dataclass
class Servers:
    """A fleet's running hub, and the leaves of its sites."""

    place: Place
    hub: NatsServer
    leaves: dict[str, NatsServer]

    @property
    def hub_url(self) -> str:
        return f"tls://{HOST}:{self.hub.port}"

    def leaf_url(self, site: str) -> str:
        return f"tls://{HOST}:{self.leaves[site].port}"

    @property
    def enrolment_url(self) -> Url:
        return Url("tls+nats", HOST, self.hub.port)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.place.keys / "server-ca.pem"))

    async def connect(self, credentials: str, inbox: str, url: str | None = None) -> Link:
        """A connection to a server, the hub by default."""
        return await link.connect(
            [url or self.hub_url], name="test", inbox=inbox, credentials=credentials, tls=self.context()
        )

    async def agent(self, agent: Address | str, url: str | None = None) -> Link:
        """A connection of an agent; one without a site is roaming."""
        agent = Address(ROAMING, agent) if isinstance(agent, str) else agent
        credentials = self.credentials(roles.AGENT, agent.agent_id, site=agent.site)
        return await self.connect(credentials, subjects.inbox(agent), url)

    async def gateway(self, url: str | None = None) -> Link:
        text = directory.read_text(self.place.directory / "gateways" / "gw1" / "gateway.creds")
        return await self.connect(text, "za.v1.gw.zeek.r.gw1", url)

    def credentials(
        self,
        role: str,
        name: str,
        *,
        key: Key | None = None,
        signer: Key | None = None,
        expires_in: float | None = 3600,
        tags: tuple[str, ...] = (),
        site: str = ROAMING,
        issued_ago: float = 0,
    ) -> str:
        """Credentials of any user, also of one that nothing of the fleet would sign; an empty site is none."""
        key = key or Key.generate(nkey.USER)
        signer = signer or self.place.key(f"role-{role}")
        now = time.time() - issued_ago
        expires = None if expires_in is None else time.time() + expires_in
        tags = (*tags, f"site:{site}") if site else tags
        account = self.place.fleet().account
        name = subjects.token(name)
        return jwt.credentials(
            jwt.user(name, key.public, signer, now, expires=expires, account=account, tags=tags), key
        )


@contextmanager
def servers(place: Place, run: Path) -> Iterator[Servers]:
    """Run the servers of a fleet, with copies of what was written for them, on free ports."""
    fleet = place.fleet()
    with _server(place.directory / "hubs" / HOST, run / "hub", {}) as hub:
        found = Servers(place, hub, {})
        remaining = [site.name for site in fleet.sites]
        with _leaves(found, remaining, run):
            yield found


@contextmanager
def _leaves(found: Servers, sites: list[str], run: Path) -> Iterator[None]:
    if not sites:
        yield
        return
    source = found.place.directory / "leaves" / sites[0]
    with _server(source, run / sites[0], {"7422": str(found.hub.leaf_port)}) as leaf:
        found.leaves[sites[0]] = leaf
        with _leaves(found, sites[1:], run):
            yield


@contextmanager
def _server(source: Path, copy: Path, replaced: dict[str, str]) -> Iterator[NatsServer]:
    shutil.copytree(source, copy)
    file = copy / "nats.conf"
    file.write_text(local(file.read_text(), replaced) + f'ports_file_dir: "{copy}"\n')
    with running(copy, file) as server:
        yield server


def local(text: str, replaced: dict[str, str]) -> str:
    """A configuration on loopback and free ports; `replaced` are ports of other servers."""
    text = text.replace('"0.0.0.0"', f'"{HOST}"')
    text = re.sub(r"(?m)^(\s*)port: \d+$", r"\1port: -1", text)
    text = re.sub(r"(?m)^http: .*$", "", text)
    text = text.replace('interval: "30s"', 'interval: "1s"')
    for port, other in replaced.items():
        text = text.replace(f":{port}", f":{other}")
    return text


@asynccontextmanager
async def enrolment(found: Servers, *, https: bool = False) -> AsyncIterator[Service]:
    """The enrolment service, connected to the hub."""
    async with Service(found.place, (found.hub_url,), f"{HOST}:0" if https else None) as service:
        await asyncio.wait_for(service.connected.wait(), 30)
        yield service


def token(
    place: Place,
    *,
    uses: int = 1,
    groups: tuple[str, ...] = (),
    site: str = ROAMING,
    lifetime_seconds: float = 3600,
) -> str:
    return administration.make_token(
        place, uses=uses, groups=groups, site=site, lifetime_seconds=lifetime_seconds, now=time.time()
    )


async def enroll(state: Path, url: Url, text: str, agent_id: str, hostname: str = "host") -> Enrolled:
    """Enrol as the command does, in another thread."""
    return await asyncio.to_thread(enrolling.enroll, state / "fleet", url, tokens.read(text), agent_id, hostname)
