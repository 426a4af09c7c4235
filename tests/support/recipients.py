"""Who installs queries in tests, and an agent that nobody asks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from zeek_agent.database.database import Profile
from zeek_agent.queries.subscriptions import Change, Query, Report
from zeek_agent.schema import Row


class NobodysAgent:
    """Tables of these tests ask nothing of the agent."""

    id, instance, hostname = "H1", "I1", "here"

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the agent's {name} is asked for")


@dataclass
class Recorder:
    """A recipient that keeps its reports; `gate` closed means that it takes none."""

    identity: str = "ws://zeek:1"
    profile: Profile = Profile.FULL
    durable: bool = True
    recognizes_replays: bool = True
    incarnation: str = "zeek_1"
    reports: asyncio.Queue[Report] = field(default_factory=asyncio.Queue)
    failures: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def encoding(self, report: Report) -> None:
        """It takes plain rows."""

    async def deliver(self, report: Report) -> None:
        await self.gate.wait()
        self.reports.put_nowait(report)

    async def report_error(self, query_id: str, query: Query, message: str) -> None:
        self.failures.put_nowait(message)

    async def next(self) -> list[tuple[Change | None, Row]]:
        report = await asyncio.wait_for(self.reports.get(), 5)
        return list(report.rows)
