"""Network interfaces and their addresses, from rtnetlink(7)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import Final

from zeek_agent.host.linux.netlink import NETLINK_ROUTE, attributes, dump
from zeek_agent.host.network_interface import Interface, Statistics
from zeek_agent.text import from_bytes

_RTM_GETLINK: Final = 18
_RTM_GETADDR: Final = 22
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBi")
_NUMBER: Final = struct.Struct("=I")
_STATISTICS: Final = struct.Struct("=8Q")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO = 1, 3, 4, 10, 16, 18
_IFLA_STATS64, _IFLA_PROMISCUITY, _IFLA_INFO_KIND = 23, 30, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP: Final = 0x1
_SCOPE_GLOBAL: Final = 0

_OPERATIONAL: Final = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_HARDWARE: Final = {1: "ethernet", 32: "infiniband", 512: "ppp", 772: "loopback", 801: "wireless", 65534: "none"}


def list_interfaces() -> list[Interface]:
    """All interfaces. Raises OSError when the kernel does not answer."""
    listed = map(_interface, dump(NETLINK_ROUTE, _RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
    found = {interface.index: interface for interface in listed}
    for index, address, _ in _addresses():
        if index in found:
            found[index].addresses.append(address)
    return list(found.values())


def global_addresses() -> list[str]:
    """The host's addresses of global scope: not loopback, not link-local. Raises OSError as above."""
    return sorted({address for _, address, scope in _addresses() if scope == _SCOPE_GLOBAL})


def _addresses() -> Iterable[tuple[int, str, int]]:
    """Interface index, address and scope (`RT_SCOPE_*`) of each address."""
    for body in dump(NETLINK_ROUTE, _RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, _, _, scope, index = _ADDRESS.unpack_from(body)
        values = dict(attributes(body, _ADDRESS.size))
        # On a point-to-point link, IFA_ADDRESS is the peer's address and IFA_LOCAL ours.
        raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
        if raw is not None and family in {socket.AF_INET, socket.AF_INET6}:
            yield index, socket.inet_ntop(family, raw), scope


def _interface(body: bytes) -> Interface:
    _, hardware, index, flags, _ = _LINK.unpack_from(body)
    values = dict(attributes(body, _LINK.size))
    info = dict(attributes(values.get(_IFLA_LINKINFO, b""), 0))
    kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0")
    mac = values.get(_IFLA_ADDRESS)
    statistics = values.get(_IFLA_STATS64)
    state = values.get(_IFLA_OPERSTATE, b"\0")[0]
    return Interface(
        index,
        from_bytes(values[_IFLA_IFNAME].rstrip(b"\0")),
        from_bytes(kind) if kind else _HARDWARE.get(hardware, str(hardware)),
        mac.hex(":") if mac else None,
        _number(values.get(_IFLA_MTU)),
        bool(flags & _IFF_UP),
        _OPERATIONAL[state] if state < len(_OPERATIONAL) else str(state),
        bool(_number(values.get(_IFLA_PROMISCUITY))),
        _number(values.get(_IFLA_MASTER)),
        Statistics(*_STATISTICS.unpack_from(statistics)) if statistics else None,
    )


def _number(value: bytes | None) -> int | None:
    return _NUMBER.unpack(value)[0] if value else None
