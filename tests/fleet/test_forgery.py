"""What holders of credentials may not do on the bus: each forgery is refused by the real server and in its log."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fleet
import pytest
from fleet import Servers
from nats_server import NatsServer
from raw_leaf import RawLeaf
from waiting import until

from zeek_agent.bus import subjects
from zeek_agent.bus.link import Link, NoListenerError, Received
from zeek_agent.bus.subjects import ROAMING, Address, Down, Peer, Up
from zeek_agent.errors import ZeekAgentError
from zeek_agent.fleet import administration, authority, configurations, directory, jwt, nkey, pushing, roles, tokens
from zeek_agent.fleet.nkey import Key

ME, OTHER = Address("fra", "Hme"), Address("fra", "Hother")
ELSEWHERE = Address("nyc", "Hother")
"""An agent with the same id, as a server of another site calls it."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    base = tmp_path_factory.mktemp("fleet")
    place = fleet.make(base / "made", sites=("fra", "nyc", "Ber"), roaming=("Ber",))
    administration.write_site(place, fleet.Site("nyc", (fleet.HOST,), ("east",)), time.time())
    with fleet.servers(place, base / "run") as servers:
        yield servers


def violation(running: Servers, kind: str, subject: str) -> bool:
    """Whether the hub's log says that somebody was refused it. The line's middle differs between versions."""
    return re.search(rf'{kind} Violation .*Subject "{re.escape(subject)}"', running.hub.log) is not None


class Ears:
    """Everything that arrives for the gateway and for an agent."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def hear(self, message: Received) -> None:
        self.heard.append(message.subject)


async def listening(running: Servers) -> tuple[Ears, Link, Link]:
    """A gateway and another agent, which receive all that they may."""
    ears, gateway, agent = Ears(), await running.gateway(), await running.agent(OTHER)
    for subject in ("za.v1.hello.zeek.>", "za.v1.up.gw1.>", "za.v1.gw.zeek.>", "za.v1.who.>"):
        await gateway.subscribe(subject, ears.hear)
    for subject in (subjects.all_down(OTHER), "za.v1.all.*"):
        await agent.subscribe(subject, ears.hear)
    await gateway.flush()
    await agent.flush()
    return ears, gateway, agent


FORGED = {
    "another agent's batch": subjects.up("gw1", OTHER, "s1", Up.BATCH, 1),
    "another agent's beat": subjects.up("gw1", OTHER, "s1", Up.BEAT),
    "another agent's hello": subjects.hello("zeek", OTHER),
    "an answer in another agent's inbox": f"{subjects.inbox(OTHER)}.x.1",
    "a frame for another agent": subjects.down(OTHER, "s1", Down.FRAME),
    "an ack for another agent": subjects.down(OTHER, "s1", Down.ACK),
    "an ack for itself": subjects.down(ME, "s1", Down.ACK),
    "a beacon": subjects.all_agents("zeek"),
    "a message to a group": "za.v1.g.linux",
    "a gateway's beat": subjects.peers("zeek", Peer.BEAT),
    "a gateway's claim": subjects.peers("zeek", Peer.CLAIM, OTHER.agent_id),
    "another agent's renewal": subjects.renewal(OTHER),
    "an enrolment": subjects.enrolment(ROAMING, "UKEY"),
    "another agent's question for gateways": subjects.who(OTHER),
    "a question for gateways without a name": "za.v1.who",
    "a request to the system": "$SYS.REQ.SERVER.PING",
}


@pytest.mark.parametrize("forged", FORGED)
async def test_an_agent_cannot_publish(running: Servers, forged: str) -> None:
    ears, gateway, other = await listening(running)
    agent = await running.agent(ME)
    await agent.publish(FORGED[forged], b"{}")
    own = subjects.up("gw1", ME, "s1", Up.BEAT)
    await agent.publish(own)  # arrives after it
    await until(lambda: own in ears.heard, 10, "its own message did not arrive")
    assert ears.heard == [own]
    await until(lambda: violation(running, "Publish", FORGED[forged]), 10, "not in the log")
    for each in (agent, gateway, other):
        await each.close()


@pytest.mark.parametrize(
    "subject",
    [
        subjects.all_down(OTHER),
        "za.v1.dn.>",
        "za.v1.>",
        ">",
        "za.v1.hello.zeek.>",
        "za.v1.up.gw1.>",
        "za.v1.g.admins",
        "za.v1.boot.>",
        "za.v1.gw.zeek.>",
        "$SYS.>",
    ],
)
async def test_an_agent_cannot_listen(running: Servers, subject: str) -> None:
    ears, agent = Ears(), await running.agent(ME)
    await agent.subscribe(subject, ears.hear)
    await agent.flush()
    await until(lambda: violation(running, "Subscription", subject), 10, "not in the log")
    await agent.close()


async def test_a_group_reaches_its_members_only(running: Servers) -> None:
    member = await running.connect(
        running.credentials(roles.AGENT, ME.agent_id, site=ME.site, tags=("group:linux",)),
        subjects.inbox(ME),
        running.hub_url,
    )
    await member.subscribe("za.v1.g.linux", Ears().hear)
    await member.flush()
    assert not violation(running, "Subscription", "za.v1.g.linux")
    other = await running.agent(OTHER)
    await other.subscribe("za.v1.g.linux", Ears().hear)
    await until(lambda: violation(running, "Subscription", "za.v1.g.linux"), 10, "not in the log")
    await other.close()
    await member.close()


BOOTSTRAP = (
    subjects.who(ME), subjects.enrolment(ROAMING, "UOTHER"), subjects.enrolment("fra", "UOTHER"),
    subjects.hello("zeek", ME), subjects.renewal(ME),
    subjects.up("gw1", ME, "s1", Up.BEAT),
    subjects.down(ME, "s1", Down.FRAME), subjects.all_agents("zeek"), "$SYS.REQ.CLAIMS.UPDATE",
)  # fmt: skip


@pytest.mark.parametrize("subject", BOOTSTRAP)
async def test_a_token_permits_nothing_but_to_enrol(running: Servers, subject: str) -> None:
    token = tokens.read(fleet.token(running.place))
    inbox = subjects.bootstrap_inbox(token.site, token.key.public)
    bus = await running.connect(jwt.credentials(token.user, token.key), inbox)
    await bus.publish(subject, b"{}")
    await bus.subscribe("za.v1.boot.>", Ears().hear)
    await bus.flush()
    await until(lambda: violation(running, "Publish", subject), 10, "not in the log")
    await until(lambda: violation(running, "Subscription", "za.v1.boot.>"), 10, "not in the log")
    await bus.close()


async def test_a_token_is_not_the_credentials_of_another_agent(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running):
        await fleet.enroll(tmp_path / "a", running.enrolment_url, fleet.token(running.place), "Htaken")
        with pytest.raises(ZeekAgentError, match="enrolled with another key"):
            await fleet.enroll(tmp_path / "b", running.enrolment_url, fleet.token(running.place), "Htaken")


async def refused(running: Servers, credentials: str, url: str | None = None) -> None:
    """Nobody is connected with these credentials, and the server's log says so."""
    server: NatsServer = (
        running.hub if url is None else next(leaf for leaf in running.leaves.values() if url.endswith(f":{leaf.port}"))
    )
    before = server.log.count("authentication error")
    with pytest.raises(ConnectionError, match=r"(?i)authorization|expired"):
        await running.connect(credentials, "x", url)
    await until(lambda: server.log.count("authentication error") > before, 10, "not in the log")


async def test_credentials_of_a_wrong_signer_are_refused(running: Servers) -> None:
    await refused(running, running.credentials(roles.AGENT, ME.agent_id, signer=Key.generate(nkey.ACCOUNT)))
    await refused(running, running.credentials(roles.AGENT, ME.agent_id, signer=running.place.key("operator")))
    for site in running.leaves:
        stranger = Key.generate(nkey.ACCOUNT)
        await refused(running, running.credentials(roles.AGENT, ME.agent_id, signer=stranger), running.leaf_url(site))


async def test_credentials_with_another_seed_are_refused(running: Servers) -> None:
    token, _ = jwt.read_credentials(running.credentials(roles.AGENT, ME.agent_id))
    await refused(running, jwt.credentials(token, Key.generate(nkey.USER)))


async def test_a_changed_token_is_refused(running: Servers) -> None:
    """One that gives its holder the permissions of everybody."""
    key, signer = Key.generate(nkey.USER), running.place.key("role-agent")
    wider = {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}}
    nats = {"type": "user", "issuer_account": running.place.fleet().account, **wider}
    token = jwt._signed(signer, key.public, ME, time.time(), None, nats)
    await refused(running, jwt.credentials(token, key))


async def test_expired_credentials_are_refused_and_end_a_connection(running: Servers) -> None:
    await refused(running, running.credentials(roles.AGENT, ME.agent_id, expires_in=-5))
    credentials = running.credentials(roles.AGENT, ME.agent_id, expires_in=2)
    bus = await running.connect(credentials, subjects.inbox(ME))
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(bus.ended(), 20)
    await asyncio.sleep(1.1)  # in its last second it is accepted, and cut off at once
    await refused(running, credentials)


async def test_credentials_of_a_leaf_are_no_clients(running: Servers) -> None:
    place = running.place.directory / "leaves" / "fra"
    for name in ("leaf.creds", "system.creds"):
        await refused(running, directory.read_text(place / name))


async def test_a_gateway_hears_no_other_cluster_and_no_other_gateway(running: Servers) -> None:
    gateway = await running.gateway()
    for subject in ("za.v1.hello.east.>", "za.v1.up.gw2.>", "za.v1.gw.east.>", "za.v1.renew.>", "za.v1.enrol"):
        await gateway.subscribe(subject, Ears().hear)
    for subject in ("za.v1.all.east", "za.v1.gw.east.beat", "za.v1.enrol.fra.U", "za.v1.hello.zeek.fra.Hx"):
        await gateway.publish(subject)
    await gateway.flush()
    for subject in ("za.v1.hello.east.>", "za.v1.up.gw2.>", "za.v1.gw.east.>", "za.v1.renew.>", "za.v1.enrol"):
        await until(lambda subject=subject: violation(running, "Subscription", subject), 10, subject)
    for subject in ("za.v1.all.east", "za.v1.gw.east.beat", "za.v1.enrol.fra.U", "za.v1.hello.zeek.fra.Hx"):
        await until(lambda subject=subject: violation(running, "Publish", subject), 10, subject)
    await gateway.close()


async def raw_leaf(running: Servers, site: str) -> RawLeaf:
    text = directory.read_text(running.place.directory / "leaves" / site / "leaf.creds")
    account = running.place.fleet().account
    return await RawLeaf.connect(running.hub.leaf_port, text, running.context(), account)


ROVER = Address(ROAMING, "Hrover")
TAKEN = [
    ("Ber", subjects.hello("zeek", OTHER)),
    ("Ber", subjects.up("gw1", OTHER, "s1", Up.BATCH, 1)),
    ("Ber", subjects.up("gw1", OTHER, "s1", Up.BYE)),
    ("Ber", subjects.who(OTHER)),
    ("Ber", subjects.who_replies(OTHER)),
    ("Ber", subjects.renewal(OTHER)),
    ("Ber", subjects.enrolment("fra", "UKEY")),
    ("Ber", subjects.operator_who("fra")),
    ("fra", subjects.hello("zeek", ROVER)),
    ("fra", subjects.up("gw1", ROVER, "s1", Up.BATCH, 1)),
    ("nyc", subjects.hello("zeek", ELSEWHERE)),  # its own agent, to a cluster of other sites
    ("nyc", subjects.all_agents("east")),
    ("nyc", subjects.down(ELSEWHERE, "s1", Down.ACK)),
    ("nyc", subjects.peers("east", Peer.CLAIM, OTHER.agent_id)),
    ("fra", subjects.down(OTHER, "s1", Down.FRAME)),
    ("fra", subjects.all_agents("zeek")),
]


@pytest.mark.parametrize(("site", "subject"), TAKEN)
async def test_a_taken_leaf_cannot_publish(running: Servers, site: str, subject: str) -> None:
    ears, gateway, agent = await listening(running)
    leaf = await raw_leaf(running, site)
    assert await leaf.is_answered()
    before = running.hub.log.count(f'Publish Violation on "{subject}"')
    leaf.send(f"LMSG {subject}", b"{}")
    await until(
        lambda: running.hub.log.count(f'Publish Violation on "{subject}"') > before, 10, lambda: running.hub.log[-2000:]
    )
    await leaf.close()
    beat = subjects.peers("zeek", Peer.BEAT)
    await gateway.publish(beat)
    await until(lambda: beat in ears.heard, 10, "the gateway's own message did not arrive")
    assert ears.heard == [beat]
    await gateway.close()
    await agent.close()


@pytest.mark.parametrize(
    ("site", "subject"),
    [
        ("fra", subjects.hello("zeek", OTHER)),
        ("fra", subjects.up("gw1", OTHER, "s1", Up.BATCH, 1)),
        ("fra", subjects.who(OTHER)),
        ("Ber", subjects.hello("zeek", ROVER)),
    ],
)
async def test_what_a_site_may_do_arrives(running: Servers, site: str, subject: str) -> None:
    """The other side of the check above. A server that passes roaming agents can speak for them."""
    ears, gateway, agent = await listening(running)
    leaf = await raw_leaf(running, site)
    assert await leaf.is_answered()
    leaf.send(f"LMSG {subject}", b"{}")
    await until(lambda: subject in ears.heard, 10, "a site's message did not arrive")
    for each in (leaf, gateway, agent):
        await each.close()


SECRETS = {
    "a hello of its own agent to another cluster": subjects.hello("zeek", ELSEWHERE),
    "hellos": "za.v1.hello.zeek.>",
    "rows": "za.v1.up.>",
    "gateways": "za.v1.gw.zeek.>",
    "renewals": "za.v1.renew.>",
    "all that is sent to agents": "za.v1.dn.>",
    "what is sent to agents of another site": "za.v1.dn.fra.>",
    "what is sent to one of them": subjects.all_down(OTHER),
    "what is sent to roaming agents": "za.v1.dn.roaming.>",
    "enrolments of another site": "za.v1.boot.fra.>",
    "enrolments of all sites": "za.v1.boot.>",
    "everything": ">",
}


@pytest.mark.parametrize("what", SECRETS)
async def test_a_taken_leaf_cannot_listen(running: Servers, what: str) -> None:
    leaf = await raw_leaf(running, "nyc")
    assert await leaf.is_answered()
    leaf.send(f"LS+ {SECRETS[what]}")
    await leaf.is_answered(2)
    gateway, agent, rover = await running.gateway(), await running.agent(OTHER), await running.agent(ROVER)
    service = await running.connect(
        directory.read_text(running.place.enrolment / "enrolment.creds"), subjects.operator_inbox("enrolment")
    )
    await agent.publish(subjects.up("gw1", OTHER, "s1", Up.BEAT), b"secret rows")
    await agent.publish(subjects.hello("zeek", OTHER), b"secret rows")
    await agent.publish(subjects.renewal(OTHER), b"secret rows")
    await rover.publish(subjects.hello("zeek", ROVER), b"secret rows")
    await gateway.publish(subjects.peers("zeek", Peer.BEAT), b"secret rows")
    for address in (OTHER, ROVER):
        await gateway.publish(subjects.down(address, "s1", Down.FRAME), b"secret rows")
        await service.publish(f"{subjects.inbox(address)}.renew.x", b"secret rows")
    await service.publish(f"{subjects.bootstrap_inbox('fra', 'UKEY')}.x", b"secret rows")
    for each in (agent, rover, gateway, service):
        await each.flush()
    await leaf.is_answered(2)
    assert b"secret rows" not in leaf.received
    for each in (leaf, gateway, agent, rover, service):
        await each.close()


async def test_a_site_receives_what_is_for_its_agents(running: Servers) -> None:
    """The other side of the check above: a leaf that listens is heard by the hub."""
    leaf, gateway = await raw_leaf(running, "nyc"), await running.gateway()
    leaf.send(f"LS+ {subjects.all_down(ELSEWHERE)}")
    assert await leaf.is_answered()
    await gateway.publish(subjects.down(ELSEWHERE, "s1", Down.FRAME), b"for an agent there")
    await gateway.flush()
    await until(lambda: b"for an agent there" in leaf.received, 10, "it did not arrive")
    await leaf.close()
    await gateway.close()


async def talk(running: Servers, agent: Address, url: str) -> str:
    """What an agent hears that says hello at a server, to a gateway that answers."""
    gateway, link = await running.gateway(), await running.agent(agent, url)

    async def welcome(message: Received) -> None:
        await gateway.publish(message.reply, b"welcome")

    await gateway.subscribe("za.v1.hello.zeek.>", welcome, subjects.GATEWAYS)
    await gateway.flush()
    answer = "no listener"
    with suppress(NoListenerError):
        async with asyncio.timeout(10):
            answer = (await link.request(subjects.hello("zeek", agent), b"{}", 5)).decode()
    for each in (gateway, link):
        await each.close()
    return answer


@pytest.mark.parametrize(
    ("agent", "server", "answer"),
    [
        (Address("fra", "H1"), "fra", "welcome"),
        (Address("fra", "H1"), "hub", "welcome"),
        (Address("fra", "H1"), "Ber", "no listener"),
        (Address("fra", "H1"), "nyc", "no listener"),
        (ROVER, "Ber", "welcome"),
        (ROVER, "hub", "welcome"),
        (ROVER, "fra", "no listener"),
        (Address("hub", "H1"), "hub", "welcome"),
        (Address("hub", "H1"), "Ber", "no listener"),
    ],
)
async def test_an_agent_reaches_gateways_where_its_site_is_passed(
    running: Servers, agent: Address, server: str, answer: str
) -> None:
    url = running.hub_url if server == "hub" else running.leaf_url(server)
    deadline = time.monotonic() + 20
    while (heard := await talk(running, agent, url)) != answer and time.monotonic() < deadline:
        await asyncio.sleep(0.5)  # a server learns of subscriptions at the hub a moment later
    assert heard == answer


@pytest.mark.parametrize("site", ["", "Fra", "FRA", "fr"])
async def test_credentials_of_another_or_no_site_permit_nothing_of_this_one(running: Servers, site: str) -> None:
    credentials = running.credentials(roles.AGENT, ME.agent_id, site=site)
    agent = await running.connect(credentials, subjects.inbox(ME))
    for subject in (subjects.hello("zeek", ME), subjects.renewal(ME), subjects.who(ME), "za.v1.hello.zeek"):
        before = running.hub.log.count(f'Publish to "{subject}"') + running.hub.log.count(f'Subject "{subject}"')
        await agent.publish(subject)
        await until(lambda subject=subject: violation(running, "Publish", subject), 10, f"{subject} {before}")
    await agent.subscribe(subjects.all_down(ME), Ears().hear)
    await until(lambda: violation(running, "Subscription", subjects.all_down(ME)), 10, "not in the log")
    await agent.close()


async def test_a_revoked_agent_is_cut_and_refused_at_hub_and_leaf(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running):
        await fleet.enroll(tmp_path, running.enrolment_url, fleet.token(running.place), "Hcut")
    credentials = directory.read_text(tmp_path / "fleet" / "agent.creds")
    urls = [running.hub_url, running.leaf_url("fra"), running.leaf_url("nyc")]
    links = [await running.connect(credentials, subjects.inbox(Address(ROAMING, "Hcut")), url) for url in urls]
    bystander = await running.agent(OTHER, running.leaf_url("fra"))
    administration.revoke(running.place, ["Hcut"], time.time())
    confirmed = await asyncio.to_thread(push, running)
    assert set(confirmed) == configurations.server_names(running.place.fleet())
    for bus in links:
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(bus.ended(), 10)
    assert bystander.is_open
    await bystander.close()
    for url in urls:
        await refused(running, credentials, None if url == running.hub_url else url)


async def test_a_revoked_key_stays_revoked_when_servers_restart(running: Servers) -> None:
    key = Key.generate(nkey.USER)
    credentials = running.credentials(roles.AGENT, "Hrestart", key=key)
    administration.revoke(running.place, [key.public], time.time())
    await asyncio.to_thread(push, running)
    for server, url in ((running.hub, running.hub_url), (running.leaves["fra"], running.leaf_url("fra"))):
        server.kill()
        server.start_again()
        await refused(running, credentials, None if server is running.hub else url)


async def test_a_leaf_that_was_down_learns_of_a_revocation(running: Servers) -> None:
    key = Key.generate(nkey.USER)
    credentials = running.credentials(roles.AGENT, "Haway", key=key)
    leaf = running.leaves["nyc"]
    leaf.kill()
    administration.revoke(running.place, [key.public], time.time())
    assert "leaf-nyc" not in await asyncio.to_thread(push, running)
    leaf.start_again()

    async def is_refused() -> bool:
        try:
            bus = await running.connect(credentials, "x", running.leaf_url("nyc"))
        except ConnectionError:
            return True
        await bus.close()
        return False

    async with asyncio.timeout(60):
        while not await is_refused():
            await asyncio.sleep(0.5)


async def test_a_taken_leaf_that_confirms_without_end_does_not_delay_a_revocation_for_ever(
    running: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can also confirm with the names of others."""
    monkeypatch.setattr(pushing, "PUSH_SECONDS", 3.0)
    text = directory.read_text(running.place.directory / "leaves" / "nyc" / "system.creds")
    leaf = await RawLeaf.connect(running.hub.leaf_port, text, running.context(), running.place.fleet().system)
    leaf.send(f"LS+ {pushing.UPDATE}")
    assert await leaf.is_answered()

    async def confirm() -> None:
        while True:
            answer = b'{"server":{"name":"forged"},"data":{"code":200}}'
            for token in (0, 1):
                leaf.send(f"LMSG {pushing.INBOX}.{token}", answer)
            await asyncio.sleep(0.05)

    confirming = asyncio.create_task(confirm())
    try:
        confirmed = await asyncio.wait_for(asyncio.to_thread(push, running), 60)
    finally:
        confirming.cancel()
        await leaf.close()
    assert "hub-127.0.0.1" in confirmed
    assert "forged" in confirmed, "the leaf was not heard"


@pytest.mark.parametrize("renewed", ["leaf:nyc", "gateway:gw1"])
async def test_a_revocation_includes_credentials_that_were_renewed_since(tmp_path: Path, renewed: str) -> None:
    """A copy of them may be what somebody has taken."""
    place = fleet.make(tmp_path / "made", sites=("nyc",))
    users, signer = place.directory, place.authority("agents-ca")
    files = [users / "leaves/nyc/leaf.creds", users / "leaves/nyc/system.creds"]
    if renewed == "gateway:gw1":
        files = [users / "gateways/gw1/gateway.creds"]
    keys, serials = set(), set()
    for _ in range(3):
        keys |= {jwt.read(jwt.read_credentials(directory.read_text(file))[0]).sub for file in files}
        serials.add(authority.serial_number(directory.read_text(users / "gateways/gw1/client.pem")))
        administration.write_site(place, place.fleet().sites[0], time.time())
        administration.write_gateway(place, "gw1", ["zeek"], time.time())
    administration.revoke(place, [renewed], time.time())
    assert len(keys) == 3 * len(files)
    assert keys < place.fleet().revoked.keys()
    assert min(entry.until for entry in place.fleet().revoked.values()) > time.time() + administration.HOST_SECONDS
    listed = signer.revoked(directory.read_text(users / "collector" / administration.CRL))
    assert serials <= listed.keys() if renewed == "gateway:gw1" else not listed


def test_the_revocation_of_credentials_that_do_not_expire_is_kept(tmp_path: Path) -> None:
    place, year = fleet.make(tmp_path / "made"), administration.HOST_SECONDS
    key = jwt.read(jwt.read_credentials(directory.read_text(place.enrolment / "enrolment.creds"))[0]).sub
    administration.revoke(place, ["enrolment:enrolment"], time.time())
    administration.revoke(place, [Key.generate(nkey.USER).public], time.time() + 2 * year)
    assert key in place.fleet().revoked


async def test_a_revoked_leaf_is_cut_off(running: Servers) -> None:
    administration.revoke(running.place, ["leaf:fra"], time.time())
    await asyncio.to_thread(push, running)
    gateway, agent = await running.gateway(), await running.agent(OTHER, running.leaf_url("fra"))
    ears = Ears()
    await gateway.subscribe("za.v1.hello.zeek.>", ears.hear)
    await gateway.flush()
    await agent.publish(subjects.hello("zeek", OTHER))
    await agent.flush()
    await until(lambda: "evoked" in running.hub.log, 10, "not in the log")
    await gateway.publish(subjects.peers("zeek", Peer.BEAT))
    await gateway.flush()
    assert ears.heard == []
    await gateway.close()
    await agent.close()


def push(running: Servers) -> list[str]:
    place = running.place
    return pushing.push(
        (running.hub_url,),
        place.keys / "server-ca.pem",
        administration.pusher_credentials(place, time.time()),
        administration.account_tokens(place),
    )


@pytest.mark.parametrize("files", ["hubs/127.0.0.1", "leaves/fra", "enrolment", "collector"])
async def test_only_a_hub_is_trusted_as_another_hub(tmp_path: Path, files: str) -> None:
    """What comes from a hub has no limits, so the certificate of a taken server of a site may not make it one."""
    made = tmp_path / "made"
    hubs = (fleet.HOST, "localhost")
    sites = [fleet.Site("fra", (fleet.HOST,))]
    administration.initialize(made, "tests", hubs=hubs, sites=sites, gateways={}, now=time.time())
    with fleet.servers(fleet.Place(made), tmp_path / "run") as running:
        hub = running.hub
        found = await until(lambda: re.search(r"Listening for route connections on [^:]+:(\d+)", hub.log), 20)
        context = running.context()
        context.load_cert_chain(made / files / "server.pem", made / files / "server.key")
        reader, writer = await asyncio.open_connection(fleet.HOST, int(found[1]), ssl=context)
        options = b'{"verbose":false,"name":"other","server_id":"other","headers":true,"cluster":"tests"}'
        writer.write(b"CONNECT " + options + b"\r\nPING\r\n")
        try:
            received = await asyncio.wait_for(read_until(reader, b"PONG"), 20)
        except OSError:
            received = b""
        writer.transport.abort()
        is_trusted = files.startswith("hubs")
        assert (b"PONG" in received) == is_trusted
        assert ("incompatible key usage" in hub.log) != is_trusted


async def read_until(reader: asyncio.StreamReader, sign: bytes) -> bytes:
    """What arrives up to that sign or the end of the connection."""
    received = b""
    while sign not in received and (more := await reader.read(4096)):
        received += more
    return received
