"""Nobody reads an agent's credentials by SQL, whatever path leads to them, nor finds them in a command line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import fleet
import pytest
from asking import ask
from mounting import bind, in_mount_namespace, mount

from zeek_agent import paths
from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import AccessSettings
from zeek_agent.fleet import enrolling
from zeek_agent.fleet.enrolled import EnrolledFiles
from zeek_agent.masking.masker import Masker
from zeek_agent.tables.file_hashes import file_hashes
from zeek_agent.tables.files import files_columns, files_lines

SECRET = b"a-seed-that-nobody-reads and a second word\n"
ORDINARY = b"an ordinary line with some words\n"
WAYS = ("path", "symlink", "hard link", "linked directory", "bound file", "bound directory", "root of a process")


def way_to(way: str, base: Path, file: Path) -> str:
    """Another path that leads to the file."""
    other = base / "other"
    other.mkdir()
    match way:
        case "symlink":
            (other / "notes.txt").symlink_to(file)
        case "hard link":
            (other / "notes.txt").hardlink_to(file)
        case "linked directory":
            (other / "d").symlink_to(file.parent)
            return f"{other}/d/{file.name}"
        case "bound file":
            (other / "notes.txt").touch()
            bind(file, other / "notes.txt")
        case "bound directory":
            bind(file.parent, other)
            return f"{other}/{file.name}"
        case "root of a process":
            return f"/proc/{os.getpid()}/root{file}"
        case _:
            return str(file)
    return f"{other}/notes.txt"


def told(path: str, access: AccessPolicy) -> str:
    """All that tables tell about the contents of a file."""
    rows = ask(files_lines, path, access=access)
    rows += ask(files_columns, path, "$0:text", "", "^$", access=access)
    rows += ask(file_hashes, path, access=access)
    return repr(rows)


@pytest.mark.long(kept=10)
@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", paths.FLEET_FILES)
def test_no_path_leads_to_an_agents_credentials(tmp_path: Path, way: str, name: str) -> None:
    base = tmp_path / "world"
    base.mkdir()

    def scene() -> tuple[str, str]:
        mount("world", base, "tmpfs", data="mode=755")
        state, ordinary = base / "state", base / "ordinary"
        file = state / "fleet" / name
        for directory in (file.parent, ordinary):
            directory.mkdir(parents=True)
        file.write_bytes(SECRET)
        config = Config(state_dir=str(state))
        allowed = AccessSettings(files_allow=("/**",), paths_deny=())
        access = AccessPolicy(allowed, paths.protected(config, paths.locate(config)))
        (ordinary / name).write_bytes(ORDINARY)
        secret = told(way_to(way, base, file), access)
        (base / "again").mkdir()
        return secret, told(way_to(way, base / "again", ordinary / name), access)

    secret, ordinary = in_mount_namespace(scene)
    assert "a-seed" not in secret
    assert hashlib.sha256(SECRET).hexdigest() not in secret
    if way == "root of a process":  # nothing is entered by such a link
        assert ordinary == "[]"
    else:
        assert "an ordinary line" in ordinary
        assert hashlib.sha256(ORDINARY).hexdigest() in ordinary


@pytest.mark.parametrize(
    "secret",
    [
        "keys/operator.seed",
        "keys/server-ca.key",
        "enrolment/role-agent.seed",
        "enrolment/agents-ca.key",
        "gateways/gw1/gateway.creds",
        "hubs/127.0.0.1/server.key",
    ],
)
def test_the_keys_of_a_fleet_are_not_read(tmp_path: Path, secret: str) -> None:
    place = fleet.make(tmp_path / "made")
    file = place.directory / secret
    contents = filter(None, file.read_text().splitlines())
    default = told(str(file), AccessPolicy(AccessSettings()))
    permitted = told(str(file), AccessPolicy(AccessSettings(files_allow=("/**",))))
    for line in contents:
        assert line not in default
        assert line not in permitted


@pytest.mark.parametrize("name", ["notes.txt", "app.log"])
def test_secrets_of_a_fleet_are_known_by_their_contents(tmp_path: Path, name: str) -> None:
    """Whatever the file is called, and whatever is permitted."""
    place = fleet.make(tmp_path / "made")
    permitted = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=()))
    secrets = [file for file in place.directory.rglob("*") if file.suffix in {".seed", ".creds", ".key"}]
    assert len(secrets) > 15
    (tmp_path / "token").write_text(f"export TOKEN={fleet.token(place)}\n")
    copy = tmp_path / name
    for file in (*secrets, tmp_path / "token"):
        copy.write_text("an ordinary line\n" * 400 + file.read_text())
        seen = told(str(copy), permitted)
        assert "an ordinary line" in seen
        for line in file.read_text().split():
            if not line.startswith(("-", "ey")) and len(line) > 30:
                assert line not in seen, file


def test_every_file_of_an_enrolled_agent_that_is_secret_is_named() -> None:
    files = enrolling.Files(Path("/s/fleet"))
    named = {file.name for file in (files.credentials, files.certificate, files.key, files.pending, files.enrolment)}
    assert named == set(paths.FLEET_FILES)
    assert EnrolledFiles(Path("/s/fleet")).credentials == files.credentials


def test_a_token_is_masked_in_recorded_command_lines(tmp_path: Path) -> None:
    text = fleet.token(fleet.make(tmp_path / "made"))
    for arguments in (
        ["zeek-agent", "enroll", "tls+nats://hub:4222", text],
        ["sudo", "-n", "zeek-agent", "enroll", "https://hub", text],
        ["bash", "-c", f"zeek-agent enroll https://hub - <<< {text}"],
        ["python3", "-m", "zeek_agent", "enroll", "https://hub", text],
    ):
        raw = b"".join(argument.encode() + b"\0" for argument in arguments)
        masked = Masker().command_line(raw).arguments
        assert text[10:40] not in masked
        assert text[-40:] not in masked
        assert "enroll" in masked


def test_a_running_agent_imports_nothing_of_the_fleet_but_its_renewal() -> None:
    code = "import sys, zeek_agent.agent, zeek_agent.fleet.renewal, zeek_agent.cli.program; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "zeek_agent.fleet.renewal" in loaded
    assert not {"cryptography", "nkeys", "nacl", "nats"} & set(loaded)
