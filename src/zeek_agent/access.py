"""Access rules of statements: tables, files, and masking of command lines."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

import re2

from zeek_agent import access_defaults, platforms
from zeek_agent.config.sections import AccessSettings
from zeek_agent.errors import UsageError
from zeek_agent.masking.masker import Masker
from zeek_agent.privileges import Privileges
from zeek_agent.schema import SEQUENCE
from zeek_agent.text import from_os, to_bytes

VERDICTS_KEPT: Final = 1024
"""Paths whose verdicts are cached, because repeated queries return to the same ones."""
_WILDCARDS: Final = frozenset("*?[!")
_COPY_PARTS_MIN: Final = 3
"""Path components by which a copy of the agent's own files is recognized; fewer match unrelated files."""
_ENDS: Final = frozenset({"", "/", ".", "-", "~"})
_DEFAULT_DENY: Final = frozenset(access_defaults.PATHS_DENY)


class Contents(Enum):
    """The reason why the contents of a file may be read."""

    CONFIGURED = auto()
    """It is in `access.files_allow` or `access.paths_allow`."""
    PUBLIC = auto()
    """It is on the list of files whose contents may be read if every local user may read them."""
    PRIVATE = auto()
    """It is on the list of files whose contents may be read although not every local user may read them."""
    UNLISTED = auto()
    """None: it may only be listed and hashed."""


@dataclass(frozen=True, slots=True)
class ShownFiles:
    """The one kind of file that a table shows: their contents may be read although not every local user may read them.

    With `permitted`, the default patterns of `access.paths_deny` do not apply to them, because the operator has
    permitted the table, which shows secrets.
    """

    patterns: tuple[str, ...]
    permitted: bool = False

    def __contains__(self, path: str) -> bool:
        """Whether the file at this absolute path is of this kind."""
        return _compiled_rules(self.patterns).match(normal(path))


class AccessPolicy:
    """The configured rules, compiled. Thread-safe. After a reload there is another one, with the `masker` of the first.

    `protected` are absolute paths of the agent's own files and directories. In file patterns, `*` and `?` do not match
    `/`, `**` crosses directories, `/**/` also matches `/`, `[…]` is a class. A pattern that starts with `!` excludes
    what earlier patterns of its list matched. Raises UsageError for a redaction pattern that is not a regular
    expression.
    """

    def __init__(self, settings: AccessSettings | None = None, protected: Iterable[str] = ()) -> None:
        settings = settings or AccessSettings()
        self.protected = tuple(dict.fromkeys(normal(form) for path in protected for form in (path, _real(path))))
        """The agent's own files and directories, which are always denied, whatever the configuration."""
        self.filesystems_allow = settings.filesystems_allow
        self.reports_only = settings.mode == "report"
        self.literals = tuple(rule for rule in settings.paths_deny if _WILDCARDS.isdisjoint(rule))
        """The denied paths without wildcards, which are also recognised by device and inode."""
        self.denied_places = tuple(sorted({_fixed(rule.removeprefix("!")) for rule in settings.paths_deny} - {"/"}))
        """The paths that the rules of `paths_deny` begin with: up to the directory before their first wildcard."""
        self.user_database = settings.user_database
        """Whether tables may query the name service's daemons."""
        self._privileges_allow = frozenset(settings.privileges_allow)
        self._tables_allow = settings.tables_allow
        self._tables_deny = settings.tables_deny
        self._secrets_deny = tuple(rule for rule in settings.secrets_deny if "." not in rule)
        columns = settings.columns_deny + tuple(rule for rule in settings.secrets_deny if "." in rule)
        self._columns_deny = re.compile("|".join(map(fnmatch.translate, columns))) if columns else None
        self._paths_allow = _PathRules(settings.paths_allow)
        self._paths_deny = _PathRules(settings.paths_deny)
        self._files_allow = _PathRules(settings.files_allow)
        self._public = _PathRules(access_defaults.CONTENTS_PUBLIC)
        self._private = _PathRules(access_defaults.CONTENTS_PRIVATE)
        self.masker = Masker(_compile_redaction(settings.redact), enabled=settings.mask)
        """Masks command lines before they are stored or returned."""
        self.masking = frozenset(
            {*(f"redact {rule}" for rule in settings.redact), *(() if settings.mask else ("off",))}
        )
        """How masking differs from the default."""
        self._added_deny = _PathRules([rule for rule in settings.paths_deny if rule not in _DEFAULT_DENY])
        self._paths_deny_caseless = _PathRules(settings.paths_deny, caseless=True)
        self._denied = lru_cache(VERDICTS_KEPT)(self._judge)
        self._listed = lru_cache(VERDICTS_KEPT)(self._list)

    def may_query(self, table: str, *aliases: str) -> bool:
        """Whether statements may read the table. A rule for any of its names holds for the table."""
        return self.denied_by(table, *aliases) is None

    def denied_by(self, table: str, *aliases: str) -> str | None:
        """The settings by which statements may not read the table; None if they may."""
        names = (table, *aliases)
        if _any_matches(names, self._secrets_deny):
            return "access.secrets_deny"
        if _any_matches(names, self._tables_deny) or (
            self._tables_allow and not _any_matches(names, self._tables_allow)
        ):
            return "access.tables_deny, access.tables_allow"
        return None

    def withheld(self, columns: Iterable[str], table: str, *aliases: str) -> frozenset[str]:
        """The columns of a table that stay unset. A rule for any of its names holds for the table.

        The sequence number of events is not among them: deliveries are counted by it.
        """
        if self._columns_deny is None:
            return frozenset()
        denies, names = self._columns_deny.match, (table, *aliases)
        return frozenset(
            column
            for column in columns
            if column != SEQUENCE.name and any(denies(f"{name}.{column}") for name in names)
        )

    def refused_privilege(self, table: str, privileges: Privileges) -> str | None:
        """The first of a table's declared privileges that the configuration does not permit, in words.

        The user database is another setting. Sockets depend on their permissions: see `group_sockets`.
        """
        if table in self._privileges_allow:
            return None
        for program in privileges.programs:
            if program not in self._privileges_allow:
                return f"the program {program}"
        if privileges.network:
            return "the network"
        if privileges.other_users and privileges.any_unix_socket:
            return "Unix sockets together with other users' files"
        return None

    def group_sockets(self, table: str, privileges: Privileges) -> tuple[str, ...]:
        """The declared Unix sockets that the table may also use if only a group may connect to them."""
        allowed = self._privileges_allow
        return tuple(path for path in privileges.unix_sockets if table in allowed or path in allowed)

    def may_read(self, path: str) -> bool:
        """Whether a file with this absolute path may be hashed; reading its contents also requires `contents`.

        Symbolic links are not followed here: check the path as written and every other path of the file.
        """
        return not self.denies(path) and self.allows(path)

    def denies(self, path: str) -> bool:
        """Whether a rule, or what is the agent's own, denies this absolute path."""
        return self._denied(path)

    def denies_by_added_rule(self, path: str) -> bool:
        """Whether a rule that the operator added to `paths_deny` denies this absolute path, or it is the agent's own.

        The default patterns name secrets, but do not hide hashes of executables, since malware can have a secret's
        name, properties of private keys, and files of a table that the operator has permitted for its secrets.
        """
        return any(self._added_deny.match(name) or self._is_protected(name) for name in names_of(path))

    def denies_in_any_case(self, path: str) -> bool:
        """`denies` for a file that answers to its name in capitals and small letters."""
        return self.denies(path) or any(map(self._paths_deny_caseless.match, names_of(path)))

    def allows(self, path: str) -> bool:
        """Whether `access.paths_allow`, where there is one, has this absolute path."""
        return not self._paths_allow or self._paths_allow.admits(names_of(path))

    def contents(self, path: str, shown: ShownFiles | None = None) -> Contents:
        """Which rule lets the contents of the file at this absolute path be read; `shown` are those of its table."""
        found = self._listed(path)
        return Contents.PRIVATE if found is not Contents.CONFIGURED and shown is not None and path in shown else found

    def _judge(self, path: str) -> bool:
        return any(self._paths_deny.match(name) or self._is_protected(name) for name in names_of(path))

    def _is_protected(self, path: str) -> bool:
        return any(_is_own(path, own) for own in self.protected)

    def _list(self, path: str) -> Contents:
        names = names_of(path)
        if self._files_allow.admits(names) or self._paths_allow.admits(names):
            return Contents.CONFIGURED
        if self._private.admits(names):
            return Contents.PRIVATE
        return Contents.PUBLIC if self._public.admits(names) else Contents.UNLISTED


def _any_matches(names: Iterable[str], globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


def normal(path: str) -> str:
    """The absolute path without `.`, `..` and doubled slashes, in the form in which rules compare paths."""
    return "/" + posixpath.normpath(platforms.HERE.comparable_path(path)).lstrip("/")


def names_of(path: str) -> tuple[str, ...]:
    """The same, under each name that the path has on every host of this system."""
    return platforms.HERE.names_of(normal(path))


def _is_own(path: str, own: str) -> bool:
    """Whether a path is the agent's own, is inside it, or is a rotated or saved copy of it by its name.

    A path that ends like it below another root (a snapshot, a layer, a container) is treated as a copy, unless the
    agent's own path is too short for that.
    """
    at = path.find(own)
    while at >= 0 and (at == 0 or own.count("/") >= _COPY_PARTS_MIN):
        if path[at + len(own) : at + len(own) + 1] in _ENDS:
            return True
        at = path.find(own, at + 1)
    return False


def _fixed(rule: str) -> str:
    """The beginning of a rule: the whole path, or the directory before its first wildcard."""
    wildcard = re.search(r"[*?\[]", rule)
    return normal(rule if wildcard is None else rule[: wildcard.start()].rpartition("/")[0] or "/")


def _real(path: str) -> str:
    return from_os(os.path.realpath(os.fsdecode(to_bytes(path))))


def admits_filesystem(rules: Sequence[str], kind: str, place: str) -> bool:
    """Whether a rule of `access.filesystems_allow` names a file system, by its type or mount point."""
    return any(normal(rule) == place if rule.startswith("/") else fnmatch.fnmatchcase(kind, rule) for rule in rules)


class _PathRules:
    """A list of path globs; the last one that matches decides, and `!` inverts its meaning."""

    def __init__(self, patterns: Sequence[str], *, caseless: bool = False) -> None:
        flags = "(?si)" if caseless else "(?s)"
        self._rules: list[tuple[bool, Any]] = []
        for negated, group in groupby(patterns, key=lambda pattern: pattern.startswith("!")):
            rules = (platforms.HERE.comparable_path(pattern.removeprefix("!")) for pattern in group)
            regex = "|".join(map(glob_regex, rules))
            self._rules.insert(0, (not negated, re2.compile(f"{flags}{regex}")))

    def __bool__(self) -> bool:
        return bool(self._rules)

    def match(self, path: str) -> bool:
        return self._verdict(path) is True

    def admits(self, names: Iterable[str]) -> bool:
        """Whether one of a file's names matches, and no other one is excluded by `!`."""
        verdicts = set(map(self._verdict, names))
        return True in verdicts and False not in verdicts

    def _verdict(self, path: str) -> bool | None:
        """Of the last rule that matches; None if there is none."""
        for verdict, regex in self._rules:
            if regex.fullmatch(path):
                return verdict
        return None


@lru_cache(maxsize=64)
def _compiled_rules(patterns: tuple[str, ...]) -> _PathRules:
    return _PathRules(patterns)


def glob_regex(pattern: str) -> str:
    """A path glob as a regular expression for the whole path."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        rest = pattern[position:]
        if rest.startswith("/**/"):
            parts.append("/(?:.*/)?")
            position += 4
        elif rest.startswith("**"):
            parts.append(".*")
            position += 2
        elif rest[0] in "*?":
            parts.append("[^/]*" if rest[0] == "*" else "[^/]")
            position += 1
        elif rest[0] == "[" and (end := rest.find("]", 2)) > 0:
            parts.append(_class_regex(rest[1:end]))
            position += end + 1
        else:
            parts.append(re2.escape(rest[0]))
            position += 1
    return f"(?:{''.join(parts)})"


def _class_regex(members: str) -> str:
    negated = members[0] in "!^"
    members = members[1:] if negated else members
    escaped = "".join(f"\\{character}" if character in r"\[]^&~|" else character for character in members)
    return f"[^/{escaped}]" if negated else f"[{escaped}]"


def _compile_redaction(patterns: Sequence[str]) -> Any | None:
    """One regular expression for all patterns; None if there are none."""
    for pattern in patterns:
        try:
            compile_regex(pattern)
        except ValueError as error:
            raise UsageError(f"access.redact: {pattern!r} is not a regular expression (RE2): {error}") from error
    return compile_regex("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None


def compile_regex(pattern: str | bytes, max_memory: int = 8 << 20) -> Any:
    """Compile with RE2, whose matching time is linear in the text. Raises ValueError for an unsupported pattern."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = max_memory
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "unknown"
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error
