"""DNS messages are read as dnspython reads them, and whatever is no message is refused."""

from __future__ import annotations

import struct
from contextlib import suppress

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeek_agent.recording.dns import dns_message
from zeek_agent.recording.dns.dns_message import ANSWERS_MAX, DnsError, Message, code_name, parse, type_name

LABELS = st.binary(min_size=1, max_size=63)
NAMES = st.lists(LABELS, min_size=0, max_size=4).map(lambda labels: dns.name.Name([*labels[:3], b""]))
SHARED = dns.name.from_text("shared.example.")
ADDRESSES = st.binary(min_size=4, max_size=4).map(lambda raw: ("A", ".".join(map(str, raw))))
TARGETS = st.sampled_from(["CNAME", "NS", "PTR", "MX", "SRV", "SOA"])
NUMBERS = {"MX": "10 ", "SRV": "1 2 443 ", "SOA": "ns.example. "}
AFTER = {"SOA": " 1 2 3 4 5"}


@st.composite
def responses(draw: st.DrawFn) -> dns.message.Message:
    name = draw(NAMES)
    query = dns.message.make_query(name, draw(st.sampled_from(["A", "AAAA", "TXT", "ANY", "TYPE65000"])))
    query.id = draw(st.integers(0, 65_535))
    response = dns.message.make_response(query)
    response.set_rcode(draw(st.sampled_from([0, 2, 3, 5])))
    if draw(st.booleans()):
        response.flags |= dns.flags.TC
    for _ in range(draw(st.integers(0, 5))):
        owner = draw(st.sampled_from([name, SHARED]))
        kind, text = draw(ADDRESSES)
        if draw(st.booleans()):
            kind = draw(TARGETS)
            text = NUMBERS.get(kind, "") + draw(NAMES | st.just(SHARED)).to_text() + AFTER.get(kind, "")
        response.answer.append(dns.rrset.from_text(owner, 60, "IN", kind, text))
    return response


def shown(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if len(name) > 1 else "."


def answers(message: dns.message.Message) -> list[tuple[str, str, str]]:
    return [
        (shown(rrset.name), dns.rdatatype.to_text(rrset.rdtype), text_of(data))
        for rrset in message.answer
        for data in rrset
    ]


def text_of(data: object) -> str:
    """The data as dnspython writes it, with names without their final dots and in lower case."""
    words = str(data).split(" ")
    return " ".join(word.removesuffix(".").lower() or "." for word in words)


@given(responses())
@settings(max_examples=200, deadline=None)
def test_responses_are_read_as_dnspython_reads_them(response: dns.message.Message) -> None:
    wire = response.to_wire()
    expected = dns.message.from_wire(wire, one_rr_per_rrset=True)
    found = parse(wire)
    (question,) = expected.question
    assert (found.id, found.is_response) == (expected.id, True)
    assert code_name(found.code) == dns.rcode.to_text(expected.rcode())
    assert found.truncated == bool(expected.flags & dns.flags.TC)
    assert found.name == shown(question.name)
    assert type_name(found.type or 0) == dns.rdatatype.to_text(question.rdtype)
    assert sorted((each.name, type_name(each.type), each.text) for each in found.answers) == sorted(answers(expected))


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_message_or_refused(raw: bytes) -> None:
    try:
        found = parse(raw)
    except DnsError:
        return
    assert isinstance(found, Message)


@given(responses(), st.data())
@settings(max_examples=200, deadline=None)
def test_changed_and_cut_messages_are_read_or_refused(response: dns.message.Message, data: st.DataObject) -> None:
    wire = bytearray(response.to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(wire)))
    try:
        parse(bytes(wire[:end]), is_cut=end < len(wire))
    except DnsError:
        return


def test_a_cut_message_has_the_answers_until_there() -> None:
    response = dns.message.make_response(dns.message.make_query("many.example", "A"))
    response.answer.append(dns.rrset.from_text("many.example.", 60, "IN", "A", *[f"192.0.2.{n}" for n in range(60)]))
    found = parse(response.to_wire()[:512], is_cut=True)
    assert found.truncated
    assert len(found.answers) == 30


def test_answers_are_bounded() -> None:
    response = dns.message.make_response(dns.message.make_query("many.example", "A"))
    addresses = [f"10.0.{n // 250}.{n % 250}" for n in range(ANSWERS_MAX + 1)]
    response.answer.append(dns.rrset.from_text("many.example.", 60, "IN", "A", *addresses))
    found = parse(response.to_wire(max_size=65_535))
    assert (len(found.answers), found.truncated) == (ANSWERS_MAX, True)


def test_texts_and_unknown_types() -> None:
    response = dns.message.make_response(dns.message.make_query("text.example", "TXT"))
    response.answer.append(dns.rrset.from_text("text.example.", 60, "IN", "TXT", '"a \\"b\\" \\007" "c"'))
    response.answer.append(dns.rrset.from_text("text.example.", 60, "IN", "TYPE65000", "\\# 2 abcd"))
    assert [each.text for each in parse(response.to_wire()).answers] == ['"a \\"b\\" \\007" "c"', "\\# 2 abcd"]


@pytest.mark.parametrize("code", [dns.rcode.BADVERS, dns.rcode.BADCOOKIE])
def test_response_codes_with_upper_bits(code: dns.rcode.Rcode) -> None:
    response = dns.message.make_response(dns.message.make_query("example", "A", use_edns=0))
    response.set_rcode(code)
    assert code_name(parse(response.to_wire()).code) == dns.rcode.to_text(code)


def chained(records: int, questions: int) -> bytes:
    """A message whose last names begin at the last of 8,000 pointers, each to the one before it."""
    before = struct.pack(">HHHHHH", 1, 0x8000, 1 + questions, 1, records, 0) + b"\1a\0" + struct.pack(">HH", 1, 1)
    if records:
        before += b"\0" + struct.pack(">HHIH", 10, 1, 0, 16_000)
    pointers = [12, *(len(before) + 2 * number for number in range(8_000))]
    chain = b"".join((0xC000 | at).to_bytes(2, "big") for at in pointers[:-1])
    last = (0xC000 | pointers[-1]).to_bytes(2, "big")
    entries = (last + struct.pack(">HHIH", 2, 1, 0, 0)) * records + (last + struct.pack(">HH", 1, 1)) * questions
    return before + chain + entries


@pytest.mark.parametrize(("records", "questions"), [(3_000, 0), (0, 8_000)])
def test_a_message_does_not_cost_more_than_its_size(
    records: int, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server could keep the reader busy for half a minute with one message, while the ring runs over."""
    steps = 0
    read = dns_message._byte

    def counted(raw: bytes, at: int) -> int:
        nonlocal steps
        steps += 1
        if steps > 100_000:
            pytest.fail("more steps than bytes")
        return read(raw, at)

    monkeypatch.setattr(dns_message, "_byte", counted)
    raw = chained(records, questions)
    with suppress(DnsError):
        parse(raw)
    assert 0 < steps <= len(raw)


def test_a_name_of_many_pointers_is_refused() -> None:
    raw = chained(1, 0)
    with pytest.raises(DnsError, match="pointers"):
        dns_message._name(raw, len(raw) - 12)
