"""The commands: what `fleet init` writes is accepted by the real server, and a fleet works from the shell alone."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fleet
import msgspec
import pytest
from nats_server import program
from waiting import until_sync

from zeek_agent.collector import tls
from zeek_agent.config import loading
from zeek_agent.errors import UsageError
from zeek_agent.fleet import administration, directory, enrolling, jwt, nkey, renewal, tokens
from zeek_agent.fleet.directory import Place
from zeek_agent.fleet.enrolled import Enrolled, EnrolledFiles
from zeek_agent.fleet.nkey import Key


def run(*arguments: str | Path, code: int = 0, given: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "zeek_agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=given,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = tmp_path_factory.mktemp("fleet") / "demo"
    run(
        "fleet", "init", place, "--name", "demo", "--hub", "127.0.0.1", "--hub", "hub2.example", "--site",
        "fra=leaf.fra.example,10.0.0.1", "--site", "nyc", "--gateway", "gw1", "--gateway", "gw2=east",
    )  # fmt: skip
    return Place(place)


def test_the_server_accepts_every_configuration(made: Place) -> None:
    files = sorted(made.directory.rglob("nats.conf"))
    assert len(files) == 4
    for file in files:
        checked = subprocess.run(
            [program(), "-t", "-c", file.name], cwd=file.parent, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_several_hubs_are_a_cluster_and_a_leaf_dials_all(made: Place) -> None:
    hub = (made.directory / "hubs" / "127.0.0.1" / "nats.conf").read_text()
    assert 'routes: [ "tls://hub2.example:6222" ]' in hub
    leaf = (made.directory / "leaves" / "fra" / "nats.conf").read_text()
    assert leaf.count('urls: [ "tls://127.0.0.1:7422", "tls://hub2.example:7422" ]') == 2
    assert "leafnodes {" in leaf
    assert "cluster {" not in leaf


def test_only_the_owner_can_read_a_fleet(made: Place) -> None:
    for path in (made.directory, *made.directory.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_goes_to_a_host_has_no_signing_key(made: Place) -> None:
    """The keys that make identities stay in `keys` and `enrolment`."""
    for place in ("hubs", "leaves", "gateways", "collector", "operator", "agent"):
        for file in (made.directory / place).rglob("*"):
            if file.is_file():
                assert not re.search(r"\bS[OA][A-Z2-7]{56}\b", file.read_text()), file
    assert not list((made.directory / "enrolment").glob("*operator*"))
    assert not (made.directory / "enrolment" / "server-ca.key").exists()


def test_nothing_is_overwritten(made: Place, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.directory.rglob("*") if path.is_file()}
    assert "nothing is overwritten" in run("fleet", "init", made.directory, "--name", "x", code=2).stderr
    assert {path: path.read_bytes() for path in made.directory.rglob("*") if path.is_file()} == before
    (tmp_path / "file").touch()
    run("fleet", "init", tmp_path, "--name", "x", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "a.b"),
        ("--name", "x", "--hub", "../../etc"),
        ("--name", "x", "--hub", 'a"; include b'),
        ("--name", "x", "--site", "a.b"),
        ("--name", "x", "--site", "a=b/c"),
        ("--name", "x", "--gateway", "a=b.*"),
    ],
)
def test_names_that_mean_something_elsewhere_are_refused(tmp_path: Path, arguments: Sequence[str]) -> None:
    run("fleet", "init", tmp_path / "new", *arguments, code=2)
    assert not (tmp_path / "new").exists()


def test_the_collectors_configuration_is_valid(made: Place, tmp_path: Path) -> None:
    text = (made.directory / "collector" / "zeek-agent.toml").read_text()
    file = tmp_path / "zeek-agent.toml"
    file.write_text(text.replace("/etc/zeek-agent-collector", str(made.directory / "collector")))
    loaded, _ = loading.load(file, {})
    tls.check(loaded.collector.tls)
    assert tls.load(loaded.collector.tls).get_ca_certs()
    assert tomllib.loads(text)["collector"]["tls"]["ids"] == "certificate"


def test_units_have_no_capabilities_and_one_writable_directory(made: Place) -> None:
    units = sorted(made.directory.rglob("*.service"))
    assert {unit.name for unit in units} == {
        "zeek-agent-nats.service", "zeek-agent-enrolment.service", "zeek-agent-collector.service"
    }  # fmt: skip
    for unit in units:
        text = unit.read_text()
        assert "\nCapabilityBoundingSet=\n" in text
        assert text.count("ReadWritePaths=") == 1


def test_hubs_sites_and_gateways_are_added(tmp_path: Path) -> None:
    place = fleet.make(tmp_path / "made")
    run("fleet", "hub", place.directory, "hub9.example")
    run("fleet", "site", place.directory, "oslo", "--host", "leaf.oslo", "--cluster", "zeek")
    run("fleet", "gateway", place.directory, "gw9", "--cluster", "east")
    before = directory.read_text(place.enrolment / "server.pem")
    run("fleet", "services", place.directory)
    assert directory.read_text(place.enrolment / "server.pem") != before
    found = place.fleet()
    assert found.hubs == ("127.0.0.1", "hub9.example")
    assert [site.name for site in found.sites] == ["oslo"]
    assert {"gateway:gw9", "leaf:oslo", "system-leaf:oslo"} < set(found.issued)
    assert "hub9.example" in (place.directory / "leaves" / "oslo" / "nats.conf").read_text()
    assert "hub9.example" in (place.directory / "hubs" / "127.0.0.1" / "nats.conf").read_text()


def leaf_tags(place: Place, site: str) -> set[str]:
    text = directory.read_text(place.directory / "leaves" / site / "leaf.creds")
    return set(jwt.read(jwt.read_credentials(text)[0]).nats.tags)


def test_a_sites_server_passes_its_own_agents_and_what_it_was_given(tmp_path: Path) -> None:
    made = tmp_path / "made"
    run("fleet", "init", made, "--name", "x", "--site", "fra", "--site", "nyc", "--roaming", "nyc")
    place = Place(made)
    assert leaf_tags(place, "fra") == {"cluster:*", "site:fra"}
    assert leaf_tags(place, "nyc") == {"cluster:*", "site:nyc", "site:roaming"}
    first = place.fleet().issued["leaf:fra"]
    narrowed = run(
        "fleet", "site", made, "fra", "--cluster", "east", "--host", "leaf.fra", "--passes", "nyc", "--roaming"
    )
    assert "earlier credentials permit more and are revoked" in narrowed.stderr
    second = place.fleet().issued["leaf:fra"]
    assert set(place.fleet().revoked) >= {first}
    assert leaf_tags(place, "fra") == {"cluster:east", "site:fra", "site:nyc", "site:roaming"}
    assert run("fleet", "site", made, "fra").stderr == ""  # renewed: nothing is opened, closed or revoked
    assert second not in place.fleet().revoked
    third = place.fleet().issued["leaf:fra"]
    assert leaf_tags(place, "fra") == {"cluster:east", "site:fra", "site:nyc", "site:roaming"}
    assert next(site for site in place.fleet().sites if site.name == "fra").hosts == ("leaf.fra",)
    run("fleet", "site", made, "fra", "--no-roaming", "--passes", "fra")
    assert leaf_tags(place, "fra") == {"cluster:east", "site:fra"}
    assert third in place.fleet().revoked
    assert place.fleet().issued["leaf:fra"] not in place.fleet().revoked
    own = directory.read_text(made / "gateways" / "gw1" / "gateway.creds")
    tags = jwt.read(jwt.read_credentials(own)[0]).nats.tags
    assert set(tags) == {"cluster:zeek", f"agents:{place.key('role-agent').public}"}


def test_no_site_has_a_reserved_name_or_passes_an_unknown_one(tmp_path: Path) -> None:
    for name in ("roaming", "Roaming", "hub", "a.b"):
        run("fleet", "init", tmp_path / "new", "--name", "x", "--site", name, code=2)
    assert "no such site" in run("fleet", "init", tmp_path / "new", "--name", "x", "--roaming", "fra", code=2).stderr
    assert not (tmp_path / "new").exists()
    place = fleet.make(tmp_path / "made")
    run("fleet", "site", place.directory, "hub", code=2)
    assert "no such site to pass: nyc" in run("fleet", "site", place.directory, "fra", "--passes", "nyc", code=2).stderr
    assert place.sites() == ()


@pytest.mark.long
def test_a_token_is_for_a_site_where_there_are_sites(tmp_path: Path) -> None:
    place = fleet.make(tmp_path / "made")

    def site_of(*arguments: str, at: Path = place.directory) -> str:
        return tokens.read(run("fleet", "token", at, *arguments).stdout).site

    assert site_of() == "roaming"
    run("fleet", "site", place.directory, "fra")
    copy = tmp_path / "copy"
    shutil.copytree(place.enrolment, copy)
    for at in (place.directory, copy):
        assert site_of("--site", "fra", at=at) == "fra"
        assert site_of("--site", "hub", at=at) == "hub"
        assert site_of("--roaming", at=at) == "roaming"
        missing = run("fleet", "token", at, code=2).stderr
        assert "the fleet has sites (fra): --site NAME admits agents of one" in missing
        assert "no such site: 'nyc'. Known here: fra, hub" in run("fleet", "token", at, "--site", "nyc", code=2).stderr
        run("fleet", "token", at, "--site", "fra", "--roaming", code=2)
    groups = [part for number in range(40) for part in ("--group", f"{number}{'x' * 60}")]
    assert "the names of the groups" in run("fleet", "token", place.directory, "--roaming", *groups, code=2).stderr


def test_lifetimes_have_units(made: Place) -> None:
    for text in ("", "7", "0d", "7w", "-1d", "400d", "1.5h"):
        assert (
            "not a time of up to a year"
            in run("fleet", "token", made.directory, "--roaming", "--expires", text, code=2).stderr
        )
    assert run("fleet", "token", made.directory, "--roaming", "--expires", "30min").stdout.startswith("zat1_")


@contextmanager
def enrolment(place: Place, *arguments: str) -> Iterator[int]:
    """The service as a process; the port for HTTPS."""
    log = place.directory / "enrolment.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "zeek_agent", "fleet", "enrolment", str(place.directory), *arguments], stderr=out
        )
    try:

        def port() -> int | None:
            assert process.poll() is None, log.read_text()
            found = re.search(r"HTTPS on 127\.0\.0\.1 port (\d+)", log.read_text())
            ready = found and ("--no-bus" in arguments or "enrolment over the bus" in log.read_text())
            return int(found[1]) if found and ready else None

        yield until_sync(port, 30, log.read_text)
    finally:
        process.terminate()
        process.wait()


def test_a_host_is_enrolled_renewed_and_revoked_by_commands(tmp_path: Path) -> None:
    place = fleet.make(tmp_path / "made", sites=("fra",))
    with fleet.servers(place, tmp_path / "run") as servers:
        hub = f"127.0.0.1:{servers.hub.port}"
        with enrolment(place, "--server", f"tls://{hub}", "--listen", "127.0.0.1:0") as port:
            state = ("--state-dir", tmp_path / "state")
            text = run("fleet", "token", place.directory, "--group", "linux", "--site", "fra").stdout
            enrolled = run("enroll", f"tls+nats://{hub}", "-", *state, given=text)
            assert "valid for 30 days" in enrolled.stdout
            refused = run("enroll", f"https://127.0.0.1:{port}", text, *state, "--set", "agent.id=Hx", code=1)
            assert "key is that of the agent" in refused.stderr
            assert text[10:60] not in refused.stderr
            assert "renewed" in run("enroll", "--renew", *state).stdout
            (row,) = msgspec.json.decode(run("fleet", "agents", place.directory, "-f", "json").stdout)
            assert (row["site"], row["state"], row["groups"]) == ("fra", "enrolled", "linux")
            done = run(
                "fleet",
                "revoke",
                place.directory,
                row["id"],
                "--server",
                f"tls://{hub}",
            )
            assert "confirmed by hub-127.0.0.1, leaf-fra" in done.stdout
            assert "refuses the credentials" in run("enroll", "--renew", *state, code=1).stderr
        log = (place.directory / "enrolment.log").read_text()
        assert re.search(rf"enrolled agent {row['id']} \(.*\) of site fra from", log)
        assert f"renewed agent {row['id']}" in log
        assert "refused agent Hx" in log
        for secret in (text.strip(), text[5:60], *seeds(tmp_path / "state" / "fleet"), *seeds(place.directory)):
            assert secret not in log
        assert (
            "no agent, token, gateway or leaf is called"
            in run("fleet", "revoke", place.directory, "Hnobody", code=2).stderr
        )


def seeds(directory: Path) -> list[str]:
    found = [re.findall(r"\bSU?[A-Z2-7]{56,57}\b", file.read_text()) for file in directory.rglob("*.creds")]
    found += [re.findall(r"\bS[A-Z2-7]{57}\b", file.read_text()) for file in directory.rglob("*.seed")]
    return [seed for each in found for seed in each]


def test_without_hubs_a_revocation_is_kept_for_later(tmp_path: Path) -> None:
    place = fleet.make(tmp_path / "made")
    key = Key.generate(nkey.USER).public
    done = run("fleet", "revoke", place.directory, key, "--server", "tls://127.0.0.1:1", code=1)
    assert "no hub has received it" in done.stderr
    assert key in place.fleet().revoked
    with fleet.servers(place, tmp_path / "run") as servers:
        done = run("fleet", "revoke", place.directory, "--server", servers.hub_url)
        assert "confirmed by hub-127.0.0.1" in done.stdout


def test_the_service_runs_from_a_copy_of_its_directory(tmp_path: Path) -> None:
    made = fleet.make(tmp_path / "made")
    made.enrolment.rename(tmp_path / "copy")
    with enrolment(Place(tmp_path / "copy"), "--no-bus", "--listen", "127.0.0.1:0") as port:
        text = run("fleet", "token", tmp_path / "copy").stdout
        (tmp_path / "token").write_text(text)
        url = f"https://127.0.0.1:{port}"
        run(
            "enroll", url, "--token-file", tmp_path / "token", "--state-dir", tmp_path / "state", "--set", "agent.id=Ha"
        )
    revoked = run("fleet", "revoke", tmp_path / "copy", "Ha", code=1)
    assert "run zeek-agent fleet revoke DIR KEY there, too" in revoked.stderr
    key = re.search(r"revoked (U\w+) of Ha", revoked.stdout)
    assert key is not None
    administration.revoke(made, [key[1]], time.time())
    assert key[1] in made.fleet().revoked


def test_a_token_is_read_from_standard_input_or_a_file_only_when_it_is_one(tmp_path: Path) -> None:
    for given in ("", "secret-text\n", "zat1_secret.text\n"):
        done = run("enroll", "https://h", "-", "--state-dir", tmp_path, code=2, given=given)
        assert "enrolment token" in done.stderr
        assert "secret" not in done.stderr
    run("enroll", "https://h", "--token-file", tmp_path / "none", "--state-dir", tmp_path, code=2)
    assert "not enrolled" in run("enroll", "--renew", "--state-dir", tmp_path, code=2).stderr


def stored(place: Path, issued: float, expires: float) -> EnrolledFiles:
    place.mkdir(parents=True)
    enrolled = Enrolled("Ha", "https://127.0.0.1:1", Key.generate(nkey.USER).public, "A", issued, expires)
    files = EnrolledFiles(place)
    files.enrolment.write_bytes(msgspec.json.encode(enrolled))
    return files


async def test_credentials_are_renewed_after_two_thirds_of_their_life(tmp_path: Path) -> None:
    files = stored(tmp_path / "fleet", 0.0, 3_000.0)
    now = 1_999.0
    command = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"]
    renewing = renewal.Renewal(files, command, lambda: now)
    assert await renewing.step() == pytest.approx(1.0)
    assert not (tmp_path / "ran").exists()
    now = 2_000.0
    await renewing.step()
    assert (tmp_path / "ran").read_text() == "x"
    assert renewing.renewed == 1


async def test_a_failed_renewal_is_logged_and_repeated_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = stored(tmp_path / "fleet", 0.0, 3_000.0)
    command = [sys.executable, "-c", "import sys; sys.exit('zeek-agent: no connection')"]
    renewing = renewal.Renewal(files, command, lambda: 2_000.0)
    waits = [await renewing.step() for _ in range(3)]
    assert waits == [60.0, 120.0, 240.0]
    assert "cannot be renewed: no connection (they expire in 0 h); the next attempt is in 1 min" in caplog.text
    assert await renewal.Renewal(EnrolledFiles(tmp_path / "none"), command).step() == renewal.LOOK_SECONDS


async def test_the_agents_command_renews(tmp_path: Path) -> None:
    place = fleet.make(tmp_path / "made")
    with fleet.servers(place, tmp_path / "run") as servers:
        async with fleet.enrolment(servers):
            first = await fleet.enroll(tmp_path / "state", servers.enrolment_url, fleet.token(place), "Ha")
            files = EnrolledFiles(tmp_path / "state" / "fleet")
            command = renewal.command(str(tmp_path / "state"), "Ha")
            renewing = renewal.Renewal(files, command, lambda: time.time() + 25 * 86_400)
            await renewing.step()
    assert renewing.renewed == 1
    again = files.read()
    assert again is not None
    assert (again.key, again.issued > first.issued) == (first.key, True)
    assert enrolling.Files(files.place).bus_key().public == first.key


@pytest.mark.root
@pytest.mark.parametrize("is_link", [False, True])
def test_keys_are_not_written_into_a_directory_of_another_user(tmp_path: Path, is_link: bool) -> None:
    place = tmp_path / "place"
    if is_link:
        (tmp_path / "mine").mkdir()
        place.symlink_to(tmp_path / "mine")
    else:
        place.mkdir()
    os.chown(place, 65534, 65534, follow_symlinks=False)
    with pytest.raises(UsageError, match="belongs to another user"):
        fleet.make(place)
    with pytest.raises(UsageError, match="belongs to another user"):
        enrolling._prepare(place)
    assert not list(place.iterdir())


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_nobody_else_can_read_what_is_made_under_any_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "real").mkdir(mode=0o777)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    before = os.umask(umask)
    try:
        fleet.make(tmp_path / "link", sites=("fra",))
        fleet.make(tmp_path / "above" / "made")
        enrolling._prepare(tmp_path / "state" / "fleet")
        directory.write(tmp_path / "state" / "fleet" / "agent.creds", "secret")
    finally:
        os.umask(before)
    for top in ("real", "above", "state/fleet"):
        for file in (tmp_path / top, *(tmp_path / top).rglob("*")):
            assert file.stat().st_mode & 0o077 == 0, file
