"""The tables python_packages and npm_packages, compared with what Python, pip and npm say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import pytest
from asking import READS_ALL

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.table import TableContext
from zeek_agent.tables.osquery import _user_files, language_packages

SITE = Path("/usr/lib/python3/dist-packages")
NODE = Path("/usr/lib/node_modules")
NPM = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    opened = Database(language_packages.TABLES, TableContext(NoAgent(), READS_ALL), LimitSettings())
    opened.scans.max_age_seconds = 0
    yield opened
    await opened.aclose()


async def rows(db: Database, sql: str) -> list[dict[str, Any]]:
    result = await db.query(sql)
    assert result.errors == ()
    return [dict(zip((column.name for column in result.columns), row, strict=True)) for row in result.rows]


def wheel(place: Path, name: str, version: str, **fields: str) -> Path:
    path = place / f"{name}-{version}-py3-none-any.whl"
    header = "".join(f"{field}: {value}\n" for field, value in {"Name": name, "Version": version, **fields}.items())
    with ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        information = f"{name}-{version}.dist-info"
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\n{header}\nVersion: of the text\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return path


def pip(place: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", f"{place}/env/bin/python", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.skipif(not SITE.exists(), reason=f"needs {SITE}")
async def test_packages_of_the_system_are_those_of_importlib(db: Database) -> None:
    expected = {}
    for one in metadata.distributions(path=[str(SITE)]):
        path: Path = one._path  # type: ignore[attr-defined]
        if path.is_dir():
            texts = {column: one.metadata.get(column) for column in ("Name", "Version", "Summary", "Author", "License")}
            expected[str(path)] = {name.lower(): text and text.split("\n")[0] for name, text in texts.items()}
    found = {
        row.pop("path"): row for row in await rows(db, f"SELECT * FROM python_packages WHERE directory = '{SITE}/'")
    }
    listed = await rows(db, "SELECT path, directory, uid FROM python_packages WHERE uid = 0")
    assert {(row["path"], row["directory"], row["uid"]) for row in listed} >= {(one, f"{SITE}/", 0) for one in expected}
    assert len(found) == len(expected) > 5
    for name, row in found.items():
        assert (row.pop("uid"), row.pop("directory")) == (0, f"{SITE}/")
        assert row == expected[name]


async def test_a_package_that_pip_installs_and_removes_is_shown_so(db: Database, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env/lib").glob("python*")) / "site-packages"
    sql = f"SELECT * FROM python_packages WHERE directory = '{tmp_path}'"
    assert await rows(db, sql) == []
    fields = {"Summary": "for: a test", "Author": "Somebody", "License": "BSD"}
    pip(tmp_path, "install", "--no-index", "--no-deps", str(wheel(tmp_path, "one", "1.10", **fields)))
    found = {
        "name": "one",
        "uid": 0,
        "version": "1.10",
        "summary": "for: a test",
        "author": "Somebody",
        "license": "BSD",
        "path": f"{site}/one-1.10.dist-info",
        "directory": str(tmp_path),
    }
    assert await rows(db, sql) == [found]
    assert await rows(db, f"{sql} AND version > '1.9'") == [found]
    pip(tmp_path, "install", "--no-index", "--no-deps", str(wheel(tmp_path, "one", "1.11")))
    (row,) = await rows(db, sql)
    assert (row["version"], row["summary"], row["author"], row["license"]) == ("1.11", None, None, None)
    pip(tmp_path, "uninstall", "--yes", "one")
    assert await rows(db, sql) == []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home [of] a user"
    place.mkdir()
    account = Account("me", 4_711, 4_711, "", str(place), "/bin/sh")
    monkeypatch.setattr(_user_files, "local_accounts", lambda _: [account])
    return place


@pytest.fixture
def own_place() -> Iterator[Path]:
    """A directory that nobody else could have put there."""
    with TemporaryDirectory(dir="/opt") as place:
        yield Path(place)


def installed(site: Path, name: str, text: str | None = None) -> None:
    (site / name).mkdir(parents=True)
    if text is not None:
        (site / name / ("METADATA" if name.endswith(".dist-info") else "PKG-INFO")).write_text(text)


async def test_packages_in_homes_have_the_uid_of_their_user(db: Database, home: Path) -> None:
    places = (".local/lib/python3.11/site-packages", ".pyenv/versions/3.12/lib/python3.12/site-packages")
    for number, place in enumerate((*places, ".virtualenvs/x/lib/python3.11/site-packages")):
        installed(home / place, f"p{number}-1.dist-info", f"Name: p{number}\nVersion: 1\n")
    installed(home / ".local/lib/python3.11/site-packages", "old-2.egg-info", "Name: old\nVersion: 2\n")
    (home / ".local/lib/python3.11/site-packages/file-3.egg-info").write_text("Name: file\n")
    found = await rows(db, "SELECT name, uid, directory FROM python_packages WHERE uid = 4711 ORDER BY name")
    assert [(row["name"], row["uid"]) for row in found] == [(name, 4711) for name in ("old", "p0", "p1", "p2")]
    assert found[0]["directory"] == f"{home}/.local/lib/python3.11/"
    assert found[2]["directory"] == f"{home}/{places[1]}/"
    assert await rows(db, "SELECT name FROM python_packages WHERE uid = 4712") == []
    assert {row["uid"] for row in await rows(db, "SELECT DISTINCT uid FROM python_packages")} >= {4711}


async def test_hostile_metadata_costs_values_only(db: Database, tmp_path: Path) -> None:
    installed(tmp_path, "none-1.0.dist-info")
    installed(tmp_path, "empty-2.0-py3.9.egg-info", "\n")
    installed(tmp_path, "long-1.dist-info", "Name: " + "x" * 100_000 + "\nVersion: 1\nversion: 2\nVersion: 3\n")
    installed(tmp_path, "noname.dist-info", "Summary only\n Name: folded\n")
    (tmp_path / "bytes-1.dist-info").mkdir()
    (tmp_path / "bytes-1.dist-info/METADATA").write_bytes(b"Name: b\xff\0x\nVersion: 1\n")
    (tmp_path / "link-1.dist-info").symlink_to(tmp_path)
    (tmp_path / "loop-1.dist-info").mkdir()
    (tmp_path / "loop-1.dist-info/METADATA").symlink_to("METADATA")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo-1.dist-info").mkdir()
    (tmp_path / "fifo-1.dist-info/METADATA").symlink_to(tmp_path / "fifo")
    result = await db.query(f"SELECT substr(name, 1, 5), version FROM python_packages WHERE directory = '{tmp_path}'")
    named = {str(name): version for name, version in result.rows if name is not None}
    assert named.items() >= {"none": "1.0", "empty": "2.0", "xxxxx": "1", "loop": "1", "fifo": "1"}.items()
    assert any(name.startswith("b\uefff") for name in named)
    assert (None, None) in result.rows


@pytest.mark.root
async def test_metadata_elsewhere_needs_no_permission_but_denied_files_stay_unread(own_place: Path) -> None:
    tmp_path = own_place
    installed(tmp_path, "one-1.dist-info", "Name: One\nVersion: 1\nSummary: shown\n")
    installed(tmp_path, "two-1.dist-info")
    (tmp_path / "two-1.dist-info/METADATA").symlink_to("/etc/shadow")
    db = Database(language_packages.TABLES, TableContext(NoAgent(), AccessPolicy()), LimitSettings())
    try:
        result = await db.query(f"SELECT name, summary FROM python_packages WHERE directory = '{tmp_path}' ORDER BY 1")
    finally:
        await db.aclose()
    assert result.rows == [("One", "shown"), ("two", None)]
    assert "denied by access.paths_deny" in result.files.summary()


# npm_packages


async def test_a_user_with_very_many_packages_hides_no_others(
    db: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(home / ".local/lib/python3.11/site-packages", "mine")
    monkeypatch.setattr(_user_files, "SECONDS_MAX", -1)
    result = await db.query("SELECT name FROM python_packages")
    assert ("mine",) not in result.rows
    assert result.rows != []
    assert f"{home} truncated" in result.files.summary()


def manifest(place: Path, content: object) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "package.json").write_text(content if isinstance(content, str) else json.dumps(content))


@NPM
@pytest.mark.skipif(not NODE.exists(), reason=f"needs {NODE}")
async def test_global_packages_are_those_of_npm(db: Database) -> None:
    command = ["npm", "ls", "--global", "--all", "--parseable", "--long", "--prefix", "/usr"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    expected = {tuple(line.split(":")[:2]) for line in listed.stdout.splitlines()[1:]}
    found = await rows(db, "SELECT * FROM npm_packages WHERE directory = '/usr/lib/'")
    assert {(row["path"].removesuffix("/package.json"), f"{row['name']}@{row['version']}") for row in found} == expected
    assert len(found) > 50
    assert len(await rows(db, "SELECT * FROM npm_packages WHERE path LIKE '/usr/lib/node_modules/%'")) == len(found)
    for row in found:
        known = json.loads(Path(row["path"]).read_text())
        author, terms = known.get("author"), known.get("license")
        assert row["description"] == known.get("description")
        assert row["homepage"] == known.get("homepage")
        assert row["author"] == (author.get("name") if isinstance(author, dict) else author)
        assert row["license"] == (terms.get("url") if isinstance(terms, dict) else terms)
        assert row["depth"] == row["path"].count("/node_modules/") - 1


@NPM
async def test_a_package_that_npm_installs_is_shown(db: Database, tmp_path: Path) -> None:
    sql = f"SELECT name, version, description, license, path, depth FROM npm_packages WHERE directory = '{tmp_path}'"
    assert await rows(db, sql) == []
    manifest(tmp_path / "source", {"name": "@me/one", "version": "1.2.3", "description": "x", "license": {"url": "u"}})
    install = ["npm", "install", "--offline", "--no-audit", "--install-links", "--prefix", str(tmp_path)]
    subprocess.run([*install, f"{tmp_path}/source"], check=True, capture_output=True)
    path = f"{tmp_path}/node_modules/@me/one/package.json"
    expected = {"name": "@me/one", "version": "1.2.3", "description": "x", "license": "u", "path": path, "depth": 0}
    assert await rows(db, sql) == [expected]


async def test_packages_inside_of_packages_are_found_to_the_given_depth(db: Database, tmp_path: Path) -> None:
    place = tmp_path
    for depth in range(4):
        place = place / f"node_modules/p{depth}"
        manifest(place, {"name": f"p{depth}"})
    (place / "node_modules").symlink_to(tmp_path / "node_modules")  # a circle
    sql = f"SELECT name, depth FROM npm_packages WHERE directory = '{tmp_path}'"
    every = [{"name": f"p{depth}", "depth": depth} for depth in range(4)]
    assert await rows(db, sql) == every
    assert await rows(db, f"{sql} AND max_depth = -1") == every
    assert await rows(db, f"{sql} AND max_depth = 1") == every[:2]
    assert await rows(db, f"{sql} AND depth = 2") == every[2:3]


async def test_hostile_manifests_cost_values_only(db: Database, tmp_path: Path) -> None:
    modules = tmp_path / "node_modules"
    for name, content in {
        "list": "[]",
        "cut": '{"name": "x',
        "deep": "[" * 100_000,
        "types": {"name": 7, "version": None, "author": {"name": []}, "license": [], "homepage": {}},
        "empty": "",
        "many": {"name": "m", "files": [{}] * 100_001},
    }.items():
        manifest(modules / name, content)
    (modules / "bytes").mkdir()
    (modules / "bytes/package.json").write_bytes(b'{"name": "\xff"}')
    (modules / "directory/package.json").mkdir(parents=True)
    (modules / "huge").mkdir()
    with (modules / "huge/package.json").open("wb") as file:
        file.truncate(1 << 30)
    result = await db.query(f"SELECT name, version, author FROM npm_packages WHERE directory = '{tmp_path}'")
    assert set(result.rows) == {
        *((name, None, None) for name in ("bytes", "cut", "deep", "directory", "empty", "huge", "list", "many")),
        ("", "", None),
    }
    assert "larger than" in result.files.summary()
