"""A soak: changed, cut and hostile events never raise anything but a refusal, and take bounded time and memory."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import pytest
import windows_processes
from windows_events import KINDS, event_xml

from zeek_agent.host.windows.event_fields import SECURITY, SYSMON
from zeek_agent.host.windows.event_xml import CHARACTERS_MAX, EventXmlError, parse_event
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.windows.dns_records import dns_row
from zeek_agent.recording.windows.event_mapping import EventFieldError
from zeek_agent.recording.windows.log_records import log_row
from zeek_agent.recording.windows.login_records import login_row
from zeek_agent.recording.windows.process_records import process_row
from zeek_agent.recording.windows.socket_records import socket_row

EVENTS: Final = 100_000
SEED: Final = 18
_PIECES: Final = (
    *("<", ">", "&", "'", '"', "]]>", "<![CDATA[", "<!--", "-->", "<?x", "?>", "&#0;", "&#x1F4A9;", "&lt;", "</Data>"),
    *("<!DOCTYPE a>", "<!ENTITY a 'b'>", "%a;", "&a;", "xmlns=''", "xmlns:x='y'", "x:", "\0", "\ud800", "\ufffe", "٣"),
    *("0x", "-", "9" * 30, "{", "}", "S-1-", "%%14592", "\\device\\", "type:  5 ", ";", "\r\n", "\t", '\\"', "\\" * 9),
)

Mutation = Callable[[str, random.Random], str]


def _cut(xml: str, chance: random.Random) -> str:
    return xml[: chance.randrange(len(xml))]


def _insert(xml: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(xml))
        xml = xml[:at] + chance.choice(_PIECES) + xml[at:]
    return xml


def _replace(xml: str, chance: random.Random) -> str:
    characters = list(xml)
    for _ in range(chance.randint(1, 20)):
        characters[chance.randrange(len(characters))] = chr(
            chance.choice((chance.randrange(256), chance.randrange(0x110000)))
        )
    return "".join(characters)


def _swap(xml: str, chance: random.Random) -> str:
    """Move, double or remove a part."""
    first, last = sorted(chance.randrange(len(xml)) for _ in range(2))
    at = chance.randrange(len(xml))
    return xml[:at] + xml[first:last] * chance.randrange(3) + xml[at:]


def _values(xml: str, chance: random.Random) -> str:
    """Put pieces where values are, which keeps the event well-formed more often."""
    parts = xml.split("</Data>")
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(parts))
        head, _, _ = parts[at].rpartition(">")
        value = "".join(chance.choice(_PIECES) for _ in range(chance.randrange(6)))
        parts[at] = f"{head}>{value.replace('<', '').replace('&', '')}"
    return "</Data>".join(parts)


MUTATIONS: Final[tuple[Mutation, ...]] = (_cut, _insert, _replace, _swap, _values)


def outcome(xml: str, masker: Masker) -> str:
    """What became of an event. Anything but an event, a refusal of it or of its values is an error of the test."""
    try:
        event = parse_event(xml)
    except EventXmlError:
        return "refused"
    context = windows_processes.context(limit=100)
    try:
        rows = [row_of(event, context) for row_of in (process_row, socket_row, dns_row, login_row)]
    except EventFieldError:
        return "incomplete"
    finally:
        log_row(event, None, masker)
    return "row" if any(row is not None for row in rows) else "other"


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_changed_events_are_read_or_refused(record_property: Callable[[str, object], None]) -> None:
    chance, masker, counts = random.Random(SEED), Masker(), Counter[str]()
    for _ in range(EVENTS):
        xml = event_xml(*chance.choice(KINDS))
        for _ in range(chance.randint(1, 3)):
            xml = chance.choice(MUTATIONS)(xml, chance) or "<"
        counts[outcome(xml, masker)] += 1
    for name, count in counts.items():
        record_property(name, count)
    assert counts.total() == EVENTS
    assert min(counts["refused"], counts["row"], counts["incomplete"]) > EVENTS // 100


SAMPLE: Final = event_xml(SECURITY, 4688)
ROOM: Final = CHARACTERS_MAX - len(SAMPLE) - 1_000


def _bomb() -> str:
    entities = "".join(f"<!ENTITY l{level} '{f'&l{level - 1};' * 10}'>" for level in range(1, 20))
    return f"<!DOCTYPE a [<!ENTITY l0 'lol'>{entities}]>" + SAMPLE.replace("alice", "&l19;")


def _declaring(declaration: str, reference: str = "&l;") -> str:
    return f"<!DOCTYPE a [{declaration}]>" + SAMPLE.replace("alice", reference)


def _with_tag(tag: str) -> str:
    return SAMPLE.replace("<Task>", tag)


def _with_attributes(attribute: str, count: int) -> str:
    return _with_tag(f"<Task {' '.join(attribute.format(number) for number in range(count))}>")


HOSTILE: Final[dict[str, Callable[[], str]]] = {
    "entity bomb": _bomb,
    "large entity": lambda: _declaring(f"<!ENTITY l '{'x' * 100_000}'>", "&l;" * 1_000),
    "external entity": lambda: _declaring("<!ENTITY l SYSTEM 'file:///etc/passwd'>"),
    "parameter entity": lambda: _declaring("<!ENTITY % l SYSTEM 'http://192.0.2.1/'> %l;", "alice"),
    "deep nesting": lambda: _with_tag("<a>" * (ROOM // 3)),
    "nested user data": lambda: SAMPLE.replace("<EventData>", "<UserData>" + "<a>" * (ROOM // 4)),
    "many attributes": lambda: _with_attributes("a{}=''", ROOM // 12),
    "many namespaces": lambda: _with_attributes("xmlns:a{}='b'", ROOM // 22),
    "huge attribute": lambda: _with_tag(f"<Task a='{'x' * ROOM}'>"),
    "huge name": lambda: _with_tag(f"<{'x' * ROOM}>"),
    "many values": lambda: SAMPLE.replace("</EventData>", "<Data/>" * (ROOM // 7) + "</EventData>"),
    "many references": lambda: SAMPLE.replace("whoami.exe", "&#x1;" * (ROOM // 15)),
    "too long": lambda: "x" * (64 << 20),
    "quotes in a command line": lambda: SAMPLE.replace("/priv", '\\"' * (ROOM // 2)),
    "blanks in a command line": lambda: SAMPLE.replace("/priv", "a " * (ROOM // 2)),
    "answers": lambda: event_xml(SYSMON, 22, {"QueryResults": "type:  5 a;" * (ROOM // 12)}),
}
READABLE: Final = frozenset(
    {"huge attribute", "quotes in a command line", "blanks in a command line", "answers", "many references"}
)
"""Those that are events all the same, of which no part is larger than a bound."""


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_events_take_bounded_time_and_memory(name: str, record_property: Callable[[str, object], None]) -> None:
    resource = pytest.importorskip("resource")  # Windows has none
    xml, masker = HOSTILE[name](), Masker()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    result = outcome(xml, masker)
    record_property("CPU seconds", round(time.process_time() - begun, 3))
    record_property("MB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert result == ("row" if name in READABLE else "refused")
