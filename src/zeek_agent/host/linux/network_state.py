"""Links, addresses, routes and the ARP cache of this network namespace: rtnetlink(7), sysfs and arp(7)."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.linux.netlink import NETLINK_ROUTE, attributes, dump
from zeek_agent.text import from_bytes

_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE = 18, 22, 26
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBi")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_INDEX: Final = struct.Struct("=i")
_COUNTERS: Final = struct.Struct("=10Q")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_STATS64 = 1, 3, 4, 23
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST = 1, 2, 3, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTAX_MTU, _RTAX_HOPLIMIT = 2, 10
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_WIDTHS: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
_IFF_BROADCAST: Final = 0x2
_SYSFS_FLAGS: Final = 0x1 | 0x4 | 0x20 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x2000 | 0x4000 | 0x8000
"""Flags that sysfs knows better: UP, DEBUG, NOTRAILERS, NOARP, PROMISC, ALLMULTI, MULTICAST, PORTSEL, AUTOMEDIA and
DYNAMIC. Netlink reports a promiscuous mode that a program has requested by netlink or ioctl only."""
_VIRTIO: Final = re.compile(r"virtio\d+")
SYSFS: Final = Path("/sys/class/net")


class Link(NamedTuple):
    """A network interface. `hardware` is its type (`ARPHRD_*`); `mac` has the first six bytes of its address.

    The ten counters are the first of struct rtnl_link_stats64; None if the kernel reports none.
    """

    name: str
    mac: str
    hardware: int
    mtu: int
    flags: int
    counters: tuple[int, ...] | None


class InterfaceAddress(NamedTuple):
    """An address, with the names of getifaddrs(3): `destination` is `ifa_ifu`, a broadcast address or that of a peer.

    `label` is the name of the interface or of an alias.
    """

    label: str
    address: str
    mask: str
    destination: str | None
    has_broadcast: bool


class Route(NamedTuple):
    """A route of any table; `kind` is `RTN_*`. Addresses and the interface are None where the route has none."""

    destination: str
    prefix_length: int
    gateway: str | None
    source: str | None
    flags: int
    interface: str | None
    mtu: int
    metric: int
    kind: int
    hop_limit: int


class ArpEntry(NamedTuple):
    """A line of /proc/net/arp; `flags` are `ATF_*`."""

    address: str
    mac: str
    interface: str
    flags: int


def links() -> Iterator[Link]:
    """All interfaces. Raises OSError when the kernel does not answer."""
    for body in dump(NETLINK_ROUTE, _RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, hardware, _, flags, _ = _LINK.unpack_from(body)
        values = dict(attributes(body, _LINK.size))
        name = from_bytes(values[_IFLA_IFNAME].rstrip(b"\0"))
        counters = values.get(_IFLA_STATS64)
        yield Link(
            name,
            values.get(_IFLA_ADDRESS, b"")[:6].ljust(6, b"\0").hex(":"),
            hardware,
            _number(values.get(_IFLA_MTU)),
            _flags(name, flags),
            _COUNTERS.unpack_from(counters) if counters is not None else None,
        )


def _flags(name: str, flags: int) -> int:
    with suppress(OSError, ValueError):
        return flags & ~_SYSFS_FLAGS | int((SYSFS / name / "flags").read_text(), 16) & _SYSFS_FLAGS
    return flags


def link_speed(name: str) -> int:
    """Speed in Mbit/s; 0 if it is unknown or the interface is down."""
    with suppress(OSError, ValueError):
        return max(int((SYSFS / name / "speed").read_text()), 0)
    return 0


def bus_address(name: str) -> str:
    """The address of the device on its bus, such as `0000:00:03.0`; -1 for a virtual interface."""
    try:
        device = (SYSFS / name / "device").resolve(strict=True)
    except (OSError, RuntimeError):
        return "-1"
    return device.parent.name if _VIRTIO.fullmatch(device.name) else device.name


def interface_addresses() -> Iterator[InterfaceAddress]:
    """All IPv4 and IPv6 addresses. Raises OSError as above."""
    interfaces = _interfaces()
    for body in dump(NETLINK_ROUTE, _RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, prefix_length, _, _, index = _ADDRESS.unpack_from(body)
        name, flags = interfaces.get(index, ("", 0))
        values = dict(attributes(body, _ADDRESS.size))
        given, local = values.get(_IFA_ADDRESS), values.get(_IFA_LOCAL)
        own = local or given
        if family not in _FAMILIES or own is None or not name:
            continue
        destination = values.get(_IFA_BROADCAST) or (given if local is not None else None)
        label = values.get(_IFA_LABEL, b"").rstrip(b"\0")
        yield InterfaceAddress(
            from_bytes(label) if label else name,
            _scoped(family, own, name),
            _mask(family, prefix_length),
            None if destination is None else _scoped(family, destination, name),
            bool(flags & _IFF_BROADCAST),
        )


def _interfaces() -> dict[int, tuple[str, int]]:
    """Names and flags by index."""
    found = {}
    for body in dump(NETLINK_ROUTE, _RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, index, flags, _ = _LINK.unpack_from(body)
        found[index] = from_bytes(dict(attributes(body, _LINK.size))[_IFLA_IFNAME].rstrip(b"\0")), flags
    return found


def _scoped(family: int, raw: bytes, interface: str) -> str:
    """An address; a link-local one of IPv6 with its interface."""
    text = socket.inet_ntop(family, raw)
    is_local = family == socket.AF_INET6 and ipaddress.IPv6Address(raw).is_link_local
    return f"{text}%{interface}" if is_local else text


def _mask(family: int, length: int) -> str:
    bits = _WIDTHS[socket.AddressFamily(family)] * 8
    mask = (1 << bits) - (1 << bits - min(length, bits))
    return socket.inet_ntop(family, mask.to_bytes(bits // 8, "big"))


def routes() -> Iterator[Route]:
    """The IPv4 and IPv6 routes of all tables. Raises OSError as above."""
    interfaces = _interfaces()
    for body in dump(NETLINK_ROUTE, _RTM_GETROUTE, bytes(_ROUTE.size)):
        family, prefix_length, _, _, _, _, _, kind, flags = _ROUTE.unpack_from(body)
        if family not in _FAMILIES:
            continue
        width = _WIDTHS[socket.AddressFamily(family)]
        values = dict(attributes(body, _ROUTE.size))
        metrics = dict(attributes(values.get(_RTA_METRICS, b""), 0))
        destination = values.get(_RTA_DST, bytes(width))
        yield Route(
            socket.inet_ntop(family, destination),
            prefix_length,
            _address(family, values.get(_RTA_GATEWAY)),
            _address(family, values.get(_RTA_PREFSRC)),
            flags,
            interfaces.get(_number(values.get(_RTA_OIF)), (None, 0))[0],
            _number(metrics.get(_RTAX_MTU)),
            _number(values.get(_RTA_PRIORITY)),
            kind,
            _number(metrics.get(_RTAX_HOPLIMIT)),
        )


def _address(family: int, raw: bytes | None) -> str | None:
    return None if raw is None else socket.inet_ntop(family, raw)


def _number(raw: bytes | None) -> int:
    return int(_INDEX.unpack_from(raw)[0]) if raw is not None else 0


def arp_entries(proc: str = "/proc") -> Iterator[ArpEntry]:
    """The ARP cache, which is about IPv4. Raises OSError without one."""
    with Path(proc, "thread-self/net/arp").open("rb") as file:
        next(file, None)
        for line in file:
            fields = line.split()
            if len(fields) == 6:
                address, _, flags, mac, _, interface = map(from_bytes, fields)
                yield ArpEntry(address, mac, interface, int(flags, 16))
