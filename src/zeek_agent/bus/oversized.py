"""Frames that are longer than a batch can be: an empty batch in their place, and an error to Zeek that says so.

Without the empty batch, Zeek's script would wait for it, and the query would never run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from zeek_agent.bus import messages
from zeek_agent.zeek import protocol
from zeek_agent.zeek.broker_json import ProtocolError
from zeek_agent.zeek.instance import Traffic
from zeek_agent.zeek.protocol import Context, ResultBatch, ResultRow

log = logging.getLogger(__name__)

CAUSE: Final = "too long"
"""Of rows that are dropped."""
RESERVED_BYTES: Final = 8 * 1024
"""Room for small batches that go with a large one, and for the error."""


class Refit:
    """Replaces the frames that do not fit. `traffic` counts their rows as dropped."""

    def __init__(self, traffic: Traffic, limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._traffic = traffic
        self._clock = clock
        self.limit_bytes = min(limit_bytes, messages.BATCH_BYTES_MAX) - RESERVED_BYTES
        """Longest frame."""

    def __call__(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        if all(len(frame) <= self.limit_bytes for frame in frames):
            return frames
        return [part for frame in frames for part in self._fitting(frame)]

    def _fitting(self, frame: bytes) -> Iterator[bytes]:
        if len(frame) <= self.limit_bytes:
            yield frame
            return
        self._traffic.dropped_rows[CAUSE] += 1
        try:
            message = protocol.read_message(frame)
            event = protocol.agent_event(message) if isinstance(message, protocol.Message) else None
        except ProtocolError as error:
            log.error("a message of %d bytes, too long for the bus, is dropped: %s", len(frame), error)
            return
        if not isinstance(message, protocol.Message) or not isinstance(event, ResultBatch | ResultRow):
            log.error("a message of %d bytes, too long for the bus, is dropped", len(frame))
            return
        text = f"a row of {len(frame):,} bytes is left out: the bus carries {self.limit_bytes:,} bytes at most"
        log.warning(
            "a row of query %s is left out: %d bytes are too long for the bus", event.context.query_id, len(frame)
        )
        if isinstance(event, ResultBatch):
            yield protocol.rows(message.topic, event.context, event.batch, "[]").encode()
        before, after = protocol.response_topic(event.context.agent_id, "\n").split("\n")
        instance = message.topic.removeprefix(before).removesuffix(after)
        context = Context(event.context.agent_id, self._clock(), event.context.query_id, cookie=event.context.cookie)
        yield protocol.agent_error(instance, context, text).encode()
