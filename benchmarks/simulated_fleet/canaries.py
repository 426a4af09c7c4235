"""Canaries: real agents among the simulated ones, whose event table follows a file that the rig writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from simulated_fleet.fake_host import TABLE, check_sum
from simulated_fleet.oracle import Recorded
from simulated_fleet.processes import Process, python, start, wait_for
from zeek_agent.control.messages import ControlClient, QueryRequest, Rows
from zeek_agent.errors import ZeekAgentError

START_SECONDS: Final = 90.0
DECLARATION: Final = f"""
[tables.{TABLE}]
summary = "rows of a canary"
follow = "%s"
columns = [
    {{ name = "store", type = "text", summary = "name of the canary" }},
    {{ name = "number", type = "count", summary = "number of the row" }},
    {{ name = "check_sum", type = "count", summary = "of both" }},
    {{ name = "detail", type = "text", summary = "blanks" }},
]
"""
SOURCES: Final = ("processes", "sockets", "translations", "system_logs", "dns", "files", "logins")


class Canary:
    """One `zeek-agent run`. `place` is a directory of root's, which own tables require."""

    def __init__(self, number: int, place: Path, directory: Path, servers: Sequence[str]) -> None:
        self.id = f"Hcanary{number:02d}"
        self.store = f"canary-{number}"
        self.rows = 0
        self.file = place / f"canary-{number}.jsonl"
        declaration = place / f"canary-{number}.toml"
        declaration.write_text(DECLARATION % self.file)
        self._state = directory / f"canary-{number}"
        command = python("zeek_agent", "run", "--state-dir", self._state)
        settings = {
            "agent.id": self.id,
            "tables.files": declaration,
            "zeek.destinations": ",".join(servers),
            "zeek.reconnect_max": 5,
            "log.level": "warning",
            **{f"sources.{name}": "off" for name in SOURCES},
        }
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        self.process: Process = start(f"canary-{number}", command, directory)

    def wait_ready(self) -> None:
        """Wait until the agent has the query."""
        wait_for(self._has_query, START_SECONDS, f"{self.id} has no query: {self.process.text[-1000:]}")

    def _has_query(self) -> bool:
        return bool(self._ask("SELECT runs FROM zeek_agent_queries WHERE runs > 0"))

    def _ask(self, sql: str) -> list[Sequence[object]]:
        try:
            client = ControlClient(self._state / "zeek-agent.sock")
        except (ZeekAgentError, OSError):
            return []
        try:
            return [
                row for frame in client.responses(QueryRequest(sql)) if isinstance(frame, Rows) for row in frame.rows
            ]
        finally:
            client.close()

    def record(self, rows: int) -> None:
        """Write so many more rows."""
        with self.file.open("a") as file:
            for _ in range(rows):
                self.rows += 1
                row = {
                    "store": self.store,
                    "number": self.rows,
                    "check_sum": check_sum(self.store, self.rows),
                    "detail": "",
                }
                file.write(json.dumps(row) + "\n")

    @property
    def recorded(self) -> Recorded:
        return Recorded(self.id, self.store, 1, self.rows)
