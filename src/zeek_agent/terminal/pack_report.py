"""`zeek-agent pack check`: which queries of packs run on this host, and why the others do not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zeek_agent.collector import osquery_pack, osquery_queries, pack_file
from zeek_agent.collector.statement_check import Verdict, verdict
from zeek_agent.control.messages import CompileRequest
from zeek_agent.errors import SqlError
from zeek_agent.text import from_os, visible

if TYPE_CHECKING:
    from zeek_agent.control.messages import ProfileName
    from zeek_agent.terminal.responders import Responder


@dataclass(frozen=True, slots=True)
class Checked:
    """A query of a pack, and whether it runs here. `reason` is empty if it does."""

    file: str
    place: str
    name: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was found in all files. `notices` are about keys without an effect."""

    queries: tuple[Checked, ...]
    notices: tuple[str, ...]

    @property
    def all_run(self) -> bool:
        """Whether all queries run that are for this platform."""
        return all(one.verdict in (Verdict.RUNS, Verdict.PLATFORM) for one in self.queries)

    @property
    def counts(self) -> list[tuple[Verdict, int]]:
        """The number of queries in each class, those that run first."""
        found = Counter(one.verdict for one in self.queries)
        return [(one, found[one]) for one in Verdict if found[one] or one is Verdict.RUNS]


def check(responder: Responder, names: Iterable[str]) -> PackReport:
    """Compile the queries of all packs that these paths and patterns name. Raises UsageError for an invalid file."""
    checked: list[Checked] = []
    notices: list[str] = []
    for path in osquery_pack.expanded(names):
        if osquery_pack.is_osquery(path):
            found = osquery_pack.read(path)
            notices += (f"{path}: {notice}" for notice in found.notices)
            checked += _osquery(responder, found)
        else:
            checked += _own(responder, path)
    return PackReport(tuple(checked), tuple(notices))


def _osquery(responder: Responder, found: osquery_pack.OsqueryFile) -> Iterator[Checked]:
    for query in found.queries:
        excluded = osquery_queries.exclusion(query)
        if excluded is not None:
            yield Checked(found.origin, query.place, query.full_name, Verdict.PLATFORM, excluded)
            continue
        failed, reason = _compiled(responder, [query.sql], "osquery")
        if failed is Verdict.RUNS:
            failed, reason = _compiled(responder, query.discovery, "osquery")
            reason = f"discovery: {reason}" if reason else ""
        yield Checked(found.origin, query.place, query.full_name, failed, reason)
    for decorator in found.decorators:
        yield Checked(found.origin, decorator.place, decorator.place, *_compiled(responder, [decorator.sql], "osquery"))


def _own(responder: Responder, path: Path) -> Iterator[Checked]:
    file, origin = pack_file.load(path)
    for place, query in file.queries_for("collector"):
        profile: ProfileName = "full" if file.dialect_of(query) is None else "osquery"
        statements = [query.sql] if query.batch_sql is None else [query.sql, query.batch_sql]
        yield Checked(origin, place, query.log, *_compiled(responder, statements, profile))
    for number, decorator in enumerate(file.decorators):
        place = f"decorators[{number}]"
        profile = "osquery" if file.dialect == "osquery" else "full"
        yield Checked(origin, place, place, *_compiled(responder, [decorator.sql], profile))


def _compiled(responder: Responder, statements: Iterable[str], profile: ProfileName) -> tuple[Verdict, str]:
    """The class and text of the first error."""
    for sql in statements:
        try:
            with closing(responder.responses(CompileRequest(from_os(sql), profile))) as frames:
                for _ in frames:
                    pass
        except SqlError as error:
            return verdict(error), str(error)
    return Verdict.RUNS, ""


def as_text(report: PackReport) -> str:
    """One line per query, by file, and the totals."""
    width = max((len(one.verdict) for one in report.queries), default=0)
    lines: list[str] = []
    file = None
    for one in report.queries:
        if one.file != file:
            file = one.file
            lines += ["", visible(file)]
        reason = f": {one.reason}" if one.reason else ""
        lines.append(f"  {one.verdict:{width}}  {visible(one.name + reason)}")
    lines += ["", f"{len(report.queries)} queries: {', '.join(f'{count} {one}' for one, count in _worded(report))}"]
    return "\n".join(lines).lstrip("\n") + "\n"


def _worded(report: PackReport) -> Iterator[tuple[str, int]]:
    return (("run here" if one is Verdict.RUNS else one.value, count) for one, count in report.counts)


def as_json(report: PackReport) -> str:
    """The same as one JSON object."""
    queries = [
        {"file": one.file, "place": one.place, "name": one.name, "verdict": one.verdict, "reason": one.reason or None}
        for one in report.queries
    ]
    counts = {one.value: count for one, count in report.counts}
    document = {"queries": queries, "total": len(queries), "counts": counts, "notices": report.notices}
    return json.dumps(document, indent=2) + "\n"
