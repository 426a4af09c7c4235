"""osquery's tables of sockets, compared with ss, lsof and sockets that the tests open."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from children import child, without_main_thread
from osquery_rows import selected

from zeek_agent.host.linux.unix_sockets import UnixSocket, list_unix_sockets, unix_sockets_from_proc
from zeek_agent.tables.osquery.process_sockets import listening_ports, process_open_sockets
from zeek_agent.text import from_bytes

CLONE_NEWNET = 0x4000_0000
NETNS = str(Path("/proc/self/ns/net").stat().st_ino)
NEEDS_LSOF = pytest.mark.skipif(shutil.which("lsof") is None, reason="needs lsof on PATH")


def mine(condition: str = "1") -> dict[int, dict[str, Any]]:
    """This process's rows by descriptor, by SQL."""
    rows = selected(f"SELECT * FROM process_open_sockets WHERE pid = {os.getpid()} AND {condition}")
    return {row["fd"]: row for row in rows}


def waiting() -> dict[int, dict[str, Any]]:
    return {row["fd"]: row for row in selected(f"SELECT * FROM osquery_listening_ports WHERE pid = {os.getpid()}")}


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def shown_by_ss(*options: str) -> set[tuple[Any, ...]]:
    command = ["ss", "-nepHO", *options]
    shown = set()
    for line in subprocess.run(command, capture_output=True, check=True).stdout.decode(errors="replace").splitlines():
        found = re.search(r" ino:(\d+)", line)
        for pid, fd in re.findall(r"pid=(\d+),fd=(\d+)", line):
            shown.add((int(pid), int(fd), int(found[1]) if found else 0, line.split()[0]))
    return shown


def test_internet_sockets_are_those_of_ss_with_their_processes_and_states() -> None:
    states = {
        "ESTABLISHED": "ESTAB",
        "FIN_WAIT1": "FIN-WAIT-1",
        "FIN_WAIT2": "FIN-WAIT-2",
        "CLOSE_WAIT": "CLOSE-WAIT",
        "SYN_SENT": "SYN-SENT",
        "LAST_ACK": "LAST-ACK",
    }

    def listed() -> set[tuple[Any, ...]]:
        return {
            (row["pid"], row["fd"], row["socket"], states.get(row["state"], row["state"]))
            for row in selected(f"SELECT * FROM process_open_sockets WHERE protocol = 6 AND net_namespace = '{NETNS}'")
            if row["pid"] != -1
        }

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted = listener.accept()[0]
        before, first, between, second = listed(), shown_by_ss("-ta"), listed(), shown_by_ss("-ta")
        client.close()
        half = {row["fd"]: row["state"] for row in ask(process_open_sockets, pid=os.getpid(), protocol=6)}
        assert half[accepted.fileno()] == "CLOSE_WAIT"
        accepted.close()
    sockets_of = {row[:3] for row in first}
    assert {row[:3] for row in before & between} <= sockets_of
    lasting = {row for row in first & second if row[0] == os.getpid()}
    assert len(lasting) >= 3
    assert lasting <= between


def test_each_column_of_a_connection_is_that_of_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        rows, listening = mine(), waiting()
        (host, port), (there, other) = client.getsockname(), client.getpeername()
        assert rows[client.fileno()] == {
            "pid": os.getpid(),
            "fd": client.fileno(),
            "socket": inode(client),
            "family": 2,
            "protocol": 6,
            "local_address": host,
            "remote_address": there,
            "local_port": port,
            "remote_port": other,
            "path": "",
            "state": "ESTABLISHED",
            "net_namespace": NETNS,
        }
        assert rows[listener.fileno()]["state"] == "LISTEN"
        assert listening[listener.fileno()] == {
            "pid": os.getpid(),
            "port": other,
            "protocol": 6,
            "family": 2,
            "address": "127.0.0.1",
            "fd": listener.fileno(),
            "socket": inode(listener),
            "path": None,
            "net_namespace": NETNS,
        }
        assert client.fileno() not in listening
    assert client.fileno() not in mine()


@NEEDS_LSOF
def test_ipv4_over_an_ipv6_socket_has_mapped_addresses() -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.bind(("::ffff:127.0.0.1", 0))
        accepted = listener.accept()[0]
        rows, lsof = mine(), shown_by_lsof("-iTCP")
        assert (rows[listener.fileno()]["family"], rows[listener.fileno()]["local_address"]) == (10, "::")
        row = rows[accepted.fileno()]
        assert (row["family"], row["local_address"], row["remote_address"]) == (10, *2 * ["::ffff:127.0.0.1"])
        assert lsof[accepted.fileno()] == "IPv6"
        assert (rows[client.fileno()]["family"], lsof[client.fileno()]) == (2, "IPv4")
        row = rows[datagrams.fileno()]
        assert (row["family"], row["local_address"], row["remote_address"]) == (10, "::ffff:127.0.0.1", "::")
        accepted.close()


def shown_by_lsof(*options: str) -> dict[int, str]:
    """The type of each of this process's descriptors."""
    command = ["lsof", "-a", "-p", str(os.getpid()), "-F", "ft", *options]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {int(fd): kind for fd, kind in re.findall(r"^f(\d+)\nt(\S+)$", output, re.MULTILINE)}


@pytest.mark.root
def test_protocols_have_osquerys_numbers_and_no_state() -> None:
    opened = {
        17: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        255: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
    }
    opened[17].bind(("127.0.0.1", 0))
    try:
        rows, listening = mine(), waiting()
        for protocol, one in opened.items():
            row = rows[one.fileno()]
            assert (row["family"], row["protocol"], row["state"], row["socket"]) == (2, protocol, "", inode(one))
            assert listening[one.fileno()]["protocol"] == protocol
        assert listening[opened[17].fileno()]["port"] == opened[17].getsockname()[1]
        opened[17].connect(("127.0.0.1", 9))
        assert opened[17].fileno() not in waiting()
        assert mine()[opened[17].fileno()]["remote_port"] == 9
    finally:
        for one in opened.values():
            one.close()


@pytest.mark.root
def test_both_icmp_have_one_number() -> None:
    group_range = Path("/proc/sys/net/ipv4/ping_group_range")
    before = group_range.read_text()
    group_range.write_text("0 0")
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as four,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6) as six,
        ):
            four.bind(("127.0.0.1", 0))
            six.bind(("::1", 0))
            rows = mine("protocol = 1")
            assert [(rows[one.fileno()]["family"], rows[one.fileno()]["protocol"]) for one in (four, six)] == [
                (2, 1),
                (10, 1),
            ]
    finally:
        group_range.write_text(before)


@pytest.mark.root
def test_packet_sockets_are_there() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sniffer:
        row = mine("family = 17")[sniffer.fileno()]
        listening = waiting()[sniffer.fileno()]
    nothing = {"local_address": "", "remote_address": "", "local_port": 0, "remote_port": 0, "path": ""}
    assert row.items() >= {"family": 17, "protocol": 0x0800, "state": "NONE", **nothing}.items()
    assert listening.items() >= {"family": 17, "protocol": 0x0800, "address": "", "port": 0, "path": None}.items()


def test_unix_sockets_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = b"a b\n\xff 00000000: 00000002 00000000 00010000 0001 01 1 forged"
    abstract = b"\0a\0b c"
    with (
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        first.bind(named)
        first.listen()
        second.bind(abstract)
        rows, listening = mine("family = 1"), waiting()
        shown = shown_by_ss("-xa")
        assert (
            rows[first.fileno()].items()
            >= {
                "socket": inode(first),
                "protocol": 0,
                "path": os.fsdecode(named).replace("\udcff", "\uefff"),
                "state": "",
                "local_address": "",
                "remote_address": "",
                "local_port": 0,
                "remote_port": 0,
                "net_namespace": NETNS,
            }.items()
        )
        assert [rows[one.fileno()]["path"] for one in (second, third)] == ["@a@b c", ""]
        assert listening[second.fileno()].items() >= {"path": "@a@b c", "socket": 0, "port": 0, "address": None}.items()
        assert third.fileno() not in listening
        assert {(os.getpid(), one.fileno()) for one in (second, third)} <= {row[:2] for row in shown}
        everything = {one.path for one in list_unix_sockets()}
        assert not {"forged", "forged\n"} & everything
        same = {UnixSocket(inode(second), "@a@b c"), UnixSocket(inode(third), "")}
        assert same <= set(list_unix_sockets())
        assert same <= set(unix_sockets_from_proc("/proc/self/net"))


def test_a_socket_of_several_processes_has_one_row_for_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, child() as pid:
        rows = selected(f"SELECT pid, fd FROM process_open_sockets WHERE socket = {inode(listener)}")
        assert sorted(row["pid"] for row in rows) == sorted([os.getpid(), pid])
        assert {row["fd"] for row in rows} == {listener.fileno()}
        assert listener.fileno() in {row["fd"] for row in ask(process_open_sockets, pid=pid)}


def test_a_connection_of_nobody_has_no_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted = listener.accept()[0]
        here, port = client.getsockname()
        client.close()
        accepted.close()
        statement = f"SELECT * FROM process_open_sockets WHERE local_port = {port} AND state = 'TIME_WAIT'"
        (row,) = selected(f"{statement} AND net_namespace = '{NETNS}'")
        assert (row["pid"], row["fd"], row["socket"], row["local_address"]) == (-1, -1, 0, here)
        assert selected(f"{statement} AND pid = -1 AND net_namespace = '{NETNS}'") == [row]
        assert selected(f"{statement} AND pid = {os.getpid()}") == []


@pytest.mark.root
@NEEDS_LSOF
def test_sockets_of_other_network_namespaces_are_there(tmp_path: Path) -> None:
    kept = []

    def leave() -> None:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
        kept.append(socket.socket(socket.AF_INET))
        kept[0].bind(("0.0.0.0", 7))
        kept[0].listen()
        kept.append(socket.socket(socket.AF_UNIX))
        kept[1].bind(str(tmp_path / "unix"))

    with child(leave) as pid:
        namespace = str(Path(f"/proc/{pid}/ns/net").stat().st_ino)
        rows = selected(f"SELECT * FROM process_open_sockets WHERE net_namespace = '{namespace}'")
        assert {(row["pid"], row["family"], row["local_port"], row["path"]) for row in rows} == {
            (pid, 2, 7, ""),
            (pid, 1, 0, str(tmp_path / "unix")),
        }
        assert {row["net_namespace"] for row in ask(process_open_sockets, pid=pid, protocol=6)} == {namespace}
        ports = selected(f"SELECT port, address, path FROM osquery_listening_ports WHERE net_namespace = '{namespace}'")
    assert sorted(map(str, (row["port"] for row in ports))) == ["0", "7"]


def test_sockets_of_a_process_whose_main_thread_has_ended_are_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, without_main_thread() as pid:
        found = {row["fd"] for row in ask(process_open_sockets, pid=pid)}
        assert listener.fileno() in found


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("family = 1", lambda row: row["family"] == 1),
        ("family IN (2, 10)", lambda row: row["family"] in {2, 10}),
        ("protocol = 17", lambda row: row["protocol"] == 17),
        ("protocol = 0", lambda row: row["protocol"] == 0),
        ("state = 'LISTEN'", lambda row: row["state"] == "LISTEN"),
        ("state = ''", lambda row: row["state"] == ""),
        ("state IN ('LISTEN', '')", lambda row: row["state"] in {"LISTEN", ""}),
        ("state = 'no state'", lambda row: False),
        ("protocol = 6 AND state = ''", lambda row: False),
    ],
)
def test_conditions_select_what_the_whole_table_has(condition: str, holds: Any) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX),
    ):
        datagrams.bind(("127.0.0.1", 0))
        whole = ask(process_open_sockets, pid=os.getpid())
        expected = {row["fd"] for row in whole if holds(row)}
        assert set(mine(condition)) & {row["fd"] for row in whole} == expected  # SQL has sockets of its own
        assert len(whole) >= 3


def test_only_processes_that_are_asked_for_are_read() -> None:
    for table in (process_open_sockets, listening_ports):
        assert ask(table, pid=2**22 + 1) == []
        assert {row["pid"] for row in ask(table, pid=[os.getpid(), 2**22 + 1])} <= {os.getpid()}


def test_names_with_line_breaks_are_complete_also_in_the_text_of_the_kernel() -> None:
    names = (b"\0line\n\xff break\n", b"\0\n\n1: 2 3 4 5 6 7 x", b"\0blank \r\x0b end")
    with ExitStack() as opened:
        for name in names:
            opened.enter_context(socket.socket(socket.AF_UNIX)).bind(name)
        expected = {one.path for one in list_unix_sockets()}
        assert {from_bytes(b"@" + name[1:]) for name in names} <= expected
        assert {one.path for one in unix_sockets_from_proc("/proc/self/net")} >= {
            from_bytes(b"@" + n[1:]) for n in names
        }
