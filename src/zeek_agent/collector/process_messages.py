"""Messages between the agent and the process of its embedded collector.

All are msgpack, one per packet of a Unix SEQPACKET socket (`containment.channel`). The agent trusts the process as
little as any worker: a message that does not decode, or too many of them, end it.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from zeek_agent.collector.pack import Pack
from zeek_agent.collector.stats import CollectorStats
from zeek_agent.config.server_sections import CollectorSettings
from zeek_agent.containment.messages import LogLine, Ready

LOG_LINES_PER_SECOND: Final = 40
"""Twice what `reporter.log` takes."""
MESSAGES_PER_SECOND: Final = 200
"""More than the process ever sends."""

# Agent to collector


class Begin(Struct, frozen=True, tag="begin"):
    """The first message: lock down and be ready for connections. The log directory is an absolute path."""

    settings: CollectorSettings
    pack: Pack
    agent_pid: int
    log_level: int
    """Minimum level of log lines that the agent wants."""


class Serve(Struct, frozen=True, tag="serve"):
    """Serve the connection whose descriptor comes with it."""


class SetLogLevel(Struct, frozen=True, tag="log_level"):
    """Send log lines of this level and above from now on."""

    level: int


class Stop(Struct, frozen=True, tag="stop"):
    """Send the shutdown message to the agent, close the logs and end."""


# Collector to agent


class StartFailed(Struct, frozen=True, tag="start_failed"):
    """It cannot start, and ends; `text` is the reason, for an operator."""

    text: str


class State(Struct, frozen=True, tag="state"):
    """Its figures, once a second if they have changed."""

    stats: CollectorStats


ToCollector: TypeAlias = Begin | Serve | SetLogLevel | Stop
FromCollector: TypeAlias = Ready | StartFailed | State | LogLine

encode = msgspec.msgpack.Encoder().encode
decode_to_collector = msgspec.msgpack.Decoder(ToCollector).decode
decode_from_collector = msgspec.msgpack.Decoder(FromCollector).decode
