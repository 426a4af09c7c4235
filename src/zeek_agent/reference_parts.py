"""Generated parts of the reference pages: lists in pages that are otherwise written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, get_args

from zeek_agent.collector import pack_file
from zeek_agent.collector.agents import AgentState
from zeek_agent.host.macos import eslogger_line, log_line
from zeek_agent.metrics import agent_metrics, collector_metrics, gateway_metrics

LOGS_BEGIN: Final = "<!-- logs: generated -->\n"
LOGS_END: Final = "<!-- logs: end -->\n"
METRICS_BEGIN: Final = "<!-- metrics: generated -->\n"
METRICS_END: Final = "<!-- metrics: end -->\n"
LINES: Final = {
    "Events": "each event, from agents that record events",
    "Differences": "rows that appeared (`new`) and disappeared (`gone`) between two runs",
    "SnapshotPlusDifferences": "all rows once, then those that appeared (`new`) and disappeared (`gone`)",
    "Snapshots": "all rows, each time",
}
"""What a line of a log is, by the subscription of its queries."""


def with_logs(collector: str) -> str:
    """The collector's page with the logs of the default pack."""
    file, _ = pack_file.load()
    rows = [("`zeek-agent.log`", "Agents", ", ".join(f"`{state}`" for state in get_args(AgentState)))]
    for path, log in file.logs.items():
        if queries := file.queries_for("collector", path):
            subscription = queries[0][1].subscription or file.subscription
            rows.append((f"`{path}.log`", log.summary, LINES[subscription]))
    rows.append(
        ("`reporter.log`", "Errors", "errors reported by agents, invalid messages, and agent ids that are used twice")
    )
    return replaced(collector, LOGS_BEGIN, LOGS_END, markdown_table(("Log", "Content", "Lines"), rows))


def with_metrics(metrics: str) -> str:
    """The page of the metrics with their list."""
    parts = []
    for title, families in (
        ("Agent", agent_metrics.FAMILIES),
        ("Collector", collector_metrics.FAMILIES),
        ("Gateway", gateway_metrics.FAMILIES),
    ):
        rows = [
            (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.meaning)
            for one in families
        ]
        parts.append(f"### {title}\n\n{markdown_table(('Metric', 'Type', 'Labels', 'Meaning'), rows)}")
    return replaced(metrics, METRICS_BEGIN, METRICS_END, "\n\n".join(parts))


def with_macos_records(platforms: str) -> str:
    """The page of macOS and Windows with the fields of eslogger's messages and of the unified log."""
    for name, fields in (("eslogger", eslogger_line.FIELDS), ("unified log", log_line.FIELDS)):
        rows = [(f"`{field}`", meaning) for field, meaning in fields.items()]
        text = markdown_table(("Field", "Columns, or why there are none"), rows)
        platforms = replaced(platforms, f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->\n", text)
    return platforms


def replaced(page: str, begin: str, end: str, text: str) -> str:
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{text}\n{end}{after}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
