"""Audit records, as the kernel writes them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.recording.audit import audit_records
from zeek_agent.recording.audit.audit_records import Assembler, AuditEvent

EXECVE_CALL = (0xC000_003E, 59)
CALL = (
    "arch=c000003e syscall=59 success=yes exit=0 a0=7fea a1=7feb a2=7ffc a3=8 items=2 ppid=27945 pid=27994 "
    "auid=4294967295 uid=0 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0 fsgid=0 tty=(none) ses=4294967295 "
    'comm="echo" exe="/usr/bin/echo" key="zeek-agent:1:2:0:64"'
)


def datagram(kind: int, body: str | bytes, serial: int = 42, time: str = "1700000000.123") -> bytes:
    raw = f"audit({time}:{serial}): ".encode() + (body if isinstance(body, bytes) else body.encode())
    return struct.pack("=IHHII", 16 + len(raw), kind, 0, 0, 0) + raw


def assembled(*datagrams: bytes) -> list[AuditEvent]:
    assembler = Assembler({EXECVE_CALL})
    events = []
    for raw in datagrams:
        record = audit_records.parse_record(raw)
        if record is None:
            continue
        if record.kind == audit_records.SYSCALL:
            assembler.begin(record)
        elif (event := assembler.add(record)) is not None:
            events.append(event)
    return events


def test_an_exec_is_put_together_from_its_records() -> None:
    (event,) = assembled(
        datagram(1300, CALL),
        datagram(1309, 'argc=3 a0="/bin/echo" a1=612062 a2="plain"'),
        datagram(1307, 'cwd="/work dir"'.replace(" ", "_")),
        datagram(1302, 'item=0 name="/bin/echo" inode=1'),
        datagram(1327, "proctitle=2F62"),
        datagram(1320, ""),
    )
    assert (event.time, event.serial) == (1700000000.123, 42)
    assert (event.arch, event.syscall) == EXECVE_CALL
    assert (event.number("pid"), event.number("ppid"), event.number("a3", 16)) == (27994, 27945, 8)
    assert (event.text("comm"), event.text("exe"), event.text("tty")) == (b"echo", b"/usr/bin/echo", None)
    assert event.command_line() == (b"/bin/echo\0a b\0plain\0", False)
    assert event.cwd == b"/work_dir"


def test_a_long_argument_is_split_over_several_records() -> None:
    (event,) = assembled(
        datagram(1300, CALL),
        datagram(1309, 'argc=3 a0="sh" a1_len=12 a1[0]=616161'),
        datagram(1309, " a1[1]=626262"),
        datagram(1309, ' a2="end"'),
        datagram(1320, ""),
    )
    assert event.command_line() == (b"sh\0aaabbb\0end\0", False)


def test_many_arguments_keep_their_order_and_are_cut_at_4_kib() -> None:
    arguments = " ".join(f'a{number}="{number:04}"' for number in range(2_000))
    (event,) = assembled(datagram(1300, CALL), datagram(1309, f"argc=2000 {arguments}"), datagram(1320, ""))
    line, cut = event.command_line()
    assert cut
    assert line.startswith(b"0000\x000001\x00")
    assert line.split(b"\0")[:-1] == [f"{number:04}".encode() for number in range(819)]


def test_events_of_several_processors_are_separated() -> None:
    events = assembled(
        datagram(1300, CALL, 1),
        datagram(1300, CALL, 2),
        datagram(1309, 'argc=1 a0="one"', 1),
        datagram(1309, 'argc=1 a0="two"', 2),
        datagram(1320, "", 2),
        datagram(1320, "", 1),
    )
    assert [event.command_line()[0] for event in events] == [b"two\0", b"one\0"]


def test_other_system_calls_and_kinds_of_records_are_left_alone() -> None:
    assert assembled(datagram(1300, CALL.replace("syscall=59", "syscall=44")), datagram(1320, "")) == []
    assert audit_records.parse_record(datagram(1305, "op=set audit_enabled=1")) is None


def test_events_that_never_end_do_not_pile_up() -> None:
    assembler = Assembler({EXECVE_CALL})
    for serial in range(10_000):
        record = audit_records.parse_record(datagram(1300, CALL, serial))
        assert record is not None
        assembler.begin(record)
    assert len(assembler._pending) <= 2_000


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("0200A3DB7F0000010000000000000000", (bytes([127, 0, 0, 1]), 41947)),
        ("0A00003500000000" + "00" * 15 + "01" + "00000000", (bytes(15) + b"\x01", 53)),
        ("01002F72756E2F78", None),
        ("02", None),
    ],
)
def test_socket_addresses(raw: str, expected: tuple[bytes, int] | None) -> None:
    assert audit_records.internet_address(bytes.fromhex(raw)) == expected


@given(st.binary(max_size=200))
def test_malformed_records_are_refused_without_effect_on_others(body: bytes) -> None:
    for kind in (1300, 1306, 1307, 1309, 1320):
        try:
            assembled(datagram(1300, CALL), datagram(kind, body), datagram(1320, ""))
        except ValueError:
            continue


@given(st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_characters="\0"), min_size=1, max_size=50))
def test_values_encoded_by_the_kernel_are_decoded(value: str) -> None:
    raw = value.encode()
    plain = all(0x20 < byte < 0x7F and byte != 0x22 for byte in raw)
    written = b'"' + raw + b'"' if plain else raw.hex().upper().encode()
    assert audit_records.decode_text(written) == raw
