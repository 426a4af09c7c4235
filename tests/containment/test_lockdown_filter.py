"""The seccomp filters as programs, run in a model of the kernel's interpreter for both architectures."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lockdown import NUMBERS

from zeek_agent.containment import seccomp
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.seccomp import ARCHITECTURES, Instruction, compiled, rules
from zeek_agent.containment.syscalls import NEWEST
from zeek_agent.privileges import NO_PRIVILEGES, Privileges

PID = 4_242
EVENTS, SNAPSHOTS, COLLECTOR, HELPER = WorkerClass
ALLOWED = "allowed"
KILLED = "killed"
EVERYTHING = Privileges(("/run/socket",), ("/bin/true",), network=True, user_database=True)
CLASSES = [
    (EVENTS, Privileges()),
    (SNAPSHOTS, Privileges()),
    (COLLECTOR, Privileges()),
    (HELPER, Privileges()),
    (HELPER, EVERYTHING),
]
MACHINES = list(ARCHITECTURES)


def verdict(code: Sequence[Instruction], number: int, arguments: Sequence[int] = (), audit: int = 0) -> str:
    """What the kernel does with a call: `allowed`, `killed`, or the name of an error number."""
    padded = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFF_FFFF, audit, 0, *padded)
    accumulator = at = 0
    while True:
        operation, met, otherwise, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            at += met if accumulator == value else otherwise
        elif operation == 0x35:
            at += met if accumulator >= value else otherwise
        else:
            assert operation == 0x06
            action = value & 0xFFFF_0000
            names = {0x7FFF_0000: ALLOWED, 0x8000_0000: KILLED}
            return names[action] if action in names else errno.errorcode[value & 0xFFFF]


class Filter:
    def __init__(
        self, worker_class: WorkerClass, privileges: Privileges = NO_PRIVILEGES, machine: str = "x86_64"
    ) -> None:
        self.machine = ARCHITECTURES[machine]
        self.code = compiled(rules(worker_class, privileges, PID), self.machine)

    def __call__(self, name: str, *arguments: int) -> str:
        return verdict(self.code, self.machine.numbers[name], arguments, self.machine.audit)

    def number(self, number: int, *arguments: int) -> str:
        return verdict(self.code, number, arguments, self.machine.audit)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("worker_class", "privileges"), CLASSES, ids=repr)
@given(arguments=st.lists(st.integers(0, (1 << 64) - 1), min_size=6, max_size=6))
def test_calls_that_no_worker_needs_are_refused_whatever_their_arguments(
    worker_class: WorkerClass, privileges: Privileges, machine: str, arguments: list[int]
) -> None:
    applied = Filter(worker_class, privileges, machine)
    for name, numbers in NUMBERS.items():
        expected = "ENOSYS" if name in {"openat2", "clone3"} else "EPERM"
        assert applied.number(numbers[MACHINES.index(machine)], *arguments) == expected, name


@pytest.mark.parametrize("machine", MACHINES)
def test_every_other_architecture_and_abi_is_killed(machine: str) -> None:
    applied = Filter(SNAPSHOTS, machine=machine)
    read = applied.machine.numbers["read"]
    for audit in (0x4000_0003, 0xC000_003E, 0xC000_00B7, 0x4000_0028, 0):
        expected = ALLOWED if audit == applied.machine.audit else KILLED
        assert verdict(applied.code, read, (), audit) == expected
    if machine == "x86_64":
        assert {applied.number(0x4000_0000 | number) for number in range(600)} == {KILLED}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("worker_class", "privileges"), CLASSES, ids=repr)
def test_a_call_without_a_rule_is_refused_and_one_of_a_newer_kernel_is_missing(
    worker_class: WorkerClass, privileges: Privileges, machine: str
) -> None:
    applied = Filter(worker_class, privileges, machine)
    named = {applied.machine.numbers.get(rule.name) for rule in rules(worker_class, privileges, PID)}
    rest = set(range(NEWEST + 1)) - named
    assert {applied.number(number) for number in rest} == {"EPERM"}
    assert {applied.number(number) for number in range(NEWEST + 1, 700)} == {"ENOSYS"}


@pytest.mark.parametrize("machine", MACHINES)
def test_files_are_opened_to_read_only(machine: str) -> None:
    writing = [os.O_WRONLY, os.O_RDWR, 3, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE]
    reading = [0, os.O_CLOEXEC, os.O_PATH | os.O_NOFOLLOW, os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOCTTY]
    for worker_class in (SNAPSHOTS, HELPER):
        applied = Filter(worker_class, machine=machine)
        assert {applied("openat", 3, 0x1234, flags) for flags in reading} == {ALLOWED}
        assert {applied("openat", 3, 0x1234, flags | more) for flags in writing for more in reading} == {"EPERM"}
        # The kernel takes an int, so flags in the upper half count for neither side.
        assert applied("openat", 3, 0, os.O_RDWR | 1 << 40) == "EPERM"
    assert Filter(EVENTS, machine=machine)("openat", 3, 0x1234, 0) == "EPERM"
    assert Filter(COLLECTOR, machine=machine)("openat", 3, 0x1234, os.O_RDWR | os.O_CREAT) == ALLOWED


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_are_not_processes_and_namespaces_are_neither(machine: str) -> None:
    thread, process, vfork, namespace = 0x3D_0F00, 0x0120_0011, 0x4111, 0x1000_0000
    for worker_class, privileges, permitted in (
        (EVENTS, Privileges(), set()),
        (SNAPSHOTS, Privileges(), {thread}),
        (COLLECTOR, Privileges(), {thread}),
        (HELPER, Privileges(), {thread}),
        (HELPER, EVERYTHING, {thread, process, vfork}),
    ):
        applied = Filter(worker_class, privileges, machine)
        cloned = (thread, process, vfork, thread | namespace, process | namespace)
        assert {flags for flags in cloned if applied("clone", flags) == ALLOWED} == permitted


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_are_those_that_the_class_needs(machine: str) -> None:
    unix, diag, route, audit = (1, 1, 0), (16, 3, 4), (16, 3 | os.O_CLOEXEC, 0), (16, 3, 9)
    tcp, udp6, raw, packet = (2, 1, 6), (10, 2, 17), (2, 3, 1), (17, 3, 3)
    everything = (unix, diag, route, audit, tcp, udp6, raw, packet)
    for worker_class, privileges, permitted in (
        (EVENTS, Privileges(), set()),
        (SNAPSHOTS, Privileges(), {diag, route}),
        (COLLECTOR, Privileges(), set()),
        (HELPER, Privileges(), {diag, route}),
        (HELPER, Privileges(user_database=True), {diag, route, unix}),
        (HELPER, Privileges(unix_sockets=("/run/x",)), {diag, route, unix}),
        (HELPER, Privileges(network=True), {diag, route, tcp, udp6}),
        (HELPER, EVERYTHING, {diag, route, unix, tcp, udp6}),
    ):
        applied = Filter(worker_class, privileges, machine)
        assert {each for each in everything if applied("socket", *each) == ALLOWED} == permitted
        assert (applied("connect", 3, 0, 16) == ALLOWED) == (len(permitted) > 2)
        assert {applied(name, 3) for name in ("bind", "accept", "accept4")} == {"EPERM"}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("worker_class", "privileges"), CLASSES, ids=repr)
def test_conditions_that_hold_in_every_class(worker_class: WorkerClass, privileges: Privileges, machine: str) -> None:
    applied = Filter(worker_class, privileges, machine)
    for name in ("kill", "tgkill"):
        assert applied(name, PID, 9) == ALLOWED
        assert {applied(name, pid, 9) for pid in (0, 1, -1, -PID, PID + 1)} == {"EPERM"}
    private, shared, anonymous, fixed = 2, 1, 0x20, 0x10
    assert applied("mmap", 0, 4_096, 3, private | anonymous) == ALLOWED
    assert applied("mmap", 0, 4_096, 5, private | fixed) == ALLOWED
    assert applied("mmap", 0, 4_096, 1, shared) == ALLOWED
    assert applied("mmap", 0, 4_096, 7, private | anonymous) == "EPERM"
    assert applied("mmap", 0, 4_096, 3, shared | anonymous) == "EPERM"
    assert [applied("mprotect", 0, 4_096, protection) for protection in (0, 1, 3, 5, 7)] == [ALLOWED] * 4 + ["EPERM"]
    assert applied("prctl", 1, 9) == ALLOWED
    assert applied("prctl", 4, 0) == ALLOWED
    assert {applied("prctl", *each) for each in ((1, 0), (1, 15), (4, 1), (4, 1 << 32), (22, 2), (38, 1), (24, 1))} == {
        "EPERM"
    }
    assert applied("prlimit64", 0, 3, 0, 0x1000) == ALLOWED
    assert {applied("prlimit64", *each) for each in ((0, 3, 1 << 32, 0), (0, 3, 0x1000, 0), (1, 3, 0, 0))} == {"EPERM"}
    assert applied("fcntl", 3, 6) == ALLOWED  # F_SETLK of SQLite
    assert {applied("fcntl", 3, command) for command in (8, 10, 15, 1024, 1026, 1033)} == {"EPERM"}
    assert applied("ioctl", 0, 0x5401) == ALLOWED
    assert {applied("ioctl", 0, request) for request in (0x5412, 0x5412 | 1 << 32, 0x8910, 0x541C)} == {"EPERM"}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_collector_cannot_change_modes_and_owners_by_path(machine: str) -> None:
    """Landlock does not govern them, and a collector of uid 0 owns most files."""
    permitted = {rule.name for rule in rules(COLLECTOR)}
    assert "fchmod" in permitted
    assert (
        not {"chmod", "fchmodat", "chown", "fchown", "fchownat", "utimensat", "truncate", "link", "symlink"} & permitted
    )


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_kernels_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    found.setdefault("newfstatat", found.get("fstatat"))
    known = ARCHITECTURES[machine].numbers
    assert {name: str(number) for name, number in known.items()} == {name: found.get(name) for name in known}
    index = MACHINES.index(machine)
    assert {name: found.get(name) for name in NUMBERS} == {name: str(each[index]) for name, each in NUMBERS.items()}
    every_rule = {rule.name for each in CLASSES for rule in rules(*each)}
    assert every_rule - set(known) <= set(ARCHITECTURES["x86_64"].numbers)


def test_a_machine_without_a_table_has_no_filter() -> None:
    for machine, pointer in (("riscv64", 8), ("i686", 4), ("x86_64", 4)):
        with pytest.raises(seccomp.Unavailable, match=f"{machine} with pointers of {pointer}"):
            seccomp.architecture(machine, pointer)
