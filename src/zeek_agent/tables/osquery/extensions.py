"""Extensions of editors and browsers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.files.globbing import Match
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.whole import read_whole
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._user_files import user_files

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
    for account, match in user_files(wanted, *patterns, private=tuple(f"/**/{pattern}" for pattern in patterns)):
        content = read_whole(match, reads, LIST_BYTES_MAX, wanted.check)
        try:
            for entry in entries(content) if content is not None else ():
                yield account, match, entry
        except ExtensionListError as error:
            reads.leave_out(Omission.SKIPPED, match.path, str(error))


TABLES = (vscode_extensions, firefox_addons)
