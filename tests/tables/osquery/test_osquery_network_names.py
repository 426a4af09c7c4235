"""osquery's tables of local names, compared with getent and the C library's resolver."""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scratch_host import Rows, on_scratch_host, output, select, select_in_worker

from zeek_agent.host.linux import network_names


def by_getent(database: str) -> list[list[str]]:
    return [line.split() for line in output("getent", "-s", "files", database).splitlines()]


@pytest.mark.root
def test_a_new_name_of_a_host_is_listed_as_getent_lists_it(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, list[list[str]]]:
        with Path("/etc/hosts").open("ab") as file:
            file.write(b"192.0.2.7\tone.example one # two\n2001:db8::7 six\n\n#no 1\n  192.0.2.8 a#b\n192.0.2.9\n")
        sql = "SELECT address, hostnames, pid_with_namespace FROM etc_hosts"
        return select(sql), select_in_worker(sql), by_getent("hosts")

    rows, in_worker, expected = on_scratch_host(scene, tmp_path)
    assert rows == in_worker
    assert rows[-1] == {"address": "192.0.2.9", "hostnames": "", "pid_with_namespace": None}
    assert [[row["address"], *row["hostnames"].split()] for row in rows if ":" not in row["address"]] == [
        words for words in expected if not any(word.startswith("ip6-") for word in words)
    ]
    assert {"address": "2001:db8::7", "hostnames": "six", "pid_with_namespace": None} in rows
    assert {"address": "192.0.2.7", "hostnames": "one.example one", "pid_with_namespace": None} in rows


@pytest.mark.root
def test_a_new_service_and_protocol_are_listed_as_getent_lists_them(tmp_path: Path) -> None:
    def scene() -> list[Any]:
        with Path("/etc/services").open("ab") as file:
            file.write(b"zeek 5555/tcp zk  zeek-agent # first # second#\nodd x/udp\n5/tcp\n")
        with Path("/etc/protocols").open("ab") as file:
            file.write(b"fictional 254 FICTION other#none\nodd x ODD\nalone\n")
        sqls = ("SELECT * FROM etc_services", "SELECT * FROM etc_protocols")
        return [*map(select, sqls), *map(select_in_worker, sqls), by_getent("services"), by_getent("protocols")]

    services, protocols, *in_worker, by_services, by_protocols = on_scratch_host(scene, tmp_path)
    assert [services, protocols] == in_worker
    assert services.pop() == {"name": "odd", "port": None, "protocol": "udp", "aliases": "", "comment": ""}
    assert services[-1]["comment"] == "first # second"
    assert protocols.pop() == {"name": "odd", "number": None, "alias": "ODD", "comment": ""}
    assert protocols[-1] == {"name": "fictional", "number": 254, "alias": "FICTION", "comment": "none"}
    assert [
        [row["name"], f"{row['port']}/{row['protocol']}", *row["aliases"].split()] for row in services
    ] == by_services
    assert [[row["name"], str(row["number"]), *row["alias"].split()] for row in protocols] == [
        words[:3] for words in by_protocols
    ]
    written = [
        line.partition("#")[2].strip() for line in Path("/etc/services").read_text().splitlines() if line[:1] != "#"
    ]
    assert [row["comment"] for row in services[:-1]] == [
        comment for comment, line in zip(written, _with_port("/etc/services"), strict=True) if line
    ]


def _with_port(file: str) -> list[bool]:
    lines = (line for line in Path(file).read_text().splitlines() if line[:1] != "#")
    return ["/" in line.partition("#")[0] for line in lines]


def by_resolver() -> tuple[list[str], list[tuple[str, int]], list[str], int]:
    """Servers (of IPv4), sort list, searched domains and options of `struct __res_state`."""
    libc = ctypes.CDLL(None)
    state = ctypes.create_string_buffer(2_048)
    assert libc.__res_ninit(state) == 0
    options, count = struct.unpack_from("=Qi", state, 8)
    servers = [socket.inet_ntoa(state.raw[24 + 16 * number :][:4]) for number in range(count)]
    pointers = struct.unpack_from("=7Q", state, 72)
    searched = [ctypes.string_at(pointer).decode() for pointer in pointers if pointer]
    (packed,) = struct.unpack_from("=I", state, 72 + 56 + 256 + 8)
    at = 72 + 56 + 256 + 12
    sorted_first = [
        (socket.inet_ntoa(state.raw[at + 8 * number :][:4]), struct.unpack_from("=I", state, at + 8 * number + 4)[0])
        for number in range(packed >> 4 & 0xF)
    ]
    libc.__res_nclose(state)
    return servers, sorted_first, searched, options


CONFIGURATIONS = {
    "none": None,
    "usual": "nameserver 192.0.2.1\nsearch one.example two.example\n",
    "many": "".join(f"nameserver 192.0.2.{number}\n" for number in range(6))
    + f"search {' '.join(f'{number}.example' for number in range(9))}\n"
    + f"sortlist {' '.join(f'192.0.{number}.0' for number in range(14))}\n",
    "odd": "# no\n; no\n nameserver 192.0.2.9\nnameserver x\nnameserver\t127.1 # local\nnameserver 192.0.2.2;no\n"
    "domain\tdomain.example more\nsortlist 10.0.0.0 172.16.0.0/255.255.240.0 192.0.2.0&255.255.255.128 x 1.2.3.4/y\n"
    "options ndots:3 rotate edns0 single-request\noptions\ttrust-ad use-vc timeout:1 no-reload unknown no-tld-query\n",
    "last": "search a.example\ndomain b.example\nsearch c.example d.example\noptions single-request-reopen no-aaaa\n",
    "empty": "nameserver\nsearch\noptions\nsortlist\n",
}


@pytest.mark.root
@pytest.mark.skipif(struct.calcsize("P") != 8, reason="knows the layout of 64-bit systems")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_resolvers_are_those_of_the_c_library(name: str, tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, Any]:
        Path("/etc/resolv.conf").unlink()
        if CONFIGURATIONS[name] is not None:
            Path("/etc/resolv.conf").write_text(CONFIGURATIONS[name] or "")
        sql = "SELECT *, pid_with_namespace FROM dns_resolvers"
        return select(sql), select_in_worker(sql) if name == "many" else [], by_resolver()

    rows, in_worker, (servers, sorted_first, searched, options) = on_scratch_host(scene, tmp_path)
    assert in_worker in ([], rows)
    assert [tuple(row.values()) for row in rows] == [
        *((number, "nameserver", server, "32", options, None) for number, server in enumerate(servers)),
        *((number, "sortlist", net, str(mask), options, None) for number, (net, mask) in enumerate(sorted_first)),
        *((number, "search", domain, "", options, None) for number, domain in enumerate(searched)),
    ]


def test_servers_of_ipv6_have_their_address_and_the_domain_may_be_that_of_the_host(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 2001:DB8:0::1\nnameserver fe80::1%eth0\n")
    reports: list[str] = []
    found = network_names.resolver(reports.append, file, lambda: "host.one.example")
    assert found.name_servers == ["2001:db8::1", "fe80::1%eth0"]
    assert found.searched == [b"one.example"]
    assert reports == []


@given(st.binary(max_size=200))
def test_no_bytes_make_the_readers_fail(content: bytes) -> None:
    lines = (content, b"nameserver " + content, b"sortlist " + content, b"search " + content)
    original = network_names.system_lines
    network_names.system_lines = lambda *_: iter(lines)  # type: ignore[assignment]
    try:
        found = network_names.resolver(lambda _: None, Path())
        assert len(found.name_servers) >= 1
        for reader in (network_names.host_names, network_names.services, network_names.protocols):
            assert len(list(reader(lambda _: None, Path()))) <= len(lines)  # type: ignore[operator]
    finally:
        network_names.system_lines = original
