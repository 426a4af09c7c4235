"""Sources of Windows' event logs under a real supervisor, with a real store and logs in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pytest
from fake_wevtapi import FakeWindows
from waiting import until_sync
from windows_events import event_xml
from windows_processes import DRIVES, Living, entity_id

from zeek_agent import platforms
from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.host.windows.event_fields import SECURITY, SECURITY_CHANNEL, SYSMON, SYSMON_CHANNEL
from zeek_agent.masking.masker import Masker
from zeek_agent.platforms.winapi import NotWindowsError
from zeek_agent.platforms.winapi.audit_policy import PROCESS_CREATION, Subcategory
from zeek_agent.platforms.winapi.event_log import Code, EventLog
from zeek_agent.recording import registry
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.source import Sink, Source
from zeek_agent.recording.status import SourceStatus
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.recording.windows.backends import EVENT_LOGS
from zeek_agent.recording.windows.event_log_source import EXPERIMENTAL
from zeek_agent.recording.windows.windows_host import WindowsHost
from zeek_agent.tables import builtin_tables

TABLES = [table for table in builtin_tables("linux") if table.kind == "events"]


class Polling(Source):
    """Stands where polling does: a source that always works."""

    backend = "snapshots"

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def probe(self) -> str | None:
        return None

    def start(self, sink: Sink) -> None: ...

    def stop(self) -> None: ...


class Scene:
    """A Windows host with its logs, and an agent's store and sources."""

    def __init__(self, directory: Path) -> None:
        self.windows = FakeWindows()
        self.policy: dict[Subcategory, bool | None] = {}
        self.living = Living()
        self.directory = directory
        self.settings = SourceSettings()
        self.open_logs: Callable[[], EventLog] = self.windows.api

    def host(self) -> WindowsHost:
        return WindowsHost(
            self.directory / "positions",
            Masker(),
            self._open_logs,
            lambda: self.living,
            lambda: DRIVES,
            self.policy.get,
            entity_id,
        )

    def _open_logs(self) -> EventLog:
        return self.open_logs()

    def write(self, provider: str, event_id: int, changes: Mapping[str, str] | None = None, channel: str = "") -> int:
        """Write an event of now, because retention removes older ones."""
        channel = channel or {SYSMON: SYSMON_CHANNEL, SECURITY: SECURITY_CHANNEL}[provider]
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"
        values = {"UtcTime": now, **(changes or {})} if provider == SYSMON else changes
        return self.windows.write(
            channel,
            lambda number: event_xml(
                provider, event_id, values, record=number, channel=channel, time=now.replace(" ", "T") + "0Z"
            ),
        )

    def agent(self, *kinds: str) -> Agent:
        return Agent(self, kinds)


class Agent:
    """A run of the agent, as a context manager."""

    def __init__(self, scene: Scene, kinds: tuple[str, ...]) -> None:
        self._scene = scene
        self._kinds = kinds

    def __enter__(self) -> Agent:
        host, settings = self._scene.host(), self._scene.settings
        chosen = {kind: [*EVENT_LOGS[kind](host, settings), Polling(kind)] for kind in self._kinds}
        self.path = self._scene.directory / "events.db"
        self.store = EventStore(self.path, TABLES)
        self.supervisor = Supervisor(
            settings, self.store, choose=lambda _settings, _masker: chosen, interval_seconds=0.02
        )
        self.supervisor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self.store.close()
        assert self._scene.windows.open_handles == []

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        self.supervisor.drain()
        self.store.flush()
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return list(connection.execute(sql))
        finally:
            connection.close()

    def status(self, backend: str) -> SourceStatus:
        (found,) = [each for each in self.supervisor.status() if each.backend == backend]
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


PROCESSES = "SELECT state, name, pid FROM processes_events ORDER BY seq"


def test_sysmon_is_preferred_and_marked_as_experimental(scene: Scene) -> None:
    scene.write(SYSMON, 1)
    scene.write(SECURITY, 4688)
    with scene.agent("processes") as agent:
        assert (agent.status("sysmon").active, agent.status("sysmon").reason) == (True, EXPERIMENTAL)
        assert agent.status("security").reason == agent.status("snapshots").reason == "a better one is active"
        scene.write(SYSMON, 1, {"ProcessId": "42"})
        scene.write(SYSMON, 3)
        scene.write(SYSMON, 5, {"ProcessId": "42"})
        until_sync(lambda: agent.rows(PROCESSES) == [("started", "whoami.exe", 42), ("stopped", "whoami.exe", 42)])
        assert agent.status("sysmon").received == 2


def test_without_sysmon_the_security_log_is_read_if_it_has_such_events(scene: Scene) -> None:
    scene.windows.missing.add(SYSMON_CHANNEL)
    scene.policy[PROCESS_CREATION] = True
    with scene.agent("processes") as agent:
        assert agent.status("sysmon").reason == "Sysmon is not installed"
        assert agent.status("security").active
        scene.write(SECURITY, 4688)
        scene.write(SECURITY, 4624)
        scene.write(SECURITY, 4689)
        until_sync(lambda: agent.rows(PROCESSES) == [("started", "whoami.exe", 6700), ("stopped", "whoami.exe", 6700)])


@pytest.mark.parametrize("is_audited", [False, None])
def test_polling_is_used_where_neither_log_has_such_events(scene: Scene, is_audited: bool | None) -> None:
    scene.write(SYSMON, 22)
    scene.policy[PROCESS_CREATION] = is_audited
    with scene.agent("processes") as agent:
        assert agent.status("snapshots").active
        assert "its configuration has to include ProcessCreate" in (agent.status("sysmon").reason or "")
        assert PROCESS_CREATION.remedy in (agent.status("security").reason or "")


def test_polling_is_used_where_the_logs_must_not_be_read(scene: Scene) -> None:
    scene.windows.errors["EvtOpenLog"] = [Code.ACCESS_DENIED] * 2
    with scene.agent("sockets") as agent:
        assert agent.status("snapshots").active
        for backend in ("sysmon", "security"):
            assert "access is denied: that takes an administrator" in (agent.status(backend).reason or "")


def test_polling_is_used_where_subscriptions_do_not_work(scene: Scene) -> None:
    """As with Wine, which has the functions but none that works."""
    scene.windows.errors["EvtSubscribe"] = [120] * 4
    with scene.agent("processes", "sockets") as agent:
        assert [each.backend for each in agent.supervisor.status() if each.active] == ["snapshots", "snapshots"]
        reasons = [each.reason for each in agent.supervisor.status() if each.backend == "sysmon"]
        assert reasons == [f"the log {SYSMON_CHANNEL} cannot be read: EvtSubscribe: Windows' error (error 120)"] * 2


def test_other_systems_have_a_reason(scene: Scene) -> None:
    def none() -> EventLog:
        raise NotWindowsError("wevtapi")

    scene.open_logs = none
    with scene.agent("dns") as agent:
        assert agent.status("sysmon").reason == "wevtapi exists on Windows only"


def test_connections_and_lookups_have_the_process_that_sysmon_reported(scene: Scene) -> None:
    for event_id in (1, 3, 22):
        scene.write(SYSMON, event_id)
    with scene.agent("processes", "sockets", "dns") as agent:
        started = scene.write(SYSMON, 1)
        until_sync(lambda: len(agent.rows(PROCESSES)) == 1)
        scene.write(SYSMON, 3)
        scene.write(SYSMON, 22)
        sql = "SELECT entity_id, process FROM {} ORDER BY seq"
        (known,) = agent.rows("SELECT entity_id FROM processes_events")
        until_sync(lambda: agent.rows(sql.format("sockets_events")) == [(*known, "client.exe")])
        until_sync(lambda: agent.rows(sql.format("dns_events")) == [(*known, "client.exe")])
    assert started == 4


def test_loopback_and_the_agent_itself_can_be_left_out(scene: Scene) -> None:
    scene.settings = SourceSettings(ignore_loopback=True)
    scene.write(SYSMON, 3)
    with scene.agent("sockets") as agent:
        scene.write(SYSMON, 3, {"SourceIp": "127.0.0.1", "DestinationIp": "127.0.0.1"})
        scene.write(SYSMON, 3, {"SourceIp": "::1", "DestinationIp": "::1"})
        scene.write(SYSMON, 3, {"ProcessId": str(os.getpid())})
        scene.write(SYSMON, 3, {"ProcessId": "42"})
        until_sync(lambda: agent.rows("SELECT pid FROM sockets_events") == [(42,)])
        assert agent.status("sysmon").received == 4


def test_events_of_the_time_without_an_agent_are_recorded_later(scene: Scene) -> None:
    scene.write(SYSMON, 1)
    with scene.agent("processes"):
        scene.write(SYSMON, 1, {"ProcessId": "41"})
    scene.write(SYSMON, 1, {"ProcessId": "42"})
    with scene.agent("processes") as agent:
        until_sync(lambda: [pid for *_, pid in agent.rows(PROCESSES)] == [41, 42])


def test_an_event_that_cannot_be_read_is_counted_and_the_others_are_recorded(scene: Scene) -> None:
    scene.write(SYSMON, 1)
    with scene.agent("processes") as agent:
        scene.windows.write(
            SYSMON_CHANNEL, lambda number: event_xml(SYSMON, 1, record=number).replace("<Task>", "<!-- -->")
        )
        scene.write(SYSMON, 1, {"ProcessId": "-"})
        scene.write(SYSMON, 1, {"ProcessId": "42"})
        until_sync(lambda: [pid for *_, pid in agent.rows(PROCESSES)] == [42])
        until_sync(lambda: agent.status("sysmon").lost_decode == 2)
        assert agent.status("sysmon").last_error == "an event cannot be read: ProcessId is missing or invalid"


def test_a_log_that_wrapped_around_is_a_gap_since_the_last_position(scene: Scene) -> None:
    scene.write(SYSMON, 1)
    begun = time.time()
    with scene.agent("processes"):
        pass
    stopped = time.time()
    scene.windows.logs[SYSMON_CHANNEL].room = 2
    for _ in range(10):
        scene.write(SYSMON, 1, {"ProcessId": "42"})
    with scene.agent("processes") as agent:
        until_sync(lambda: len(agent.rows(PROCESSES)) == 2)
        assert agent.status("sysmon").lost_overrun == 1
    gaps = [gap for gap in EventStore(agent.path, TABLES).gaps() if gap[0] == "processes"]
    assert [(source, cause) for source, _, _, cause in gaps] == [("processes", "overrun")]
    assert begun - 1 <= gaps[0][1] <= stopped


def test_a_log_that_no_longer_works_is_replaced_by_the_next_backend(scene: Scene) -> None:
    scene.write(SYSMON, 1)
    scene.policy[PROCESS_CREATION] = True
    with scene.agent("processes") as agent:
        source = agent.supervisor._recorders[0].active
        assert source is not None
        source._readers[SYSMON_CHANNEL]._pause_seconds = 0.001  # type: ignore[attr-defined]
        scene.windows.missing.add(SYSMON_CHANNEL)
        scene.windows.errors["EvtNext"] = [Code.SERVER_UNAVAILABLE] * 20
        until_sync(lambda: agent.status("security").active)
        assert agent.status("sysmon").last_error == "EvtOpenLog: there is no such log (error 15007)"
        scene.windows.errors["EvtNext"].clear()
        scene.write(SECURITY, 4688)
        until_sync(lambda: len(agent.rows(PROCESSES)) == 1)


def test_logins_are_recorded_once_also_after_a_crash(scene: Scene) -> None:
    scene.write(SECURITY, 4634)
    sql = "SELECT action, user, cursor FROM logins_events ORDER BY seq"
    with scene.agent("logins") as agent:
        scene.write(SECURITY, 4624)
        scene.write(SECURITY, 4625)
        expected = [("login", r"EXAMPLE\alice", "Security:2"), ("failed", r"EXAMPLE\mallory", "Security:3")]
        until_sync(lambda: agent.rows(sql) == expected)
    for file in (scene.directory / "positions").iterdir():
        file.write_bytes(file.read_bytes().replace(b'"record":3', b'"record":1'))
    scene.write(SECURITY, 4634)
    with scene.agent("logins") as agent:
        until_sync(lambda: agent.rows(sql) == [*expected, ("logout", r"EXAMPLE\alice", "Security:4")])


def test_entries_of_three_logs_are_recorded_with_their_messages(scene: Scene) -> None:
    with scene.agent("system_logs") as agent:
        for channel in ("System", "Application"):
            scene.write("Example", 7, {"a": "1"}, channel)
        scene.write(SECURITY, 4720)
        sql = "SELECT identifier, process, message, eventid FROM system_logs_events ORDER BY identifier"
        until_sync(
            lambda: (
                agent.rows(sql)
                == [
                    ("Application", "Example", "message of Example", "7"),
                    ("Security", SECURITY, f"message of {SECURITY}", "4720"),
                    ("System", "Example", "message of Example", "7"),
                ]
            )
        )


def test_logs_that_must_not_be_read_do_not_keep_the_others_from_it(scene: Scene) -> None:
    scene.windows.missing.add(SECURITY_CHANNEL)
    with scene.agent("system_logs") as agent:
        scene.write("Example", 7, {"a": "1"}, "System")
        until_sync(lambda: len(agent.rows("SELECT 1 FROM system_logs_events")) == 1)
        assert agent.status("event_log").active
        assert agent.status("event_log").last_error == (
            "the log Security cannot be read: EvtOpenLog: there is no such log (error 15007)"
        )


def test_the_sources_of_windows_are_its_logs_and_then_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_living_processes", lambda _group: None)  # they are read at once
    found = candidates(SourceSettings(), platform=platforms.of("win32"))
    assert {kind: [source.backend for source in sources] for kind, sources in found.items()} == {
        "processes": ["sysmon", "security", "snapshots"],
        "translations": [],
        "dns": ["sysmon"],
        "sockets": ["sysmon", "security", "snapshots"],
        "system_logs": ["event_log"],
        "files": [],
        "logins": ["security"],
    }
    named = candidates(SourceSettings(processes="security"), platform=platforms.of("win32"))
    assert [source.backend for source in named["processes"]] == ["security"]
