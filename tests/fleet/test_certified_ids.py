"""An enrolled agent's certificate is its identity at a collector, too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import fleet
import pytest
from fleet import HOST
from msgspec.structs import replace
from scripted_agent import PACK, SETTINGS, Agent, collecting
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from zeek_agent.config.sections import TlsSettings
from zeek_agent.config.server_sections import CollectorTlsSettings
from zeek_agent.destination import PATH
from zeek_agent.fleet.directory import Place
from zeek_agent.fleet.enrolled import EnrolledFiles, certified_id
from zeek_agent.fleet.enrolling import Url, renew
from zeek_agent.fleet.service import Service
from zeek_agent.zeek.tls import client_context


def tls_of(place: Path) -> TlsSettings:
    files = EnrolledFiles(place)
    return TlsSettings(ca_file=str(files.ca), certificate=str(files.certificate), key=str(files.key))


async def enrolled(place: Place, state: Path, agent_id: str) -> TlsSettings:
    async with Service(place, (), f"{HOST}:0") as service:
        await fleet.enroll(state, Url("https", HOST, service.port), fleet.token(place), agent_id)
    return tls_of(state / "fleet")


async def test_an_enrolled_agent_is_served_under_its_own_id_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = fleet.make(tmp_path / "made")
    made = place.directory / "collector"
    given = CollectorTlsSettings(
        *(str(made / name) for name in ("server.pem", "server.key", "agents-ca.pem")), ids="certificate"
    )
    own = client_context(await enrolled(place, tmp_path / "a", "Ha"))
    gateway = place.directory / "gateways" / "gw1"
    of_gateway = TlsSettings(
        ca_file=str(gateway / "ca.pem"), certificate=str(gateway / "client.pem"), key=str(gateway / "client.key")
    )
    other_fleet = client_context(await enrolled(fleet.make(tmp_path / "other"), tmp_path / "b", "Ha"))
    async with collecting(tmp_path / "logs", settings=replace(SETTINGS, tls=given)) as collector:
        url = f"wss://{HOST}:{collector.address[1]}{PATH}"
        async with connect(url, ssl=own, compression=None) as connection:
            other = Agent(connection, collector, "Hother")
            await other.subscribe()
            await other.hello()
            assert (await other.error()).code == "agent_id_not_certified"
        async with connect(url, ssl=own, compression=None) as connection:
            assert len(await Agent(connection, collector, "Ha").join()) == 1 + len(PACK.queries)
        async with connect(url, ssl=client_context(of_gateway), compression=None) as connection:
            assert len(await Agent(connection, collector, "Hbehind").join()) == 1 + len(PACK.queries)
        with pytest.raises((OSError, WebSocketException)):
            async with connect(url, ssl=other_fleet, compression=None):
                pass
    assert "hello from Hother: its certificate is that of CN=Ha" in caplog.text


LONG = "H" + "long" * 20


@pytest.mark.parametrize("agent_id", [LONG, "H" * 100])
async def test_an_agent_with_a_long_id_is_enrolled_and_served_under_it(tmp_path: Path, agent_id: str) -> None:
    place = fleet.make(tmp_path / "made")
    made = place.directory / "collector"
    given = CollectorTlsSettings(
        *(str(made / name) for name in ("server.pem", "server.key", "agents-ca.pem")), ids="certificate"
    )
    own = client_context(await enrolled(place, tmp_path / "a", agent_id))
    async with collecting(tmp_path / "logs", settings=replace(SETTINGS, tls=given)) as collector:
        url = f"wss://{HOST}:{collector.address[1]}{PATH}"
        async with connect(url, ssl=own, compression=None) as connection:
            clipped = Agent(connection, collector, agent_id[:17])
            await clipped.subscribe()
            await clipped.hello()
            assert (await clipped.error()).code == "agent_id_not_certified"
        async with connect(url, ssl=own, compression=None) as connection:
            assert len(await Agent(connection, collector, agent_id).join()) == 1 + len(PACK.queries)


async def test_a_certificate_renews_the_credentials_of_a_long_id(tmp_path: Path) -> None:
    place = fleet.make(tmp_path / "made")
    async with Service(place, (), f"{HOST}:0") as service:
        await fleet.enroll(tmp_path / "a", Url("https", HOST, service.port), fleet.token(place), LONG)
        renewed = await asyncio.to_thread(renew, tmp_path / "a" / "fleet", LONG, "host")
        assert renewed.agent_id == LONG
        assert service.granted == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((("URI", "urn:zeek-agent:Ha"),), "Ha"),
        ((("URI", "urn:zeek-agent:a%2Fb"),), "a/b"),
        ((("DNS", "x"), ("URI", "https://x")), "common"),
        ((("URI", "urn:zeek-agent:Ha"), ("URI", "urn:zeek-agent:Hb")), None),
        ((("URI", "urn:zeek-agent:"),), None),
        ((("URI", "urn:zeek-agent:%48a"),), None),
    ],
)
def test_the_alternative_name_of_a_certificate_precedes_its_common_name(
    names: tuple[tuple[str, str], ...], expected: str | None
) -> None:
    certificate = {"subject": ((("commonName", "common"),),), "subjectAltName": names}
    assert certified_id(certificate) == expected


async def test_an_agents_certificate_serves_nobody(tmp_path: Path) -> None:
    """With the key of one host, an attacker cannot act as a server towards others."""
    place = fleet.make(tmp_path / "made")
    stolen = await enrolled(place, tmp_path / "a", "127.0.0.1")
    given = CollectorTlsSettings(stolen.certificate, stolen.key)
    async with collecting(tmp_path / "logs", settings=replace(SETTINGS, tls=given)) as collector:
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            async with connect(f"wss://{HOST}:{collector.address[1]}{PATH}", ssl=client_context(stolen)):
                pass
