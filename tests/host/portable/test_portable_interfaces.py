"""psutil's network interfaces next to those of rtnetlink(7)."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import psutil
import pytest

from zeek_agent.host.portable import network_interfaces

needs_netlink = pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="compares with rtnetlink(7)")


@needs_netlink
def test_interfaces_are_those_of_rtnetlink() -> None:
    from zeek_agent.host.linux import interfaces

    expected = {one.name: one for one in interfaces.list_interfaces()}
    found = {one.name: one for one in network_interfaces.list_interfaces()}
    assert found.keys() == expected.keys()
    for name, one in found.items():
        other = expected[name]
        assert (one.index, one.mac, one.mtu, one.up, one.promiscuous) == (
            other.index,
            other.mac,
            other.mtu,
            other.up,
            other.promiscuous,
        )
        assert sorted(one.addresses) == sorted(other.addresses)
        assert one.kind in {other.kind, None}
        assert (one.state, one.master) == (None, None)


@needs_netlink
def test_counters_lie_between_two_readings_of_rtnetlink() -> None:
    from zeek_agent.host.linux import interfaces

    before = {one.name: one.statistics for one in interfaces.list_interfaces()}
    found = {one.name: one.statistics for one in network_interfaces.list_interfaces()}
    after = {one.name: one.statistics for one in interfaces.list_interfaces()}
    for name, counted in found.items():
        first, last = before[name], after[name]
        assert counted is not None
        assert first is not None
        assert last is not None
        for field in counted.__dataclass_fields__:
            assert getattr(first, field) <= getattr(counted, field) <= getattr(last, field), (name, field)


@needs_netlink
def test_global_addresses_are_those_of_rtnetlink() -> None:
    from zeek_agent.host.linux import interfaces

    assert network_interfaces.global_addresses() == interfaces.global_addresses()


def test_what_a_system_does_not_count_is_null() -> None:
    """macOS has no count of outgoing packets that were dropped; psutil returns 0 for it."""
    for one in network_interfaces.list_interfaces(counts_dropped_output=False):
        assert one.statistics is None or one.statistics.tx_dropped is None


def test_windows_forms_of_addresses_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SimpleNamespace(family=psutil.AF_LINK, address="00-1A-2B-3C-4D-5E")
    scoped = SimpleNamespace(family=socket.AF_INET6, address="fe80::1%12")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"Ethernet": [link, scoped]})
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"Ethernet": SimpleNamespace(isup=True, mtu=1500, flags="")})
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {})
    (one,) = network_interfaces.list_interfaces()
    assert (one.name, one.mac, one.addresses, one.up) == ("Ethernet", "00:1a:2b:3c:4d:5e", ["fe80::1"], True)
    assert (one.index, one.kind, one.promiscuous, one.statistics) == (None, None, None, None)
    assert network_interfaces.global_addresses() == []
