"""Rows of process events from messages of Endpoint Security."""

from __future__ import annotations

import json
from typing import Any

import pytest
from es_messages import Messages, Object, begin, line, process

from zeek_agent.host.macos.eslogger_line import Message, Sequence, read_line
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.processes.es_processes import ARGUMENT_BYTES_MAX, EsProcesses
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_event import ProcessEvent
from zeek_agent.recording.processes.sequence_gaps import SequenceGaps

pytestmark = pytest.mark.documented_shape

BOOT = "4f3a9c21-d07b-4000-8000-000000000000"
BEGIN = begin() / 1e6


@pytest.fixture
def processes() -> EsProcesses:
    return EsProcesses(BOOT, Masker())


@pytest.fixture
def messages() -> Messages:
    return Messages()


def rows(processes: EsProcesses, *messages: Object) -> list[ProcessEvent]:
    found = []
    for message in messages:
        read = read_line(line(message))
        assert isinstance(read, Message), read
        found += processes.rows(read)
    return found


def brief(events: list[ProcessEvent]) -> list[tuple[Any, ...]]:
    return [(event.state, event.pid, event.exe, event.cmdline) for event in events]


def entity(pid: int, started: int | None = None) -> str:
    return f"4f3a9c21d07b-{pid}-{begin() + pid * 1_000 if started is None else started}"


def test_a_fork_and_an_exec_are_one_start(processes: EsProcesses, messages: Messages) -> None:
    shell, child = process(400), process(401, parent=400)
    program = process(401, "/usr/bin/id", parent=400, euid=0, inode=99)
    found = rows(
        processes,
        messages.fork(shell, child, 0),
        messages.exec(child, program, ["id", "-u"], 20_000),
        messages.exit(program, 520_000, 3 << 8),
    )
    started, stopped = found
    assert started == ProcessEvent(
        time=pytest.approx(BEGIN + 0.02),
        name="id",
        pid=401,
        ppid=400,
        uid=0,
        gid=20,
        ruid=501,
        rgid=20,
        priority=None,
        duration=None,
        vsize=None,
        rsize=None,
        utime=None,
        stime=None,
        state="started",
        exe="/usr/bin/id",
        cmdline="id -u",
        cwd="/Users/ada",
        exit_code=None,
        loginuid=501,
        session=100_007,
        cgroup=None,
        container_id=None,
        netns=None,
        entity_id=entity(401),
        parent_entity_id=entity(400),
        parent_name="zsh",
        parent_exe="/bin/zsh",
        argv="",
        exe_device=16_777_234,
        exe_inode=99,
    )
    assert (stopped.state, stopped.exit_code, stopped.cmdline) == ("stopped", 3, "id -u")
    assert (stopped.entity_id, stopped.parent_exe) == (started.entity_id, "/bin/zsh")
    assert stopped.duration == pytest.approx(0.52 - 0.401)
    assert len(processes) == 1, "the shell"


def test_a_fork_without_an_exec_is_a_copy_of_its_parent(processes: EsProcesses, messages: Messages) -> None:
    shell = process(400, "/bin/bash")
    assert rows(processes, messages.exec(process(400), shell, ["bash", "-c", "a b"], 0))
    assert rows(processes, messages.fork(shell, process(401, "/bin/bash", parent=400), 10_000)) == []
    assert processes.oldest_fork() == pytest.approx(BEGIN + 0.01)
    assert processes.overdue(BEGIN + 1.0) == []
    (event,) = processes.overdue(BEGIN + 1.02)
    assert (event.exe, event.cmdline, event.cwd) == ("/bin/bash", "bash -c a b", "/Users/ada")
    assert json.loads(event.argv or "") == ["bash", "-c", "a b"]
    assert (event.entity_id, event.parent_entity_id) == (entity(401), entity(400))
    assert event.time == pytest.approx(BEGIN + 0.01)
    assert processes.oldest_fork() is None
    assert processes.overdue(None) == []


def test_a_fork_that_ends_at_once_starts_and_stops(processes: EsProcesses, messages: Messages) -> None:
    shell, child = process(400), process(401, parent=400)
    found = rows(processes, messages.fork(shell, child, 0), messages.exit(child, 5, 9))
    assert brief(found) == [("started", 401, "/bin/zsh", None), ("stopped", 401, "/bin/zsh", None)]
    assert found[1].exit_code == -9


def test_programs_that_a_process_executes_one_after_another(processes: EsProcesses, messages: Messages) -> None:
    shell = process(400)
    first = process(401, "/usr/bin/env", parent=400)
    second = process(401, "/usr/bin/python3", parent=400, inode=5)
    found = rows(
        processes,
        messages.fork(shell, process(401, parent=400), 0),
        messages.exec(process(401, parent=400), first, ["env", "python3"], 1),
        messages.exec(first, second, ["python3"], 2),
        messages.exit(second, 3),
    )
    assert brief(found) == [
        ("started", 401, "/usr/bin/env", "env python3"),
        ("started", 401, "/usr/bin/python3", "python3"),
        ("stopped", 401, "/usr/bin/python3", "python3"),
    ]
    assert {event.parent_entity_id for event in found} == {entity(400)}


def test_the_parent_stays_the_process_that_forked(processes: EsProcesses, messages: Messages) -> None:
    shell, orphan = process(400), process(401, "/bin/sleep", parent=1)
    orphan["original_ppid"] = 400
    rows(processes, messages.fork(shell, process(401, parent=400), 0), messages.exit(shell, 1))
    (event,) = rows(processes, messages.exec(process(401, parent=400), orphan, ["sleep"], 2))
    assert (event.ppid, event.parent_exe, event.parent_entity_id) == (400, "/bin/zsh", entity(400))


def test_a_process_with_the_parents_pid_that_began_later_is_not_the_parent(
    processes: EsProcesses, messages: Messages
) -> None:
    later = process(400, "/bin/evil", started=begin() + 9_000_000)
    child = process(401, "/bin/ls", parent=400)
    rows(processes, messages.fork(later, process(402, parent=400), 9_000_001))
    (event,) = rows(processes, messages.exec(process(401, parent=400), child, ["ls"], 9_000_002))
    assert (event.ppid, event.parent_exe, event.parent_entity_id) == (400, None, None)


def test_a_reused_pid_ends_the_process_whose_exit_was_lost(processes: EsProcesses, messages: Messages) -> None:
    program, started = process(401, "/bin/ls"), begin() + 5_000_000
    rows(processes, messages.exec(process(401), program, ["ls"], 0))
    messages.lose("exit")
    successor = process(401, "/bin/cat", started=started)
    found = rows(processes, messages.exec(process(401, started=started), successor, ["cat"], 6_000_000))
    assert brief(found) == [("stopped", 401, "/bin/ls", "ls"), ("started", 401, "/bin/cat", "cat")]
    assert [event.exit_code for event in found] == [None, None]
    assert [event.entity_id for event in found] == [entity(401), entity(401, started)]


def test_after_a_lost_exec_the_command_line_is_unknown(processes: EsProcesses, messages: Messages) -> None:
    before, after = process(401, "/bin/sh"), process(401, "/usr/bin/curl", inode=77)
    rows(processes, messages.exec(process(401), before, ["sh", "-c", "curl"], 0))
    messages.lose("exec")
    (event,) = rows(processes, messages.exit(after, 10))
    assert brief([event]) == [("stopped", 401, "/usr/bin/curl", None)]
    assert (event.argv, event.cwd, event.name) == (None, None, "curl")


def test_an_executable_that_was_renamed_is_the_same_program(processes: EsProcesses, messages: Messages) -> None:
    rows(processes, messages.exec(process(401), process(401, "/tmp/a"), ["a", "b"], 0))
    (event,) = rows(processes, messages.exit(process(401, "/tmp/renamed"), 10))
    assert brief([event]) == [("stopped", 401, "/tmp/a", "a b")]


def test_the_exit_of_an_unknown_process_has_what_its_message_shows(processes: EsProcesses, messages: Messages) -> None:
    (event,) = rows(processes, messages.exit(process(401, "/sbin/launchd", parent=0), 600_000))
    assert brief([event]) == [("stopped", 401, "/sbin/launchd", None)]
    assert event.duration == pytest.approx(0.6 - 0.401)
    assert (event.ppid, event.entity_id) == (0, entity(401))


def test_processes_that_are_gone_after_a_loss_end_at_the_second_look(
    processes: EsProcesses, messages: Messages
) -> None:
    rows(processes, messages.exec(process(401), process(401, "/bin/ls"), ["ls"], 0))
    rows(processes, messages.exec(process(402), process(402, "/bin/cat"), ["cat"], 0))
    assert processes.reconcile(lambda pid: pid == 402, BEGIN + 5) == ([], False)
    (event,), is_complete = processes.reconcile(lambda pid: pid == 402, BEGIN + 6)
    assert is_complete
    assert (event.state, event.pid, event.exit_code, event.time) == ("stopped", 401, None, BEGIN + 6)
    assert len(processes) == 1


def test_an_exit_that_comes_after_the_first_look_keeps_its_code(processes: EsProcesses, messages: Messages) -> None:
    program = process(401, "/bin/ls")
    rows(processes, messages.exec(process(401), program, ["ls"], 0))
    processes.reconcile(lambda _: False, BEGIN + 5)
    assert rows(processes, messages.exit(program, 1, 256))[0].exit_code == 1
    assert processes.reconcile(lambda _: False, BEGIN + 6) == ([], True)


def running(pid: int, exe: str, parent: int = 1, vsize: int | None = 4_096) -> Process:
    """A living process, as the system shows it; its start is that of the messages."""
    started = begin() + pid * 1_000
    return Process(
        pid=pid,
        start_ticks=started,
        since=started * 1_000,
        started=started * 1_000,
        entity_id=entity(pid),
        name="shortened",
        ppid=parent,
        exe=exe,
        command_line=Masker().command_line(b"program\0argument\0"),
        vsize=vsize,
    )


def test_running_processes_are_known_and_those_of_a_period_reported(processes: EsProcesses, messages: Messages) -> None:
    rows(processes, messages.fork(process(400), process(401, parent=400), 0))
    shown = [running(399, "/bin/old"), running(450, "/bin/child", 449), running(449, "/bin/parent"), running(401, "/x")]
    found = processes.add_running(shown, BEGIN + 0.4485, BEGIN + 0.4495)
    assert [(event.pid, event.found_running, event.name, event.exe) for event in found] == [
        (449, True, "parent", "/bin/parent")
    ]
    child, parent = process(450, "/bin/child", parent=449), process(449, "/bin/parent", inode=6)
    ended = rows(processes, messages.exit(child, 500_000), messages.exit(parent, 500_001))
    assert [(event.cmdline, event.vsize, event.found_running) for event in ended] == [
        ("program argument", None, False)
    ] * 2
    assert (ended[0].parent_exe, ended[0].parent_entity_id) == ("/bin/parent", entity(449))
    assert ended[1].exe_inode == 6


@pytest.mark.parametrize(
    ("arguments", "cmdline", "argv"),
    [
        ([], None, None),
        ([""], "", ""),
        (["curl", "-u", "ada:secret", "x"], "curl -u ada:*** x", ""),
        (["mysql", "-phunter2"], "mysql -p***", ""),
        (["sh", "-c", "PGPASSWORD=x psql"], "sh -c PGPASSWORD=*** psql", '["sh","-c","PGPASSWORD=*** psql"]'),
        (["a\nb", "\x1b[2J"], "a\nb \x1b[2J", ""),
    ],
)
def test_command_lines_are_masked_as_on_linux(
    processes: EsProcesses, messages: Messages, arguments: list[str], cmdline: str | None, argv: str | None
) -> None:
    (event,) = rows(processes, messages.exec(process(401), process(401, "/bin/x"), arguments, 0))
    assert (event.cmdline, event.argv) == (cmdline, argv)


def test_a_long_command_line_is_cut_as_with_ebpf(processes: EsProcesses, messages: Messages) -> None:
    (event,) = rows(processes, messages.exec(process(401), process(401, "/bin/x"), ["x", "y" * 1_000_000], 0))
    assert event.cmdline is not None
    assert event.cmdline.endswith("yy …")
    assert len(event.cmdline) == ARGUMENT_BYTES_MAX + 2
    assert event.argv is None


def test_a_process_without_a_start_has_no_entity_id(processes: EsProcesses, messages: Messages) -> None:
    target = process(401, "/bin/ls")
    target["start_time"] = None
    started, stopped = rows(processes, messages.exec(target, target, ["ls"], 0), messages.exit(target, 1))
    assert (started.entity_id, stopped.entity_id, stopped.duration) == (None, None, None)


def test_the_number_of_known_processes_is_bounded(messages: Messages) -> None:
    processes = EsProcesses(BOOT, Masker(), known_max=10)
    for pid in range(1_000, 1_100):
        rows(processes, messages.exec(process(pid), process(pid, "/bin/x"), ["x"], pid))
    assert len(processes) == 10
    (event,) = rows(processes, messages.exit(process(1_000, "/bin/x"), 2_000_000))
    assert brief([event]) == [("stopped", 1_000, "/bin/x", None)]


def numbers(*messages: Object | None) -> SequenceGaps:
    gaps = SequenceGaps()
    for message in messages:
        gaps.note(read_line(b"" if message is None else line(message)).sequence)
    return gaps


def test_a_gap_in_the_numbers_is_a_loss_by_type(messages: Messages) -> None:
    first = messages.exit(process(401), 0)
    messages.lose("exit", 3)
    messages.lose("fork", 2)
    gaps = numbers(first, messages.exit(process(402), 1), messages.fork(process(1), process(403), 2))
    assert gaps.lost == 5
    assert gaps.by_type == {15: 3}, "no fork was seen before the lost ones"


def test_an_unreadable_line_is_not_lost_as_well(messages: Messages) -> None:
    first = messages.exit(process(401), 0)
    messages.lose("exit", 2)
    assert numbers(first, None, messages.exit(process(402), 1)).lost == 1


def test_an_unreadable_message_with_numbers_hides_no_loss(messages: Messages) -> None:
    first = messages.exit(process(401), 0)
    damaged = messages.exit(process(402), 1)
    del damaged["time"]
    messages.lose("exit", 2)
    assert numbers(first, damaged, messages.exit(process(403), 2)).lost == 2


def test_without_overall_numbers_those_of_the_types_decide(messages: Messages) -> None:
    kept = [messages.exit(process(401), 0)]
    messages.lose("exit", 2)
    kept.append(messages.exit(process(402), 1))
    for message in kept:
        del message["global_seq_num"]
    assert numbers(*kept).lost == 2


def test_numbers_that_begin_again_are_no_loss() -> None:
    gaps = SequenceGaps()
    for number in (5, 6, 0, 1):
        gaps.note(Sequence(number, number, 9))
    assert gaps.lost == 0
