"""The Zeek package with a real Zeek and the real agent in a network of their own: addresses and translation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running_agent import AGENT_ID, running
from waiting import until
from zeek_program import joined, needs_zeek, records, zeek

pytestmark = [needs_zeek, pytest.mark.root, pytest.mark.timeout(90)]

HOST = """
set -e
for place in host inside outside; do ip netns add $1-$place; ip -n $1-$place link set lo up; done
ip -n $1-host link add in type veth peer name eth0 netns $1-inside
ip -n $1-host link add out type veth peer name eth0 netns $1-outside
for end in host:in:10.91.0.1/24 inside:eth0:10.91.0.2/24 host:out:10.92.0.1/24 outside:eth0:10.92.0.2/24; do
    name=${end%%:*}; rest=${end#*:}; link=${rest%%:*}; address=${rest#*:}
    ip -n $1-$name address add $address dev $link
    ip -n $1-$name link set $link up
done
ip -n $1-inside route add default via 10.91.0.1
"""
MASQUERADING = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "out" meta l4proto { tcp, udp } masquerade to :40000-40100
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        ip daddr 10.92.0.1 tcp dport 8081 dnat to 10.91.0.2:81
    }
}
"""
SERVER = """
import socket, sys
kind = int(sys.argv[3])
with socket.socket(socket.AF_INET, kind) as server:
    server.bind((sys.argv[1], int(sys.argv[2])))
    if kind == socket.SOCK_DGRAM:
        print("ready", flush=True)
        data, peer = server.recvfrom(64)
        server.sendto(data, peer)
    else:
        server.listen()
        print("ready", flush=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(64))
            connection.recv(64)
"""
PORT_KEEPING = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "out" masquerade
    }
}
"""
SERVER_FOR_TWO = """
import socket
with socket.create_server(("10.92.0.2", 7003)) as server:
    print("ready", flush=True)
    peers = {}
    for _ in range(2):
        connection, (_, port) = server.accept()
        peers[connection.recv(64).decode()] = connection, port
    print(peers["first"][1], peers["second"][1], flush=True)
    for connection, _ in peers.values():
        connection.sendall(b"done")
        connection.recv(64)
"""
CLIENT_OF_PORT = """
import os, socket, sys
with socket.socket() as client:
    client.bind(("0.0.0.0", 5003))
    client.settimeout(20)
    client.connect(("10.92.0.2", 7003))
    client.send(sys.argv[1].encode())
    print("connected", flush=True)
    client.recv(64)
"""
CLIENT = """
import socket, sys, time
with socket.socket(socket.AF_INET, int(sys.argv[4])) as client:
    client.bind((sys.argv[3], 0))
    client.settimeout(10)
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.send(b"ping")
    client.recv(64)
    print(client.getsockname()[1], flush=True)
"""


@dataclass
class Host:
    """A host with an inside, as for its containers, and an outside."""

    name: str

    def at(self, place: str) -> tuple[str, ...]:
        # `ip netns exec` would hide the control groups, too.
        return ("nsenter", f"--net=/run/netns/{self.name}-{place}")

    def run(self, place: str, *command: str, stdin: str | None = None) -> None:
        subprocess.run([*self.at(place), *command], check=True, input=stdin, text=True)

    def exchange(
        self, kind: int, server: tuple[str, str, int], client: tuple[str, str, int], source: str = "0.0.0.0"
    ) -> tuple[int, int, int]:
        """One exchange between a server at a place, address and port, and a client at a place that connects to an
        address and port: the server's pid, the client's, and the client's port."""
        python = (sys.executable, "-c")
        serve = [*self.at(server[0]), *python, SERVER, server[1], str(server[2]), str(kind)]
        ask = [*self.at(client[0]), *python, CLIENT, client[1], str(client[2]), source, str(kind)]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as serving:
            try:
                assert serving.stdout is not None
                assert serving.stdout.readline() == "ready\n"
                with subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) as asking:
                    output, _ = asking.communicate(timeout=20)
                serving.wait(20)
            finally:
                serving.kill()
        assert (asking.returncode, serving.returncode) == (0, 0)
        return serving.pid, asking.pid, int(output)


@pytest.fixture
def host() -> Iterator[Host]:
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("needs ip (iproute2) and nsenter (util-linux)")
    made = Host(f"zn{os.getpid()}")
    try:
        subprocess.run(["sh", "-c", HOST, "sh", made.name], check=True)
        yield made
    finally:
        for place in ("host", "inside", "outside"):
            subprocess.run(["ip", "netns", "delete", f"{made.name}-{place}"], check=False)


async def conn_log(directory: Path, lines: int) -> list[dict[str, Any]]:
    """conn.log when it has so many lines."""
    await until(lambda: len(records(directory / "conn.log")) >= lines, 30, "conn.log lacks lines")
    return records(directory / "conn.log")


def owner(line: dict[str, Any], end: str) -> tuple[Any, ...]:
    return line[f"{end}_hid"], line[f"{end}_pid"]


@pytest.mark.long
async def test_claims_count_for_an_address_that_the_host_has_just_got(tmp_path: Path, host: Host) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs, "-i", "lo", "-f", "host 198.51.100.7", prefix=host.at("host")) as url:
        async with running(tmp_path, f"--zeek={url}", prefix=host.at("host")):
            await joined(logs)
            host.run("host", "ip", "address", "add", "198.51.100.7/32", "dev", "lo")
            server, client, _ = host.exchange(1, ("host", "198.51.100.7", 7000), ("host", "198.51.100.7", 7000))
            (line,) = await conn_log(logs, 1)
    assert owner(line, "orig") == (AGENT_ID, client)
    assert owner(line, "resp") == (AGENT_ID, server)
    hellos = [one for one in records(logs / "zeek-agent.log") if "198.51.100.7" in (one["addresses"] or ())]
    assert hellos[0]["type_"] == "update"


@pytest.mark.long
async def test_connections_through_address_translation_name_the_process_inside(tmp_path: Path, host: Host) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    host.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    host.run("host", "nft", "-f", "-", stdin=MASQUERADING)
    logs = tmp_path / "zeek"
    with zeek(logs, "-i", "out", "-f", "tcp or udp", prefix=host.at("host")) as url:
        async with running(tmp_path, f"--zeek={url}", prefix=host.at("host")):
            await joined(logs)
            _, tcp, tcp_port = host.exchange(1, ("outside", "10.92.0.2", 7001), ("inside", "10.92.0.2", 7001))
            _, udp, udp_port = host.exchange(2, ("outside", "10.92.0.2", 7002), ("inside", "10.92.0.2", 7002))
            server, _, _ = host.exchange(1, ("inside", "10.91.0.2", 81), ("outside", "10.92.0.1", 8081))
            await conn_log(logs, 2)  # UDP's line comes at the end
    lines = {line["id.resp_p"]: line for line in records(logs / "conn.log")}
    assert lines.keys() == {7001, 7002, 8081}
    for port, (pid, own) in {7001: (tcp, tcp_port), 7002: (udp, udp_port)}.items():
        line = lines[port]
        assert line["id.orig_h"] == "10.92.0.1"
        assert 40000 <= line["id.orig_p"] <= 40100 != own
        assert owner(line, "orig") == (AGENT_ID, pid)
    assert owner(lines[8081], "resp") == (AGENT_ID, server)


@pytest.mark.long
@pytest.mark.parametrize("first", ["inside", "host"])
async def test_a_host_and_its_container_with_one_source_port_are_not_mixed_up(
    tmp_path: Path, host: Host, first: str
) -> None:
    """Of the two connections to one server, the kernel gives the second one another port."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    host.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    host.run("host", "nft", "-f", "-", stdin=PORT_KEEPING)
    second = "host" if first == "inside" else "inside"
    logs = tmp_path / "zeek"
    with zeek(logs, "-i", "out", "-f", "tcp", prefix=host.at("host")) as url:
        async with running(tmp_path, f"--zeek={url}", prefix=host.at("host")):
            await joined(logs)
            pids, ports = clash(host, first, second)
            await conn_log(logs, 2)
    owners = {line["id.orig_p"]: owner(line, "orig") for line in records(logs / "conn.log")}
    assert ports["first"] == 5003 != ports["second"]
    assert owners == {ports[name]: (AGENT_ID, pids[name]) for name in ports}


def clash(host: Host, first: str, second: str) -> tuple[dict[str, int], dict[str, int]]:
    """Two connections from port 5003: pids of the clients, and the ports that the server sees."""
    python = (sys.executable, "-c")
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*host.at("outside"), *python, SERVER_FOR_TWO], **pipes) as server:  # type: ignore[call-overload]
        assert server.stdout.readline() == "ready\n"
        clients = {}
        for name, place in (("first", first), ("second", second)):
            clients[name] = subprocess.Popen([*host.at(place), *python, CLIENT_OF_PORT, name], **pipes)  # type: ignore[call-overload]
            assert clients[name].stdout.readline() == "connected\n"
        seen = server.stdout.readline().split()
        for client in clients.values():
            client.communicate(timeout=20)
            assert client.returncode == 0
        server.communicate(timeout=20)
    return {name: client.pid for name, client in clients.items()}, dict(zip(clients, map(int, seen), strict=True))
