"""What YARA rules find in files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from zeek_agent.errors import SqlError
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate, Purpose
from zeek_agent.host.files.path_lookup import NamedFile, PathQuery, named_files
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.sql_patterns import leave_out
from zeek_agent.host.files.yara_scan import RULES_BYTES_MAX, Found, YaraError, YaraRules
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import NAMESPACE_COLUMNS, PATTERNS, open_gate, wanted_files
from zeek_agent.text import from_bytes, from_os

_SOURCES: Final = ("sig_group", "sigfile", "sigrule", "sigurl")

yara_file = osquery_table(
    "yara_file",
    "what YARA rules find in files",
    description=(
        "One row per regular file that `path` names and per source of rules, also without a match. The rules are the "
        f"statement's (`sigrule`) or those of a file (`sigfile`). {PATTERNS} Rules tell what is in a file, so only "
        "files whose [contents](security.md#contents) may be read are scanned; others are counted in "
        "`zeek_agent_queries`, like those above 256 MB. Needs the extra `yara` (`pip install 'zeek-agent[yara]'`)."
    ),
    columns=[
        Column("path", "text", "path of the file"),
        Column("matches", "text", "names of the rules that match, joined by commas"),
        Column("count", "int", "number of these rules"),
        Column("sig_group", "text", "always empty: the agent has no groups of rules"),
        Column("sigfile", "text", "path of the file with the rules"),
        Column("sigrule", "text", "the rules", hidden=True),
        Column(
            "strings", "text", "strings found, each as `$name:offset` (hexadecimal), joined by commas; at most 1,000"
        ),
        Column("tags", "text", "tags of the rules that match, joined by commas"),
        Column("sigurl", "text", "always empty: the agent fetches no rules", hidden=True),
        NAMESPACE_COLUMNS[0],
    ],
    aliases=("yara",),
    required=("path",),
    examples=[
        "SELECT path, matches, strings FROM yara_file WHERE path = '/etc/hosts' "
        "AND sigrule = 'rule here { strings: $a = \"localhost\" condition: $a }'",
        "SELECT path, count FROM yara_file WHERE path LIKE '/etc/host%' AND sigrule = 'rule every { condition: true }'",
    ],
    opens_files=True,
)


@yara_file.snapshot
def scanned(wanted: Constraints) -> Iterator[Row]:
    gate = open_gate(wanted)
    rules = list(_rules(wanted, gate))
    for each in wanted_files(wanted, gate):
        for sources, compiled in rules:
            found = _scan(gate, each, compiled, wanted)
            if found is not None:
                matches, strings, tags = (",".join(texts) for texts in found)
                group, file, rule, url = sources
                yield from_os(each.path), matches, len(found.rules), group, file, rule, strings, tags, url, None


def _rules(wanted: Constraints, gate: Gate) -> Iterator[tuple[tuple[str, str, str, str], YaraRules]]:
    """The rules that the statement names, compiled, each with the cells of its source."""
    given = {column: sorted(map(str, wanted.equal(column) or ())) for column in _SOURCES}
    if not any(given.values()):
        raise SqlError("table yara_file: a value for sigrule or sigfile is required (= or IN)")
    for column in ("sig_group", "sigurl"):
        for _ in given[column]:
            wanted.report(f"table yara_file: {column} is not supported: use sigrule or sigfile")
    for rule in given["sigrule"]:
        yield from _compiled(rule, ("", "", rule, ""), "sigrule", wanted)
    for path in given["sigfile"]:
        source = _contents(gate, path, wanted)
        if source is not None:
            yield from _compiled(source, ("", path, "", ""), path, wanted)


def _compiled(
    source: str, sources: tuple[str, str, str, str], place: str, wanted: Constraints
) -> Iterator[tuple[tuple[str, str, str, str], YaraRules]]:
    try:
        yield sources, YaraRules(source)
    except YaraError as error:
        wanted.report(f"table yara_file: {place}: {error}")


def _contents(gate: Gate, path: str, wanted: Constraints) -> str | None:
    """The rules of a file, whose contents must be permitted to be read."""
    for each in named_files(gate, PathQuery(frozenset({path})), wanted.check):
        try:
            opened = each.open(gate, Purpose.CONTENTS)
            if opened is not None:
                with opened.file as file:
                    return from_bytes(file.read(RULES_BYTES_MAX + 1) or b"")
        except (RefusedError, OSError) as error:
            leave_out(gate, path, error)
            wanted.report(f"table yara_file: {path}: {error}")
            return None
    wanted.report(f"table yara_file: {path}: there is no such file")
    return None


def _scan(gate: Gate, each: NamedFile, rules: YaraRules, wanted: Constraints) -> Found | None:
    """What is found; None, and counted, if the file cannot be scanned."""
    reads = wanted.context.reads
    wanted.check()
    try:
        opened = each.open(gate, Purpose.CONTENTS)
        if opened is None:
            return None
        with opened.file as file:
            return rules.scan(opened, os.fstat(file.fileno()).st_size, reads.seconds_left)
    except YaraError as error:
        reads.leave_out(Omission.SKIPPED, each.path, str(error))
    except (RefusedError, OSError) as error:
        leave_out(gate, each.path, error)
    return None


TABLES = (yara_file,)
