"""Community IDs, compared with the reference implementation."""

from __future__ import annotations

import ipaddress

import communityid
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.community_id import community_id

ports = st.integers(0, 65535)
flows = st.one_of(
    st.tuples(st.ip_addresses(v=4), ports, st.ip_addresses(v=4), ports),
    st.tuples(st.ip_addresses(v=6), ports, st.ip_addresses(v=6), ports),
)


@given(flows, st.sampled_from([6, 17, 132]), ports)
def test_it_is_that_of_the_reference_implementation(
    flow: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int, ipaddress.IPv4Address | ipaddress.IPv6Address, int],
    protocol: int,
    seed: int,
) -> None:
    local, local_port, remote, remote_port = flow
    make = {6: communityid.FlowTuple.make_tcp, 17: communityid.FlowTuple.make_udp, 132: communityid.FlowTuple.make_sctp}
    expected = communityid.CommunityID(seed=seed).calc(make[protocol](str(local), str(remote), local_port, remote_port))
    assert community_id(protocol, str(local), local_port, str(remote), remote_port, seed=seed) == expected


def test_both_directions_have_the_same() -> None:
    there = community_id(6, "128.232.110.120", 34855, "66.35.250.204", 80)
    assert there == community_id(6, "66.35.250.204", 80, "128.232.110.120", 34855)
    assert there == "1:LQU9qZlK+B5F3KDmev6m5PMibrg="


@pytest.mark.parametrize(
    "flow",
    [(1, "1.2.3.4", 8, "5.6.7.8", 0), (6, "1.2.3.4", 1, "::1", 2), (6, "not one", 1, "1.2.3.4", 2)],
)
def test_protocols_without_ports_are_an_error(flow: tuple[int, str, int, str, int]) -> None:
    with pytest.raises(ValueError, match=r"protocol 1|same family|not an address"):
        community_id(*flow)
