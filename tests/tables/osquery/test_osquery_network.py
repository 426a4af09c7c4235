"""The tables of interfaces, addresses, routes and neighbors, compared with ip(8) in a network namespace of the test."""

from __future__ import annotations

import ipaddress
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from network_scene import scene

from zeek_agent.host.linux import network_state

FLAGS = {"dead": 1, "pervasive": 2, "onlink": 4, "offload": 8, "linkdown": 16}
"""RTNH_F_* by ip(8)'s names."""
COUNTERS = {
    "ipackets": ("rx", "packets"),
    "opackets": ("tx", "packets"),
    "ibytes": ("rx", "bytes"),
    "obytes": ("tx", "bytes"),
    "ierrors": ("rx", "errors"),
    "oerrors": ("tx", "errors"),
    "idrops": ("rx", "dropped"),
    "odrops": ("tx", "dropped"),
    "collisions": ("tx", "collisions"),
}
MISSING = sys.platform != "linux" or os.geteuid() != 0 or None in map(shutil.which, ("ip", "unshare"))
pytestmark = pytest.mark.skipif(MISSING, reason="needs root, ip(8) and unshare(1)")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return scene()


def test_interfaces_are_those_of_ip(found: dict[str, Any]) -> None:
    rows = {row["interface"]: row for row in found["interface_details"]}
    assert set(rows) == {link["ifname"] for link in found["links"]} >= {"lo", "d0", "v0", "br0", "t0"}
    before = {link["ifname"]: link for link in found["before"]}
    types = {"loopback": 772 & 0xFF, "ether": 1, "none": 65534 & 0xFF, "sit": 776 & 0xFF}
    for link in found["links"]:
        row = rows[link["ifname"]]
        address = link.get("address", "")
        if "." in address:  # a tunnel of IPv4
            address = ":".join(f"{byte:02x}" for byte in [*ipaddress.ip_address(address).packed, 0, 0])
        assert row["mac"] == (address or "00:00:00:00:00:00")[:17]
        if link["link_type"] in types:
            assert row["type"] == types[link["link_type"]]
        assert row["mtu"] == link["mtu"]
        for column, (direction, counter) in COUNTERS.items():
            least, most = (one["stats64"][direction][counter] for one in (before[link["ifname"]], link))
            assert least <= row[column] <= most
        assert bool(row["flags"] & 0x1) == ("UP" in link["flags"])
        assert bool(row["flags"] & 0x10000) == ("LOWER_UP" in link["flags"])
        assert bool(row["flags"] & 0x100) == (link["promiscuity"] > 0)
        assert row["flags"] & 0x1FA5 & ~0x40 == found["flags"][link["ifname"]] & 0x1FA5 & ~0x40
        assert (row["metric"], row["last_change"], row["pci_slot"]) == (0, -1, "-1")
    assert rows["d0"]["mac"] == "02:00:00:00:00:01"
    assert (rows["lo"]["ipackets"] > 0, rows["v0"]["link_speed"], rows["br0"]["link_speed"]) == (True, 10_000, 0)


def test_addresses_are_those_of_ip(found: dict[str, Any]) -> None:
    rows = {(row["address"], row["interface"]): row for row in found["interface_addresses"]}
    expected = {}
    for link in found["addresses"]:
        for one in link["addr_info"]:
            is_local = ipaddress.ip_address(one["local"]) in ipaddress.ip_network("fe80::/10")
            address = f"{one['local']}%{link['ifname']}" if is_local else one["local"]
            length = one["prefixlen"]
            other = one.get("broadcast") or one.get("address") or (one["local"] if one["family"] == "inet" else None)
            expected[address, one.get("label", link["ifname"])] = {
                "mask": str(
                    ipaddress.ip_network(f"{'::' if one['family'] == 'inet6' else '0.0.0.0'}/{length}").netmask
                ),
                "broadcast": other if "BROADCAST" in link["flags"] else None,
                "point_to_point": None if "BROADCAST" in link["flags"] else other,
                "type": "unknown",
            }
    assert {
        key: {name: row[name] for name in value} for key, value in expected.items() for row in [rows[key]]
    } == expected
    assert len(rows) == len(expected) >= 8
    assert rows["10.1.0.1", "d0"]["broadcast"] == "10.1.0.255"
    assert rows["127.0.0.1", "lo"]["point_to_point"] == "127.0.0.1"
    assert ("10.2.0.1", "d0:alias") in rows


def expected_route(route: dict[str, Any]) -> tuple[Any, ...]:
    is_v6 = ":" in str(route["dst"]) + str(route.get("gateway", "")) or route.get("family") == "inet6"
    destination, _, length = route["dst"].partition("/")
    if destination == "default":
        destination, length = ("::" if is_v6 else "0.0.0.0"), "0"
    metrics = route.get("metrics", [{}])[0]
    kinds = {"unicast": "gateway", "local": "local", "broadcast": "broadcast", "anycast": "anycast"}
    metric = route.get("metric", 0)
    return (
        destination,
        int(length or 0),
        route.get("gateway"),
        route.get("prefsrc"),
        route.get("dev"),
        metrics.get("mtu", 0),
        metric - 2**32 if metric >= 2**31 else metric,
        kinds.get(route["type"], "other"),
        metrics.get("hoplimit", 0),
        sum(FLAGS[flag] for flag in route["flags"]),
    )


def test_routes_are_those_of_ip(found: dict[str, Any]) -> None:
    columns = ("destination", "netmask", "gateway", "source", "interface", "mtu", "metric", "type", "hopcount", "flags")
    rows = [tuple(row[column] for column in columns) for row in found["routes"]]
    expected = sorted(map(expected_route, found["ip_routes"]), key=str)
    assert sorted(rows, key=str) == expected
    assert ("0.0.0.0", 0, "10.1.0.254", None, "d0", 0, 77, "gateway", 0, 0) in rows
    assert ("10.50.0.0", 16, "10.1.0.253", "10.1.0.1", "d0", 1300, 0, "gateway", 9, 0) in rows
    assert FLAGS["linkdown"] in {row["flags"] for row in found["routes"]}


def test_neighbors_are_those_of_ip(found: dict[str, Any]) -> None:
    expected = {
        (one["dst"], one["lladdr"], one["dev"], "1" if one["state"] == ["PERMANENT"] else "0")
        for one in found["neighbors"]
        if ":" not in one["dst"] and "NOARP" not in one["state"]
    }
    assert {tuple(row.values()) for row in found["arp_cache"]} == expected
    assert expected >= {
        ("10.1.0.5", "02:00:00:00:00:aa", "d0", "1"),
        ("10.1.0.6", "02:00:00:00:00:06", "d0", "0"),
    }


def test_the_bus_address_is_that_of_sysfs() -> None:
    for device in Path("/sys/class/net").glob("*/device"):
        slot = network_state.bus_address(device.parent.name)
        assert slot in {part for part in str(device.resolve()).split("/") if part}


def test_invalid_names_and_lines_have_no_entries(tmp_path: Path) -> None:
    (tmp_path / "thread-self/net").mkdir(parents=True)
    line = "10.0.0.1         0x1         0x2         02:00:00:00:00:01     *        eth0\n"
    (tmp_path / "thread-self/net/arp").write_text(f"header\n{line}10.0.0.2 0x1\n\n")
    assert [entry.address for entry in network_state.arp_entries(str(tmp_path))] == ["10.0.0.1"]
    assert network_state.bus_address("no such interface") == "-1"
    assert network_state.link_speed("no such interface") == 0
