"""The decoders read the layouts that the compiled BPF objects have."""

from __future__ import annotations

import re
from pathlib import Path
from struct import Struct, calcsize

import pytest
from btf import Btf

from zeek_agent import bpf
from zeek_agent.bpf import records

DIRECTORY = Path(bpf.__file__).parent

pytestmark = pytest.mark.skipif(not (DIRECTORY / "tcp.bpf.o").exists(), reason="built without eBPF")


def fields(layout: Struct, start: int = 0) -> list[tuple[int, int]]:
    """Offset and size of each value in a layout."""
    found = []
    at = start
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        single = code in "sx"
        size = calcsize(f"<{count}{code}") if single else calcsize(f"<{code}")
        for _ in range(1 if single else int(count or 1)):
            if code != "x":
                found.append((at, size))
            at += size
    return found


def test_process_records() -> None:
    btf = Btf(DIRECTORY / "processes.bpf.o")
    for name, rest in [("fork_event", records.FORK), ("exit_event", records.EXIT), ("exec_event", records.EXEC)]:
        structure = btf.structure(name)
        leaves = btf.leaves(structure)
        declared = [(at, size) for field, at, size in leaves if not field.endswith(("reserved", "paths"))]
        assert declared == fields(records.PROCESS) + fields(rest, records.PROCESS.size)
        if name == "exec_event":
            assert ("paths", records.EXEC_PATHS, 1024 + 256) in leaves
            assert structure.size == records.EXEC_ARGUMENTS
        else:
            assert structure.size == records.PROCESS.size + rest.size


@pytest.mark.parametrize("name", ["tcp", "udp", "packet"])
def test_socket_records(name: str) -> None:
    btf = Btf(DIRECTORY / f"{name}.bpf.o")
    structure = btf.structure("socket_event")
    leaves = btf.leaves(structure)
    assert [(at, size) for _, at, size in leaves] == fields(records.SOCKET)
    assert structure.size == records.SOCKET.size
    assert [field for field, _, _ in leaves] == list(records.SocketRecord._fields)


def test_the_numbers_of_kinds_and_flags() -> None:
    header = (DIRECTORY / "records.h").read_text()
    kinds = {name: int(number) for name, number in re.findall(r"RECORD_(\w+) = (\d+)", header)}
    flags = {name: 1 << int(bit) for name, bit in re.findall(r"EXEC_(\w+) = 1 << (\d+)", header)}
    socket_flags = {name: 1 << int(bit) for name, bit in re.findall(r"SOCKET_(\w+) = 1 << (\d+)", header)}
    assert socket_flags == {flag.name: flag.value for flag in records.SocketFlags}
    assert kinds == {kind.name: kind.value for kind in records.RecordKind}
    assert flags == {flag.name: flag.value for flag in records.Flags}
    assert max(kinds.values()) < records.RECORD_KINDS
