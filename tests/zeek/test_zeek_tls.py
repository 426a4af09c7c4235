"""TLS towards Zeek with certificates made here: who is trusted, who is not, and what the log says then."""

from __future__ import annotations

import shutil
import ssl

import pytest
from certificates import Files, make_certificates
from test_zeek_connection import agent
from waiting import until
from zeek_server import zeek_server

from zeek_agent.config.sections import TlsSettings
from zeek_agent.errors import UsageError
from zeek_agent.zeek import tls
from zeek_agent.zeek.protocol import AgentHello

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = make_certificates(tmp_path_factory.mktemp("tls"))
    made.openssl("ec", "-in", "agent.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key")
    return made


def server_context(files: Files, name: str = "server", *, asks: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.load_cert_chain(files.path(f"{name}.pem"), files.path(f"{name}.key"))
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def hello(context: ssl.SSLContext, settings: TlsSettings) -> AgentHello:
    async with zeek_server(tls=context) as zeek, agent(zeek.url("wss"), tls=settings):
        return await (await zeek.client()).expect(AgentHello)


async def failure(context: ssl.SSLContext | None, settings: TlsSettings, scheme: str = "wss") -> str:
    async with zeek_server(tls=context) as zeek, agent(zeek.url(scheme), tls=settings) as one:
        await until(lambda: one.connection.status().last_error is not None)
        assert zeek.connections == 0
        return str(one.connection.status().last_error)


async def test_a_trusted_zeek_is_accepted(files: Files) -> None:
    assert await hello(server_context(files), TlsSettings(ca_file=files.ca))


async def test_a_zeek_of_another_name_is_trusted_when_that_name_is_expected(files: Files) -> None:
    settings = TlsSettings(ca_file=files.ca, server_name="elsewhere.example")
    assert await hello(server_context(files, "stranger"), settings)


async def test_an_unknown_authority_is_refused(files: Files) -> None:
    assert "certificate that is not trusted" in await failure(server_context(files), TlsSettings())


async def test_a_wrong_host_name_is_refused(files: Files) -> None:
    error = await failure(server_context(files, "stranger"), TlsSettings(ca_file=files.ca))
    assert "not valid for '127.0.0.1'" in error


async def test_insecure_takes_any_certificate(files: Files) -> None:
    assert await hello(server_context(files, "stranger"), TlsSettings(insecure=True))


async def test_insecure_takes_a_zeek_without_certificate() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    assert await hello(context, TlsSettings(insecure=True))


async def test_a_client_certificate_is_shown(files: Files) -> None:
    context = server_context(files, asks=True)
    settings = TlsSettings(ca_file=files.ca, certificate=files.path("agent.pem"), key=files.path("agent.key"))
    assert await hello(context, settings)
    assert "TLS" in await failure(context, TlsSettings(ca_file=files.ca))


async def test_plain_text_to_a_tls_port_and_the_reverse_are_explained(files: Files) -> None:
    assert "expects TLS (wss://)" in await failure(server_context(files), TlsSettings(), "ws")
    assert "TLS" in await failure(None, TlsSettings(), "wss")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (TlsSettings(ca_file="missing.pem"), "missing.pem"),
        (TlsSettings(certificate="missing.pem"), "missing.pem"),
        (TlsSettings(key="lonely.key"), "lonely.key"),
    ],
)
def test_files_that_cannot_be_used_are_named(settings: TlsSettings, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tls.client_context(settings)


def test_a_locked_key_is_an_error_and_no_prompt(files: Files) -> None:
    with pytest.raises(UsageError, match="passphrase"):
        tls.client_context(TlsSettings(certificate=files.path("agent.pem"), key=files.path("locked.key")))


async def test_a_bad_setting_is_reported_and_the_agent_continues() -> None:
    async with agent("wss://127.0.0.1:1", tls=TlsSettings(ca_file="missing.pem")) as one:
        await until(lambda: one.connection.status().reconnects > 1)
        assert "missing.pem" in str(one.connection.status().last_error)
