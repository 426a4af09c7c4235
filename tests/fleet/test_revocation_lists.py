"""Collectors refuse the certificates of revoked agents and gateways."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from pathlib import Path

import fleet
import pytest
from fleet import HOST
from msgspec.structs import replace
from scripted_agent import PACK, SETTINGS, Agent, collecting
from test_certified_ids import enrolled
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from zeek_agent.collector import revocations, tls
from zeek_agent.config.sections import TlsSettings
from zeek_agent.config.server_sections import CollectorTlsSettings
from zeek_agent.destination import PATH
from zeek_agent.errors import UsageError
from zeek_agent.fleet import administration, authority
from zeek_agent.fleet.authority import Authority
from zeek_agent.fleet.directory import Place
from zeek_agent.zeek.tls import client_context

DAY = 86_400.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return fleet.make(tmp_path / "made")


def settings_of(place: Place) -> CollectorTlsSettings:
    made = place.directory / "collector"
    return CollectorTlsSettings(
        *(str(made / name) for name in ("server.pem", "server.key", "agents-ca.pem", "agents.crl")), ids="certificate"
    )


def of_gateway(place: Place) -> TlsSettings:
    gateway = place.directory / "gateways" / "gw1"
    return TlsSettings(*(str(gateway / name) for name in ("ca.pem", "client.pem", "client.key")))


async def is_served(url: str, settings: TlsSettings, collector: object, agent_id: str) -> bool:
    try:
        async with connect(url, ssl=client_context(settings), compression=None) as connection:
            await Agent(connection, collector, agent_id).subscribe()  # type: ignore[arg-type]
            return True
    except (ConnectionError, ssl.SSLError, WebSocketException):
        return False


async def test_a_revoked_certificate_ends_its_connection_and_is_refused(
    tmp_path: Path, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings_of(place)
    lost, kept = await enrolled(place, tmp_path / "a", "Ha"), await enrolled(place, tmp_path / "b", "Hb")
    settings = replace(SETTINGS, tls=given)
    async with collecting(tmp_path / "logs", settings=settings) as collector:
        url = f"wss://{HOST}:{collector.address[1]}{PATH}"
        async with (
            connect(url, ssl=client_context(lost), compression=None) as connection,
            connect(url, ssl=client_context(kept), compression=None) as other,
        ):
            await Agent(connection, collector, "Ha").join()
            await Agent(other, collector, "Hb").join()
            administration.revoke(place, ["Ha"], time.time())
            await collector.reconfigure(settings, PACK, tls.load(given))
            async with asyncio.timeout(20):
                await connection.wait_closed()
            assert await other.ping() is not None
        assert not await is_served(url, lost, collector, "Ha")
        assert await is_served(url, kept, collector, "Hb")
        assert await is_served(url, of_gateway(place), collector, "Hbehind")
        administration.revoke(place, ["gateway:gw1"], time.time())
        await collector.reconfigure(settings, PACK, tls.load(given))
        assert not await is_served(url, of_gateway(place), collector, "Hbehind")
        assert not await is_served(url, lost, collector, "Ha"), "the first revocation is still in the list"
        assert await is_served(url, kept, collector, "Hb")
    assert "(CN=Ha): its certificate was revoked" in caplog.text


async def test_all_certificates_of_a_key_are_revoked_and_forgotten_once_they_have_expired(
    tmp_path: Path, place: Place
) -> None:
    settings = await enrolled(place, tmp_path / "a", "Ha")
    assert settings.certificate is not None
    first = authority.serial_number(Path(settings.certificate).read_text())
    row = administration.agents(place)[0]
    with administration.registry.opened(place.registry) as opened, opened.transaction():
        opened.add_certificate(2**150 + 1, row.key, time.time() + DAY, time.time())
        opened.add_certificate(3, "another key", time.time() + DAY, time.time())
    administration.revoke(place, ["Ha"], time.time())
    (listed,) = revocations.read(settings_of(place).crl or "")
    assert listed.serials == {first, 2**150 + 1}
    assert (place.enrolment / "agents.crl").read_text() == (place.directory / "collector/agents.crl").read_text()
    administration.write_revocation_list(place, time.time() + 400 * DAY)
    (listed,) = revocations.read(settings_of(place).crl or "")
    assert listed.serials == frozenset()


def signer() -> Authority:
    return Authority(authority.new_authority("another", time.time()))


def test_a_list_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, place: Place) -> None:
    given = settings_of(place)
    file = Path(given.crl or "")
    lines = file.read_text().splitlines()
    own = place.authority("agents-ca")
    for text, reason in {
        own.revocation_list({}, time.time() - 366 * DAY): "has expired on",
        signer().revocation_list({}, time.time()): "it is of no authority in collector.tls.client_ca",
        "": "it contains no revocation list in PEM format",
        "\n".join([lines[0], *lines[2:]]): "a revocation list in it is damaged",
    }.items():
        file.write_text(text)
        with pytest.raises(UsageError, match=rf"^collector\.tls\.crl: .*{reason}"):
            tls.load(given)
    file.unlink()
    with pytest.raises(UsageError, match=r"^collector\.tls\.crl: cannot read .*: No such file"):
        tls.load(given)
    with pytest.raises(UsageError, match=r"collector\.tls\.crl needs a collector\.tls\.client_ca"):
        tls.check(CollectorTlsSettings("certificate.pem", crl="agents.crl"))


async def test_a_list_with_a_forged_signature_admits_nobody(tmp_path: Path, place: Place) -> None:
    given = settings_of(place)
    kept = await enrolled(place, tmp_path / "b", "Hb")
    file = Path(given.crl or "")
    lines = file.read_text().splitlines()
    lines[-3] = lines[-3][:20] + ("A" if lines[-3][20] != "A" else "B") + lines[-3][21:]
    file.write_text("\n".join(lines))
    async with collecting(tmp_path / "logs", settings=replace(SETTINGS, tls=given)) as collector:
        assert not await is_served(f"wss://{HOST}:{collector.address[1]}{PATH}", kept, collector, "Hb")


async def test_a_list_that_expires_meanwhile_admits_nobody(tmp_path: Path, place: Place) -> None:
    given = settings_of(place)
    kept = await enrolled(place, tmp_path / "b", "Hb")
    file = Path(given.crl or "")
    now = time.time()
    file.write_text(place.authority("agents-ca").revocation_list({}, now - 365 * DAY + 4))
    async with collecting(tmp_path / "logs", settings=replace(SETTINGS, tls=given)) as collector:
        url = f"wss://{HOST}:{collector.address[1]}{PATH}"
        assert await is_served(url, kept, collector, "Hb")
        await asyncio.sleep(max(0.0, now + 6 - time.time()))
        assert not await is_served(url, kept, collector, "Hb")


def test_many_entries_and_any_bytes_are_read(tmp_path: Path, place: Place) -> None:
    file = tmp_path / "many.crl"
    serials = {2**n + 1: time.time() for n in range(159)}
    text = place.authority("agents-ca").revocation_list(serials, time.time())
    file.write_text(text + signer().revocation_list({7: 0.0}, time.time()))
    first, second = revocations.read(str(file))
    assert (first.serials, second.serials) == (frozenset(serials), frozenset({7}))
    encoded = ssl.PEM_cert_to_DER_cert(text.replace("X509 CRL", "CERTIFICATE"))
    for at in range(0, len(encoded), 7):
        damaged = encoded[:at] + bytes([encoded[at] ^ 0xFF]) + encoded[at + 1 :]
        file.write_text(ssl.DER_cert_to_PEM_cert(damaged).replace("CERTIFICATE", "X509 CRL"))
        with suppress(UsageError):  # and no other error
            assert revocations.read(str(file))
