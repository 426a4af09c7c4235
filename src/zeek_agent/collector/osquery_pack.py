"""osquery's packs and configurations: what they say, read and checked.

A pack has `queries`; a configuration has a `schedule`, `packs` (themselves, or the paths of their files) and
`decorators`. How the collector runs them: `osquery_queries`.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from zeek_agent.collector import relaxed_json
from zeek_agent.errors import UsageError
from zeek_agent.text import clipped

FILE_BYTES_MAX: Final = 10 * 1024 * 1024
DECORATORS_MAX: Final = 100
QUERIES_MAX: Final = 1_000
"""Of one file, packs that it names included: as many as agents take from one collector (`zeek.queries_max`)."""
INTERVAL_SECONDS: Final = 3600.0
"""The interval of queries without one, and that at which osquery repeats discovery queries."""
INTERVAL_SECONDS_MAX: Final = 604_800
"""osquery's own maximum, a week."""
DIRECTORIES: Final = ("/etc/osquery", "/opt/osquery", "/usr/share/osquery", "/var/osquery")
"""Directories of osquery, in which a configuration may name packs wherever it is itself."""
DISTRIBUTIONS: Final[Mapping[str, str]] = {
    "amazon": "amzn",
    "arch": "arch",
    "centos": "centos",
    "debian": "debian",
    "fedora": "fedora",
    "gentoo": "gentoo",
    "oracle": "ol",
    "redhat": "rhel",
    "rhel": "rhel",
    "suse": "suse",
    "ubuntu": "ubuntu",
}
"""Platforms that are distributions, and their ids in os-release(5)."""

_EVERYWHERE: Final = frozenset({"all", "any", "null", ""})
_OTHER_PLATFORMS: Final = frozenset({"chrome", "darwin", "freebsd", "macos", "windows"})
_PLATFORMS: Final = _EVERYWHERE | _OTHER_PLATFORMS | {"linux", "posix"} | DISTRIBUTIONS.keys()
_DESCRIPTIVE: Final = frozenset({"author", "description", "name", "oncall", "value"})
_OF_PACK: Final = frozenset({"discovery", "platform", "queries", "shard", "version"})
_OF_CONFIGURATION: Final = frozenset({"decorators", "file_paths", "packs", "schedule"})
_OF_QUERY: Final = frozenset(
    {
        "denylist",
        "blacklist",
        "interval",
        "platform",
        "query",
        "removed",
        "shard",
        "snapshot",
        "startup_priority",
        "version",
    }
)
_SAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class OsqueryQuery:
    """A scheduled query; `place` is its key in the file, `pack` is empty for one of the schedule."""

    place: str
    pack: str
    name: str
    sql: str
    interval: float
    snapshot: bool = False
    removed: bool = True
    platforms: frozenset[str] = frozenset()
    """Empty for all."""
    version: str = ""
    shard: int = 0
    """Percentage of hosts that run it; 0: all."""
    discovery: tuple[str, ...] = ()
    """It runs while each of these queries returns rows."""
    summary: str = ""

    @property
    def full_name(self) -> str:
        """Its name in osquery's results."""
        return f"pack_{self.pack}_{self.name}" if self.pack else self.name


@dataclass(frozen=True, slots=True)
class Decorator:
    """A query whose only row is added to each result; it runs again after `interval` seconds, or never for 0."""

    place: str
    sql: str
    interval: float


@dataclass(slots=True)
class OsqueryFile:
    """The contents of a file, and notices about what has no effect here."""

    origin: str
    queries: list[OsqueryQuery] = field(default_factory=list)
    decorators: list[Decorator] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def is_osquery(path: Path) -> bool:
    """Whether the file is JSON, as osquery's are, by its name or else its beginning."""
    if path.suffix in (".conf", ".json", ".toml"):
        return path.suffix != ".toml"
    try:
        return relaxed_json.is_object(_text(path))
    except ValueError:
        return False


def read(path: Path) -> OsqueryFile:
    """Read a pack or configuration, and the packs that it names. Raises UsageError that names the file and the key."""
    found = OsqueryFile(str(path))
    try:
        document = _object(_document(path), "the file")
        if document.keys().isdisjoint(_OF_PACK | _OF_CONFIGURATION):
            raise ValueError("neither a pack (queries) nor a configuration (schedule, packs) of osquery")
        if not document.keys().isdisjoint(_OF_CONFIGURATION):
            _read_configuration(path, document, found)
        if "queries" in document:
            _read_pack(path.stem, "", document, found)
        _note_others(document, _OF_PACK | _OF_CONFIGURATION, "", found)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return found


def log_name(query: OsqueryQuery) -> str:
    """The name of its log: osquery's name, with other characters than Zeek's log names have replaced."""
    from hashlib import sha256

    name = _SAFE.sub("_", query.full_name).strip("_-") or "_"
    if not name[0].isalnum():
        name = f"query{name}"
    if len(name) > 100:
        name = f"{name[:91]}_{sha256(query.full_name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return name


def _read_configuration(path: Path, document: dict[str, Any], found: OsqueryFile) -> None:
    for name, entry in _object(document.get("schedule", {}), "schedule").items():
        _add(found, _query(f"schedule.{name}", "", name, entry=entry, shared={}, found=found))
    for name, content in _object(document.get("packs", {}), "packs").items():
        place = f"packs.{name}"
        if isinstance(content, str):
            _read_named(path, name, place, content, found)
        else:
            _read_pack(name, place, _object(content, place), found)
    found.decorators += islice(_decorators(document.get("decorators", {})), DECORATORS_MAX + 1)
    if len(found.decorators) > DECORATORS_MAX:
        raise ValueError(f"decorators: more than {DECORATORS_MAX} queries")
    if "file_paths" in document:
        found.notices.append(_file_paths(document["file_paths"]))


def _read_named(configuration: Path, name: str, place: str, pattern: str, found: OsqueryFile) -> None:
    """Read the packs whose files a configuration names, by a path or a pattern."""
    files = _named_files(configuration.parent, place, pattern)
    for file in files:
        try:
            document = _object(_document(file), "the file")
            if "queries" not in document:
                raise ValueError("not a pack: no queries")
            _read_pack(name if len(files) == 1 and name != "*" else file.stem, "", document, found, str(file))
        except ValueError as error:
            raise ValueError(f"{place}: {file}: {error}") from None


def _named_files(directory: Path, place: str, pattern: str) -> list[Path]:
    if "\0" in pattern:
        raise ValueError(f"{place}: not a path: {clipped(pattern)}")
    here = os.path.realpath(directory)
    allowed = [here, *DIRECTORIES]
    files = _matches(str(Path(glob.escape(here), pattern)))
    if not files:
        raise ValueError(f"{place}: no such file: {clipped(pattern)}")
    for file in files:
        real = os.path.realpath(file)
        if not any(_is_below(real, parent) for parent in allowed):
            raise ValueError(
                f"{place}: {clipped(str(file))} is neither in the directory of the configuration nor in one of "
                f"osquery's ({', '.join(DIRECTORIES)}): copy it there, or name it with --pack"
            )
    return files


def _is_below(path: str, directory: str) -> bool:
    try:
        return os.path.commonpath([path, directory]) == directory
    except ValueError:  # on another drive of Windows
        return False


def _read_pack(name: str, place: str, document: dict[str, Any], found: OsqueryFile, file: str = "") -> None:
    prefix = f"{place}." if place else ""
    shared = {
        "platform": _platforms(document, prefix),
        "version": _version(document, prefix),
        "shard": _shard(document, prefix),
        "discovery": _discovery(document, prefix),
        "file": file,
    }
    for query, entry in _object(document.get("queries", {}), f"{prefix}queries").items():
        _add(found, _query(f"{prefix}queries.{query}", name, query, entry=entry, shared=shared, found=found))
    if place or file:
        _note_others(document, _OF_PACK, f"{file}: " if file else prefix, found)


def _query(
    place: str, pack: str, name: str, *, entry: Any, shared: Mapping[str, Any], found: OsqueryFile
) -> OsqueryQuery:
    entry = _object(entry, place)
    sql = entry.get("query")
    if not isinstance(sql, str) or not sql.strip():
        raise ValueError(f"{place}.query: expected a statement, got {_shown(sql)}")
    if not name.strip():
        raise ValueError(f"{place}: a query needs a name")
    prefix = f"{place}."
    _truth(entry, "denylist", prefix, default=True)
    _note_others(entry, _OF_QUERY, prefix, found)
    own, of_pack = _platforms(entry, prefix), shared.get("platform", frozenset())
    file = shared.get("file", "")
    return OsqueryQuery(
        place=f"{file}: {place}" if file else place,
        pack=pack,
        name=name,
        sql=sql,
        interval=_interval(entry.get("interval", INTERVAL_SECONDS), f"{prefix}interval"),
        snapshot=_truth(entry, "snapshot", prefix, default=False),
        removed=_truth(entry, "removed", prefix, default=True),
        platforms=_both(of_pack, own),
        version=_later(_version(entry, prefix), shared.get("version", "")),
        shard=min((one for one in (_shard(entry, prefix), shared.get("shard", 0)) if one), default=0),
        discovery=shared.get("discovery", ()),
        summary=str(entry.get("description") or ""),
    )


def _add(found: OsqueryFile, query: OsqueryQuery) -> None:
    if len(found.queries) >= QUERIES_MAX:
        raise ValueError(f"{query.place}: more than {QUERIES_MAX} queries")
    found.queries.append(query)


def _decorators(value: Any) -> Iterator[Decorator]:
    for kind, content in _object(value, "decorators").items():
        place = f"decorators.{kind}"
        if kind == "interval":
            for seconds, statements in _object(content, place).items():
                interval = _interval(seconds, f"{place}.{seconds}")
                yield from (Decorator(at, sql, interval) for at, sql in _statements(statements, f"{place}.{seconds}"))
        elif kind in ("load", "always"):
            interval = 0.0 if kind == "load" else ALWAYS_SECONDS
            yield from (Decorator(at, sql, interval) for at, sql in _statements(content, place))
        else:
            raise ValueError(f"{place}: there are load, always and interval")


ALWAYS_SECONDS: Final = 60.0
"""How often `always` decorators run."""


def _statements(value: Any, place: str) -> Iterator[tuple[str, str]]:
    for number, sql in enumerate(_texts(value, place)):
        yield f"{place}[{number}]", sql


def _file_paths(value: Any) -> str:
    """What to configure for the paths that osquery would watch."""
    patterns: list[str] = []
    for category, paths in _object(value, "file_paths").items():
        patterns += (path.replace("%%", "**").replace("%", "*") for path in _texts(paths, f"file_paths.{category}"))
    return (
        "file_paths has no effect here: the agent watches what sources.files_watch names, for file_events; add "
        f"{clipped(', '.join(dict.fromkeys(patterns)), 400)} there"
    )


def _note_others(document: Mapping[str, Any], known: frozenset[str], prefix: str, found: OsqueryFile) -> None:
    found.notices += (
        f"{prefix}{clipped(key, 100)} has no effect here" for key in document if key not in known | _DESCRIPTIVE
    )


def _platforms(document: Mapping[str, Any], prefix: str) -> frozenset[str]:
    value = document.get("platform")
    if value is None:
        return frozenset()
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{prefix}platform: expected the names of platforms, got {_shown(value)}")
    names = frozenset(re.split(r"[\s,;]+", value.strip().lower()))
    if unknown := sorted(names - _PLATFORMS):
        raise ValueError(f"{prefix}platform: unknown platform {clipped(unknown[0], 100)!r}")
    return frozenset() if names & _EVERYWHERE else names


def _both(first: frozenset[str], second: frozenset[str]) -> frozenset[str]:
    """The platforms of a query, whose pack has some, too: posix contains Linux, and Linux its distributions."""
    if not first or not second:
        return first or second
    common = {one for one in first | second if _covers(first, one) and _covers(second, one)}
    return frozenset(common) or frozenset({f"{' or '.join(sorted(first))} and {' or '.join(sorted(second))}"})


def _covers(platforms: frozenset[str], one: str) -> bool:
    wider = {one}
    if one in DISTRIBUTIONS:
        wider.add("linux")
    if wider & {"linux", "darwin", "macos", "freebsd"}:
        wider.add("posix")
    return not platforms.isdisjoint(wider)


def _version(document: Mapping[str, Any], prefix: str) -> str:
    value = document.get("version", "")
    if value is None or value == "null":
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{prefix}version: expected a version of osquery in quotes, got {_shown(value)}")
    return value


def version_number(text: str) -> tuple[int, ...]:
    """The numbers of a version, `5.9.1-4` being (5, 9, 1)."""
    return tuple(int(part[:9]) for part in re.findall(r"\d+", text.partition("-")[0])[:4])


def _later(first: str, second: str) -> str:
    return max(first, second, key=version_number)


def _shard(document: Mapping[str, Any], prefix: str) -> int:
    value = document.get("shard", 0)
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value) else value
    if type(number) is not int or not 0 <= number <= 100:
        raise ValueError(f"{prefix}shard: expected a percentage of hosts, got {_shown(value)}")
    return 0 if number == 100 else number


def _discovery(document: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    return _texts(document.get("discovery", []), f"{prefix}discovery")


def _interval(value: Any, place: str) -> float:
    number = float(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 1 <= number <= INTERVAL_SECONDS_MAX:
        raise ValueError(f"{place}: expected seconds from 1 to {INTERVAL_SECONDS_MAX}, got {_shown(value)}")
    return float(number)


def _truth(entry: Mapping[str, Any], key: str, prefix: str, *, default: bool) -> bool:
    value = entry.get(key, default)
    truth = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
    if truth is None or not isinstance(value, bool | int | str):
        raise ValueError(f"{prefix}{key}: expected true or false, got {_shown(value)}")
    return truth


def _texts(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError(f"{place}: expected a list of texts, got {_shown(value)}")
    return tuple(value)


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected an object, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return clipped(repr(value), 80)


def _document(path: Path) -> Any:
    try:
        return relaxed_json.parse(_text(path))
    except relaxed_json.JsonError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _text(path: Path) -> str:
    """The contents of a regular file. Raises ValueError."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("not a regular file")
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start}") from None


def expanded(patterns: Iterable[str]) -> list[Path]:
    """The files that paths and patterns name, each once. Raises UsageError for a pattern without a match."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        if os.path.lexists(pattern) or not glob.has_magic(pattern):
            files[Path(pattern)] = None
            continue
        matches = _matches(pattern)
        if not matches:
            raise UsageError(f"no query pack matches {pattern}")
        files |= dict.fromkeys(matches)
    return list(files)


def _matches(pattern: str) -> list[Path]:
    return [Path(file) for file in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - also absolute ones
