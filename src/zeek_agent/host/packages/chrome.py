"""Extensions in the profiles of Chrome and browsers made of it.

A profile is a directory with the files `Preferences` or `Secure Preferences`. Extensions from a store are below its
directory `Extensions`; the preferences refer to these, and to others that are anywhere. What an extension is, its
`manifest.json` says (developer.chrome.com, "Manifest file format").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import matching
from zeek_agent.host.files.json_documents import JsonError, decoded
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.whole import literal, read_whole
from zeek_agent.text import from_os

PREFERENCES: Final = ("Preferences", "Secure Preferences")
_PREFERENCES_BYTES_MAX: Final = 16 << 20
_MANIFEST_BYTES_MAX: Final = 2 << 20
"""In memory, a text can have four bytes for each of the file, and some are in several columns."""
_REFERENCED_MAX: Final = 1_000
"""Extensions that one file of preferences refers to, many times what people have."""
_SETTING_CHARACTERS_MAX: Final = 4_096
"""Longer texts in preferences are as good as none: no path is so long."""
_LOCALIZED: Final = "__MSG_"
_TEXTS: Final = ("name", "version", "description", "default_locale", "current_locale", "update_url", "author", "key")
_SECONDS_1601_TO_1970: Final = 11_644_473_600
_LETTERS: Final = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


class Setting(NamedTuple):
    """What the preferences say about an extension; empty where they say nothing."""

    identifier: str = ""
    state: str = ""
    from_webstore: str = ""
    install_time: str = ""

    @property
    def installed_at(self) -> int:
        """Seconds since 1970; 0 if the time is unknown."""
        text = self.install_time
        known = text.isascii() and text.isdecimal() and len(text) < 19
        return max(int(text) // 1_000_000 - _SECONDS_1601_TO_1970, 0) if known else 0


class ChromeExtension(NamedTuple):
    """An extension of a profile. `texts` are texts of its manifest by name, empty where it has none."""

    profile: str
    profile_path: str
    path: str
    texts: Mapping[str, str]
    identifier: str
    persistent: bool
    permissions: str
    permissions_json: str
    optional_permissions: str
    optional_permissions_json: str
    manifest_hash: str
    manifest_json: str
    setting: Setting | None


def chrome_extensions(
    gate: Gate | PortableGate, directory: str, check: Callable[[], None]
) -> Iterator[ChromeExtension]:
    """The extensions of all profiles in a browser's directory, which is in the form of `os.fsdecode`.

    Files that may not be read, or that are not JSON, are counted in the gate's `reads`; of such a manifest, there is
    no row.
    """
    for profile in _profiles(gate, directory, check):
        yield from _Profile(gate, profile, check).extensions()


def _profiles(gate: Gate | PortableGate, directory: str, check: Callable[[], None]) -> list[str]:
    """The directory itself, or those in it."""
    for pattern in (literal(directory), f"{literal(directory)}/*"):
        found = {
            match.path.rpartition("/")[0]
            for name in PREFERENCES
            for match in matching(gate, f"{pattern}/{name}", check, explain=False)
        }
        if found:
            return sorted(found)
    return []


class _Profile:
    def __init__(self, gate: Gate | PortableGate, path: str, check: Callable[[], None]) -> None:
        self._gate = gate
        self._path = path
        self._check = check
        self._name = ""
        self._settings: dict[str, Setting] = {}
        for name in PREFERENCES:
            self._read_preferences(f"{path}/{name}")

    def extensions(self) -> Iterator[ChromeExtension]:
        installed = matching(
            self._gate, f"{literal(self._path)}/Extensions/*/*/manifest.json", self._check, explain=False
        )
        places = dict.fromkeys(match.path.rpartition("/")[0] for match in installed)
        for place in (*places, *(place for place in self._settings if place not in places)):
            self._check()
            found = self._extension(place)
            if found is not None:
                yield found

    def _read_preferences(self, path: str) -> None:
        """Add what a file of preferences says to what those before it do; the rest is not kept."""
        preferences = self._json(path, _PREFERENCES_BYTES_MAX)
        self._name = self._name or _setting_text(_member(preferences, "profile"), "name")
        for number, (place, setting) in enumerate(self._referenced(_member(preferences, "extensions"))):
            if number == _REFERENCED_MAX:
                self._gate.reads.leave_out(Omission.TRUNCATED, path, f"more than {_REFERENCED_MAX} extensions")
                return
            self._settings.setdefault(place, setting)

    def _referenced(self, extensions: Any) -> Iterator[tuple[str, Setting]]:
        """Extensions by directory; relative ones are those of the profile."""
        settings = _member(extensions, "settings") or _member(extensions, "opsettings")
        for identifier, one in settings.items() if isinstance(settings, dict) else ():
            path = _setting_text(one, "path") if isinstance(_member(one, "path"), str) else ""
            if path and "\0" not in path and len(identifier) <= _SETTING_CHARACTERS_MAX:
                place = posixpath.normpath(posixpath.join(self._path, "Extensions", path))
                installed = _setting_text(one, "install_time") or _setting_text(one, "first_install_time")
                yield place, Setting(identifier, _state(one), _setting_text(one, "from_webstore"), installed)

    def _extension(self, place: str) -> ChromeExtension | None:
        content = self._content(f"{place}/manifest.json", _MANIFEST_BYTES_MAX)
        manifest = None if content is None else self._decoded(f"{place}/manifest.json", content)
        if content is None or not isinstance(manifest, dict):
            return None
        texts = self._localized(place, {name: _text(manifest, name) for name in _TEXTS})
        permissions, optional = manifest.get("permissions"), manifest.get("optional_permissions")
        return ChromeExtension(
            self._name,
            from_os(self._path),
            from_os(place),
            texts,
            _identifier(texts["key"]),
            _text(_member(manifest, "background"), "persistent").lower() == "true",
            _joined(permissions),
            "{}" if permissions is None else msgspec.json.encode(permissions).decode(),
            _joined(optional),
            "{}" if optional is None else msgspec.json.encode(optional).decode(),
            hashlib.sha256(content).hexdigest(),
            msgspec.json.encode(manifest).decode(),
            self._settings.get(place),
        )

    def _localized(self, place: str, texts: dict[str, str]) -> dict[str, str]:
        """The texts with names of messages replaced by the messages of the extension's locale."""
        if not any(text.startswith(_LOCALIZED) for text in texts.values()):
            return texts
        locale = texts["default_locale"] or texts["current_locale"] or "en"
        if "/" in locale or "\0" in locale:
            return texts
        messages = self._json(f"{place}/_locales/{locale}/messages.json", _MANIFEST_BYTES_MAX)
        known = {name.lower(): one for name, one in messages.items()} if isinstance(messages, dict) else {}
        localized = {}
        for name, text in texts.items():
            message = known.get(text.removeprefix(_LOCALIZED)[:-2].lower()) if text.startswith(_LOCALIZED) else None
            localized[name] = _text(message, "message") or text
        return localized

    def _json(self, path: str, bytes_max: int) -> Any:
        content = self._content(path, bytes_max)
        return None if content is None else self._decoded(path, content)

    def _content(self, path: str, bytes_max: int) -> bytes | None:
        for match in matching(self._gate, literal(path), self._check, explain=False):
            return read_whole(match, self._gate.reads, bytes_max, self._check)
        return None

    def _decoded(self, path: str, content: bytes) -> Any:
        try:
            return decoded(content)
        except JsonError as error:
            self._gate.reads.leave_out(Omission.SKIPPED, path, str(error))
            return None


def _state(setting: Any) -> str:
    """1 if the extension is enabled. Newer browsers only keep the reasons for which it is not."""
    reasons = _member(setting, "disable_reasons")
    if isinstance(reasons, list) and "state" not in setting:
        return "0" if reasons else "1"
    return _setting_text(setting, "state")


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any, name: str) -> str:
    """A member as text; empty for a member that there is not, or that is an array or an object."""
    return _as_text(_member(value, name)) if isinstance(value, dict) and name in value else ""


def _setting_text(value: Any, name: str) -> str:
    text = _text(value, name)
    return text if len(text) <= _SETTING_CHARACTERS_MAX else ""


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return "" if isinstance(value, dict | list) else str(value)


def _joined(values: Any) -> str:
    return ", ".join(map(_as_text, values)) if isinstance(values, list) else ""


def _identifier(key: str) -> str:
    """The id that follows from a public key: 32 letters from a to p. Empty without a key."""
    try:
        decoded = base64.b64decode(key)
    except (binascii.Error, ValueError):
        return ""
    return hashlib.sha256(decoded).hexdigest()[:32].translate(_LETTERS) if decoded else ""
