"""Columns that tell what a flow has carried, declared once for every table that has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from zeek_agent.schema import Column

_COLUMNS: Final = (
    Column("duration", "interval", "time since the flow began; null if it began before recording"),
    Column("bytes_sent", "count", "bytes of payload that this host sent, without retransmissions"),
    Column("bytes_received", "count", "bytes of payload that this host received; null for ICMP and raw sockets"),
    Column(
        "packets_sent", "count", "packets that this host sent, with retransmissions and TCP segments without payload"
    ),
    Column("packets_received", "count", "packets that this host received; null for ICMP and raw sockets"),
)


def traffic_columns(*, added: bool = False) -> list[Column]:
    """These columns; `added` as in `Column`."""
    return [replace(column, added=added) for column in _COLUMNS]
