"""The host's network configuration, from rtnetlink(7); on other systems by psutil."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from zeek_agent import platforms
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table

if TYPE_CHECKING:
    from zeek_agent.host.network_interface import Interface

network_interfaces = Table(
    "network_interfaces",
    "network interfaces, their addresses and counters",
    description=(
        "All interfaces in the agent's network namespace. Counters start when the interface is created. "
        "[On macOS and Windows](platforms.md), columns that the system has no value for are null."
    ),
    columns=[
        Column("name", "text", "name of the interface"),
        Column("index", "count", "interface index of the kernel"),
        Column("kind", "text", "`ethernet`, `loopback`, `wireless`, or a virtual kind: `bridge`, `veth`, `vlan`, …"),
        Column("mac", "text", "hardware address in hexadecimal with colons; null if it has none"),
        Column("addresses", "set[address]", "its IPv4 and IPv6 addresses"),
        Column("mtu", "count", "largest packet in bytes"),
        Column("up", "bool", "administratively up"),
        Column("state", "text", "`up`, `down`, `dormant`, `testing`, `lowerlayerdown`, `notpresent` or `unknown`"),
        Column("promiscuous", "bool", "receives all packets, as for a sniffer"),
        Column("master", "text", "name of the bridge or bond that it belongs to"),
        Column("rx_bytes", "count", "bytes received"),
        Column("tx_bytes", "count", "bytes sent"),
        Column("rx_packets", "count", "packets received"),
        Column("tx_packets", "count", "packets sent"),
        Column("rx_errors", "count", "packets received in error"),
        Column("tx_errors", "count", "packets that could not be sent"),
        Column("rx_dropped", "count", "packets received and dropped"),
        Column("tx_dropped", "count", "outgoing packets dropped"),
    ],
    examples=[
        "SELECT name, mac, addresses, state FROM network_interfaces WHERE up",
        "SELECT name, address.value FROM network_interfaces, json_each(addresses) AS address",
        "SELECT name FROM network_interfaces WHERE promiscuous",
    ],
    platforms=platforms.KEYS,
)

_COUNTERS = [column.name for column in network_interfaces.columns if column.name.startswith(("rx_", "tx_"))]
_counters = attrgetter(*_COUNTERS)


@network_interfaces.snapshot
def list_interfaces(wanted: Constraints) -> Iterator[Row]:
    found = _interfaces(wanted.context.platform.group)
    names = {interface.index: interface.name for interface in found}
    for interface in found:
        counters = (None,) * len(_COUNTERS) if interface.statistics is None else _counters(interface.statistics)
        yield (
            interface.name,
            interface.index,
            interface.kind,
            interface.mac,
            interface.addresses,
            interface.mtu,
            interface.up,
            interface.state,
            interface.promiscuous,
            names.get(interface.master) if interface.master else None,
            *counters,
        )


def _interfaces(group: str) -> list[Interface]:
    if group == "linux":
        from zeek_agent.host.linux import interfaces as rtnetlink

        return rtnetlink.list_interfaces()
    from zeek_agent.host.portable.system import portable_system

    return portable_system(group).interfaces()


TABLES = (network_interfaces,)
