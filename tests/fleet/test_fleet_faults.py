"""What the commands of a fleet say of bad arguments, damaged files, a full disk, and a registry that nobody serves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import fleet
import msgspec
import pytest

from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.fleet import administration, enrolling, nkey, registry, tokens
from zeek_agent.fleet.directory import EnrolmentSettings, Place
from zeek_agent.fleet.issuing import Enrolment, Issuer, RefusedError
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.registry import AgentRow, TokenRow


def run(*arguments: str | bytes | Path, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "zeek_agent", *map(os.fsencode, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def made(tmp_path: Path) -> Place:
    return fleet.make(tmp_path / "made")


@pytest.mark.skipif(os.name == "nt", reason="arguments are Unicode on Windows")
def test_arguments_that_are_not_text_are_refused(made: Place, tmp_path: Path) -> None:
    new = os.fsencode(tmp_path) + b"/\xff"
    assert "not valid UTF-8" in run("fleet", "init", new, "--name", "x", code=2).stderr
    assert not os.path.lexists(new)
    assert "not valid UTF-8" in run("fleet", "token", made.directory, "--group", b"x\xff", code=2).stderr
    admitted = administration.make_token(
        made, uses=1, groups=(), site="roaming", lifetime_seconds=3600, now=time.time()
    )
    (tmp_path / "token").write_text(admitted)
    host = ("--token-file", tmp_path / "token", "--state-dir", tmp_path / "state")
    for argument in (b"agent.id=x\xff", b"agent.hostname=x\xff"):
        refused = run("enroll", "tls+nats://127.0.0.1:9", *host, "--set", argument, code=2)
        assert "agent.id or agent.hostname is not valid UTF-8" in refused.stderr
    assert "not a URL" in run("enroll", b"https://x\xff", *host, code=2).stderr
    assert "https://..:27760 cannot be used" in run("enroll", "https://..", *host, code=1).stderr


@pytest.mark.parametrize(
    "twice",
    [
        ("--hub", "a.example", "--hub", "a.example"),
        ("--site", "fra", "--site", "fra=leaf.example"),
        ("--gateway", "gw1=dmz", "--gateway", "gw1=office"),
    ],
)
def test_a_name_that_is_given_twice_is_refused(tmp_path: Path, twice: Sequence[str]) -> None:
    assert f"{twice[0]}: given twice" in run("fleet", "init", tmp_path / "new", "--name", "x", *twice, code=2).stderr
    assert not (tmp_path / "new").exists()


def test_a_server_whose_port_is_none_is_an_error(made: Place) -> None:
    refused = run("fleet", "revoke", made.directory, "--server", "tls://127.0.0.1:99999", code=1)
    assert "no hub has received it: tls://127.0.0.1:99999: nats: invalid connect url" in refused.stderr


def test_a_damaged_certificate_is_named_and_nothing_is_revoked(made: Place) -> None:
    authority = made.enrolment / "ca.pem"
    before, text = authority.read_text(), "not a certificate"
    authority.write_text(text)
    assert f"cannot use the authority {authority}" in run("fleet", "token", made.directory, code=2).stderr
    authority.write_text(before)
    name = next(label for label in made.fleet().issued if label.startswith("gateway:"))
    certificate = made.directory / "gateways" / name.partition(":")[2] / "client.pem"
    certificate.write_text(text)
    assert f"cannot use the certificate {certificate}" in run("fleet", "revoke", made.directory, name, code=2).stderr
    assert not made.fleet().revoked


def test_the_cause_is_named_when_the_registry_cannot_grow(tmp_path: Path) -> None:
    opened = registry.Registry(tmp_path / "registry.db")
    opened._database.execute(f"PRAGMA max_page_count = {opened._database.pragma('page_count')}")
    row = TokenRow(Key.generate(nkey.USER).public, 1, 0, ("g" * 100_000,), 0.0, 1.0, "roaming")
    with pytest.raises(ZeekAgentError, match=r"cannot be used: .*full"), opened.transaction():
        opened.add_token(row)
    with opened.transaction():
        assert opened.token(row.key) is None
    opened.close()


def test_a_token_that_the_service_may_not_know_comes_with_a_warning(made: Place, tmp_path: Path) -> None:
    """The service runs from a copy of `enrolment/`, whose registry is another one from then on."""
    copy = tmp_path / "copy"
    shutil.copytree(made.enrolment, copy)
    original = run("fleet", "token", made.directory, code=0)
    assert f"only if the enrolment service has this registry, {made.registry}" in original.stderr
    tokens.read(original.stdout)
    assert run("fleet", "token", copy, code=0).stderr == ""
    unknown = run("fleet", "revoke", made.directory, "Hx", code=2).stderr
    assert "agents are known where the enrolment service runs" in unknown
    key = Key.generate(nkey.USER).public
    with registry.opened(made.registry) as opened, opened.transaction():
        opened.put_agent(AgentRow(key, "H1", "host", (), "", 0.0, 0.0, 1.0, None, "roaming"))
    assert run("fleet", "token", made.directory, code=0).stderr == ""


def test_the_enrolment_service_learns_of_another_hub(made: Place) -> None:
    run("fleet", "hub", made.directory, "hub9.example", code=0)
    settings = msgspec.json.decode((made.enrolment / "enrolment.json").read_bytes(), type=EnrolmentSettings)
    assert "tls://hub9.example:4222" in settings.servers


def test_a_time_has_ordinary_digits(made: Place) -> None:
    assert "not a time of up to a year" in run("fleet", "token", made.directory, "--expires", "\uff19d", code=2).stderr


def test_an_id_that_is_not_text_does_not_blame_the_key(tmp_path: Path) -> None:
    files = enrolling.Files(tmp_path)
    with pytest.raises(UsageError, match="not valid UTF-8"):
        enrolling._request(files, Key.generate(nkey.USER), "x\udcff", "host", 0.0)
    assert not files.key.exists()


def test_a_stolen_token_is_revoked_by_its_key(tmp_path: Path, made: Place) -> None:
    """In the copy that the service uses, too, which has no keys to tell the servers with."""
    copy = tmp_path / "copy"
    shutil.copytree(made.enrolment, copy)
    text = run("fleet", "token", copy, "--uses", "500", code=0).stdout
    token = tokens.read(text)
    (row,) = msgspec.json.decode(run("fleet", "tokens", copy, "-f", "json", code=0).stdout)
    assert (row["key"], row["state"], row["uses"], row["used"]) == (token.key.public, "valid", 500, 0)
    assert token.key.public in run("fleet", "revoke", copy, token.key.public, code=1).stdout
    done = run("fleet", "tokens", copy, code=0).stdout
    assert "void" in done
    assert text[10:40] not in done
    request = enrolling._request(
        enrolling.Files(tmp_path), Key.generate(nkey.USER), "H1", "host", time.time(), token.key.public
    )
    with registry.opened(copy / "registry.db") as opened, pytest.raises(RefusedError, match="the token has expired"):
        Enrolment(fleet_issuer(made), opened)._enrolled(request, time.time())
    administration.revoke(made, [token.key.public], time.time())
    assert token.key.public in made.fleet().revoked


def fleet_issuer(place: Place) -> Issuer:
    return Issuer(place.key("role-agent"), place.settings().account, place.authority("agents-ca"), "")
