"""BPF objects that are attached before the sources that read them exist."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from recording import load_generator
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.recording import bpf_objects
from zeek_agent.recording.bpf_objects import EarlyObjects
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.tables.events import TABLES

pytestmark = pytest.mark.root
SETTINGS = SourceSettings(system_logs="off", translations="off", dns="off")


@pytest.fixture
def store() -> Iterator[EventStore]:
    store = EventStore(None, TABLES)
    yield store
    store.close()


def supervisor(store: EventStore, early: EarlyObjects, settings: SourceSettings = SETTINGS) -> Supervisor:
    return Supervisor(settings, store, choose=lambda one, masker: candidates(one, masker, early=early))


def test_events_before_the_sources_start_are_recorded(store: EventStore) -> None:
    early = EarlyObjects(SETTINGS)
    early._thread.join()
    with subprocess.Popen(
        [load_generator(), "exec", "1", "0", load_generator(), "early"], stdout=subprocess.PIPE
    ) as one:
        one.communicate()
    time.sleep(0.05)
    begun = time.time()
    chosen = supervisor(store, early)
    chosen.start()
    early.close()
    backends = {row.source: row.backend for row in chosen.status() if row.active}
    assert backends["processes"] == backends["sockets"] == "ebpf"
    attached = {one.kind: one.checked for one in chosen._recorders}
    assert attached["processes"] < begun
    assert attached["sockets"] < begun
    chosen.drain()
    assert store.flush()
    rows = [row for row in recorded(store) if row[0] == f"{load_generator()} early"]
    assert [state for _, state in rows] == ["started", "stopped"]
    chosen.stop()


def recorded(store: EventStore) -> list[tuple[str, str]]:
    from zeek_agent.events.reading import read_rows

    return [
        (str(command), state)
        for command, state in read_rows(store.uri, "SELECT cmdline, state FROM processes_events ORDER BY seq")
    ]


def test_what_no_source_takes_is_detached() -> None:
    early = EarlyObjects(SETTINGS)
    early._thread.join()
    objects = [one.object for one in early._objects.values()]
    assert [one.name for one in objects] == ["processes", "tcp", "udp", "packet"]
    early.close()
    assert all(one._handle is None for one in objects)
    assert early.take("processes") is None


@pytest.mark.parametrize(
    ("processes", "sockets", "lookups", "names"),
    [
        ("ebpf", "snapshots", "off", ["processes"]),
        ("audit", "auto", "auto", ["processes", "tcp", "udp", "packet", "dns"]),
        ("audit", "off", "ebpf", ["processes", "dns"]),
        ("proc_connector", "off", "off", []),
    ],
)
def test_only_objects_that_the_configuration_may_use_are_attached(
    processes: str, sockets: str, lookups: str, names: list[str]
) -> None:
    early = EarlyObjects(SourceSettings(processes=processes, sockets=sockets, dns=lookups))  # type: ignore[arg-type]
    early._thread.join()
    assert list(early._objects) == names
    early.close()


def test_what_cannot_be_attached_early_is_left_to_the_source_which_says_why(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> bpf_objects.AttachedObject:
        raise OSError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(bpf_objects, "attach_processes", refuse)
        early = EarlyObjects(SETTINGS)
        early._thread.join()
        assert not early._objects
    chosen = supervisor(store, early)
    chosen.start()
    until_sync(lambda: any(row.backend == "ebpf" and row.active for row in chosen.status()))
    chosen.stop()
    early.close()
