"""A real Zeek with a stock package, and agents as programs, each connected directly and through two gateways."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from journald import PrivateJournal, private_journal
from test_zeek_equal_logs import two_stock_zeeks
from test_zeek_gateways import drops
from twice_connected import Fleet, Line, twice_connected
from waiting import until
from zeek_log import parse_header, parse_log
from zeek_program import needs_zeek, records

pytest.importorskip("zeek_agent.gateway", reason="needs gateways")
pytestmark = [needs_zeek, pytest.mark.root, pytest.mark.long, pytest.mark.timeout(900)]

AGENTS = ("R1", "R2", "R3")
SCHEDULE = 10.0
SETTINGS = {f"sources.{name}": "off" for name in ("dns", "logins", "processes", "sockets")}
"""A stock package has no queries on these events."""
ENTRIES = 25
"""Of the journal, written at once."""
WAIT = 300.0
PAUSE = 1.0
"""Between looks at the logs."""
PROCESS = ("change", "name", "pid", "uid", "gid", "ppid")
"""Columns of a process that do not change."""
ADDED_USER = "newcomer"


@contextmanager
def process() -> Iterator[int]:
    """The pid of a process that lives as long as this."""
    with subprocess.Popen(["sleep", "3600"]) as one:
        try:
            yield one.pid
        finally:
            one.kill()


def own_accounts(journal: PrivateJournal, directory: Path) -> Path:
    """A copy of /etc/passwd, which is /etc/passwd to those who see this journal."""
    copy = directory / "passwd"
    shutil.copyfile("/etc/passwd", copy)
    subprocess.run([*journal.prefix, "mount", "--bind", str(copy), "/etc/passwd"], check=True)
    return copy


class TwoLogs:
    """What the two Zeeks have logged, of all agents together: a line as it is to be in both, and how often it is."""

    def __init__(self, directory: Path) -> None:
        self.places = (directory / "direct", directory / "behind")

    def lines(self, place: Path, log: str, texts: Sequence[str]) -> list[Line]:
        """The lines that contain all these texts, without parsing the others."""
        path = place / f"zeek-agent-{log}.log"
        content = path.read_bytes() if path.exists() else b""
        raw = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        found = [line for line in raw if line.startswith(b"#") or all(text.encode() in line for text in texts)]
        if not found:
            return []
        names = parse_header(b"".join(found))["#fields"]
        return [dict(zip(names, record, strict=True)) for record in parse_log(b"".join(found))]

    def matching(self, place: Path, log: str, wanted: Mapping[str, Any]) -> list[Line]:
        """The lines with these values."""
        return [
            line
            for line in self.lines(place, log, [str(value) for value in wanted.values()])
            if wanted.items() <= line.items()
        ]

    def counted(self, log: str, columns: Sequence[str], **wanted: Any) -> tuple[Counter[Any], Counter[Any]]:
        """In each, the lines with these values by agent and columns."""
        direct, behind = (
            Counter((line["hid"], *(line[name] for name in columns)) for line in self.matching(place, log, wanted))
            for place in self.places
        )
        return direct, behind

    def messages(self, text: str) -> tuple[Counter[Any], Counter[Any]]:
        """In each, how often each agent's log message that begins like this was logged."""
        direct, behind = (
            Counter(
                (line["hid"], line["message"])
                for line in self.lines(place, "system-logs", [text])
                if str(line["message"]).startswith(text)
            )
            for place in self.places
        )
        return direct, behind

    async def expect(self, log: str, **wanted: Any) -> None:
        """Wait until both have a line with these values of each agent."""

        async def found() -> bool:
            await asyncio.sleep(PAUSE)
            return all({agent for (agent,) in one} == set(AGENTS) for one in self.counted(log, (), **wanted))

        await until(found, WAIT, f"not all agents have a line with {wanted} in {log}")

    async def expect_messages(self, text: str) -> None:
        """Wait until both have all entries whose messages begin like this, of each agent."""

        async def found() -> bool:
            await asyncio.sleep(PAUSE)
            return all(len(one) == ENTRIES * len(AGENTS) for one in self.messages(text))

        await until(found, WAIT, lambda: f"{text}: {[len(one) for one in self.messages(text)]}")

    def last(self, log: str, **wanted: Any) -> tuple[dict[str, str | None], dict[str, str | None]]:
        """In each, the change in the last line with these values, by agent."""
        direct, behind = (
            {line["hid"]: line["change"] for line in self.matching(place, log, wanted)} for place in self.places
        )
        return direct, behind


def write(journal: PrivateJournal, text: str) -> None:
    for number in range(ENTRIES):
        journal.write(MESSAGE=f"{text} {number}", PRIORITY=6, SYSLOG_IDENTIFIER="test")


async def happen(
    fleet: Fleet, journal: PrivateJournal, accounts: Path, found: TwoLogs, *, is_broken: bool
) -> tuple[int, int]:
    """Entries of the journal, a process and a socket that come and go, and a new user.

    A gateway may be killed meanwhile. Returns the process's pid and the socket's port.
    """
    with process() as pid, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        await found.expect("processes", pid=pid, change="new")
        await found.expect("sockets", local_port=port, state="LISTEN", change="new")
        write(journal, "before")
        if is_broken:
            fleet.break_one(fleet.busiest_gateway())
        write(journal, "after")
        await found.expect_messages("before")
        await found.expect_messages("after")
        await fleet.have_run()
    with accounts.open("a") as file:
        file.write(f"{ADDED_USER}:x:4711:4711::/home/{ADDED_USER}:/bin/sh\n")
    await found.expect("users", name=ADDED_USER, change="new")
    await found.expect("processes", pid=pid, change="gone")
    await found.expect("sockets", local_port=port, change="gone")
    return pid, port


@pytest.mark.parametrize("version", ["2.4", "2.3"])
async def test_a_stock_package_logs_of_real_agents_what_it_logs_of_direct_connections(
    tmp_path: Path, version: str
) -> None:
    found = TwoLogs(tmp_path)
    with private_journal() as journal, two_stock_zeeks(tmp_path, version, SCHEDULE) as urls:
        accounts = own_accounts(journal, tmp_path)
        async with twice_connected(
            tmp_path, urls, 0, schedule=SCHEDULE, real=AGENTS, settings=SETTINGS, prefix=journal.prefix
        ) as fleet:
            pid, port = await happen(fleet, journal, accounts, found, is_broken=False)
    for text in ("before", "after"):
        once = Counter((agent, f"{text} {number}") for agent in AGENTS for number in range(ENTRIES))
        assert found.messages(text) == (once, once)
    for table, columns, wanted in (
        ("processes", PROCESS, {"pid": pid}),
        ("sockets", ("change", "process", "local_addr", "state"), {"local_port": port, "pid": os.getpid()}),
    ):
        direct, behind = found.counted(table, columns, **wanted)
        assert direct == behind
        assert set(direct.values()) == {1}
        assert Counter(line[:2] for line in direct) == Counter(
            (agent, one) for agent in AGENTS for one in ("new", "gone")
        )
    added = Counter((agent, "new", ADDED_USER) for agent in AGENTS)
    assert found.counted("users", ("change", "name"), name=ADDED_USER) == (added, added)
    for place in found.places:
        assert not drops(place)


@pytest.mark.parametrize("version", ["2.4", "2.3"])
async def test_a_killed_gateway_costs_real_agents_no_more_than_cut_connections(
    tmp_path: Path, version: str, record_property: Any
) -> None:
    """Nothing is lost. Rows that Zeek had not confirmed may come twice: one delivery of each agent that moved."""
    found = TwoLogs(tmp_path)
    with private_journal() as journal, two_stock_zeeks(tmp_path, version, SCHEDULE) as urls:
        accounts = own_accounts(journal, tmp_path)
        async with twice_connected(
            tmp_path, urls, 0, schedule=SCHEDULE, real=AGENTS, settings=SETTINGS, prefix=journal.prefix
        ) as fleet:
            pid, port = await happen(fleet, journal, accounts, found, is_broken=True)
    written = {
        (agent, f"{text} {number}") for agent in AGENTS for text in ("before", "after") for number in range(ENTRIES)
    }
    direct, behind = (before + after for before, after in zip(*map(found.messages, ("before", "after")), strict=True))
    assert set(direct) == set(behind) == written
    moved = sum(1 for one in records(tmp_path / "behind" / "zeek-agent.log") if one["type_"] == "reconnect")
    again = {name: one.total() - len(one) for name, one in (("direct", direct), ("behind", behind))}
    record_property("agents that moved", moved)
    record_property("lines that came twice", again)
    assert moved
    assert again["behind"] <= moved * 2 * ENTRIES
    for ended in (found.last("processes", pid=pid), found.last("sockets", local_port=port, pid=os.getpid())):
        assert ended == (dict.fromkeys(AGENTS, "gone"),) * 2
    added = Counter((agent, "new", ADDED_USER) for agent in AGENTS)
    assert found.counted("users", ("change", "name"), name=ADDED_USER) == (added, added)
    for place in found.places:
        assert not drops(place)
