"""Summary of a collector: a live view on a terminal, periodic lines elsewhere.

Hosts may be hostile and choose their names, so all text is made printable.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from zeek_agent.text import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zeek_agent.collector.agents import KnownAgent
    from zeek_agent.collector.log_archive import ArchiveStats
    from zeek_agent.collector.stats import CollectorStats

log = logging.getLogger(__name__)

LIVE_INTERVAL_SECONDS: Final = 1.0
"""Fast enough for people, and cheap."""
LINE_INTERVAL_SECONDS: Final = 10.0
"""Keeps the output of a service short."""
AGENTS_SHOWN: Final = 20
"""The latest agents, as many as fit on a small terminal."""
ERRORS_SHOWN: Final = 5
"""The latest errors; all are in `reporter.log`."""
_TEXT_CHARACTERS: Final = 200
"""Maximum of a text from an agent."""


class Summarized(Protocol):
    """A collector in this process, or the agent's view of its embedded one."""

    @property
    def stats(self) -> CollectorStats: ...
    @property
    def place(self) -> str:
        """Where it can be reached, for messages."""
        ...

    @property
    def warning(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class SummaryView:
    """A collector's state, and the rate of rows per log since the previous view. `now` is on the monotonic clock."""

    stats: CollectorStats
    now: float
    rates: Mapping[str, float]

    @classmethod
    def after(cls, before: SummaryView | None, stats: CollectorStats, now: float) -> SummaryView:
        earlier = {log.path: log.rows for log in before.stats.logs} if before else {}
        seconds = max(now - before.now, 0.001) if before else float("inf")
        return cls(stats, now, {log.path: (log.rows - earlier.get(log.path, 0)) / seconds for log in stats.logs})


async def show(collector: Summarized, stream: TextIO | None = None) -> None:
    """Show the collector's state on `stream` (standard output) until cancelled."""
    stream = stream or sys.stdout
    try:
        await (_show_live if stream.isatty() else _show_lines)(collector, stream)
    except OSError as error:
        log.warning("cannot write summaries to standard output: %s", error.strerror)


async def _show_lines(collector: Summarized, stream: TextIO) -> None:
    view = SummaryView.after(None, collector.stats, time.monotonic())
    while True:
        await asyncio.sleep(LINE_INTERVAL_SECONDS)
        view = SummaryView.after(view, collector.stats, time.monotonic())
        stream.write(f"{line(view)}\n")
        stream.flush()


async def _show_live(collector: Summarized, stream: TextIO) -> None:
    from rich.console import Console
    from rich.live import Live

    view = SummaryView.after(None, collector.stats, time.monotonic())
    # Log lines on the same terminal scroll by above the view.
    with Live(
        screen(collector, view),
        console=Console(file=stream),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=sys.stderr.isatty(),
    ) as live:
        while True:
            await asyncio.sleep(LIVE_INTERVAL_SECONDS)
            view = SummaryView.after(view, collector.stats, time.monotonic())
            live.update(screen(collector, view), refresh=True)


def line(view: SummaryView) -> str:
    """One line: agents, rows, the busiest logs, errors."""
    stats = view.stats
    rates = sorted(((rate, path) for path, rate in view.rates.items() if rate > 0), reverse=True)
    busiest = ", ".join(f"{path} {_rate(rate)}" for rate, path in rates[:5])
    errors = stats.refused + stats.agent_errors + stats.disk_errors
    parts = [
        f"agents {len(stats.connected)} connected, {len(stats.agents)} known",
        f"rows {stats.rows:,}" + (f" ({busiest})" if busiest else ""),
        f"errors {errors:,}",
    ]
    if stats.archive and (removed := _removed(stats.archive)):
        parts.append(f"logs {_size(stats.archive.stored_bytes)}{removed}")
    if stats.disk_error:
        parts.append(printable(stats.disk_error))
    elif errors and stats.recent_errors:
        parts.append(f"last: {printable(stats.recent_errors[-1][1])}")
    return "; ".join(parts)


def screen(collector: Summarized, view: SummaryView) -> RenderableType:
    """The live view: agents, logs, errors."""
    from rich.console import Group
    from rich.text import Text

    stats = view.stats
    since = f"for {_duration(view.now - stats.started)}" if stats.started else "not started"
    head = (
        f"collector {collector.place} {since}: "
        f"{_counted(stats.connections, 'connection')}, {_counted(stats.messages, 'message')}"
    )
    if archive := stats.archive:
        limit = f" of {_size(archive.limit_bytes)}" if archive.limit_bytes else ""
        head += f", logs {_size(archive.stored_bytes)}{limit}{_removed(archive)}"
    warnings = [Text(printable(text), style="bold red") for text in (collector.warning, stats.disk_error) if text]
    errors = [
        Text(f"{time.strftime('%H:%M:%S', time.localtime(moment))} {printable(text)}", style="red")
        for moment, text in stats.recent_errors[-ERRORS_SHOWN:]
    ]
    return Group(Text(head, style="bold"), *warnings, _agents(view), _logs(view), *errors)


def _agents(view: SummaryView) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("agent", "host", "system", "state", "last seen", box=None, header_style="dim", pad_edge=False)
    latest = sorted(view.stats.agents, key=lambda agent: agent.last_seen, reverse=True)
    for agent in latest[:AGENTS_SHOWN]:
        cells = (agent.id, agent.name, agent.os_name or agent.platform or "", _state(view.stats, agent))
        seen = f"{_duration(view.now - agent.last_seen)} ago"
        table.add_row(*(Text(printable(cell)) for cell in cells), Text(seen))
    if not latest:
        table.add_row(Text("none yet", style="dim"))
    elif len(latest) > AGENTS_SHOWN:
        table.add_row(Text(f"and {len(latest) - AGENTS_SHOWN} more", style="dim"))
    return table


def _logs(view: SummaryView) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("log", box=None, header_style="dim", pad_edge=False)
    for name in ("rows", "rows/s", "lost"):
        table.add_column(name, justify="right")
    for log in view.stats.logs:
        if log.rows or log.dropped:
            lost = Text(f"{log.dropped:,}", style="red" if log.dropped else "dim")
            table.add_row(Text(log.path), f"{log.rows:,}", f"{view.rates[log.path]:.1f}", lost)
    return table


def _state(stats: CollectorStats, agent: KnownAgent) -> str:
    if agent.id in stats.connected:
        return "connected"
    return "shut down" if agent.state == "shutdown" else "away"


def printable(text: str) -> str:
    """Text on one line without characters that control the terminal, change direction or are invisible."""
    text = escaped(text[:_TEXT_CHARACTERS])
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _removed(archive: ArchiveStats) -> str:
    """Rotated logs that are gone, by cause."""
    causes = []
    if archive.removed_by_age:
        causes.append(f"{archive.removed_by_age:,} by age")
    if archive.removed_by_size:
        causes.append(f"{archive.removed_by_size:,} by total size")
    return f" (removed {', '.join(causes)})" if causes else ""


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _rate(rate: float) -> str:
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s"
