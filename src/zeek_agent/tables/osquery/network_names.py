"""Local names of hosts, services and protocols, and the configuration of the resolver."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.linux import network_names
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import WITHOUT_NAMESPACES, osquery_table
from zeek_agent.text import from_bytes

etc_hosts = osquery_table(
    "etc_hosts",
    "names of hosts in `/etc/hosts`",
    aliases=("hosts",),
    description="One row per line with an address.",
    columns=[
        Column("address", "text", "the address as it is written"),
        Column("hostnames", "text", "its names, separated by blanks"),
        WITHOUT_NAMESPACES,
    ],
    examples=["SELECT address, hostnames FROM etc_hosts"],
)

etc_services = osquery_table(
    "etc_services",
    "names of ports in `/etc/services`",
    description="One row per line with a port.",
    columns=[
        Column("name", "text", "name"),
        Column("port", "int", "port"),
        Column("protocol", "text", "`tcp`, `udp`, …"),
        Column("aliases", "text", "other names, separated by blanks"),
        Column("comment", "text", "comment"),
    ],
    examples=["SELECT name, port, protocol FROM etc_services WHERE port = 22"],
)

etc_protocols = osquery_table(
    "etc_protocols",
    "names of protocols in `/etc/protocols`",
    description="One row per line with a protocol.",
    columns=[
        Column("name", "text", "name"),
        Column("number", "int", "number in the header of IP"),
        Column("alias", "text", "the first other name"),
        Column("comment", "text", "comment"),
    ],
    examples=["SELECT name, alias FROM etc_protocols WHERE number = 6"],
)

dns_resolvers = osquery_table(
    "dns_resolvers",
    "configuration of the resolver",
    description=(
        "One row per DNS server, network of the sort list, and searched domain in `/etc/resolv.conf`, as far as glibc "
        "uses them: three servers, ten networks, six domains, and its defaults where the file has none."
    ),
    columns=[
        Column("id", "int", "place among those of its type, from 0"),
        Column("type", "text", "`nameserver`, `sortlist` or `search`"),
        Column("address", "text", "address, or the searched domain"),
        Column("netmask", "text", "`32` for a server; for a network, the mask as a number in the host's byte order"),
        Column("options", "int", "flags of the resolver: the sum of those of `RES_…` in `<resolv.h>` that are set"),
        WITHOUT_NAMESPACES,
    ],
    examples=["SELECT address FROM dns_resolvers WHERE type = 'nameserver'"],
)


@etc_hosts.snapshot
def hosts(wanted: Constraints) -> Iterator[Row]:
    for address, names in network_names.host_names(wanted.report):
        wanted.check()
        yield from_bytes(address), from_bytes(b" ".join(names)), None


@etc_services.snapshot
def services(wanted: Constraints) -> Iterator[Row]:
    for name, port, protocol, aliases, comment in network_names.services(wanted.report):
        wanted.check()
        yield from_bytes(name), port, from_bytes(protocol), from_bytes(b" ".join(aliases)), from_bytes(comment)


@etc_protocols.snapshot
def protocols(wanted: Constraints) -> Iterator[Row]:
    for name, number, _, aliases, comment in network_names.protocols(wanted.report):
        wanted.check()
        yield from_bytes(name), number, from_bytes(aliases[0]) if aliases else "", from_bytes(comment)


@dns_resolvers.snapshot
def resolvers(wanted: Constraints) -> Iterator[Row]:
    found = network_names.resolver(wanted.report)
    for number, address in enumerate(found.name_servers):
        yield number, "nameserver", address, "32", found.options, None
    for number, (address, mask) in enumerate(found.sort_list):
        yield number, "sortlist", address, str(mask), found.options, None
    for number, domain in enumerate(found.searched):
        yield number, "search", from_bytes(domain), "", found.options, None


TABLES = (etc_hosts, etc_services, etc_protocols, dns_resolvers)
