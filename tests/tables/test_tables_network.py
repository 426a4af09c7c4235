"""The table network_interfaces, compared with ip(8), and netlink messages."""

from __future__ import annotations

import errno
import ipaddress
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.host.linux import interfaces, netlink
from zeek_agent.tables.network import network_interfaces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs netlink")


def by_name() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in ask(network_interfaces)}


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip(8)")
def test_it_agrees_with_ip() -> None:
    output = subprocess.run(["ip", "-j", "-d", "address"], capture_output=True, check=True).stdout
    rows = by_name()
    listed = json.loads(output)
    assert {link["ifname"] for link in listed} == set(rows)
    for link in listed:
        row = rows[link["ifname"]]
        assert (row["index"], row["mtu"]) == (link["ifindex"], link["mtu"])
        assert row["up"] is ("UP" in link["flags"])
        assert row["state"] == link["operstate"].lower()
        assert row["promiscuous"] is (link["promiscuity"] > 0)
        assert row["mac"] == link.get("address", row["mac"])
        assert sorted(row["addresses"]) == sorted(address["local"] for address in link["addr_info"])
        assert row["kind"] == link.get("linkinfo", {}).get(
            "info_kind", {"ether": "ethernet"}.get(link["link_type"], link["link_type"])
        )


def test_counters_are_those_of_sysfs() -> None:
    loopback = Path("/sys/class/net/lo/statistics")
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x" * 1000, ("127.0.0.1", 9))
    before = int((loopback / "rx_bytes").read_text())
    row = by_name()["lo"]
    after = int((loopback / "rx_bytes").read_text())
    assert 1000 < before <= row["rx_bytes"] <= after
    assert row["kind"] == "loopback"
    assert "127.0.0.1" in row["addresses"]


def test_the_hosts_addresses_are_neither_loopback_nor_link_local() -> None:
    every = {address for row in by_name().values() for address in row["addresses"]}
    found = interfaces.global_addresses()
    assert set(found) <= every
    for text in found:
        address = ipaddress.ip_address(text)
        assert not address.is_loopback
        assert not address.is_link_local


def test_a_question_that_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match=r".") as refused:
        netlink.dump(netlink.NETLINK_SOCK_DIAG, 20, bytes([socket.AF_INET, 77]) + bytes(54))
    assert refused.value.errno in {errno.ENOENT, errno.EINVAL}


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_read_back(pairs: list[tuple[int, bytes]]) -> None:
    body = b"head"
    for kind, value in pairs:
        length = len(value) + 4
        body += length.to_bytes(2, sys.byteorder) + kind.to_bytes(2, sys.byteorder) + value + bytes(-length % 4)
    assert list(netlink.attributes(body, 4)) == pairs


@given(st.binary(max_size=64))
def test_attributes_of_garbage_end(body: bytes) -> None:
    assert len(list(netlink.attributes(body, 0))) <= 16
