"""Names of hosts(5), services(5) and protocols(5), and the resolver's configuration (resolv.conf(5))."""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.files.system_files import system_lines

Report = Callable[[str], None]

HOSTS: Final = Path("/etc/hosts")
SERVICES: Final = Path("/etc/services")
PROTOCOLS: Final = Path("/etc/protocols")
RESOLVER: Final = Path("/etc/resolv.conf")
_NUMBER: Final = re.compile(rb"[0-9]{1,9}")

_NAME_SERVERS_MAX: Final = 3
_SEARCHED_MAX: Final = 6
_SORT_LIST_MAX: Final = 10
"""As in glibc, which ignores further ones."""
_RESOLVER_DEFAULTS: Final = 0x2C1
"""RES_INIT, RES_RECURSE, RES_DEFNAMES and RES_DNSRCH of <resolv.h>."""
_RESOLVER_OPTIONS: Final = {
    b"use-vc": 0x8,
    b"rotate": 0x4000,
    b"edns0": 0x10_0000,
    b"single-request": 0x20_0000,
    b"single-request-reopen": 0x40_0000,
    b"no_tld_query": 0x100_0000,
    b"no-tld-query": 0x100_0000,
    b"no-reload": 0x200_0000,
    b"trust-ad": 0x400_0000,
    b"no-aaaa": 0x800_0000,
}


class HostNames(NamedTuple):
    """A line of hosts(5)."""

    address: bytes
    names: list[bytes]


class NamedNumber(NamedTuple):
    """A line of services(5) or protocols(5): a port or a protocol number; None if it is not a number."""

    name: bytes
    number: int | None
    protocol: bytes
    aliases: list[bytes]
    comment: bytes


class Resolver(NamedTuple):
    """The configuration of glibc's resolver."""

    name_servers: list[str]
    sort_list: list[tuple[str, int]]
    """Networks, each with its mask as a number in the host's byte order, as in `struct __res_state`."""
    searched: list[bytes]
    options: int
    """The flags RES_… of <resolv.h>."""


def host_names(report: Report, file: Path = HOSTS) -> Iterator[HostNames]:
    """The lines with an address. `report` is called with a sentence if the file cannot be read, as by the others."""
    for line in system_lines(file, report):
        words = line.partition(b"#")[0].split()
        if words:
            yield HostNames(words[0], words[1:])


def services(report: Report, file: Path = SERVICES) -> Iterator[NamedNumber]:
    """The lines with a port and a protocol."""
    for words, comment in _commented(system_lines(file, report)):
        port, slash, protocol = words[1].partition(b"/")
        if slash and port and protocol:
            yield NamedNumber(words[0], _number(port), protocol, words[2:], comment)


def protocols(report: Report, file: Path = PROTOCOLS) -> Iterator[NamedNumber]:
    """The lines with a number."""
    for words, comment in _commented(system_lines(file, report)):
        yield NamedNumber(words[0], _number(words[1]), b"", words[2:], comment)


def resolver(report: Report, file: Path = RESOLVER, hostname: Callable[[], str] = socket.gethostname) -> Resolver:
    """What the file configures; the C library's defaults for what it does not."""
    servers: list[str] = []
    sorted_first: list[tuple[str, int]] = []
    searched: list[bytes] | None = None
    options = _RESOLVER_DEFAULTS
    for line in system_lines(file, report):
        if line[:1].isspace() or line.startswith((b"#", b";")):
            continue
        keyword, _, rest = line.replace(b"\t", b" ").partition(b" ")
        words = rest.split()
        if keyword == b"nameserver" and words:
            address = _address(words[0])
            servers += [address] if address is not None else []
        elif keyword == b"sortlist":
            sorted_first += [entry for entry in map(_sort_entry, words) if entry is not None]
        elif keyword in {b"search", b"domain"} and words:
            searched = words if keyword == b"search" else words[:1]
        elif keyword == b"options":
            for word in words:
                options |= _RESOLVER_OPTIONS.get(word, 0)
    if searched is None:
        domain = hostname().partition(".")[2].encode(errors="surrogateescape")
        searched = [domain] if domain else []
    return Resolver(
        servers[:_NAME_SERVERS_MAX] or ["127.0.0.1"], sorted_first[:_SORT_LIST_MAX], searched[:_SEARCHED_MAX], options
    )


def _commented(lines: Iterable[bytes]) -> Iterator[tuple[list[bytes], bytes]]:
    """The lines with at least two words, and the comment after them."""
    for line in lines:
        text, _, comment = line.partition(b"#")
        words = text.split()
        if len(words) > 1:
            parts = (part.strip() for part in comment.split(b"#") if part)
            yield words, b" # ".join(parts)


def _number(text: bytes) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _address(text: bytes) -> str | None:
    """An address as the C library reads it, which takes `127.1` too."""
    packed = _packed(text)
    if packed is not None:
        return socket.inet_ntoa(packed)
    try:
        return str(ipaddress.IPv6Address(text.decode(errors="replace")))
    except ValueError:
        return None


def _sort_entry(text: bytes) -> tuple[str, int] | None:
    """A network of a sort list with its mask, that of its class if there is no valid one."""
    network, *masks = (_packed(part) for part in re.split(rb"[/&]", text, maxsplit=1))
    if network is None:
        return None
    octets = 1 if network[0] < 128 else 2 if network[0] < 192 else 3
    mask = (masks[0] if masks else None) or b"\xff" * octets + b"\0" * (4 - octets)
    return socket.inet_ntoa(network), int.from_bytes(mask, sys.byteorder)


def _packed(text: bytes) -> bytes | None:
    try:
        return socket.inet_aton(text.decode(errors="replace"))
    except (OSError, ValueError):
        return None
