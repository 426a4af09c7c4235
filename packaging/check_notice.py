"""Check NOTICE: `python packaging/check_notice.py [ROOT]` prints each fault and ends with exit code 1 if there is one.

NOTICE must name every package of pyproject.toml with its version bound, and every package that those require; nothing
that is not used any more; and for each package the license that its own metadata states. What runs in the agent's
process must have a license that allows that together with BSD-3-Clause.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RUN_TIME: Final = "Python packages at run time"
EXTRAS: Final = "Python packages of extras"
REQUIRED: Final = "Python packages that those require"
COMPILED: Final = "Compiled into the wheels of those"
SYSTEM: Final = "System libraries"
EBPF: Final = "Compiled into the eBPF programs"
DATA: Final = "Interfaces and data of other projects in this tree"
DEVELOPMENT: Final = "Python packages for development and tests"
SECTIONS: Final = (RUN_TIME, EXTRAS, REQUIRED, COMPILED, SYSTEM, EBPF, DATA, DEVELOPMENT)

IN_PROCESS: Final = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
        "any-OSI",
        "blessing",
    }
)
"""May be part of the agent's process, whose own license is BSD-3-Clause."""
LINKED: Final = IN_PROCESS | {"LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-or-later"}
"""May be loaded from the host as a shared library that users can replace."""
KERNEL: Final = IN_PROCESS | {"GPL-2.0-only WITH Linux-syscall-note"}
"""May be used by programs that the kernel loads."""
ALLOWED: Final = {RUN_TIME: IN_PROCESS, EXTRAS: IN_PROCESS, REQUIRED: IN_PROCESS, COMPILED: IN_PROCESS,
                  SYSTEM: LINKED, EBPF: KERNEL}  # fmt: skip

_BSD: Final = frozenset({"BSD-2-Clause", "BSD-3-Clause"})
_CLASSIFIERS: Final[Mapping[str, frozenset[str]]] = {
    "Apache Software License": frozenset({"Apache-2.0"}),
    "BSD License": _BSD,
    "ISC License (ISCL)": frozenset({"ISC"}),
    "MIT License": frozenset({"MIT"}),
    "Mozilla Public License 2.0 (MPL 2.0)": frozenset({"MPL-2.0"}),
    "Python Software Foundation License": frozenset({"PSF-2.0"}),
    "University of Illinois/NCSA Open Source License": frozenset({"NCSA"}),
    "zlib/libpng License": frozenset({"Zlib"}),
}
_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "3-clause bsd license": frozenset({"BSD-3-Clause"}),
    "apache 2.0": frozenset({"Apache-2.0"}),
    "apache license 2.0": frozenset({"Apache-2.0"}),
    "apache software license": frozenset({"Apache-2.0"}),
    "bsd": _BSD,
    "bsd license": _BSD,
    "mit license": frozenset({"MIT"}),
    "the mit license (mit)": frozenset({"MIT"}),
    **{name.lower(): frozenset({name}) for name in (*IN_PROCESS, "MPL-2.0", "NCSA")},
}
"""What the free text of older metadata means, in lower case."""
_MARKED: Final = re.compile(r"Copyright \(c\)|\(C\) Copyright|SPDX-License-Identifier:")
_ENTRY: Final = re.compile(r"(?P<name>\S.*?)(?: (?P<bound>[<>=~!]\S*))?(?:\s{2,}(?P<license>\S.*))?")

Find = Callable[[str], Distribution]


@dataclass(slots=True)
class Entry:
    """Something that NOTICE names, with its fields."""

    name: str
    bound: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def license(self) -> str:
        return self.fields.get("License", "")

    def listed(self, name: str) -> list[str]:
        """A field that is a list."""
        return [item.strip() for item in self.fields.get(name, "").split(",") if item.strip()]


Notice = Mapping[str, Mapping[str, Entry]]
"""By section, by name as package indexes compare it."""


def main(arguments: Sequence[str]) -> int:
    """Print the faults of the tree; the exit code."""
    faults = list(check(Path(arguments[0]) if arguments else Path(__file__).parent.parent))
    for fault in faults:
        sys.stderr.write(f"NOTICE: {fault}\n")
    return 1 if faults else 0


def check(root: Path, find: Find = distribution) -> Iterator[str]:
    """What is wrong with the NOTICE of that tree, a line each; `find` looks installed packages up."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    notice = parse((root / "NOTICE").read_text())
    yield from (f"there is no section {section!r}" for section in SECTIONS if section not in notice)
    yield from (f"unknown section {section!r}" for section in notice if section not in SECTIONS)
    if set(notice) != set(SECTIONS):
        return
    yield from _declared(notice, project)
    yield from _required(notice, project, find)
    yield from _contained(notice)
    for section in (RUN_TIME, EXTRAS, REQUIRED, DEVELOPMENT):
        for entry in notice[section].values():
            yield from _agrees(entry, find)
    for section, allowed in ALLOWED.items():
        for entry in notice[section].values():
            if not permitted(entry.license, allowed):
                yield f"{entry.name}: {entry.license or 'no license'} may not be used here ({section})"
    yield from _places(notice, root)
    yield from _unlisted(notice, root)


def parse(text: str) -> Notice:
    """The sections, with an underlined heading each; in them entries with indented fields, or one line an entry."""
    sections: dict[str, dict[str, Entry]] = {}
    lines = text.splitlines()
    entries: dict[str, Entry] | None = None
    entry: Entry | None = None
    last = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch("=+", following) and line:
            entries, entry = sections.setdefault(line, {}), None
        elif line.startswith("        ") and entry is not None and last:
            entry.fields[last] += f" {line.strip()}"
        elif line.startswith("    ") and entry is not None:
            last, _, value = line.strip().partition(": ")
            entry.fields[last] = value
        elif (
            entries is not None and (match := _ENTRY.fullmatch(line)) and (match["license"] or following[:4] == "    ")
        ):
            entry, last = Entry(match["name"], match["bound"] or ""), ""
            if match["license"]:
                entry.fields["License"] = match["license"]
            entries[canonicalize_name(entry.name)] = entry
    return sections


def permitted(expression: str, allowed: Iterable[str]) -> bool:
    """Whether an SPDX expression of AND and OR, without parentheses, can be met by allowed licenses alone."""
    known = set(allowed)
    alternatives = [alternative.split(" AND ") for alternative in expression.split(" OR ")]
    return any(all(one.strip() in known for one in needed) for needed in alternatives)


def stated(found: Distribution) -> list[frozenset[str]]:
    """What a package's metadata says of its license: the licenses that each statement may mean."""
    metadata = found.metadata
    if "License-Expression" in metadata:
        return [frozenset({metadata["License-Expression"]})]
    classifiers = [
        one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier") or [] if one.startswith("License")
    ]
    meanings = [_CLASSIFIERS[name] for name in classifiers if name in _CLASSIFIERS]
    text = metadata["License"].strip().partition("\n")[0] if "License" in metadata else ""
    if meaning := _NAMES.get(text.strip().lower()):
        meanings.append(meaning)
    return meanings


def _declared(notice: Notice, project: Mapping[str, Any]) -> Iterator[str]:
    """pyproject.toml and NOTICE name the same packages with the same bounds."""
    for section, wanted in _requirements(project).items():
        entries = notice[section]
        for name, (requirement, extras) in wanted.items():
            if name not in entries:
                yield f"{requirement.name} of pyproject.toml is missing ({section})"
                continue
            entry = entries[name]
            if entry.bound != str(requirement.specifier):
                yield f"{entry.name}: {entry.bound or 'no bound'}, but pyproject.toml has {requirement.specifier}"
            if extras != set(entry.listed("Extra")):
                yield f"{entry.name}: extra {entry.fields.get('Extra')}, but pyproject.toml has {', '.join(extras)}"
        for name in entries.keys() - wanted.keys():
            yield f"{entries[name].name} is not in pyproject.toml any more ({section})"


Wanted = Mapping[str, tuple[Requirement, set[str]]]
"""Requirements by the package's name, with the extras that bring them."""


def _requirements(project: Mapping[str, Any]) -> dict[str, Wanted]:
    """Packages of pyproject.toml by section of NOTICE."""
    table, groups = project["project"], project.get("dependency-groups", {})
    extras = [(line, extra) for extra, lines in table.get("optional-dependencies", {}).items() for line in lines]
    return {
        RUN_TIME: _by_name((line, None) for line in table["dependencies"]),
        EXTRAS: _by_name(extras),
        DEVELOPMENT: _by_name((line, None) for line in groups.get("dev", [])),
    }


def _by_name(lines: Iterable[tuple[str, str | None]]) -> Wanted:
    wanted: dict[str, tuple[Requirement, set[str]]] = {}
    for line, extra in lines:
        requirement = Requirement(line)
        _, extras = wanted.setdefault(canonicalize_name(requirement.name), (requirement, set()))
        if extra is not None:
            extras.add(extra)
    return wanted


def _required(notice: Notice, project: Mapping[str, Any], find: Find) -> Iterator[str]:
    """NOTICE names what the packages at run time and of extras require here, directly or not."""
    requirements = _requirements(project)
    direct = requirements[RUN_TIME].keys() | requirements[EXTRAS].keys()
    found: dict[str, str] = {}
    waiting = sorted(direct)
    while waiting:
        try:
            lines = find(waiting.pop()).requires or []
        except PackageNotFoundError:  # `_agrees` says so
            continue
        for requirement in map(Requirement, lines):
            name = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and name not in direct and name not in found:
                found[name] = requirement.name
                waiting.append(name)
    entries = notice[REQUIRED]
    yield from (f"{found[name]} is missing ({REQUIRED})" for name in sorted(found.keys() - entries.keys()))
    yield from (f"{entries[name].name} is required by nothing any more" for name in entries.keys() - found.keys())


def _contained(notice: Notice) -> Iterator[str]:
    """What is said to be in, or required by, something else names something that is there."""
    packages = notice[RUN_TIME].keys() | notice[EXTRAS].keys() | notice[REQUIRED].keys() | notice[SYSTEM].keys()
    for section in SECTIONS:
        for entry in notice[section].values():
            for name in (*entry.listed("Contained in"), *entry.listed("Required by")):
                if canonicalize_name(name) not in packages:
                    yield f"{entry.name}: {name} is not used any more"


def _agrees(entry: Entry, find: Find) -> Iterator[str]:
    """The installed package states the same license."""
    try:
        found = find(entry.name)
    except PackageNotFoundError:
        yield f"{entry.name} is not installed, so its license cannot be checked: run `make setup`"
        return
    meanings = stated(found)
    if not meanings:
        yield f"{entry.name}: its metadata states no license that packaging/check_notice.py knows"
    elif any(entry.license not in meaning for meaning in meanings):
        said = " and ".join(" or ".join(sorted(meaning)) for meaning in meanings)
        yield f"{entry.name}: {entry.license or 'no license'}, but its metadata has {said}"


def _places(notice: Notice, root: Path) -> Iterator[str]:
    """What is used in a place is imported there; files that are listed exist."""
    modules: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), set()).add(module)
    for section in SECTIONS:
        for name, entry in notice[section].items():
            for place in entry.listed("Used in"):
                path = root / place
                if not path.exists():
                    yield f"{entry.name}: there is no {place}"
                elif section in (RUN_TIME, EXTRAS) and not _imported(path, modules.get(name, set())):
                    yield f"{entry.name} is not imported in {place}"
            for pattern in entry.listed("Files"):
                if not any(root.glob(pattern)):
                    yield f"{entry.name}: there is no {pattern}"


def _imported(path: Path, modules: Iterable[str]) -> bool:
    names = "|".join(map(re.escape, modules))
    statement = re.compile(rf"^\s*(?:import|from) (?:{names})\b", re.MULTILINE)
    files = [path] if path.is_file() else path.rglob("*.py")
    return bool(names) and any(statement.search(file.read_text()) for file in files)


def _unlisted(notice: Notice, root: Path) -> Iterator[str]:
    """A file of the source tree that bears another's mark must be listed."""
    listed = {
        file for entry in notice[DATA].values() for pattern in entry.listed("Files") for file in root.glob(pattern)
    }
    for directory in ("src", "zeek/scripts"):
        for file in sorted((root / directory).rglob("*")):
            if not file.is_file() or file in listed or file.suffix in {".o", ".pyc"}:
                continue
            if match := _MARKED.search(file.read_text(errors="replace")):
                yield f"{file.relative_to(root)} bears {match[0]!r} and is not listed ({DATA})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
