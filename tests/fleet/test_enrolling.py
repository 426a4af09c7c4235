"""Enrolment and renewal of agents, over real NATS servers with TLS and over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import logging
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw
import fleet
import msgspec
import nkeys
import pytest
from fleet import HOST, Servers
from nats_server import nats_server
from waiting import until

from zeek_agent.bus import subjects
from zeek_agent.bus.link import Received
from zeek_agent.bus.subjects import ROAMING, Address
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.fleet import (
    administration,
    authority,
    directory,
    enrolling,
    https,
    issuing,
    jwt,
    messages,
    nkey,
    registry,
    tokens,
)
from zeek_agent.fleet.directory import Place
from zeek_agent.fleet.enrolled import EnrolledFiles
from zeek_agent.fleet.enrolling import Url
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.service import Service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    base = tmp_path_factory.mktemp("fleet")
    place = fleet.make(base / "made")
    with fleet.servers(place, base / "run") as servers:
        yield servers


def sent(state: Path, text: str, agent_id: str, **changes: Any) -> bytes:
    """A request of an agent, changed before it is signed."""
    state.mkdir(parents=True, exist_ok=True)
    files, token = enrolling.Files(state), tokens.read(text)
    key = files.bus_key()
    csr = authority.signing_request(agent_id, files.tls_key())
    request = messages.Request(agent_id, key.public, csr, time.time(), messages.nonce(), "host", token.key.public)
    return messages.seal(msgspec.structs.replace(request, **changes), key, token.key)


async def asked(servers: Servers, text: str, payload: bytes) -> messages.Answer:
    token = tokens.read(text)
    bus = await servers.connect(
        jwt.credentials(token.user, token.key), subjects.bootstrap_inbox(token.site, token.key.public)
    )
    try:
        return messages.read_answer(await bus.request(subjects.enrolment(token.site, token.key.public), payload, 10))
    finally:
        await bus.close()


async def refusal(servers: Servers, text: str, payload: bytes) -> str:
    answer = await asked(servers, text, payload)
    assert isinstance(answer, messages.Refused)
    return answer.code


async def test_an_agent_is_enrolled_over_the_bus_and_uses_what_it_got(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running):
        text = fleet.token(running.place, groups=("linux", "Größe"))
        enrolled = await fleet.enroll(tmp_path, running.enrolment_url, text, "Hbus", "laptop")
    files = EnrolledFiles(tmp_path / "fleet")
    bus = await running.connect(files.credentials.read_text(), subjects.inbox(Address(ROAMING, "Hbus")))
    assert bus.is_open
    await bus.close()
    assert enrolled.groups == ("linux", "Größe")
    assert files.read() == enrolled
    row = next(row for row in administration.agents(running.place) if row.id == "Hbus")
    assert (row.key, row.hostname, row.groups, row.revoked) == (enrolled.key, "laptop", ("linux", "Größe"), None)


async def test_only_the_owner_can_read_the_files(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running):
        await fleet.enroll(tmp_path, running.enrolment_url, fleet.token(running.place), "Hmodes")
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "fleet").iterdir()}
    names = ("agent.creds", "ca.pem", "client.pem", "client.key", "enrolment.json")
    assert modes == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700


async def test_an_agent_is_enrolled_and_renewed_over_https(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running, https=True) as service:
        url = Url("https", HOST, service.port)
        first = await fleet.enroll(tmp_path, url, fleet.token(running.place), "Hhttps")
        before = EnrolledFiles(tmp_path / "fleet").certificate.read_text()
        again = await asyncio.to_thread(enrolling.renew, tmp_path / "fleet", "Hhttps", "host")
    assert again.key == first.key
    assert again.issued > first.issued
    assert EnrolledFiles(tmp_path / "fleet").certificate.read_text() != before


async def test_a_renewal_needs_the_certificate_of_the_same_agent(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running, https=True) as service:
        url = Url("https", HOST, service.port)
        for name in ("Hone", "Htwo"):
            await fleet.enroll(tmp_path / name, url, fleet.token(running.place), name)
        for name in ("client.pem", "client.key"):
            shutil.copy(tmp_path / "Htwo" / "fleet" / name, tmp_path / "Hone" / "fleet" / name)
        with pytest.raises(ZeekAgentError, match="the credentials are those of Htwo"):
            await asyncio.to_thread(enrolling.renew, tmp_path / "Hone" / "fleet", "Hone", "host")


async def test_a_renewal_without_certificate_is_forbidden(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running, https=True) as service:
        payload = sent(tmp_path, fleet.token(running.place), "Hbare", token="")
        context = running.context()
        with pytest.raises(ZeekAgentError, match="status 403"):
            await asyncio.to_thread(
                enrolling._post, Url("https", HOST, service.port), messages.RENEW_PATH, payload, context
            )


async def test_an_agent_renews_over_the_bus_with_the_same_key(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running):
        first = await fleet.enroll(tmp_path, running.enrolment_url, fleet.token(running.place), "Hrenew")
        tls_key = EnrolledFiles(tmp_path / "fleet").key.read_text()
        again = await asyncio.to_thread(enrolling.renew, tmp_path / "fleet", "Hrenew", "renamed")
    assert again.key == first.key
    assert again.expires > first.expires
    assert EnrolledFiles(tmp_path / "fleet").key.read_text() == tls_key
    row = next(row for row in administration.agents(running.place) if row.id == "Hrenew")
    assert (row.hostname, row.enrolled < row.issued) == ("renamed", True)


async def test_a_token_is_used_once(running: Servers, tmp_path: Path) -> None:
    text = fleet.token(running.place)
    async with fleet.enrolment(running):
        await fleet.enroll(tmp_path / "a", running.enrolment_url, text, "Honce")
        with pytest.raises(ZeekAgentError, match="has been used 1 times"):
            await fleet.enroll(tmp_path / "b", running.enrolment_url, text, "Htwice")


async def test_a_token_with_uses_admits_as_many(running: Servers, tmp_path: Path) -> None:
    text = fleet.token(running.place, uses=3)
    async with fleet.enrolment(running):
        results = await asyncio.gather(
            *(fleet.enroll(tmp_path / str(n), running.enrolment_url, text, f"Hmany{n}") for n in range(5)),
            return_exceptions=True,
        )
    assert sum(isinstance(one, ZeekAgentError) for one in results) == 2


async def test_an_agent_whose_answer_was_lost_asks_again(running: Servers, tmp_path: Path) -> None:
    text = fleet.token(running.place)
    async with fleet.enrolment(running):
        first = await asked(running, text, sent(tmp_path / "fleet", text, "Hlost"))
        enrolled = await fleet.enroll(tmp_path, running.enrolment_url, text, "Hlost")
    assert isinstance(first, messages.Granted)
    assert jwt.read(first.token).sub == enrolled.key


async def test_a_replayed_request_is_refused_and_logged(
    running: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = fleet.token(running.place, uses=5)
    payload = sent(tmp_path, text, "Hreplay")
    async with fleet.enrolment(running):
        assert isinstance(await asked(running, text, payload), messages.Granted)
        assert await refusal(running, text, payload) == "replayed"
    async with fleet.enrolment(running):  # also by a service that was started since
        assert await refusal(running, text, payload) == "replayed"
    assert sum("refused agent Hreplay" in record.getMessage() for record in caplog.records) == 2


async def test_a_request_is_refused_for_each_fault(running: Servers, tmp_path: Path) -> None:
    text, other = fleet.token(running.place, uses=10), fleet.token(running.place)
    async with fleet.enrolment(running):
        assert isinstance(await asked(running, text, sent(tmp_path / "a", text, "Hfirst")), messages.Granted)
        faults = {
            "clock": sent(tmp_path / "b", text, "Hb", time=time.time() - 3600),
            "id_taken": sent(tmp_path / "c", text, "Hfirst"),
            "key_taken": sent(tmp_path / "a", text, "Hsecond"),
            "bad_request": sent(tmp_path / "d", text, "Hd", token=""),
        }
        for code, payload in faults.items():
            assert await refusal(running, text, payload) == code
        stolen = sent(tmp_path / "e", text, "He", token=tokens.read(other).key.public)  # signed with another token
        assert await refusal(running, text, stolen) == "bad_request"
        assert await refusal(running, text, b"{}") == "bad_request"
        csr = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
        assert await refusal(running, text, sent(tmp_path / "f", text, "Hf", csr=csr)) == "bad_request"


OLD_REGISTRY = """
CREATE TABLE tokens(
  key TEXT PRIMARY KEY, uses INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0, groups TEXT NOT NULL,
  created REAL NOT NULL, expires REAL NOT NULL
) STRICT;
CREATE TABLE agents(
  key TEXT PRIMARY KEY, id TEXT NOT NULL, hostname TEXT NOT NULL, groups TEXT NOT NULL, token TEXT NOT NULL,
  enrolled REAL NOT NULL, issued REAL NOT NULL, expires REAL NOT NULL, revoked REAL
) STRICT;
INSERT INTO tokens VALUES ('T', 5, 1, '["a"]', 1, 2);
INSERT INTO agents VALUES ('K', 'Hold', 'host', '[]', 'T', 1, 2, 3, NULL);
PRAGMA user_version = 1;
"""


def test_what_is_in_a_registry_of_an_earlier_version_is_roaming(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with closing(apsw.Connection(str(file))) as database:
        database.execute(OLD_REGISTRY)
    for _ in range(2):
        with registry.opened(file) as opened:
            assert opened.token("T") == registry.TokenRow("T", 5, 1, ("a",), 1.0, 2.0, ROAMING)
            assert opened.agents() == [registry.AgentRow("K", "Hold", "host", (), "T", 1.0, 2.0, 3.0, None, ROAMING)]
    with closing(apsw.Connection(str(file))) as database:
        assert database.pragma("user_version") == 2
        database.execute("PRAGMA user_version = 3")
    with pytest.raises(ZeekAgentError, match="of a newer zeek-agent"), registry.opened(file):
        pass


async def test_an_agent_keeps_its_site_until_it_is_enrolled_at_another(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running, https=True) as service:
        url = Url("https", HOST, service.port)
        first = await fleet.enroll(tmp_path, url, fleet.token(running.place, site="fra"), "Hmoves")
        renewed = await asyncio.to_thread(enrolling.renew, tmp_path / "fleet", "Hmoves", "host")
        assert (first.site, renewed.site) == ("fra", "fra")
        moved = await fleet.enroll(tmp_path, running.enrolment_url, fleet.token(running.place, site="hub"), "Hmoves")
        again = await asyncio.to_thread(enrolling.renew, tmp_path / "fleet", "Hmoves", "host")
    assert (moved.site, again.site, moved.key) == ("hub", "hub", first.key)
    row = next(row for row in administration.agents(running.place) if row.id == "Hmoves")
    assert row.site == "hub"
    text = EnrolledFiles(tmp_path / "fleet").credentials.read_text()
    assert jwt.read(jwt.read_credentials(text)[0]).nats.tags == ("site:hub",)


async def test_a_token_of_a_lost_registry_is_unknown(running: Servers, tmp_path: Path) -> None:
    text = fleet.token(running.place)
    async with fleet.enrolment(running):
        running.place.registry.rename(tmp_path / "kept.db")
        try:
            (tmp_path / "kept.db").rename(running.place.registry)
            with administration.registry.opened(running.place.registry) as opened:
                opened._database.execute("DELETE FROM tokens WHERE key = ?", (tokens.read(text).key.public,))
        finally:
            assert running.place.registry.exists()
        with pytest.raises(ZeekAgentError, match="the token is unknown"):
            await fleet.enroll(tmp_path, running.enrolment_url, text, "Hunknown")


async def test_an_expired_token_is_refused_before_and_by_the_server(running: Servers, tmp_path: Path) -> None:
    text = fleet.token(running.place, lifetime_seconds=1)
    await until(lambda: time.time() > tokens.read(text).expires + 1)  # servers compare whole seconds
    with pytest.raises(ZeekAgentError, match="the token expired"):
        await fleet.enroll(tmp_path, running.enrolment_url, text, "Hlate")
    late = tokens.read(text)._replace(expires=time.time() + 100)  # as a host whose clock is behind
    with pytest.raises(ZeekAgentError, match="refuses the credentials"):
        await asyncio.to_thread(
            enrolling.enroll, tmp_path / "fleet", running.enrolment_url, late, "Hlate", "host", time.time
        )


async def test_a_server_of_another_authority_is_not_trusted(running: Servers, tmp_path: Path) -> None:
    text = fleet.token(fleet.make(tmp_path / "other"))
    with pytest.raises(ZeekAgentError, match="is not trusted"):
        await fleet.enroll(tmp_path, running.enrolment_url, text, "Hother")
    async with fleet.enrolment(running, https=True) as service:
        with pytest.raises(ZeekAgentError, match="is not trusted"):
            await fleet.enroll(tmp_path, Url("https", HOST, service.port), text, "Hother")
    assert not (tmp_path / "fleet" / "agent.creds").exists()


async def test_without_the_service_an_agent_says_what_is_missing(running: Servers, tmp_path: Path) -> None:
    with pytest.raises(ZeekAgentError, match="the enrolment service is not connected"):
        await fleet.enroll(tmp_path, running.enrolment_url, fleet.token(running.place), "Hnobody")


async def test_a_revoked_agent_is_not_renewed_and_its_id_is_free(running: Servers, tmp_path: Path) -> None:
    async with fleet.enrolment(running, https=True) as service:
        url = Url("https", HOST, service.port)
        await fleet.enroll(tmp_path / "a", url, fleet.token(running.place), "Hrevoked")
        administration.revoke(running.place, ["Hrevoked"], time.time())
        with pytest.raises(ZeekAgentError, match="key has been revoked"):
            await asyncio.to_thread(enrolling.renew, tmp_path / "a" / "fleet", "Hrevoked", "host")
        with pytest.raises(ZeekAgentError, match="key has been revoked"):
            await fleet.enroll(tmp_path / "a", url, fleet.token(running.place), "Hrevoked")
        await fleet.enroll(tmp_path / "b", url, fleet.token(running.place), "Hrevoked")


def test_a_flood_of_one_key_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    place = fleet.make(tmp_path / "made")
    text = fleet.token(place, uses=100)
    issuer = administration_issuer(place)
    with administration.registry.opened(place.registry) as opened:
        service = fleet.issuing.Enrolment(issuer, opened)
        answers = [messages.read_answer(service.answer(sent(tmp_path / "a", text, "Ha"), "test")) for _ in range(25)]
        refused = [answer.code for answer in answers if isinstance(answer, messages.Refused)]
        assert refused == ["busy"] * 5
        other = service.answer(sent(tmp_path / "b", text, "Hb"), "test")
    assert isinstance(messages.read_answer(other), messages.Granted)


def administration_issuer(place: Place) -> fleet.issuing.Issuer:
    ca = directory.read_text(place.enrolment / "ca.pem")
    return fleet.issuing.Issuer(place.key("role-agent"), place.settings().account, place.authority("agents-ca"), ca)


@pytest.mark.parametrize("text", ["ftp://x", "ws://x", "nats://", "https://u:p@x", "https://x/path", "nats://x:99999"])
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a URL of an enrolment service"):
        enrolling.parse_url(text)


def test_a_damaged_token_is_refused_without_repeating_it(tmp_path: Path) -> None:
    text = fleet.token(fleet.make(tmp_path / "made"))
    for damaged in (text[:-5], text[:40] + text[50:], "zat1_secret.x", "secret", text.replace(".", "", 1)):
        with pytest.raises(UsageError) as refused:
            tokens.read(damaged)
        assert damaged not in str(refused.value)
    assert tokens.read(f"  {text[:100]}\n{text[100:]}\n").key.kind == nkey.USER


def test_seeds_and_public_keys_have_checksums() -> None:
    key = Key.generate(nkey.USER)
    assert Key.from_seed(key.seed).public == key.public
    assert nkey.decoded(key.public) is not None
    assert nkey.decoded(key.public, nkey.ACCOUNT) is None
    changed = key.public[:-1] + ("A" if key.public[-1] != "A" else "B")
    assert nkey.decoded(changed) is None
    short = bytes([nkey.USER]) + bytes(28)
    padded = base64.b32encode(short + nkeys.crc16(short).to_bytes(2, "little")).decode()
    assert len(padded) == len(key.public)
    assert nkey.decoded(padded) is None
    assert nkey.decoded("é" * len(key.public)) is None
    with pytest.raises(ValueError, match="not a seed"):
        Key.from_seed(key.seed[:-1] + ("A" if key.seed[-1] != "A" else "B"))


async def answered(port: int, request: bytes, running: Servers) -> bytes:
    """The first line of the answer to a request over HTTPS."""
    reader, writer = await asyncio.open_connection(HOST, port, ssl=running.context())
    writer.write(request)
    try:
        return (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n")[0]
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /v1/enrol HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"POST /v1/other HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"404"),
        (b"POST /v1/enrol HTTP/1.1\r\n\r\n", b"411"),
        (b"POST /v1/enrol HTTP/1.1\r\nContent-Length: 999999\r\n\r\n", b"413"),
        (b"POST /v1/renew HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"403"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /v1/enrol HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n", b""),
        (b"POST /v1/enrol HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", b"200"),
    ],
)
async def test_the_service_answers_what_it_does_not_understand(
    running: Servers, request_text: bytes, status: bytes
) -> None:
    async with fleet.enrolment(running, https=True) as service:
        assert status in await answered(service.port, request_text, running)
        assert service.granted == 0


async def test_clients_that_say_nothing_keep_nobody_out(
    running: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(https, "CONNECTIONS_MAX", 3)
    monkeypatch.setattr(https, "TIMEOUT_SECONDS", 60.0)
    async with fleet.enrolment(running, https=True) as service:
        silent = [await asyncio.open_connection(HOST, service.port, ssl=running.context()) for _ in range(3)]
        await fleet.enroll(tmp_path, Url("https", HOST, service.port), fleet.token(running.place), "Hpatient")
        with suppress(ConnectionError):
            assert await asyncio.wait_for(silent[0][0].read(), 20) == b""
        for _, writer in silent:
            writer.transport.abort()
    assert "1 connections for enrolment were closed" in caplog.text


async def test_the_service_comes_back_after_the_hub(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = fleet.make(tmp_path / "made")
    with fleet.servers(place, tmp_path / "run") as servers:
        async with fleet.enrolment(servers) as service:
            servers.hub.kill()
            await until(lambda: not service.connected.is_set(), 30, "the loss was not noticed")
            servers.hub.start_again()
            await until(service.connected.is_set, 60, "no new connection")
            await fleet.enroll(tmp_path, servers.enrolment_url, fleet.token(place), "Hafter")
    assert "enrolment has no connection to the bus" in caplog.text


async def test_a_server_without_tls_gets_nothing_when_tls_was_asked_for(running: Servers, tmp_path: Path) -> None:
    """As one is seen by a host when somebody between takes the offer of TLS out of the greeting."""
    text = fleet.token(running.place)
    with nats_server(tmp_path / "plain") as plain, pytest.raises(ZeekAgentError, match="does not require TLS"):
        await fleet.enroll(tmp_path / "state", Url("tls+nats", HOST, plain.port), text, "Hplain")


async def test_an_answer_goes_to_nobody_but_who_asks(running: Servers, tmp_path: Path) -> None:
    """An agent cannot have the service write to another agent, nor the holder of a token to that of another one."""
    text, other = fleet.token(running.place), tokens.read(fleet.token(running.place))
    token = tokens.read(text)
    foreign = [
        f"{subjects.inbox(Address(ROAMING, 'Hvictim'))}.x",
        f"{subjects.bootstrap_inbox(other.site, other.key.public)}.x",
    ]
    async with fleet.enrolment(running) as service:
        asking = await running.connect(
            jwt.credentials(token.user, token.key), subjects.bootstrap_inbox(token.site, token.key.public)
        )
        agent = await running.agent("Hasks")
        heard: list[str] = []

        async def hear(message: Received) -> None:
            heard.append(message.subject)

        victim = await running.agent("Hvictim")
        await victim.subscribe(subjects.all_down(Address(ROAMING, "Hvictim")), hear)
        another = await running.connect(
            jwt.credentials(other.user, other.key), subjects.bootstrap_inbox(other.site, other.key.public)
        )
        await another.subscribe(foreign[1], hear)
        for link in (victim, another):
            await link.flush()
        for reply in foreign:
            await asking.publish(subjects.enrolment(token.site, token.key.public), sent(tmp_path, text, "Hnew"), reply)
            await agent.publish(subjects.renewal(Address(ROAMING, "Hasks")), b"{}", reply)
        await until(lambda: service.refused == 4, 20, "not refused")
        assert isinstance(await asked(running, text, sent(tmp_path, text, "Hnew")), messages.Granted)
        for link in (victim, another):
            await link.flush()
        assert heard == []
        for link in (asking, agent, victim, another):
            await link.close()


async def test_a_token_cannot_be_used_with_the_connection_of_another(running: Servers, tmp_path: Path) -> None:
    mine, text = fleet.token(running.place), fleet.token(running.place)
    async with fleet.enrolment(running):
        assert await refusal(running, mine, sent(tmp_path, text, "Hmixed")) == "bad_request"


@pytest.mark.parametrize("field", ["key", "token"])
def test_a_request_whose_key_is_not_ascii_is_a_bad_one(tmp_path: Path, field: str) -> None:
    """Anybody can send it over HTTPS: it is an answer, and a line of the log, like any other."""
    place, key = fleet.make(tmp_path / "made"), Key.generate(nkey.USER)
    request = messages.Request("Ha", key.public, "", time.time(), messages.nonce())
    request = msgspec.structs.replace(request, **{field: "é" * len(key.public)})
    with administration.registry.opened(place.registry) as opened:
        service = issuing.Enrolment(administration_issuer(place), opened)
        answer = messages.read_answer(service.answer(messages.seal(request, key, key), "test"))
    assert isinstance(answer, messages.Refused)
    assert answer.code == "bad_request"
    assert service.refused == 1


def test_a_deeply_nested_request_is_a_bad_one() -> None:
    bomb = b'{"x":' + b"[" * 7000 + b"]" * 7000 + b"}"
    for read in (messages.open_request, messages.read_answer):
        with pytest.raises(messages.BadMessageError):
            read(bomb)


async def test_refusals_are_logged_at_a_bounded_rate(
    running: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Service(running.place, (), f"{fleet.HOST}:0") as service:
        for _ in range(issuing.LOG_LINES + 50):
            service._enrolment.answer(b"{}", "127.0.0.1")
        assert service.refused == issuing.LOG_LINES + 50
    lines = [record for record in caplog.records if "refused agent" in record.getMessage()]
    assert issuing.LOG_LINES <= len(lines) < issuing.LOG_LINES + 20


async def test_connections_without_a_handshake_keep_nobody_out(
    running: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(https, "ACCEPTED_MAX", 5)
    async with Service(running.place, (), f"{HOST}:0") as service:
        silent = [await asyncio.open_connection(HOST, service.port) for _ in range(12)]
        for reader, _ in silent[:7]:
            assert await asyncio.wait_for(reader.read(), https.TIMEOUT_SECONDS / 2) == b""
        assert "connections for enrolment were closed" in caplog.text
        enrolled = await fleet.enroll(tmp_path, Url("https", HOST, service.port), fleet.token(running.place), "Hquiet")
        assert enrolled.agent_id == "Hquiet"
        for _, writer in silent:
            writer.close()
