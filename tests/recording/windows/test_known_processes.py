"""Processes of Windows that events have named: which one an id stands for, and how many are remembered."""

from __future__ import annotations

from windows_processes import Living, entity_id

from zeek_agent.recording.windows.known_processes import KnownProcesses, LiveProcess

SECOND = 10_000_000
AT = 134_000_000_000_000_000
GUID = "7c1f5c3a-0e2b-69a7-c500-00000000a200"
EXE = r"C:\x.exe"


def known(*processes: LiveProcess, limit: int = 100) -> tuple[KnownProcesses, Living]:
    living = Living(*processes)
    return KnownProcesses(living, entity_id, limit), living


def test_the_creation_time_of_a_living_process_counts() -> None:
    processes, _ = known(LiveProcess(7, AT - 5_000, EXE))
    assert processes.start(7, AT, EXE).entity_id == entity_id(7, AT - 5_000)


def test_a_process_that_was_created_at_another_time_is_another_one() -> None:
    for created in (AT - 3 * SECOND, AT + SECOND):
        processes, _ = known(LiveProcess(7, created, EXE))
        assert processes.start(7, AT, EXE).entity_id == entity_id(7, AT)


def test_processes_of_the_time_before_have_the_same_id_at_their_end() -> None:
    processes, living = known(LiveProcess(7, AT - 90 * SECOND, EXE))
    processes.seed()
    living.processes.clear()
    ended = processes.end(7, AT, EXE)
    assert ended is not None
    assert (ended.entity_id, ended.created) == (entity_id(7, AT - 90 * SECOND), AT - 90 * SECOND)
    assert processes.end(8, AT, EXE) is None


def test_an_event_that_comes_after_the_end_has_the_process_that_ended() -> None:
    processes, living = known(LiveProcess(7, AT, EXE))
    processes.start(7, AT, EXE)
    living.processes.clear()
    processes.end(7, AT + SECOND, EXE)
    late = processes.find(7, AT + SECOND // 2, EXE)
    assert late is not None
    assert late.entity_id == entity_id(7, AT)


def test_the_successor_of_a_process_that_ended_is_found_while_it_lives() -> None:
    processes, living = known(LiveProcess(7, AT, EXE))
    processes.start(7, AT, EXE)
    processes.end(7, AT + SECOND, EXE)
    living.processes[7] = LiveProcess(7, AT + 2 * SECOND, EXE)
    found = processes.find(7, AT + 3 * SECOND, EXE)
    assert found is not None
    assert found.entity_id == entity_id(7, AT + 2 * SECOND)


def test_an_event_before_the_creation_is_not_that_process() -> None:
    processes, _ = known(LiveProcess(7, AT, EXE))
    assert processes.find(7, AT - SECOND, EXE) is None


def test_a_guid_stands_for_one_process() -> None:
    processes, living = known(LiveProcess(7, AT, EXE))
    started = processes.start(7, AT, EXE, GUID)
    living.processes.clear()
    assert processes.find(7, AT + SECOND, EXE, GUID) is started
    assert processes.start(7, AT, EXE, GUID) is started
    other = processes.find(8, AT + SECOND, EXE, GUID)
    assert other is not None
    assert other.entity_id == entity_id(8, GUID.replace("-", ""))


def test_a_guid_is_not_tied_to_a_process_that_has_ended_or_runs_something_else() -> None:
    processes, living = known(LiveProcess(7, AT, EXE), LiveProcess(9, AT, EXE))
    processes.seed()
    processes.end(7, AT + SECOND, EXE)
    living.processes.clear()
    for pid, exe in ((7, EXE), (9, r"C:\y.exe")):
        found = processes.find(pid, AT + 2 * SECOND, exe, GUID)
        assert found is not None
        assert found.entity_id == entity_id(pid, GUID.replace("-", ""))


def test_the_processes_named_longest_ago_are_forgotten() -> None:
    processes, _ = known(limit=10)
    for pid in range(1, 1_001):
        processes.start(pid, AT, EXE, f"guid{pid}")
        processes.start(pid + 10_000, AT, EXE)
    assert len(processes) == 10
    assert processes.find(10_001, AT, EXE) is None
    assert processes.find(11_000, AT, EXE) is not None
