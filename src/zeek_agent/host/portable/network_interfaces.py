"""Network interfaces and their addresses by psutil."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final

import psutil

from zeek_agent.host.network_interface import Interface, Statistics
from zeek_agent.text import from_os

_FAMILIES: Final = {socket.AF_INET, socket.AF_INET6}


def list_interfaces(*, counts_dropped_output: bool = True) -> list[Interface]:
    """All interfaces. What psutil does not report is None. Raises OSError.

    Without `counts_dropped_output` the system has no count of outgoing packets that were dropped.
    """
    addresses: dict[str, list[Any]] = psutil.net_if_addrs()
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    indexes = {name: index for index, name in socket.if_nameindex()} if hasattr(socket, "if_nameindex") else {}
    found = []
    for name, shown in psutil.net_if_stats().items():
        flags = set(shown.flags.split(",")) if shown.flags else None
        found.append(
            Interface(
                index=indexes.get(name),
                name=from_os(name),
                kind="loopback" if flags is not None and "loopback" in flags else None,
                mac=_mac(addresses.get(name, ())),
                mtu=shown.mtu or None,
                up=shown.isup if flags is None else "up" in flags,
                state=None,
                promiscuous=None if flags is None else "promisc" in flags,
                master=None,
                statistics=_statistics(counters[name], counts_dropped_output) if name in counters else None,
                addresses=_addresses(addresses.get(name, ())),
            )
        )
    return found


def global_addresses() -> list[str]:
    """The host's addresses except loopback and link-local ones. Raises OSError."""
    found = {address for shown in psutil.net_if_addrs().values() for address in _addresses(shown)}
    return sorted(
        address for address in found if not (ip_address(address).is_loopback or ip_address(address).is_link_local)
    )


def _addresses(shown: Iterable[Any]) -> list[str]:
    """The IP addresses, without the scope that macOS and Windows add to link-local ones."""
    return [str(ip_address(one.address.partition("%")[0])) for one in shown if one.family in _FAMILIES]


def _mac(shown: Iterable[Any]) -> str | None:
    for one in shown:
        if one.family == psutil.AF_LINK and one.address:
            return str(one.address).replace("-", ":").lower()
    return None


def _statistics(counted: Any, counts_dropped_output: bool) -> Statistics:
    return Statistics(
        rx_packets=counted.packets_recv,
        tx_packets=counted.packets_sent,
        rx_bytes=counted.bytes_recv,
        tx_bytes=counted.bytes_sent,
        rx_errors=counted.errin,
        tx_errors=counted.errout,
        rx_dropped=counted.dropin,
        tx_dropped=counted.dropout if counts_dropped_output else None,
    )
