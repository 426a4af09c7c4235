"""TLS of a collector that listens: who can connect, what is refused at the start, and replaced certificates."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from certificates import Files, make_certificates
from msgspec.structs import replace
from scripted_agent import PACK, SETTINGS, THING, Agent, agent_of, collecting, read
from waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from zeek_agent.collector import hosts_file, tls
from zeek_agent.collector.bounded_listener import AcceptedSockets
from zeek_agent.collector.server import Collector, CollectorLimits
from zeek_agent.config.sections import TlsSettings
from zeek_agent.config.server_sections import CollectorSettings, CollectorTlsSettings
from zeek_agent.destination import PATH
from zeek_agent.errors import UsageError
from zeek_agent.zeek.tls import client_context

REFUSED = (OSError, EOFError, WebSocketException)
"""How a client notices: with TLS 1.3 only after its own side of the handshake is complete."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    made.make("other-ca", "keyUsage=critical,keyCertSign", signer=None)
    made.make("outsider", "basicConstraints=critical,CA:FALSE", signer="other-ca")
    made.make("renewed", "subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE")
    made.make("second-agent", "basicConstraints=critical,CA:FALSE")
    return made


def settings(files: Files, name: str = "server", *, client_ca: bool = True) -> CollectorSettings:
    given = CollectorTlsSettings(files.path(f"{name}.pem"), files.path(f"{name}.key"), files.ca if client_ca else None)
    return replace(SETTINGS, tls=given)


def agents_context(files: Files, certificate: str | None = "agent") -> ssl.SSLContext:
    """As the agent makes it from its settings."""
    own = (None, None) if certificate is None else (files.path(f"{certificate}.pem"), files.path(f"{certificate}.key"))
    return client_context(TlsSettings(files.ca, *own))


@asynccontextmanager
async def secure_agent_of(
    collector: Collector, context: ssl.SSLContext, agent_id: str = "HAbc"
) -> AsyncIterator[Agent]:
    host, port = collector.address
    async with connect(f"wss://{host}:{port}{PATH}", ssl=context, compression=None) as connection:
        yield Agent(connection, collector, agent_id)


async def test_an_agent_with_a_certificate_delivers_rows(tmp_path: Path, files: Files) -> None:
    async with (
        collecting(tmp_path, settings=settings(files)) as collector,
        secure_agent_of(collector, agents_context(files)) as agent,
    ):
        assert len(await agent.join()) == 1 + len(PACK.queries)
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        assert collector.warning is None
    assert hosts_file.read(tmp_path).hosts["HAbc"].certificate == "CN=agent"


@pytest.mark.parametrize("certificate", [None, "outsider"])
async def test_an_agent_without_a_certificate_of_the_client_ca_is_refused(
    tmp_path: Path, files: Files, certificate: str | None
) -> None:
    async with collecting(tmp_path, settings=settings(files)) as collector:
        with pytest.raises(REFUSED):
            async with secure_agent_of(collector, agents_context(files, certificate)) as agent:
                await agent.join()
        assert collector.stats.messages == 0
        assert collector.stats.agents == ()


async def test_without_a_client_ca_any_agent_is_served_encrypted(tmp_path: Path, files: Files) -> None:
    async with collecting(tmp_path, settings=settings(files, client_ca=False)) as collector:
        async with secure_agent_of(collector, agents_context(files, None)) as agent:
            await agent.join()
        assert collector.stats.hosts["connected"] + collector.stats.hosts["away"] == 1


async def test_an_agent_that_does_not_use_tls_is_not_served(tmp_path: Path, files: Files) -> None:
    async with collecting(tmp_path, settings=settings(files)) as collector:
        with pytest.raises(REFUSED):
            async with agent_of(collector) as agent:
                await agent.join()
        assert collector.stats.messages == 0


@pytest.mark.parametrize(("version", "works"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_before_1_2_is_refused(tmp_path: Path, files: Files, version: ssl.TLSVersion, works: bool) -> None:
    context = agents_context(files)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    async with collecting(tmp_path, settings=settings(files)) as collector:
        try:
            async with secure_agent_of(collector, context) as agent:
                await agent.join()
        except REFUSED:
            assert not works
        assert bool(collector.stats.messages) == works


async def test_another_certificate_is_another_agent_even_with_the_same_instance(tmp_path: Path, files: Files) -> None:
    async with (
        collecting(tmp_path, settings=settings(files)) as collector,
        secure_agent_of(collector, agents_context(files)) as first,
        secure_agent_of(collector, agents_context(files, "second-agent")) as second,
    ):
        await first.join()
        await second.subscribe()
        await second.hello()
        assert (await second.error()).code == "agent_id_in_use"
    line, *_ = read(tmp_path, "reporter")
    assert "with the certificate CN=agent answers" in line["message"]
    assert "with the certificate CN=second-agent" in line["message"]


async def test_a_certificate_with_the_same_subject_is_another_one(tmp_path: Path, files: Files) -> None:
    files.make("twin", "basicConstraints=critical,CA:FALSE", subject="agent")
    async with (
        collecting(tmp_path, settings=settings(files)) as collector,
        secure_agent_of(collector, agents_context(files)) as first,
        secure_agent_of(collector, agents_context(files, "twin")) as second,
    ):
        await first.join()
        await second.subscribe()
        await second.hello()
        assert (await second.error()).code == "agent_id_in_use"


async def test_new_certificates_are_used_for_new_connections_and_open_ones_go_on(tmp_path: Path, files: Files) -> None:
    renewed = settings(files, "renewed")
    other = replace(renewed, tls=replace(renewed.tls, client_ca=files.path("other-ca.pem")))
    async with (
        collecting(tmp_path, settings=settings(files)) as collector,
        secure_agent_of(collector, agents_context(files)) as agent,
    ):
        await agent.join()
        assert subject_of(agent) == "server"
        await collector.reconfigure(other, PACK, tls.load(other.tls))
        async with secure_agent_of(collector, agents_context(files, "outsider"), "HTwo") as newcomer:
            assert subject_of(newcomer) == "renewed"
            await newcomer.join()
            with pytest.raises(REFUSED):
                async with secure_agent_of(collector, agents_context(files), "HThree") as former:
                    await former.join()
            await agent.result(*THING)
            await until(lambda: collector.stats.rows == 1)
            assert collector.stats.connected == {"HAbc", "HTwo"}


def subject_of(agent: Agent) -> str:
    certificate = agent.connection.transport.get_extra_info("peercert")
    return dict(pair for part in certificate["subject"] for pair in part)["commonName"]


async def test_a_client_that_does_not_finish_the_handshake_is_disconnected(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.collector.server.HANDSHAKE_SECONDS", 0.2)
    async with collecting(tmp_path, settings=settings(files)) as collector:
        reader, writer = await asyncio.open_connection(*collector.address)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        async with secure_agent_of(collector, agents_context(files)) as agent:
            await agent.join()


def refusal(certificate: str | None = None, key: str | None = None, client_ca: str | None = None) -> str:
    with pytest.raises(UsageError) as refused:
        tls.load(CollectorTlsSettings(certificate, key, client_ca))
    return str(refused.value)


def test_files_that_cannot_be_used_are_named_with_the_reason(files: Files, tmp_path: Path) -> None:
    server, key = files.path("server.pem"), files.path("server.key")
    missing = str(tmp_path / "missing.pem")
    empty = tmp_path / "empty.pem"
    empty.touch()
    assert refusal(missing) == f"collector.tls.certificate: cannot read {missing}: No such file or directory"
    assert refusal(server, missing) == f"collector.tls.key: cannot read {missing}: No such file or directory"
    assert refusal(server, str(tmp_path)) == f"collector.tls.key: cannot use {tmp_path}: it is not a regular file"
    os.mkfifo(tmp_path / "pipe")
    for special in ("/dev/zero", str(tmp_path / "pipe")):
        assert refusal(server, key, special).endswith(f"cannot use {special}: it is not a regular file")
    mismatch = refusal(server, files.path("agent.key"))
    assert mismatch.endswith("the key is not that of the certificate")
    assert files.path("agent.key") in mismatch
    assert str(empty) in refusal(str(empty), key)
    assert refusal(server) == (
        f"collector.tls: cannot use the certificate in {server}: there is no such certificate and key in PEM format"
    ), "no key in the certificate's file"
    assert refusal(server, key, missing).startswith("collector.tls.client_ca: cannot read")
    assert refusal(server, key, str(empty)).startswith(f"collector.tls.client_ca: cannot use {empty}: ")
    assert refusal(server, key, key).endswith(f"cannot use {key}: it contains no certificate in PEM format")


def test_certificates_that_agents_refuse_are_reported(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    files.make("for-clients", "extendedKeyUsage=clientAuth")
    for name in ("expired", "expired-ca"):
        files.make_expired(name)

    def found(name: str, client_ca: str | None = None) -> list[str]:
        caplog.clear()
        tls.log_doubts(CollectorTlsSettings(files.path(f"{name}.pem"), files.path(f"{name}.key"), client_ca))
        return caplog.messages

    assert found("server", files.ca) == []
    refused = f"agents will refuse the certificate in {files.directory}"
    assert found("expired") == [f"{refused}/expired.pem: certificate has expired"]
    [purpose] = found("for-clients")
    assert purpose.startswith(f"{refused}/for-clients.pem: ")
    assert "purpose" in purpose
    no_ca, old = files.path("agent.pem"), files.path("expired-ca.pem")
    assert found("server", no_ca) == [f"no certificate in {no_ca} is that of a CA: no agent can connect"]
    assert found("server", old) == [f"every CA in {old} has expired: no agent can connect"]


async def test_a_reported_certificate_does_not_stop_the_collector(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    own = CollectorTlsSettings(files.path("server.pem"), files.path("server.key"), files.path("agent.pem"))
    async with collecting(tmp_path, settings=replace(SETTINGS, tls=own)):
        assert any("is that of a CA: no agent can connect" in message for message in caplog.messages)


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(files: Files) -> None:
    files.openssl("pkey", "-in", "server.key", "-aes256", "-passout", "pass:secret", "-out", "protected.key")
    assert "passphrase" in refusal(files.path("server.pem"), files.path("protected.key"))


def test_a_key_that_everybody_can_read_is_reported(files: Files, tmp_path: Path) -> None:
    key = tmp_path / "server.key"
    key.write_bytes(Path(files.path("server.key")).read_bytes())
    for mode, exposed in ((0o600, False), (0o640, False), (0o644, True)):
        key.chmod(mode)
        assert (tls.exposed_key(CollectorTlsSettings(files.path("server.pem"), str(key))) is not None) == exposed


def test_the_subject_names_the_agent() -> None:
    assert tls.subject(None) is None
    assert tls.subject({}) is None
    named = {"subject": ((("organizationName", "Example"),), (("commonName", "agent"),))}
    assert tls.subject(named) == "O=Example, CN=agent"
    assert tls.subject({"subject": (), "subjectAltName": (("DNS", "agent.example"),)}) == "DNS:agent.example"


async def test_clients_of_one_address_that_say_nothing_do_not_keep_agents_out(tmp_path: Path, files: Files) -> None:
    limits = CollectorLimits(connections=4)
    async with collecting(tmp_path, settings=settings(files), limits=limits) as collector:
        elsewhere = ("127.0.0.2", 0)
        silent = [await asyncio.open_connection(*collector.address, local_addr=elsewhere) for _ in range(20)]
        await until(lambda: collector.stats.refused == 16)
        async with secure_agent_of(collector, agents_context(files)) as agent:
            await agent.join()
        assert collector.stats.messages == 1
        for _, writer in silent:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await until(partial(is_served, collector.address, elsewhere, agents_context(files)))
    assert {line["message"] for line in read(tmp_path, "reporter")} == {"more than 4 connections from 127.0.0.2"}


async def is_served(address: tuple[str, int], source: tuple[str, int], tls: ssl.SSLContext) -> bool:
    """Whether the handshake is completed for a client at that address."""
    try:
        _, writer = await asyncio.open_connection(*address, ssl=tls, local_addr=source)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def test_connections_in_the_handshake_are_limited(tmp_path: Path, files: Files) -> None:
    limits = CollectorLimits(connections=2)
    async with collecting(tmp_path, settings=settings(files), limits=limits) as collector:
        sources = [f"127.0.0.{number}" for number in range(2, 12)]
        silent = [await asyncio.open_connection(*collector.address, local_addr=(source, 0)) for source in sources]
        await until(lambda: collector.stats.refused == 6)
        for _, writer in silent:
            writer.close()
    assert {line["message"] for line in read(tmp_path, "reporter")} == {"more than 4 connections"}


def test_the_addresses_of_one_ipv6_host_are_counted_together() -> None:
    refused: list[str] = []
    counted = AcceptedSockets(limit=100, per_address=2, refuse=refused.append)
    assert [counted.admit(f"2001:db8:0:1::{number:x}") for number in range(4)] == [True, True, False, False]
    assert refused == ["more than 2 connections from 2001:db8:0:1::/64"] * 2
    assert counted.admit("2001:db8:0:2::1")
    assert counted.admit("fe80::1%eth0")
    assert [counted.admit(f"192.0.2.{number}") for number in range(4)] == [True] * 4
    counted.end("2001:db8:0:1::ffff")
    assert counted.admit("2001:db8:0:1::7")


def settings_by_certificate(files: Files) -> CollectorSettings:
    given = settings(files)
    return replace(given, tls=replace(given.tls, ids="certificate"))


async def test_an_agent_has_the_id_of_its_certificate_only(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        collecting(tmp_path, settings=settings_by_certificate(files)) as collector,
        secure_agent_of(collector, agents_context(files), "agent") as agent,
        secure_agent_of(collector, agents_context(files, "second-agent"), "agent") as other,
    ):
        assert len(await agent.join()) == 1 + len(PACK.queries)
        await other.subscribe()
        await other.result(*THING)
        await other.error()
        await other.hello()
        assert (await other.error()).code == "agent_id_not_certified"
        await agent.result(*THING)
        await until(lambda: collector.stats.rows == 1)
    assert "hello from agent: its certificate is that of CN=second-agent" in caplog.text


async def test_a_gateway_speaks_for_many_agents(files: Files, tmp_path: Path) -> None:
    files.make("gateway", "basicConstraints=critical,CA:FALSE", subject="gw1/OU=gateway")
    async with (
        collecting(tmp_path, settings=settings_by_certificate(files)) as collector,
        secure_agent_of(collector, agents_context(files, "gateway"), "HAbc") as agent,
    ):
        assert len(await agent.join()) == 1 + len(PACK.queries)


def test_ids_by_certificate_need_an_authority(files: Files) -> None:
    with pytest.raises(UsageError, match=r"needs a collector\.tls\.client_ca"):
        tls.check(CollectorTlsSettings(certificate=files.path("server.pem"), ids="certificate"))
