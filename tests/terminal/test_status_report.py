"""The parts of `zeek-agent status` on each platform."""

from __future__ import annotations

import re
from collections.abc import Generator

import pytest

from zeek_agent import platforms
from zeek_agent.config.declarations import Config
from zeek_agent.control.messages import Columns, Facts, Frame, QueryRequest, Request, Rows
from zeek_agent.errors import SqlError
from zeek_agent.tables import builtin_tables
from zeek_agent.terminal import doctor
from zeek_agent.terminal.status_report import as_json, as_text, gather_status


class AgentOfPlatform:
    """Answers like an agent that has the tables of a platform, which are empty."""

    notice = None
    place = "here"

    def __init__(self, key: str) -> None:
        self._tables = {table.name: table for table in builtin_tables(key)}

    def responses(self, request: Request) -> Generator[Frame, None, None]:
        if not isinstance(request, QueryRequest):
            yield Facts({"pid": 4711, "version": "3.0.0"})
            return
        (name,) = re.findall(r"FROM (\w+)", request.sql)
        if name not in self._tables:
            raise SqlError(f"no such table: {name}")
        yield Columns([(column.name, column.type) for column in self._tables[name].columns])
        yield Rows([])

    def close(self) -> None:
        pass


@pytest.mark.parametrize("key", platforms.KEYS)
def test_the_report_has_only_tables_of_the_platform(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "HERE", platforms.of(key))
    report = gather_status(AgentOfPlatform(key))
    expected = {"connections", "sources", "queries"} | ({"workers"} if key == "linux" else set())
    assert report.parts.keys() == expected
    assert ("workers: none" in as_text(report)) == (key == "linux")
    assert '"pid": 4711' in as_json(report)


@pytest.mark.parametrize("key", platforms.KEYS)
def test_doctor_asks_a_running_agent_only_for_tables_of_the_platform(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "HERE", platforms.of(key))
    monkeypatch.setattr(doctor.responders, "connect", lambda _: AgentOfPlatform(key))
    (check,) = doctor._agent(Config())
    assert (check.name, check.verdict) == ("agent", "ok")
    assert check.found.startswith("running, pid 4711")
