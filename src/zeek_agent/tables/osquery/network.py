"""Interfaces, addresses, routes and the ARP cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

_NAMESPACE: Final = "in the agent's network namespace"
_ROUTE_KINDS: Final = {1: "gateway", 2: "local", 3: "broadcast", 4: "anycast"}
"""Names by `RTN_*`."""
_PERMANENT: Final = 0x6
"""ATF_COM and ATF_PERM."""

interface_addresses = osquery_table(
    "interface_addresses",
    "addresses of network interfaces",
    description=f"One row per IPv4 and IPv6 address {_NAMESPACE}.",
    columns=[
        Column("interface", "text", "name of the interface, or of an alias, such as `eth0:1`"),
        Column("address", "text", "address; one that is link-local in IPv6 has its interface: `fe80::1%eth0`"),
        Column("mask", "text", "network mask, as an address"),
        Column("broadcast", "text", "broadcast address, or the address itself; null without broadcasts"),
        Column("point_to_point", "text", "address of the peer, or the address itself; null with broadcasts"),
        Column("type", "text", "always `unknown` on Linux"),
    ],
    foreign="friendly_name",
    examples=["SELECT interface, address, mask FROM interface_addresses"],
)

interface_details = osquery_table(
    "interface_details",
    "network interfaces and their counters",
    description=f"One row per interface {_NAMESPACE}.",
    columns=[
        Column("interface", "text", "name"),
        Column("mac", "text", "first six bytes of the hardware address; zeros without one", collation="nocase"),
        Column("type", "int", "low byte of the hardware type (`ARPHRD_*`): 1 is Ethernet, 4 loopback"),
        Column("mtu", "int", "largest packet in bytes"),
        Column("metric", "int", "always 0"),
        Column("flags", "int", "flags (`IFF_*`): 1 is up, 256 promiscuous"),
        Column("ipackets", "int", "packets received"),
        Column("opackets", "int", "packets sent"),
        Column("ibytes", "int", "bytes received"),
        Column("obytes", "int", "bytes sent"),
        Column("ierrors", "int", "packets received in error"),
        Column("oerrors", "int", "packets that could not be sent"),
        Column("idrops", "int", "packets received and dropped"),
        Column("odrops", "int", "outgoing packets dropped"),
        Column("collisions", "int", "collisions"),
        Column("last_change", "int", "always -1 on Linux"),
        Column("link_speed", "int", "speed in Mbit/s; 0 if it is unknown"),
        Column("pci_slot", "text", "address of the device on its bus, such as `0000:00:03.0`; -1 if it is virtual"),
    ],
    foreign="friendly_name description manufacturer connection_id connection_status enabled:int physical_adapter:int "
    "speed:int service dhcp_enabled:int dhcp_lease_expires dhcp_lease_obtained dhcp_server dns_domain "
    "dns_domain_suffix_search_order dns_host_name dns_server_search_order",
    examples=["SELECT interface, mac, mtu FROM interface_details WHERE flags & 256"],
)

routes = osquery_table(
    "routes",
    "routes",
    description=f"One row per IPv4 and IPv6 route of any routing table {_NAMESPACE}.",
    columns=[
        Column("destination", "text", "network; `0.0.0.0` or `::` for the default route"),
        Column("netmask", "int", "length of the prefix; 0 for the default route and for single addresses"),
        Column("gateway", "text", "gateway; null without one"),
        Column("source", "text", "preferred source address; null without one"),
        Column("flags", "int", "flags (`RTM_F_*`, `RTNH_F_*`)"),
        Column("interface", "text", "name of the interface; null for routes over several and over none"),
        Column("mtu", "int", "MTU; 0 if the route has none"),
        Column("metric", "int", "metric; the least is preferred"),
        Column("type", "text", "`gateway` for unicast, `local`, `broadcast`, `anycast` or `other`"),
        Column("hopcount", "int", "hop limit; 0 if the route has none"),
    ],
    examples=["SELECT gateway, interface FROM routes WHERE destination = '0.0.0.0' AND netmask = 0"],
)

arp_cache = osquery_table(
    "arp_cache",
    "entries of the ARP cache",
    description=f"One row per IPv4 neighbor {_NAMESPACE}.",
    columns=[
        Column("address", "text", "IPv4 address"),
        Column("mac", "text", "hardware address; zeros if it is not known", collation="nocase"),
        Column("interface", "text", "name of the interface"),
        Column("permanent", "text", "`1` for an entry that somebody has set and that stays, else `0`"),
    ],
    examples=["SELECT address, mac FROM arp_cache WHERE interface = 'eth0'"],
)


@interface_addresses.snapshot
def addresses(_: Constraints) -> Iterator[Row]:
    from zeek_agent.host.linux import network_state

    for found in network_state.interface_addresses():
        broadcast, peer = (found.destination, None) if found.has_broadcast else (None, found.destination)
        yield found.label, found.address, found.mask, broadcast, peer, "unknown"


@interface_details.snapshot
def details(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.linux import network_state

    for link in network_state.links():
        if link.counters is None:
            counters: list[int | None] = [None] * 9
        else:
            counters = [*link.counters[:8], link.counters[9]]
        yield (
            link.name,
            link.mac,
            link.hardware & 0xFF,
            link.mtu,
            0,
            link.flags,
            *counters,
            -1,
            network_state.link_speed(link.name) if wanted.needs("link_speed") else None,
            network_state.bus_address(link.name) if wanted.needs("pci_slot") else None,
        )


@routes.snapshot
def list_routes(_: Constraints) -> Iterator[Row]:
    from zeek_agent.host.linux import network_state

    for route in network_state.routes():
        is_single = route.prefix_length == (128 if ":" in route.destination else 32)
        yield (
            route.destination,
            0 if is_single else route.prefix_length,
            route.gateway,
            route.source,
            route.flags,
            route.interface,
            route.mtu,
            route.metric,
            _ROUTE_KINDS.get(route.kind, "other"),
            route.hop_limit,
        )


@arp_cache.snapshot
def neighbors(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.linux import network_state

    for entry in network_state.arp_entries(wanted.context.proc):
        yield entry.address, entry.mac, entry.interface, str(int(entry.flags == _PERMANENT))


TABLES = (interface_addresses, interface_details, routes, arp_cache)
