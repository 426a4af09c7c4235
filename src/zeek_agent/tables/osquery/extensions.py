"""Extensions of editors and browsers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from zeek_agent.access import ShownFiles
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.files.globbing import Match, open_gate
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.whole import read_whole
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._user_files import in_time, user_files, wanted_homes

_OF_ALL_USERS: Final = "of all accounts in `/etc/passwd`, or of those that `uid` names"
_EDITORS: Final = {
    ".vscode": "vscode",
    ".vscode-server": "vscode",
    ".vscode-insiders": "vscode_insiders",
    ".vscode-server-insiders": "vscode_insiders",
    ".vscode-oss": "vscodium",
    ".vscodium-server": "vscodium",
    ".vscodium-insiders": "vscodium_insiders",
    ".vscodium-server-insiders": "vscodium_insiders",
    ".cursor": "cursor",
    ".cursor-server": "cursor",
    ".windsurf": "windsurf",
    ".windsurf-server": "windsurf",
    ".devin": "windsurf",
    ".trae": "trae",
    ".trae-server": "trae",
}
"""Directories in homes, and osquery's names of the editors."""
_EDITOR_LISTS: Final = tuple(f"{directory}/extensions/extensions.json" for directory in _EDITORS)
_ADDON_LISTS: Final = tuple(
    f"{directory}/*/extensions.json"
    for directory in (".mozilla/firefox", "snap/firefox/common/.mozilla/firefox", ".config/mozilla/firefox")
)

vscode_extensions = osquery_table(
    "vscode_extensions",
    "extensions of Visual Studio Code and editors made of it",
    description=f"One row per extension {_OF_ALL_USERS}, from the list that the editor keeps.",
    columns=[
        Column("name", "text", "id of the extension, such as `ms-python.python`"),
        Column("uuid", "text", "its id in the marketplace; null if it is not from there", collation="nocase"),
        Column("version", "text", "version", collation="version"),
        Column("path", "text", "its directory"),
        Column("publisher", "text", "name of the publisher; null if it is unknown"),
        Column("publisher_id", "text", "id of the publisher; null if it is unknown"),
        Column("installed_at", "int", "when it was installed, in milliseconds since 1970"),
        Column("prerelease", "int", "1 for a pre-release version"),
        Column("uid", "int", "user in whose home it is"),
        Column("vscode_edition", "text", "the editor: `vscode`, `vscode_insiders`, `vscodium`, `cursor`, …"),
    ],
    decisive=["uid"],
    opens_files=True,
    examples=["SELECT uid, name, version FROM vscode_extensions WHERE prerelease = 1"],
)

firefox_addons = osquery_table(
    "firefox_addons",
    "add-ons of Firefox",
    description=f"One row per add-on of each profile {_OF_ALL_USERS}, from the list that Firefox keeps.",
    columns=[
        Column("uid", "int", "user in whose home the profile is"),
        Column("name", "text", "name"),
        Column("identifier", "text", "id, such as `uBlock0@raymondhill.net`"),
        Column("creator", "text", "author; null without one"),
        Column("type", "text", "`extension`, `theme`, `locale`, …"),
        Column("version", "text", "version", collation="version"),
        Column("description", "text", "description; null without one"),
        Column("source_url", "text", "URL from which it was installed; null if it was not"),
        Column("visible", "int", "1 if Firefox shows it"),
        Column("active", "int", "1 if it is active"),
        Column("disabled", "int", "1 if the user or Firefox has disabled it"),
        Column("autoupdate", "int", "whether it is updated: 0 never, 1 by the default, 2 always"),
        Column("location", "text", "where it is installed, such as `app-profile`"),
        Column("path", "text", "its file or directory"),
    ],
    decisive=["uid"],
    opens_files=True,
    examples=["SELECT uid, name, version FROM firefox_addons WHERE type = 'extension' AND active = 1"],
)


@vscode_extensions.snapshot
def of_editors(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.packages.extension_lists import editor_extensions

    for account, match, extension in _listed(wanted, _EDITOR_LISTS, editor_extensions):
        yield *extension, account.uid, _EDITORS[match.path.rsplit("/", 3)[1]]


@firefox_addons.snapshot
def of_firefox(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.packages.extension_lists import addons

    for account, _, addon in _listed(wanted, _ADDON_LISTS, addons):
        yield account.uid, *addon


def _listed(
    wanted: Constraints, patterns: tuple[str, ...], entries: Callable[[bytes], Iterable[tuple[Any, ...]]]
) -> Iterator[tuple[Account, Match, tuple[Any, ...]]]:
    """The entries of all lists that match the patterns; one that is not a list is counted among the omitted files."""
    from zeek_agent.host.packages.extension_lists import LIST_BYTES_MAX, ExtensionListError

    reads = wanted.context.reads
    for account, match in user_files(
        wanted, *patterns, shown=ShownFiles(tuple(f"/**/{pattern}" for pattern in patterns))
    ):
        content = read_whole(match, reads, LIST_BYTES_MAX, wanted.check)
        try:
            for entry in entries(content) if content is not None else ():
                yield account, match, entry
        except ExtensionListError as error:
            reads.leave_out(Omission.SKIPPED, match.path, str(error))


_BROWSERS: Final = {
    ".config/google-chrome": "chrome",
    ".config/google-chrome-beta": "chrome_beta",
    ".config/google-chrome-unstable": "chrome_dev",
    ".config/BraveSoftware/Brave-Browser": "brave",
    ".var/app/com.brave.Browser/config/BraveSoftware/Brave-Browser": "brave",
    ".config/BraveSoftware/Brave-Browser-Beta": "brave_beta",
    ".var/app/com.brave.Browser/config/BraveSoftware/Brave-Browser-Beta": "brave_beta",
    ".config/BraveSoftware/Brave-Browser-Nightly": "brave_nightly",
    ".var/app/com.brave.Browser/config/BraveSoftware/Brave-Browser-Nightly": "brave_nightly",
    ".config/chromium": "chromium",
    "snap/chromium/common/chromium": "chromium",
    ".var/app/org.chromium.Chromium/config/chromium": "chromium",
    ".config/yandex-browser-beta": "yandex",
    ".config/microsoft-edge": "edge",
    ".config/microsoft-edge-beta": "edge_beta",
    ".config/microsoft-edge-dev": "edge_dev",
    ".config/opera": "opera",
    ".config/vivaldi": "vivaldi",
    ".var/app/com.vivaldi.Vivaldi/config/vivaldi": "vivaldi",
}
"""Directories in homes, and osquery's names of the browsers."""
_BROWSER_FILES: Final = ShownFiles(
    ("/**/Preferences", "/**/Secure Preferences", "/**/manifest.json", "/**/_locales/*/messages.json")
)

chrome_extensions = osquery_table(
    "chrome_extensions",
    "extensions of Chrome and browsers made of it",
    description=(
        f"One row per extension of each profile {_OF_ALL_USERS}: those that are installed in the profile, and those "
        "elsewhere that its preferences refer to."
    ),
    columns=[
        Column("browser_type", "text", "the browser: `chrome`, `chrome_beta`, `chromium`, `brave`, `edge`, `opera`, …"),
        Column("uid", "int", "user in whose home the profile is"),
        Column("name", "text", "name, in the extension's default language"),
        Column("profile", "text", "name of the profile"),
        Column("profile_path", "text", "directory of the profile"),
        Column("referenced_identifier", "text", "id in the preferences; empty if they do not refer to it"),
        Column("identifier", "text", "id that follows from the public key in the manifest; empty without one"),
        Column("version", "text", "version", collation="version"),
        Column("description", "text", "description; empty without one"),
        Column("default_locale", "text", "its default language; empty without one"),
        Column("current_locale", "text", "its current language; mostly empty"),
        Column("update_url", "text", "URL of updates; empty without one"),
        Column("author", "text", "author; empty without one"),
        Column("persistent", "int", "1 if its background page always runs"),
        Column("path", "text", "directory of the extension"),
        Column("permissions", "text", "permissions, joined by a comma and a blank"),
        Column("permissions_json", "text", "permissions as JSON; `{}` without any", hidden=True),
        Column("optional_permissions", "text", "permissions for which it may ask later"),
        Column("optional_permissions_json", "text", "the same as JSON; `{}` without any", hidden=True),
        Column("manifest_hash", "text", "SHA-256 of `manifest.json`", collation="nocase"),
        Column("referenced", "int", "1 if the preferences refer to it"),
        Column("from_webstore", "text", "`true` if it was installed from the store; empty if that is unknown"),
        Column("state", "text", "`1` if it is enabled; empty if that is unknown"),
        Column("install_time", "text", "when it was installed, in microseconds since 1601; empty if that is unknown"),
        Column("install_timestamp", "int", "the same in seconds since 1970; 0 if it is unknown"),
        Column("manifest_json", "text", "the manifest as JSON without blanks", hidden=True),
        Column("key", "text", "public key in the manifest, in base64; null without one", hidden=True),
        Column("locale", "text", "the same as `default_locale`", hidden=True),
    ],
    decisive=["uid"],
    opens_files=True,
    examples=[
        "SELECT uid, browser_type, name, version, permissions FROM chrome_extensions WHERE from_webstore != 'true'",
        "SELECT uid, profile, name FROM chrome_extensions WHERE identifier = 'cjpalhdlnbpafiamejdnhcphjbkeiagm'",
    ],
)


@chrome_extensions.snapshot
def of_chrome(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.packages.chrome import ChromeExtension, Setting
    from zeek_agent.host.packages.chrome import chrome_extensions as extensions_in

    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check, _BROWSER_FILES)

    def search(home: str, check: Callable[[], None]) -> Iterator[tuple[str, ChromeExtension]]:
        for directory, browser in _BROWSERS.items():
            yield from ((browser, found) for found in extensions_in(gate, f"{home}/{directory}", check))

    for account, home in wanted_homes(wanted):
        for browser, found in in_time(wanted, home, partial(search, home)):
            texts, setting = found.texts, found.setting or Setting()
            yield (
                browser,
                account.uid,
                texts["name"],
                found.profile,
                found.profile_path,
                setting.identifier,
                found.identifier,
                texts["version"],
                texts["description"],
                texts["default_locale"],
                texts["current_locale"],
                texts["update_url"],
                texts["author"],
                int(found.persistent),
                found.path,
                found.permissions,
                found.permissions_json,
                found.optional_permissions,
                found.optional_permissions_json,
                found.manifest_hash,
                int(found.setting is not None),
                setting.from_webstore,
                setting.state,
                setting.install_time,
                setting.installed_at,
                found.manifest_json,
                texts["key"] or None,
                texts["default_locale"],
            )


TABLES = (vscode_extensions, firefox_addons, chrome_extensions)
