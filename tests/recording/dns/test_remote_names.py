"""What a process looked up for an address, and what only somebody told it."""

from __future__ import annotations

import dns.message
import dns.rrset
import pytest

from zeek_agent.bpf.records import MESSAGE, SOCKET, RecordKind, SocketRecord
from zeek_agent.recording.dns.dns_lookups import DnsLookups
from zeek_agent.recording.dns.remote_names import RemoteNames
from zeek_agent.recording.processes.process_cache import ProcessCache

ADDRESS = "192.0.2.9"


class Exchange:
    """A process that asks 198.51.100.1 from one socket, and what comes back."""

    def __init__(self) -> None:
        self.names = RemoteNames()
        self._lookups = DnsLookups(ProcessCache(), self.names)

    def pass_on(self, message: dns.message.Message, *, outbound: bool, server: int = 1) -> str | None:
        """The row's process for a message, if there is a row."""
        end = SocketRecord._make(SOCKET.unpack(bytes(SOCKET.size)))._replace(
            kind=RecordKind.MESSAGE, protocol=17, family=4, pid=7, time=10**9, started=10**9, acted=10**9, cookie=3
        )
        end = end._replace(remote=bytes((198, 51, 100, server)) + bytes(12), remote_port=53, outbound=outbound)
        wire = message.to_wire()
        record = SOCKET.pack(*end) + MESSAGE.pack(0, len(wire)) + wire
        rows = self._lookups.rows([record], 0.0)
        return rows[0].entity_id if rows else None


def answered(query: dns.message.Message, *records: str) -> dns.message.Message:
    response = dns.message.make_response(query)
    for owner, kind, data in (record.split() for record in records):
        response.answer.append(dns.rrset.from_text(owner, 60, "IN", kind, data))
    return response


QUERY = dns.message.make_query("asked.example", "A", id=1)


@pytest.mark.parametrize(
    "records",
    [
        [f"asked.example. A {ADDRESS}"],
        ["asked.example. CNAME one.example.", "one.example. CNAME two.example.", f"two.example. A {ADDRESS}"],
        [f"one.example. A {ADDRESS}", "asked.example. CNAME one.example."],
    ],
)
def test_addresses_of_the_name_and_of_its_aliases(records: list[str]) -> None:
    exchange = Exchange()
    exchange.pass_on(QUERY, outbound=True)
    entity = exchange.pass_on(answered(QUERY, *records), outbound=False)
    assert entity
    assert exchange.names.find(entity, ADDRESS) == "asked.example"


@pytest.mark.parametrize(
    "records",
    [
        [f"other.example. A {ADDRESS}"],
        ["asked.example. CNAME asked.example.", f"other.example. A {ADDRESS}"],
        ["other.example. CNAME more.example.", f"more.example. A {ADDRESS}"],
    ],
)
def test_addresses_of_other_names_are_not_those_of_the_name(records: list[str]) -> None:
    exchange = Exchange()
    exchange.pass_on(QUERY, outbound=True)
    entity = exchange.pass_on(answered(QUERY, *records), outbound=False)
    assert entity
    assert exchange.names.find(entity, ADDRESS) is None


@pytest.mark.parametrize(
    ("name", "identity", "server"),
    [("other.example", 1, 1), ("asked.example", 2, 1), ("asked.example", 1, 2)],
    ids=["another question", "another id", "another server"],
)
def test_an_answer_to_no_question_names_no_address(name: str, identity: int, server: int) -> None:
    exchange = Exchange()
    exchange.pass_on(QUERY, outbound=True)
    lie = answered(dns.message.make_query(name, "A", id=identity), f"{name}. A {ADDRESS}")
    entity = exchange.pass_on(lie, outbound=False, server=server)
    assert entity
    assert exchange.names.find(entity, ADDRESS) is None
