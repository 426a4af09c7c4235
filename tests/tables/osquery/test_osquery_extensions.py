"""The tables of extensions, on files as the programs write them (their documented shape: neither program runs here)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.files.json_documents import VALUES_MAX
from zeek_agent.host.packages import chrome
from zeek_agent.table import TableContext
from zeek_agent.tables.osquery import _user_files, extensions

pytestmark = pytest.mark.root

UID = 4_711
EXTENSION: dict[str, Any] = {
    "identifier": {"id": "ms-python.python", "uuid": "f1f59ae4-9318-4f3c-a9b5-81b2eaa5f8a5"},
    "version": "2024.10.0",
    "location": {"$mid": 1, "path": "/home/me/.vscode/extensions/ms-python.python-2024.10.0", "scheme": "file"},
    "relativeLocation": "ms-python.python-2024.10.0",
    "metadata": {
        "id": "f1f59ae4-9318-4f3c-a9b5-81b2eaa5f8a5",
        "publisherId": "998b010b-e2af-44a5-a6cd-0b5fd3b9b6f8",
        "publisherDisplayName": "Microsoft",
        "installedTimestamp": 1_718_000_000_123,
        "isPreReleaseVersion": False,
    },
}
ADDON: dict[str, Any] = {
    "id": "uBlock0@raymondhill.net",
    "syncGUID": "{b5f4}",
    "version": "1.57.2",
    "type": "extension",
    "defaultLocale": {"name": "uBlock Origin", "description": "An efficient blocker", "creator": "Raymond Hill"},
    "visible": True,
    "active": True,
    "userDisabled": False,
    "appDisabled": False,
    "softDisabled": False,
    "sourceURI": "https://addons.mozilla.org/firefox/downloads/file/1/u.xpi",
    "applyBackgroundUpdates": 1,
    "location": "app-profile",
    "path": "/home/me/.mozilla/firefox/x.default/extensions/uBlock0@raymondhill.net.xpi",
}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of an account, in a place where nobody else can put files."""
    with TemporaryDirectory(dir="/opt") as place:
        os.chown(place, UID, UID)
        account = Account("me", UID, UID, "", place, "/bin/sh")
        monkeypatch.setattr(_user_files, "local_accounts", lambda _: [account])
        yield Path(place)


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    opened = Database(extensions.TABLES, TableContext(NoAgent(), AccessPolicy()), LimitSettings())
    opened.scans.max_age_seconds = 0
    yield opened
    await opened.aclose()


async def rows(db: Database, sql: str) -> list[dict[str, Any]]:
    result = await db.query(sql)
    assert result.errors == ()
    return [dict(zip((column.name for column in result.columns), row, strict=True)) for row in result.rows]


def write(path: Path, content: Any) -> None:
    missing = [path, *path.parents]
    missing = missing[: next(number for number, one in enumerate(missing) if one.exists())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for one in missing:
        os.chown(one, UID, UID)
    path.chmod(0o600)


async def test_extensions_of_editors_are_those_in_their_lists(db: Database, home: Path) -> None:
    other = {**EXTENSION, "identifier": {"id": "me.mine"}, "metadata": {"isPreReleaseVersion": True}}
    write(home / ".vscode/extensions/extensions.json", [EXTENSION, other])
    write(home / ".cursor-server/extensions/extensions.json", [EXTENSION])
    found = await rows(db, "SELECT * FROM vscode_extensions ORDER BY vscode_edition DESC, name DESC")
    first = {
        "name": "ms-python.python",
        "uuid": "f1f59ae4-9318-4f3c-a9b5-81b2eaa5f8a5",
        "version": "2024.10.0",
        "path": "/home/me/.vscode/extensions/ms-python.python-2024.10.0",
        "publisher": "Microsoft",
        "publisher_id": "998b010b-e2af-44a5-a6cd-0b5fd3b9b6f8",
        "installed_at": 1_718_000_000_123,
        "prerelease": 0,
        "uid": UID,
        "vscode_edition": "vscode",
    }
    unknown = dict.fromkeys(("uuid", "publisher", "publisher_id", "installed_at"))
    assert found == [
        first,
        {**first, **unknown, "name": "me.mine", "prerelease": 1},
        {**first, "vscode_edition": "cursor"},
    ]
    assert len(await rows(db, f"SELECT name FROM vscode_extensions WHERE uid = {UID} AND version > '2024.9'")) == 3
    assert await rows(db, f"SELECT name FROM vscode_extensions WHERE uid = {UID + 1}") == []
    write(home / ".vscode/extensions/extensions.json", [])
    assert len(await rows(db, "SELECT name FROM vscode_extensions")) == 1


async def test_addons_of_firefox_are_those_in_its_lists(db: Database, home: Path) -> None:
    disabled = {**ADDON, "id": "b", "active": False, "userDisabled": True, "sourceURI": None, "visible": "1"}
    write(home / ".mozilla/firefox/x.default/extensions.json", {"schemaVersion": 36, "addons": [ADDON, disabled]})
    write(home / "snap/firefox/common/.mozilla/firefox/y/extensions.json", {"addons": [{"id": "c"}]})
    first = {
        "uid": UID,
        "name": "uBlock Origin",
        "identifier": "uBlock0@raymondhill.net",
        "creator": "Raymond Hill",
        "type": "extension",
        "version": "1.57.2",
        "description": "An efficient blocker",
        "source_url": "https://addons.mozilla.org/firefox/downloads/file/1/u.xpi",
        "visible": 1,
        "active": 1,
        "disabled": 0,
        "autoupdate": 1,
        "location": "app-profile",
        "path": "/home/me/.mozilla/firefox/x.default/extensions/uBlock0@raymondhill.net.xpi",
    }
    found = {row["identifier"]: row for row in await rows(db, "SELECT * FROM firefox_addons")}
    assert found == {
        first["identifier"]: first,
        "b": {**first, "identifier": "b", "active": 0, "disabled": 1, "source_url": None},
        "c": {**dict.fromkeys(first), "uid": UID, "identifier": "c", "disabled": 0},
    }


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"7", b"[" * 100_000, b'{"addons": {}}', b'"\xff"', {"addons": 7}),
        *([{}] * (VALUES_MAX + 1), {"addons": [{"id": "x"}] * VALUES_MAX}, [EXTENSION, {"id": "x" * (5 << 20)}]),
    ],
    ids=range(10),
)
async def test_lists_that_are_not_lists_cost_themselves_only(db: Database, home: Path, content: Any) -> None:
    write(home / ".vscode/extensions/extensions.json", content)
    write(home / ".cursor/extensions/extensions.json", [7, {}, {"identifier": 1}, EXTENSION])
    write(home / ".mozilla/firefox/a/extensions.json", content)
    write(home / ".mozilla/firefox/b/extensions.json", {"addons": [None, {"visible": 2**80, "id": [], "path": {}}]})
    result = await db.query("SELECT name FROM vscode_extensions")
    assert result.rows == [("ms-python.python",)]
    assert result.files.skipped == 1
    result = await db.query("SELECT identifier, visible, path FROM firefox_addons")
    assert result.rows == [(None, None, None)]
    assert result.files.skipped == 1


async def test_links_to_secrets_and_denied_lists_are_not_read(home: Path) -> None:
    secret = home.parent / f"{home.name}-secret.json"
    secret.write_text(json.dumps([EXTENSION]))
    secret.chmod(0o600)
    try:
        (home / ".vscode/extensions").mkdir(parents=True)
        (home / ".vscode/extensions/extensions.json").symlink_to(secret)
        write(home / ".cursor/extensions/extensions.json", [EXTENSION])
        access = AccessPolicy(AccessSettings(paths_deny=("/**/.cursor/**",)))
        db = Database(extensions.TABLES, TableContext(NoAgent(), access), LimitSettings())
        result = await db.query("SELECT name FROM vscode_extensions")
        await db.aclose()
    finally:
        secret.unlink()
    assert result.rows == []
    assert result.files.refused == 2


# chrome_extensions

KEY = base64.b64encode(b"the public key of an extension").decode()
STORE = "a" * 32
MANIFEST: dict[str, Any] = {
    "manifest_version": 2,
    "name": "__MSG_appName__",
    "description": "__MSG_missing__",
    "default_locale": "de",
    "version": "1.10.0",
    "author": "Somebody",
    "update_url": "https://clients2.google.com/service/update2/crx",
    "background": {"persistent": True, "scripts": ["b.js"]},
    "permissions": ["storage", "<all_urls>"],
    "optional_permissions": ["tabs"],
    "key": KEY,
}


def profile(place: Path, name: str, **settings: Any) -> None:
    write(place / "Preferences", {"profile": {"name": name}})
    write(place / "Secure Preferences", {"extensions": {"settings": settings}})


async def test_extensions_of_chrome_are_those_of_profiles(db: Database, home: Path) -> None:
    place = home / ".config/google-chrome/Profile 1"
    directory = place / f"Extensions/{STORE}/1.10.0_0"
    unpacked = home / "work/unpacked"
    stored = {"path": f"{STORE}/1.10.0_0", "state": 1, "from_webstore": True, "install_time": "13370000000000000"}
    profile(place, "Me", **{STORE: stored, "b" * 32: {"path": str(unpacked), "state": 0, "from_webstore": False}})
    write(directory / "manifest.json", MANIFEST)
    write(directory / "_locales/de/messages.json", {"appname": {"message": "Blocker für alle"}})
    write(unpacked / "manifest.json", {"name": "Mine", "version": "0.1", "manifest_version": 3})
    write(place / "Extensions/cccc/2/manifest.json", {"name": "Left behind", "version": "2"})
    found = {row["name"]: row for row in await rows(db, "SELECT * FROM chrome_extensions")}
    assert set(found) == {"Blocker für alle", "Mine", "Left behind"}
    digest = hashlib.sha256(base64.b64decode(KEY)).digest()[:16]
    assert found["Blocker für alle"] == {
        "browser_type": "chrome",
        "uid": UID,
        "name": "Blocker für alle",
        "profile": "Me",
        "profile_path": str(place),
        "referenced_identifier": STORE,
        "identifier": "".join(chr(ord("a") + nibble) for byte in digest for nibble in divmod(byte, 16)),
        "version": "1.10.0",
        "description": "__MSG_missing__",
        "default_locale": "de",
        "current_locale": "",
        "update_url": MANIFEST["update_url"],
        "author": "Somebody",
        "persistent": 1,
        "path": str(directory),
        "permissions": "storage, <all_urls>",
        "optional_permissions": "tabs",
        "manifest_hash": hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest(),
        "referenced": 1,
        "from_webstore": "true",
        "state": "1",
        "install_time": "13370000000000000",
        "install_timestamp": 13_370_000_000 - 11_644_473_600,
    }
    mine, left = found["Mine"], found["Left behind"]
    assert (mine["path"], mine["state"], mine["from_webstore"], mine["referenced"]) == (str(unpacked), "0", "false", 1)
    assert (mine["identifier"], mine["persistent"], mine["permissions"], mine["install_timestamp"]) == ("", 0, "", 0)
    assert (left["referenced"], left["state"], left["referenced_identifier"]) == (0, "", "")
    hidden = "permissions_json, optional_permissions_json, manifest_json, key"
    (row,) = await rows(db, f"SELECT {hidden} FROM chrome_extensions WHERE referenced_identifier = '{STORE}'")
    assert json.loads(row["manifest_json"]) == MANIFEST
    assert row["permissions_json"] == '["storage","<all_urls>"]'
    assert (row["optional_permissions_json"], row["key"]) == ('["tabs"]', KEY)
    (row,) = await rows(db, f"SELECT {hidden} FROM chrome_extensions WHERE name = 'Mine'")
    assert (row["permissions_json"], row["optional_permissions_json"], row["key"]) == ("{}", "{}", None)
    assert len(await rows(db, f"SELECT * FROM chrome_extensions WHERE uid = {UID} AND version < '1.9'")) == 1


async def test_settings_of_newer_browsers_are_understood(db: Database, home: Path) -> None:
    place = home / ".config/chromium/Default"
    newer = {"from_webstore": False, "first_install_time": "13440420535344027"}  # as Chromium 156 writes them
    one = {"path": "a/1", "disable_reasons": [], **newer}
    profile(place, "x", a=one, b={"path": "b/1", "disable_reasons": [1], **newer})
    for name in "ab":
        write(place / f"Extensions/{name}/1/manifest.json", {"name": name, "version": "1"})
    sql = "SELECT name, state, install_time, install_timestamp FROM chrome_extensions ORDER BY name"
    seconds = 13_440_420_535 - 11_644_473_600
    assert [tuple(row.values()) for row in await rows(db, sql)] == [
        ("a", "1", "13440420535344027", seconds),
        ("b", "0", "13440420535344027", seconds),
    ]


async def test_each_browser_has_its_directories(db: Database, home: Path) -> None:
    profile(home / ".config/chromium/Default", "Person 1")
    write(home / ".config/chromium/Default/Extensions/a/1/manifest.json", {"name": "x", "version": "1"})
    write(home / ".config/opera/Preferences", {})  # its directory is its profile
    write(home / ".config/opera/Extensions/b/1/manifest.json", {"name": "y", "version": "1"})
    found = await rows(db, "SELECT browser_type, name, profile FROM chrome_extensions ORDER BY name")
    assert [tuple(row.values()) for row in found] == [("chromium", "x", "Person 1"), ("opera", "y", "")]


async def test_hostile_profiles_cost_values_and_rows(db: Database, home: Path) -> None:
    place = home / ".config/chromium/Default"
    settings: dict[str, Any] = {str(number): one for number, one in enumerate((7, None, {}, {"path": 7}, {"path": ""}))}
    settings["up"] = {"path": "../../../../../../../../etc", "state": {}}
    settings["zero"] = {"path": "a\0b"}
    profile(place, "x", **settings)
    write(place / "Extensions/broken/1/manifest.json", b"{")
    write(place / "Extensions/list/1/manifest.json", [])
    odd = {"name": ["x"], "version": None, "key": "not base64", "permissions": [{"a": 1}, 7, None], "background": 3}
    write(place / "Extensions/odd/1/manifest.json", {**odd, "default_locale": "../../x", "description": "__MSG_x__"})
    write(place / "Extensions/short/1/manifest.json", {"name": "__MSG_", "version": "1"})
    write(home / ".config/chromium/Second/Preferences", b"\xff{")
    write(home / ".config/chromium/Second/Extensions/a/1/manifest.json", {"name": "second", "version": "1"})
    result = await db.query("SELECT name, version, identifier, permissions, persistent FROM chrome_extensions")
    assert sorted(result.rows) == [
        ("", "null", "", ", 7, null", 0),
        ("__MSG_", "1", "", "", 0),
        ("second", "1", "", "", 0),
    ]
    assert result.files.skipped == 2


async def test_preferences_with_very_many_extensions_are_read_in_part(
    db: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chrome, "_REFERENCED_MAX", 2)
    place = home / ".config/chromium/Default"
    profile(place, "x", **{name: {"path": f"{home}/{name}"} for name in ("long", "a", "b", "c")})
    for name in ("a", "b", "c"):
        write(home / name / "manifest.json", {"name": name, "version": "1"})
    result = await db.query("SELECT name FROM chrome_extensions")
    assert result.rows == [("a",)]
    assert "more than 2 extensions" in result.files.summary()


async def test_texts_of_preferences_that_are_too_long_are_not_kept(db: Database, home: Path) -> None:
    place = home / ".config/chromium/Default"
    long = "x" * 5_000
    profile(place, long, k={"path": "own/1", "state": long, "install_time": 7}, **{long: {"path": "other/1"}})
    write(place / "Extensions/own/1/manifest.json", {"name": "own", "version": "1"})
    write(place / "Extensions/other/1/manifest.json", {"name": "other", "version": "1"})
    result = await db.query("SELECT name, profile, state, install_time, referenced_identifier FROM chrome_extensions")
    assert sorted(result.rows) == [("other", "", "", "", ""), ("own", "", "", "7", "k")]


async def test_a_user_with_very_many_files_hides_no_other_users(
    db: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Account("other", UID + 1, UID + 1, "", f"{home}/other", "/bin/sh")
    accounts = [*_user_files.local_accounts(print), other]
    monkeypatch.setattr(_user_files, "local_accounts", lambda _: accounts)
    times = iter([0.0, 2.0])
    monkeypatch.setattr(_user_files, "thread_time", lambda: next(times, 3.0))
    for place in (home, home / "other"):
        write(place / ".config/chromium/Default/Extensions/a/1/manifest.json", {"name": "a", "version": "1"})
        profile(place / ".config/chromium/Default", "x")
    result = await db.query("SELECT uid FROM chrome_extensions")
    assert result.rows == [(UID + 1,)]
    assert result.files.summary() == (
        f"files omitted: 1 truncated: {home} truncated (took more than 1 s of processor time)"
    )
