"""Community ID, version 1: the same short text for both directions of a flow, as in Zeek's `community_id` field.

Specification: https://github.com/corelight/community-id-spec
"""

from __future__ import annotations

import socket
from base64 import b64encode
from hashlib import sha1
from typing import Final

PORT_PROTOCOLS: Final = frozenset({6, 17, 132})
"""TCP, UDP and SCTP, the protocols whose ports are supported here."""


def community_id(protocol: int, local: str, local_port: int, remote: str, remote_port: int, *, seed: int = 0) -> str:
    """The flow's ID. Ports are those of TCP, UDP or SCTP; ValueError for other protocols and mixed address families."""
    if protocol not in PORT_PROTOCOLS:
        raise ValueError(f"no community ID from ports for protocol {protocol}")
    return packed_community_id(protocol, _packed(local), local_port, _packed(remote), remote_port, seed=seed)


def packed_community_id(
    protocol: int, local: bytes, local_port: int, remote: bytes, remote_port: int, *, seed: int = 0
) -> str:
    """The same for addresses in network form, both of 4 or both of 16 bytes."""
    if len(local) != len(remote):
        raise ValueError("both addresses of a flow must have the same family")
    first, second = local + local_port.to_bytes(2, "big"), remote + remote_port.to_bytes(2, "big")
    # Addresses are compared before ports.
    if (local, local_port) > (remote, remote_port):
        first, second = second, first
    size = len(local)
    data = b"".join(
        (
            seed.to_bytes(2, "big"),
            first[:size],
            second[:size],
            bytes((protocol, 0)),
            first[size:],
            second[size:],
        )
    )
    return f"1:{b64encode(sha1(data, usedforsecurity=False).digest()).decode()}"


def _packed(address: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError as error:
        raise ValueError(f"not an address: {address!r}") from error
