"""Network interfaces: one record for all ways to list them (rtnetlink(7), psutil)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the interface was created: on Linux the first ones of struct rtnl_link_stats64.

    None: not counted by this system.
    """

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int | None


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface, on Linux of the agent's network namespace. None means unknown, or without one.

    `kind` is the virtual kind (`bridge`, `veth`, `vlan`, `wireguard`) or the hardware type (`ethernet`, `loopback`),
    `state` the operational state of RFC 2863, `master` the index of the bridge or bond that it belongs to.
    """

    index: int | None
    name: str
    kind: str | None
    mac: str | None
    mtu: int | None
    up: bool
    state: str | None
    promiscuous: bool | None
    master: int | None
    statistics: Statistics | None
    addresses: list[str] = field(default_factory=list)
