"""Lists of extensions that Visual Studio Code and Firefox keep, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from zeek_agent.host.files.json_documents import JsonError, decoded

LIST_BYTES_MAX: Final = 4 << 20
"""Ten times the size of long lists. In memory, a text can have four bytes for each of the file."""
_DISABLED: Final = ("softDisabled", "softDisable", "appDisabled", "userDisabled")
_INT64: Final = range(-(2**63), 2**63)


class EditorExtension(NamedTuple):
    """An extension of an editor; None for what its entry lacks. `installed_at` is in milliseconds since 1970."""

    name: str | None
    uuid: str | None
    version: str | None
    path: str | None
    publisher: str | None
    publisher_id: str | None
    installed_at: int | None
    prerelease: int | None


class Addon(NamedTuple):
    """An add-on of Firefox; None for what its entry lacks."""

    name: str | None
    identifier: str | None
    creator: str | None
    kind: str | None
    version: str | None
    description: str | None
    source_url: str | None
    visible: int | None
    active: int | None
    disabled: int
    autoupdate: int | None
    location: str | None
    path: str | None


class ExtensionListError(Exception):
    """A list is not as its program writes it."""


def editor_extensions(content: bytes) -> Iterator[EditorExtension]:
    """The extensions in an `extensions.json` of Visual Studio Code and its relatives. Raises ExtensionListError."""
    for entry in _objects(_decoded(content)):
        parts: list[Any] = [entry.get(name) for name in ("identifier", "metadata", "location")]
        if not all(isinstance(part, dict) for part in parts):
            continue
        identifier, metadata, location = parts
        prerelease = metadata.get("isPreReleaseVersion")
        yield EditorExtension(
            _text(identifier, "id"),
            _text(metadata, "id"),
            _text(entry, "version"),
            _text(location, "path"),
            _text(metadata, "publisherDisplayName"),
            _text(metadata, "publisherId"),
            _number(metadata, "installedTimestamp"),
            int(prerelease) if isinstance(prerelease, bool) else None,
        )


def addons(content: bytes) -> Iterator[Addon]:
    """The add-ons in an `extensions.json` of Firefox. Raises ExtensionListError."""
    document = _decoded(content)
    for entry in _objects(document.get("addons") if isinstance(document, dict) else None):
        locale = entry.get("defaultLocale")
        shown = locale if isinstance(locale, dict) else {}
        yield Addon(
            _text(shown, "name"),
            _text(entry, "id"),
            _text(shown, "creator"),
            _text(entry, "type"),
            _text(entry, "version"),
            _text(shown, "description"),
            _text(entry, "sourceURI"),
            _number(entry, "visible"),
            _number(entry, "active"),
            int(
                any(entry.get(name) is True for name in ("softDisabled", "softDisable", "appDisabled", "userDisabled"))
            ),
            _number(entry, "applyBackgroundUpdates"),
            _text(entry, "location"),
            _text(entry, "path"),
        )


def _decoded(content: bytes) -> Any:
    try:
        return decoded(content)
    except JsonError as error:
        raise ExtensionListError(f"the list of extensions cannot be read: {error}") from error


def _objects(entries: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(entries, list):
        raise ExtensionListError("the file is not a list of extensions")
    return (entry for entry in entries if isinstance(entry, dict))


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    return value if isinstance(value, str) else None


def _number(entry: Mapping[str, Any], name: str) -> int | None:
    """A whole number; true and false are 1 and 0, and numbers can be texts."""
    value = entry.get(name)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        value = int(value)
    return int(value) if isinstance(value, int) and value in _INT64 else None
