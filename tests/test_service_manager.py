"""Notifications to the service manager, received from a real datagram socket as systemd has one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_agent import started
from waiting import until

from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.service_manager import ServiceManager, informed

SETTINGS = {"sources.processes": "snapshots", "sources.sockets": "snapshots", "sources.snapshot_interval": 60}


class Receiver:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.messages: list[dict[str, str]] = []

    def receive(self) -> list[dict[str, str]]:
        """All messages so far."""
        while True:
            try:
                lines = self.socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in lines))

    def values(self, name: str) -> list[str]:
        return [message[name] for message in self.receive() if name in message]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    received = Receiver(str(tmp_path / "notify"))
    yield received
    received.socket.close()


def manager_of(receiver: Receiver, **variables: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": receiver.socket.getsockname(), **variables})


def healthy() -> None:
    return None


async def test_ready_status_and_stopping_are_reported_in_this_order(receiver: Receiver) -> None:
    async with informed(manager_of(receiver), lambda: "recording\nREADY=0", healthy):
        assert receiver.receive() == [{"READY": "1", "STATUS": "recording READY=0"}]
    assert receiver.receive()[-1] == {"STOPPING": "1", "STATUS": "stopping"}
    assert receiver.values("WATCHDOG") == []


async def test_the_watchdog_is_fed_only_while_the_service_is_healthy(receiver: Receiver) -> None:
    problems: list[str] = []
    manager = manager_of(receiver, WATCHDOG_USEC="30000", WATCHDOG_PID=str(os.getpid()))
    async with informed(manager, lambda: "works", lambda: problems[0] if problems else None):
        await until(lambda: len(receiver.values("WATCHDOG")) >= 3, complaint="no pings")
        problems.append("the writer hangs")
        await until(lambda: "not healthy: the writer hangs" in receiver.values("STATUS"), complaint="no text")
        fed = len(receiver.values("WATCHDOG"))
        problems[:] = ["the writer hangs again"]
        await until(lambda: "not healthy: the writer hangs again" in receiver.values("STATUS"), complaint="no text")
        assert len(receiver.values("WATCHDOG")) == fed
        problems.clear()
        await until(lambda: len(receiver.values("WATCHDOG")) > fed, complaint="not fed again")
        assert receiver.values("STATUS")[-1] == "works"


async def test_a_status_is_sent_once_until_it_changes(receiver: Receiver) -> None:
    async with informed(manager_of(receiver, WATCHDOG_USEC="30000"), lambda: "same", healthy):
        await until(lambda: len(receiver.values("WATCHDOG")) >= 5, complaint="no pings")
    assert receiver.values("STATUS") == ["same", "stopping"]


def test_an_abstract_address_is_used(tmp_path: Path) -> None:
    name = f"zeek-agent-test-{os.getpid()}"
    receiver = Receiver(f"\0{name}")
    try:
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        assert manager.notify(READY="1")
        manager.close()
        assert receiver.receive() == [{"READY": "1"}]
    finally:
        receiver.socket.close()


def test_a_full_queue_means_again_and_a_lost_manager_does_not(receiver: Receiver) -> None:
    manager = manager_of(receiver)
    sent = 0
    while manager.notify(STATUS="x"):
        sent += 1
        assert sent < 100_000
    assert len(receiver.receive()) == sent
    assert manager.notify(STATUS="y")
    receiver.socket.close()
    assert manager.notify(STATUS="z")
    assert not manager.is_present


def test_without_a_manager_nothing_is_sent_and_its_variables_are_not_inherited(receiver: Receiver) -> None:
    assert ServiceManager({}).notify(READY="1")
    environment = {"NOTIFY_SOCKET": receiver.socket.getsockname(), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "A": "b"}
    manager = ServiceManager(environment)
    manager.close()
    assert environment == {"A": "b"}
    assert manager.watchdog_seconds is None, "the watchdog is another process's"


def test_hung_and_ended_threads_are_problems() -> None:
    from zeek_agent.events.store import EventStore

    store = EventStore(None, [])
    supervisor = Supervisor(_settings(), store, choose=lambda *_: {})
    supervisor.start()
    try:
        assert store.problem() is None
        assert supervisor.problem() is None
        later = store._progressed + 3600
        assert "writer has hung for 3600 s" in (store.problem(later) or "")
        assert "event source has hung for" in (supervisor.problem(later) or "")
    finally:
        supervisor.stop()
        store.close()
    assert store.problem() == "the event store's writer has ended"
    assert supervisor.problem() == "the thread that monitors event sources has ended"


def _settings() -> object:
    from zeek_agent.config.sections import SourceSettings

    return SourceSettings()


async def test_the_agent_is_ready_once_it_records_and_its_children_inherit_nothing(
    tmp_path: Path, receiver: Receiver
) -> None:
    environment = {"NOTIFY_SOCKET": receiver.socket.getsockname(), "WATCHDOG_USEC": "300000"}
    with started(tmp_path, settings=SETTINGS, environment=environment) as agent:
        await agent.ready()
        received: Callable[[str], list[str]] = receiver.values
        await until(lambda: len(received("WATCHDOG")) >= 2, 30, "no pings")
        assert received("READY") == ["1"]
        assert received("STATUS")[0].startswith("recording processes by snapshots, ")
        await until(lambda: any("connected to 1 of 1" in text for text in received("STATUS")), 30, "no status")
        inherited = Path(f"/proc/{_child(agent.pid)}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in inherited
        await asyncio.to_thread(agent.stop)
    assert receiver.receive()[-1] == {"STOPPING": "1", "STATUS": "stopping"}


def _child(pid: int) -> int:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    assert children
    return children[0]
