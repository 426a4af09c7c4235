"""Turns the kernel's records of DNS messages into rows: each answer with its question."""

from __future__ import annotations

import logging
import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

from zeek_agent.bpf.records import MESSAGE, SOCKET, SocketRecord
from zeek_agent.host.internet_sockets import TCP
from zeek_agent.recording.dns.dns_event import DnsEvent, Lookup, dns_event
from zeek_agent.recording.dns.dns_message import DnsError, Message, parse
from zeek_agent.recording.dns.dns_streams import DnsStreams, StreamMessage
from zeek_agent.recording.sockets.record_process import process_of_record, record_flow

if TYPE_CHECKING:
    from zeek_agent.recording.dns.remote_names import RemoteNames
    from zeek_agent.recording.processes.process_cache import ProcessCache

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_NS: Final = 15_000_000_000
"""How long a question waits for its answer: glibc asks again after 5 seconds, twice."""
PENDING_MAX: Final = 20_000
"""Questions that wait at a time; beyond, the oldest has its row without an answer."""

_Key: TypeAlias = tuple[int, bytes, int, int, str | None, int | None]
"""Of a question: cookie of the socket, server's address and port, id, name, type."""


class DnsLookups:
    """Matches answers with questions by socket, server, id and question, never by time."""

    def __init__(self, cache: ProcessCache, names: RemoteNames) -> None:
        self._cache = cache
        self._names = names
        self._streams = DnsStreams()
        self._pending: OrderedDict[_Key, tuple[int, Lookup]] = OrderedDict()
        self.undecoded = 0

    @property
    def lost_streams(self) -> int:
        """Directions of TCP connections in which messages were missed."""
        return self._streams.lost

    def rows(self, batch: Iterable[bytes], boot_time: float) -> list[DnsEvent]:
        """Rows for these records, in the kernel's order; times are ns since the boot at `boot_time`."""
        rows: list[DnsEvent] = []
        for record in batch:
            try:
                self._apply(record, boot_time, rows)
            except (ValueError, LookupError, struct.error):
                self.undecoded += 1
                log.debug("a record of a DNS message cannot be read: %s", record.hex(), exc_info=True)
        while len(self._pending) > PENDING_MAX:
            rows.append(self._unanswered())
        return rows

    def overdue(self, now: int) -> list[DnsEvent]:
        """Rows of questions without an answer, at `now` (ns since boot)."""
        rows: list[DnsEvent] = []
        while self._pending and next(iter(self._pending.values()))[0] <= now - ANSWER_TIMEOUT_NS:
            rows.append(self._unanswered())
        return rows

    def remaining(self) -> list[DnsEvent]:
        """Rows of all questions that wait, when recording stops."""
        return [self._unanswered() for _ in range(len(self._pending))]

    def oldest_pending(self) -> int | None:
        """The time (ns since boot) of the oldest question without a row."""
        return next((asked for asked, _ in self._pending.values()), None)

    def _unanswered(self) -> DnsEvent:
        _, (_, lookup) = self._pending.popitem(last=False)
        return dns_event(lookup, None, None)

    def _apply(self, raw: bytes, boot_time: float, rows: list[DnsEvent]) -> None:
        record = SocketRecord._make(SOCKET.unpack_from(raw))
        sequence, length = MESSAGE.unpack_from(raw, SOCKET.size)
        captured = raw[SOCKET.size + MESSAGE.size :]
        if record.protocol == TCP:
            # with the time of connect(2), because a socket can connect again, even between the same ends
            key = record.cookie, record.outbound, record.acted
            messages = self._streams.add(key, sequence, captured, length)
        else:
            messages = [StreamMessage(captured, len(captured) < length)]
        for message in messages:
            try:
                found = parse(message.raw, is_cut=message.is_cut)
            except DnsError:
                self.undecoded += 1
                continue
            if found.is_response:
                self._answer(record, found, boot_time, rows)
            else:
                self._ask(record, found, boot_time)

    def _ask(self, record: SocketRecord, question: Message, boot_time: float) -> None:
        if not record.outbound:
            return
        key = _key(record, question)
        before = self._pending.get(key)
        if before is not None:
            asked, lookup = before
            self._pending[key] = asked, lookup._replace(attempts=(lookup.attempts or 0) + 1)
            return
        self._pending[key] = record.time, self._lookup(record, question, boot_time)

    def _answer(self, record: SocketRecord, answer: Message, boot_time: float, rows: list[DnsEvent]) -> None:
        """An answer without its question, which was asked before recording or never, has a row of its own, and names no
        address: everybody can send it.
        """
        if record.outbound:
            return
        pending = self._pending.pop(_key(record, answer), None)
        if pending is None:
            lookup, latency = self._lookup(record, answer, boot_time)._replace(attempts=None), None
        else:
            asked, lookup = pending
            latency = (record.time - asked) / 1e9
            self._names.learn(lookup, answer)
        rows.append(dns_event(lookup, answer, latency))

    def _lookup(self, record: SocketRecord, message: Message, boot_time: float) -> Lookup:
        process = process_of_record(self._cache, record)
        return Lookup(boot_time + record.time / 1e9, record_flow(record), process, message.name, message.type)


def _key(record: SocketRecord, message: Message) -> _Key:
    return record.cookie, record.remote, record.remote_port, message.id, message.name, message.type
