"""What the collector shows to people."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted_agent import Agent, agent_of, collecting
from waiting import until

from zeek_agent import logbook
from zeek_agent.collector import summary
from zeek_agent.collector.log_archive import ArchiveStats
from zeek_agent.collector.server import Collector
from zeek_agent.collector.summary import SummaryView, printable
from zeek_agent.zeek import broker_json, protocol

HOSTILE = "\x1b[2J\x1b]0;owned\x07\nhost\u202e\u200b[red]x[/red]"


async def hostile_agent_with_rows(collector: Collector, agent: Agent) -> None:
    await agent.subscribe()
    await agent.hello(hostname=HOSTILE)
    context = protocol.context_record(protocol.Context(agent.id, 0.0))
    topic = protocol.response_topic(agent.id, collector.instance)
    for number in range(5):
        columns = broker_json.vector([broker_json.string(f"row {number}")])
        await agent.send(protocol.event_message(topic, "Collector::things_events", context, columns))
    await agent.send(protocol.agent_error(collector.instance, protocol.Context(agent.id, 0.0), HOSTILE))
    await until(lambda: collector.stats.messages == 7)


def rendered(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None, _environ={})
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


async def test_the_screen_shows_agents_logs_and_errors(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        before = SummaryView.after(None, collector.stats, 100.0)
        await hostile_agent_with_rows(collector, agent)
        view = SummaryView.after(before, collector.stats, 102.0)
        text = rendered(summary.screen(collector, view))
    assert "1 connection, 7 messages" in text
    assert "HAbc" in text
    assert "connected" in text
    assert "Debian GNU/Linux 12 (bookworm)" in text
    [log] = [line.split() for line in text.splitlines() if line.startswith("things-events")]
    assert log == ["things-events", "5", "2.5", "0"]
    assert "error from Zeek Agent: " in text


async def test_removed_logs_are_shown(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector:
        archive = ArchiveStats(
            stored_bytes=1_500_000, limit_bytes=2_000_000_000, removed_by_age=1, removed_by_size=1200
        )
        view = SummaryView.after(None, replace(collector.stats, archive=archive), 100.0)
        assert summary.line(view).endswith("logs 1.5 MB (removed 1 by age, 1,200 by total size)")
        assert "logs 1.5 MB of 2.0 GB (removed 1 by age, 1,200 by total size)" in rendered(
            summary.screen(collector, view)
        )


async def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await hostile_agent_with_rows(collector, agent)
        view = SummaryView.after(None, collector.stats, 100.0)
        texts = [rendered(summary.screen(collector, view)), summary.line(view)]
    for text in texts:
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "[red]x[/red]" in text


async def test_the_line_shows_rates_and_the_last_error(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        before = SummaryView.after(None, collector.stats, 100.0)
        assert summary.line(before) == "agents 0 connected, 0 known; rows 0; errors 0"
        await hostile_agent_with_rows(collector, agent)
        text = summary.line(SummaryView.after(before, collector.stats, 110.0))
    assert text.startswith("agents 1 connected, 1 known; rows 5 (things-events 0.5/s")
    assert "; errors 1; last: error from Zeek Agent: " in text
    assert "\n" not in text


async def test_an_agent_that_left_is_shown_as_away_or_shut_down(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector:
        async with agent_of(collector, "HAway") as one, agent_of(collector, "HDown") as two:
            await one.join()
            await two.join()
            await two.send(protocol.agent_shutdown(protocol.Context("HDown", 0.0)))
            await until(lambda: collector.stats.messages == 3)
        await until(lambda: collector.stats.connections == 0)
        text = rendered(summary.screen(collector, SummaryView.after(None, collector.stats, 0.0)))
    assert "away" in next(line for line in text.splitlines() if "HAway" in line)
    assert "shut down" in next(line for line in text.splitlines() if "HDown" in line)


async def shown_for_a_moment(collector: Collector, stream: Any) -> None:
    task = asyncio.create_task(summary.show(collector, stream))
    await asyncio.sleep(0.15)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_without_a_terminal_it_is_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "LINE_INTERVAL_SECONDS", 0.05)
    stream = io.StringIO()
    async with collecting(tmp_path) as collector:
        await shown_for_a_moment(collector, stream)
    assert set(stream.getvalue().splitlines()) == {"agents 0 connected, 0 known; rows 0; errors 0"}


async def test_a_reader_that_went_away_ends_it_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(summary, "LINE_INTERVAL_SECONDS", 0.05)
    reading, writing = os.pipe()
    os.close(reading)
    async with collecting(tmp_path) as collector:
        with suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
            await asyncio.wait_for(summary.show(collector, stream), 5)
    assert "cannot write summaries to standard output: Broken pipe" in caplog.text


async def test_on_a_terminal_it_is_a_live_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "LIVE_INTERVAL_SECONDS", 0.05)
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    try:
        async with collecting(tmp_path) as collector:
            with os.fdopen(slave, "w") as terminal:
                await shown_for_a_moment(collector, terminal)
                shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
    assert "collector on 127.0.0.1" in shown
    assert "none yet" in shown


async def test_log_lines_scroll_above_the_live_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "LIVE_INTERVAL_SECONDS", 0.05)
    monkeypatch.setenv("TERM", "xterm")
    erase_line, view = "\x1b[2K", "collector on 127.0.0.1"
    handler = logbook.StandardError()
    handler.setFormatter(logbook.LineFormatter())
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    try:
        async with collecting(tmp_path) as collector:
            with os.fdopen(slave, "w") as terminal:
                monkeypatch.setattr(sys, "stderr", terminal)
                task = asyncio.create_task(summary.show(collector, terminal))
                await asyncio.sleep(0.15)
                handler.emit(
                    logging.makeLogRecord({"levelname": "WARNING", "name": "here", "msg": "mind \x1b[2J this"})
                )
                shown = os.read(master, 65536).decode()
                while "mind" not in shown or view not in shown.partition("mind")[2]:
                    shown += os.read(master, 65536).decode()
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    finally:
        os.close(master)
    drawn_so_far, warning, redrawn = shown.partition("mind \\x1b[2J this")
    assert warning
    assert drawn_so_far.rindex(erase_line) > drawn_so_far.rindex(view)
    assert view in redrawn


async def test_failing_disks_and_open_ports_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "logs"
    place.write_text("in the way")
    async with collecting(place) as collector:
        collector.warning = "anyone can reach this"
        view = SummaryView.after(None, collector.stats, 0.0)
        assert "anyone can reach this" in rendered(summary.screen(collector, view))
        assert f"cannot write {place}: " in summary.line(view)


def test_text_is_made_printable() -> None:
    assert printable("plain ä 名") == "plain ä 名"
    assert printable("\x1b[0m\n") == "\\x1b[0m\\x0a"
    assert printable("a\u202eb\u2028") == "a\\u202eb\\u2028"
    assert len(printable("x" * 10_000)) == 200


def test_rich_is_loaded_only_for_a_terminal() -> None:
    import subprocess
    import sys

    code = "import sys, zeek_agent.collector.server, zeek_agent.collector.summary; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
