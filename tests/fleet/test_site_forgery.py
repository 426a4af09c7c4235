"""A taken leaf, and the copied or forged tokens that it shows to a gateway: refused, counted and logged."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fleet
import msgspec
import pytest
from fleet import Servers
from gateways import gateway
from raw_leaf import RawLeaf
from waiting import until
from zeek_server import zeek_server

from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import Link
from zeek_agent.bus.messages import Hello, Refusal, Welcome
from zeek_agent.bus.subjects import ROAMING, Address, Down, Up
from zeek_agent.config.server_sections import GatewayTlsSettings
from zeek_agent.errors import ZeekAgentError
from zeek_agent.fleet import authority, directory, enrolling, issuing, jwt, nkey, roles
from zeek_agent.fleet import messages as requests
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.registry import Registry
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.gateway import Gateway

VICTIM = Address("fra", "Hvictim")
AS_OWN = Address("ber", "Hvictim")
"""The same id, as only the site ber may write it."""
KEY = Key.generate(nkey.USER)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    base = tmp_path_factory.mktemp("fleet")
    with fleet.servers(fleet.make(base / "made", sites=("fra", "ber"), roaming=("ber",)), base / "run") as servers:
        yield servers


def own_gateway(servers: Servers, zeek_url: str, name: str = "gw1") -> object:
    """A gateway with the credentials that `fleet init` made."""
    files = servers.place.directory / "gateways" / name
    return gateway(
        servers.hub_url,
        zeek_url,
        name,
        cluster="zeek",
        credentials=str(files / "gateway.creds"),
        tls=GatewayTlsSettings(ca_file=str(files / "ca.pem")),
    )


@pytest.fixture
async def gw(running: Servers) -> AsyncIterator[Gateway]:
    async with zeek_server() as zeek, own_gateway(running, zeek.url()) as one:  # type: ignore[attr-defined]
        yield one


@dataclass
class Agent:
    """An agent's connection, and the token in its credentials."""

    link: Link
    address: Address
    token: str

    async def hello(self, instance: str = "I1", token: str | None = None) -> Welcome | Refusal:
        hello = Hello(instance, "3.0.0", token=self.token if token is None else token)
        subject = subjects.hello("zeek", self.address)
        return messages.read_welcome(await self.link.request(subject, messages.encode(hello), 15))


async def agent(running: Servers, address: Address, url: str | None = None, key: Key = KEY, **claims: float) -> Agent:
    credentials = running.credentials(roles.AGENT, address.agent_id, key=key, site=address.site, **claims)  # type: ignore[arg-type]
    link = await running.connect(credentials, subjects.inbox(address), url)
    return Agent(link, address, jwt.read_credentials(credentials)[0])


async def taken(running: Servers, site: str = "ber") -> RawLeaf:
    """A leaf that listens to all that it may."""
    text = directory.read_text(running.place.directory / "leaves" / site / "leaf.creds")
    leaf = await RawLeaf.connect(running.hub.leaf_port, text, running.context(), running.place.fleet().account)
    leaf.send("LS+ za.v1.dn.ber.>")
    leaf.send("LS+ za.v1.boot.ber.>")
    assert await leaf.is_answered()
    return leaf


def publish(leaf: RawLeaf, subject: str, reply: str, payload: bytes) -> None:
    """A request. The protocol names the queue groups that are to receive a message."""
    leaf.send(f"LMSG {subject} + {reply} {subjects.GATEWAYS} enrolment", payload)


async def asked(leaf: RawLeaf, subject: str, inbox: str, payload: bytes) -> bytes:
    """The answer to a request of a taken leaf."""
    reply = f"{inbox}.x{next(_numbers)}"
    publish(leaf, subject, reply, payload)

    def answer() -> bytes | None:
        heads = [line.startswith(f"LMSG {reply} ".encode()) for line in leaf.received]
        at = heads.index(True) + 1 if True in heads else len(heads)
        return leaf.received[at] if at < len(heads) else None

    return await until(answer, 15, lambda: f"no answer: {leaf.received[-8:]}")


def payload(token: str) -> bytes:
    return messages.encode(Hello("Iforged", "3.0.0", token=token))


def foreign(running: Servers) -> str:
    """A token of another fleet's agent, which claims to be of this account."""
    other = Key.generate(nkey.ACCOUNT)
    return jwt.read_credentials(running.credentials(roles.AGENT, "Hvictim", signer=other, site="ber"))[0]


def signed(running: Servers, role: str, agent_id: str = "Hvictim", *, site: str = "ber", **claims: float) -> str:
    text = running.credentials(role, agent_id, key=KEY, signer=running.place.key(f"role-{role}"), site=site, **claims)  # type: ignore[arg-type]
    return jwt.read_credentials(text)[0]


FORGERIES: dict[str, tuple[Callable[[Servers], str], str]] = {
    "no token": (lambda _: "", "there is none"),
    "a copied token": (lambda one: signed(one, roles.AGENT, site="fra"), "it is for site fra"),
    "a copied token of a roaming agent": (lambda one: signed(one, roles.AGENT, site=ROAMING), "it is for site roaming"),
    "the token of one of its own agents": (lambda one: signed(one, roles.AGENT, "Hber"), "it is that of Hber"),
    "an expired token": (lambda one: signed(one, roles.AGENT, issued_ago=900, expires_in=-400), "it has expired"),
    "a token of another fleet": (foreign, "another key has signed"),
    "a token that a gateway's key has signed": (lambda one: signed(one, roles.GATEWAY), "another key has signed"),
    "a token that the key of tokens has signed": (lambda one: signed(one, roles.BOOTSTRAP), "another key has signed"),
    "a changed token": (lambda one: changed(signed(one, roles.AGENT, site="fra")), "signature is wrong"),
    "no token of NATS": (lambda _: "a.b.c", "not a token of NATS"),
}


def changed(token: str) -> str:
    """The token with another site, and the old signature."""
    head, body, signature = token.split(".")
    claims = jwt._unbase64(body.encode()).replace(b"site:fra", b"site:ber")
    return f"{head}.{jwt._base64(claims).decode()}.{signature}"


@pytest.mark.parametrize("kind", FORGERIES)
async def test_a_taken_leaf_cannot_speak_for_an_agent_of_another_site(
    running: Servers, gw: Gateway, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    victim = await agent(running, VICTIM, running.leaf_url("fra"), issued_ago=1_000)
    assert isinstance(await victim.hello(), Welcome)
    session = gw.core.sessions.get("Hvictim")
    leaf, (forge, why) = await taken(running), FORGERIES[kind]
    answer = await asked(leaf, subjects.hello("zeek", AS_OWN), subjects.inbox(AS_OWN), payload(forge(running)))
    refusal = messages.read_welcome(answer)
    assert isinstance(refusal, Refusal)
    assert why in refusal.reason
    assert gw.core.counters.refused[Cause.IDENTITY] == 1
    assert "refused (identity) from agent Hvictim: no token proves that it is an agent of site ber" in caplog.text
    assert gw.core.sessions.get("Hvictim") is session
    for each in (leaf, victim.link):
        await each.close()


@pytest.mark.long
async def test_a_taken_leaf_cannot_use_the_session_of_an_agent_of_another_site(
    running: Servers, gw: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    victim = await agent(running, VICTIM, running.leaf_url("fra"))
    welcome = await victim.hello()
    assert isinstance(welcome, Welcome)
    leaf = await taken(running)
    for kind, number in ((Up.BATCH, 1), (Up.WANT, None), (Up.BEAT, None), (Up.BYE, None)):
        leaf.send(f"LMSG {subjects.up('gw1', AS_OWN, welcome.session, kind, number)}", b"{}")
    await until(lambda: gw.core.counters.refused[Cause.IDENTITY] == 4, 15)
    assert "batch from site ber in a session at site fra" in caplog.text
    session = gw.core.sessions.get("Hvictim")
    assert session is not None
    assert (session.name, session.next_number, session.ended) == (welcome.session, 1, False)
    assert await leaf.is_answered()
    assert not [line for line in leaf.received if b"LMSG" in line]
    for each in (leaf, victim.link):
        await each.close()


async def test_answers_go_to_the_site_that_asks(running: Servers, gw: Gateway) -> None:
    """Its own subjects are all that a taken leaf can have a gateway write to."""
    victim, leaf = await agent(running, VICTIM, running.leaf_url("fra")), await taken(running)
    heard: list[str] = []

    async def hear(message: object) -> None:
        heard.append(str(message))

    await victim.link.subscribe(subjects.all_down(VICTIM), hear)
    await victim.link.flush()
    beacon = await asked(leaf, subjects.who(AS_OWN), subjects.inbox(AS_OWN), b"")
    assert b"gw1" in beacon
    publish(leaf, subjects.who(AS_OWN), subjects.who_replies(VICTIM), b"")
    publish(leaf, subjects.hello("zeek", AS_OWN), f"{subjects.inbox(VICTIM)}.x", payload(""))
    publish(leaf, subjects.up("gw1", AS_OWN, "gone", Up.BEAT), f"{subjects.inbox(VICTIM)}.x", b"")
    await until(lambda: gw.core.counters.refused[Cause.REPLY] == 2, 15)
    again = f"LMSG {subjects.down(AS_OWN, 'gone', Down.AGAIN)} ".encode()
    await until(lambda: [line for line in leaf.received if line.startswith(again)], 15, "it goes to its own site")
    assert heard == []
    for each in (leaf, victim.link):
        await each.close()


@pytest.mark.long
async def test_an_agent_that_was_enrolled_elsewhere_voids_its_older_token(
    running: Servers, gw: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has taken the leaf of its old site keeps the token from there."""
    caplog.set_level("INFO")
    before = await agent(running, AS_OWN, running.leaf_url("ber"), issued_ago=50)
    assert isinstance(await before.hello("Iold"), Welcome)
    moved = await agent(running, VICTIM, running.leaf_url("fra"))
    welcome = await moved.hello("Inew")
    assert isinstance(welcome, Welcome)
    assert "instance Iold at site ber has an older token and is replaced by instance Inew at site fra" in caplog.text
    refused = await before.hello("Iold")
    assert isinstance(refused, Refusal)
    assert "has had a newer one since, for site fra" in refused.reason
    session = gw.core.sessions.get("Hvictim")
    assert session is not None
    assert (session.address, session.name) == (VICTIM, welcome.session)
    for each in (before, moved):
        await each.link.close()


@pytest.mark.long
async def test_another_gateway_knows_which_token_is_newer(running: Servers, caplog: pytest.LogCaptureFixture) -> None:
    fleet.administration.write_gateway(running.place, "gw2", ["zeek"], time.time())
    address, old = Address("fra", "Hpeers"), Address("ber", "Hpeers")
    async with zeek_server() as zeek, own_gateway(running, zeek.url()) as first:  # type: ignore[attr-defined]
        moved = await agent(running, address, running.leaf_url("fra"))
        assert isinstance(await moved.hello("Inew"), Welcome)
        async with own_gateway(running, zeek.url(), "gw2") as second:  # type: ignore[attr-defined]
            await until(lambda: first.core.peers.known and second.core.peers.known, 15)
            await first._stop_listening()
            before = await agent(running, old, running.leaf_url("ber"), issued_ago=50)
            refused = await before.hello("Iold")
            assert isinstance(refused, Refusal)
            assert "has newer credentials than these" in refused.reason
            assert second.core.counters.refused[Cause.IDENTITY] == 1
            assert first.core.counters.refused[Cause.IDENTITY] == 1
            again = await agent(running, old, running.leaf_url("ber"))
            again.token = signed(running, roles.AGENT, "Hpeers", issued_ago=-5)  # enrolled there once more
            assert isinstance(await again.hello("Ithird"), Welcome)
            assert first.core.sessions.get("Hpeers") is None
        for each in (moved, before, again):
            await each.link.close()
    assert "claims it for site ber with a token older than the session's" in caplog.text


@pytest.mark.long
async def test_a_session_ends_with_its_token_even_if_a_leaf_keeps_it(running: Servers, gw: Gateway) -> None:
    leaf, mine = await taken(running), Address("ber", "Hmine")
    token = signed(running, roles.AGENT, "Hmine", expires_in=60)
    answer = await asked(leaf, subjects.hello("zeek", mine), subjects.inbox(mine), payload(token))
    assert isinstance(messages.read_welcome(answer), Welcome), "it may speak for the agents of its own site"
    gw.core.tokens._clock = lambda: time.time() + 365
    await until(lambda: gw.core.sessions.get("Hmine") is None, 15)
    assert gw.core.counters.ended["identity"] == 1
    await leaf.close()


@pytest.mark.long
async def test_a_leaf_that_passes_roaming_agents_speaks_for_those_whose_token_it_has(
    running: Servers, gw: Gateway
) -> None:
    """A limit that the documentation states. Without their token it does not."""
    rover, leaf = Address(ROAMING, "Hrover"), await taken(running)
    leaf.send("LS+ za.v1.dn.roaming.>")
    assert await leaf.is_answered()
    for token, kind in (("", Refusal), (signed(running, roles.AGENT, "Hrover", site=ROAMING), Welcome)):
        answer = await asked(leaf, subjects.hello("zeek", rover), subjects.inbox(rover), payload(token))
        assert isinstance(messages.read_welcome(answer), kind)
    await leaf.close()


async def test_the_enrolment_service_refuses_requests_of_another_site(
    running: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even with the agent's own key, or with a stolen token."""
    text = fleet.token(running.place, site="fra", uses=2)
    token = fleet.tokens.read(text)
    leaf = await taken(running)
    async with fleet.enrolment(running) as service:
        await fleet.enroll(tmp_path / "a", running.enrolment_url, text, "Henrolled")
        files = enrolling.Files(tmp_path / "a" / "fleet")
        own, at = files.bus_key(), Address("ber", "Henrolled")
        renewal = requests.seal(request(files, own, "Henrolled"), own)
        answer = requests.read_answer(await asked(leaf, subjects.renewal(at), subjects.inbox(at), renewal))
        assert isinstance(answer, requests.Refused)
        assert (answer.code, answer.reason) == ("wrong_site", "it comes from site ber, and the agent is of site fra")
        (tmp_path / "b").mkdir()
        other = enrolling.Files(tmp_path / "b")
        key = other.bus_key()
        asking = msgspec.structs.replace(request(other, key, "Hstolen"), token=token.key.public)
        enrolment = requests.seal(asking, key, token.key)
        inbox = subjects.bootstrap_inbox("ber", token.key.public)
        answer = requests.read_answer(await asked(leaf, subjects.enrolment("ber", token.key.public), inbox, enrolment))
        assert isinstance(answer, requests.Refused)
        assert answer.code == "wrong_site"
        assert service.refused == 2
        renewed = await asyncio.to_thread(enrolling.renew, tmp_path / "a" / "fleet", "Henrolled", "host")
        assert renewed.site == "fra"
        await fleet.enroll(tmp_path / "c", running.enrolment_url, text, "Hsecond")  # the refused one used up nothing
    assert "refused agent Henrolled" in caplog.text
    assert "refused agent Hstolen" in caplog.text
    await leaf.close()


@pytest.mark.long
async def test_an_agent_that_enrols_at_the_server_of_another_site_learns_why_it_cannot(
    running: Servers, tmp_path: Path
) -> None:
    leaf = enrolling.Url("tls+nats", fleet.HOST, running.leaves["ber"].port)
    text = fleet.token(running.place, site="fra")
    async with fleet.enrolment(running):
        with pytest.raises(ZeekAgentError, match="leaf-ber does not pass on requests of site fra"):
            await fleet.enroll(tmp_path, leaf, text, "Hlost")


@pytest.mark.long
async def test_invented_renewals_of_a_taken_leaf_leave_room_for_those_of_other_sites(
    running: Servers, tmp_path: Path
) -> None:
    """Each is of another key and another agent, so only the site's own limit counts."""
    enrolment = Enrolment(running, tmp_path)
    for number in range(3 * int(issuing.REQUESTS_PER_SECOND)):
        assert enrolment.code("ber", f"Hinvented{number}") in {"unknown_agent", "busy"}
    assert enrolment.code("ber", "Hlast") == "busy"
    assert enrolment.code("fra", "Hhonest") == "unknown_agent"


class Enrolment:
    """The decisions of the enrolment service at one moment."""

    def __init__(self, running: Servers, directory_: Path) -> None:
        files = enrolling.Files(directory_)
        self._csr = authority.signing_request("any", files.tls_key())
        self._now = time.time()
        place = running.place
        issuer = issuing.Issuer(
            place.key("role-agent"), place.fleet().account, place.authority("agents-ca"), "the servers' authority"
        )
        self._enrolment = issuing.Enrolment(issuer, Registry(directory_ / "registry.db"), lambda: self._now)

    def code(self, site: str, agent_id: str) -> str:
        """Of the refusal of a renewal by a new key."""
        key = Key.generate(nkey.USER)
        asking = requests.Request(agent_id, key.public, self._csr, self._now, requests.nonce())
        answer = self._enrolment.answer(requests.seal(asking, key), "test", renewing=agent_id, site=site)
        refused = requests.read_answer(answer)
        assert isinstance(refused, requests.Refused)
        return refused.code


def request(files: enrolling.Files, key: Key, agent_id: str) -> requests.Request:
    csr = authority.signing_request(agent_id, files.tls_key())
    return requests.Request(agent_id, key.public, csr, time.time(), requests.nonce(), "host")
