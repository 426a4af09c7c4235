"""What doctor says of a bus: with real servers, credentials and permissions."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from certificates import make_certificates
from nats_accounts import Accounts
from nats_server import nats_server
from scripted_gateway import scripted_gateway

from zeek_agent import destination, paths
from zeek_agent.bus import link, subjects
from zeek_agent.bus.subjects import Address
from zeek_agent.config import loading
from zeek_agent.terminal import bus_checks
from zeek_agent.terminal.check import Check

ID = "Hdoctor"


def examine(state: Path, url: str, **settings: object) -> list[Check]:
    values = {"state_dir": str(state), "agent.id": ID, "zeek.destinations": (url,), **settings}
    config = loading.load(None, {}, values)[0]
    (target,) = destination.parse_all(config.zeek.destinations)
    return bus_checks.checks(config, paths.locate(config), target)


def verdicts(checks: list[Check], name: str) -> list[str]:
    return [check.verdict for check in checks if check.name == name]


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    file = tmp_path / "state/fleet/agent.creds"
    file.parent.mkdir(parents=True)
    file.touch(0o600)
    return file


async def test_a_bus_in_order_is_ok(tmp_path: Path, credentials: Path) -> None:
    accounts, certificates = Accounts(), make_certificates(tmp_path)
    tls = f'tls {{ cert_file: "{certificates.path("server.pem")}", key_file: "{certificates.path("server.key")}" }}'
    credentials.write_text(accounts.agent(ID, exp=int(time.time()) + 30 * 86_400))
    (credentials.parent / "ca.pem").write_text(Path(certificates.ca).read_text())
    with nats_server(tmp_path / "hub", f"{accounts.configuration}\n{tls}") as server:
        found = await asyncio.to_thread(examine, tmp_path / "state", f"tls+nats://127.0.0.1:{server.port}")
    assert {check.name: check.verdict for check in found} == {
        "bus credentials": "ok",
        "bus": "ok",
        "bus permissions": "ok",
        "gateways": "warn",
    }


async def test_an_open_server_is_warned_of_and_gateways_are_listed(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with scripted_gateway(server.url, "main", "gw7"):
            found = await asyncio.to_thread(examine, tmp_path / "state", f"{server.url},127.0.0.1:1")
    texts = {check.name: check.found for check in found}
    assert verdicts(found, "bus") == ["ok", "fail"]
    assert verdicts(found, "bus TLS") == ["warn"]
    assert texts["bus permissions"] == "this agent may speak and listen for any other"
    assert texts["gateways"] == f"main by gw7 through {server.url}"


async def test_a_server_of_another_site_is_the_reason_why_no_gateway_answers(tmp_path: Path) -> None:
    with nats_server(tmp_path / "leaf-ber") as server:
        (found,) = [one for one in await asyncio.to_thread(examine, tmp_path, server.url) if one.name == "gateways"]
    assert found.verdict == "warn"
    assert found.found.endswith(", a server of site ber; this agent is of site roaming")
    assert found.advice is not None
    assert "name a server of the agent's own site or a hub" in found.advice


@pytest.mark.parametrize(
    ("name", "times", "mode", "words"),
    [
        ("Hanother", {}, 0o600, "is for 'Hanother'"),
        (None, {"exp": 1}, 0o600, "expired"),
        (None, {"iat": int(time.time()) + 900}, 0o600, "will be valid in"),
        (None, {}, 0o644, "has mode 644"),
    ],
)
def test_unusable_credentials_fail(
    tmp_path: Path, credentials: Path, name: str | None, times: dict[str, int], mode: int, words: str
) -> None:
    credentials.write_text(Accounts().agent(ID, name=name, **times))
    credentials.chmod(mode)
    found = examine(tmp_path / "state", "nats://127.0.0.1:1")
    assert verdicts(found, "bus credentials")[0] == "fail"
    assert any(words in check.found for check in found)


async def test_permissions_of_another_agent_fail(tmp_path: Path, credentials: Path) -> None:
    accounts = Accounts()
    credentials.write_text(accounts.agent("Hanother", name=ID))
    with nats_server(tmp_path / "hub", accounts.configuration) as server:
        found = await asyncio.to_thread(examine, tmp_path / "state", server.url)
    assert verdicts(found, "bus permissions") == ["fail"]


def test_an_old_server_is_warned_of() -> None:
    class OldLink:
        server_version = "2.9.10"
        payload_bytes_max = 1 << 20

    checks = list(bus_checks._server(destination.parse("tls+nats://hub"), OldLink()))  # type: ignore[arg-type]
    assert [check.verdict for check in checks] == ["warn"]
    assert "CVE" in (checks[0].advice or "")


async def test_a_running_agent_does_not_hear_what_its_doctor_asked_for(tmp_path: Path) -> None:
    heard = []

    async def hear(message: link.Received) -> None:
        heard.append(message.subject)

    with nats_server(tmp_path / "hub") as server:
        async with scripted_gateway(server.url, "main", "gw7"):
            running = await link.connect([server.url], name="running", inbox="_INBOX.running")
            await running.subscribe(subjects.sessions_down(Address("roaming", ID)), hear)
            await running.flush()
            found = await asyncio.to_thread(examine, tmp_path / "state", server.url)
            await running.flush()
            await running.close()
    assert verdicts(found, "gateways") == ["ok"]
    assert [subject for subject in heard if ".r." in subject] == []
