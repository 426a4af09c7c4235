"""Events of Windows as XML: what is read, and what is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from windows_events import KINDS, event_xml

from zeek_agent.host.windows.event_fields import SECURITY, SYSMON
from zeek_agent.host.windows.event_xml import (
    ATTRIBUTES_MAX,
    CHARACTERS_MAX,
    DEPTH_MAX,
    FIELDS_MAX,
    FILETIME_EPOCH,
    NAMESPACE,
    EventXmlError,
    parse_event,
    parse_time,
)

SAMPLE = event_xml(SECURITY, 4688, record=4711)


def system(xml: str, old: str, new: str) -> str:
    assert old in xml
    return xml.replace(old, new)


def test_the_values_of_an_event_are_read() -> None:
    event = parse_event(SAMPLE)
    assert (event.provider, event.event_id, event.version, event.level) == (SECURITY, 4688, 2, 0)
    assert event.keywords == 0x8020_0000_0000_0000
    assert (event.record_id, event.process_id) == (4711, 4)
    assert (event.channel, event.computer, event.user_sid) == ("Security", "pc7.example", None)
    assert event.data["NewProcessName"] == r"C:\Windows\System32\whoami.exe"
    assert event.data["CommandLine"].endswith('"csv list"')
    assert event.unnamed == ()


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("2026-03-04T05:06:07.1234567Z", 1234567),
        ("2026-03-04T05:06:07.123456789Z", 1234567),
        ("2026-03-04T05:06:07Z", 0),
        ("2026-03-04T05:06:07.5Z", 5000000),
    ],
)
def test_times_have_any_number_of_digits(text: str, fraction: int) -> None:
    event = parse_event(event_xml(SECURITY, 4688, time=text))
    assert event.filetime == FILETIME_EPOCH + 1_772_600_767 * 10_000_000 + fraction
    assert event.time == pytest.approx(1_772_600_767 + fraction / 1e7, abs=1e-6)


@pytest.mark.parametrize("text", ["", "now", "2026-13-04T05:06:07Z", "2026-03-04T25:06:07Z", "2026-03-04T05:06:07.Z"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(EventXmlError, match=r"SystemTime is (not a time|missing)"):
        parse_event(event_xml(SECURITY, 4688, time=text))


def test_attributes_may_have_either_kind_of_quotes() -> None:
    assert parse_event(re.sub("='([^']*)'", r'="\1"', SAMPLE)) == parse_event(SAMPLE)


def test_values_may_have_line_breaks_and_markup() -> None:
    value = "a\n<b>&amp;</b>\ttail"
    assert parse_event(event_xml(SYSMON, 1, {"CommandLine": value})).data["CommandLine"] == value


def test_elements_without_a_name_keep_their_order() -> None:
    xml = SAMPLE.replace("</EventData>", "<Data>one</Data><Data/><Data>two</Data></EventData>")
    assert parse_event(xml).unnamed == ("one", "", "two")


def test_the_first_of_two_values_of_a_name_counts() -> None:
    xml = SAMPLE.replace("</EventData>", "<Data Name='ProcessId'>0x1</Data></EventData>")
    event = parse_event(xml)
    assert (event.data["ProcessId"], event.unnamed) == ("0x9c4", ("0x1",))


def test_user_data_of_another_namespace_is_read() -> None:
    body = (
        "<UserData><LogFileCleared xmlns='urn:x'><SubjectUserName>alice</SubjectUserName></LogFileCleared></UserData>"
    )
    xml = re.sub("<EventData>.*</EventData>", body, SAMPLE)
    assert parse_event(xml).data == {"SubjectUserName": "alice"}


@pytest.mark.parametrize("character", ["\x01", "\x00", "\ud800", "\uffff", "&#1;", "&#x0;", "&#xD800;", "&#99999999;"])
def test_characters_that_xml_does_not_permit_do_not_hide_an_event(character: str) -> None:
    xml = system(SAMPLE, "whoami.exe</Data>", f"who{character}ami.exe</Data>")
    assert parse_event(xml).data["NewProcessName"] == "C:\\Windows\\System32\\who\ufffdami.exe"


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<!DOCTYPE Event>" + SAMPLE, "document type"),
        ('<!DOCTYPE Event SYSTEM "file:///c:/secret">' + SAMPLE, "document type"),
        ('<!DOCTYPE Event [<!ENTITY a "b">]>' + SAMPLE.replace("alice", "&a;"), "document type"),
        ("<?xml-stylesheet href='x'?>" + SAMPLE, "processing instruction"),
        (SAMPLE.replace("<Task>", "<!-- hidden --><Task>"), "comment"),
        (SAMPLE.replace("alice", "&a;"), "not well-formed"),
        (SAMPLE[:-1], "not well-formed"),
        (SAMPLE + SAMPLE, "not well-formed"),
        ("", "not well-formed"),
        (f"<Event xmlns='{NAMESPACE}'/>", "Provider@Name is missing"),
        (f"<Events xmlns='{NAMESPACE}'>{SAMPLE}</Events>", "not an event"),
        (SAMPLE.replace(NAMESPACE, "urn:other"), "namespace"),
        (SAMPLE.replace("<EventID>", "<EventID xmlns='urn:other'>"), "namespace"),
        (SAMPLE.replace("<Level>0</Level>", "<Level>0</Level><Level>0</Level>"), "Level occurs twice"),
        (SAMPLE.replace("<EventID>4688", "<EventID>4688x"), "EventID is not a number"),
        (SAMPLE.replace("<EventID>4688", "<EventID>65536"), "EventID is not a number"),
        (SAMPLE.replace("<Channel>Security</Channel>", "<Channel/>"), "Channel is missing"),
        (SAMPLE.replace("0x8020000000000000", "8020"), "Keywords"),
        (SAMPLE.replace("4711", str(2**64)), "EventRecordID is not a number"),
        (SAMPLE.replace("</EventData>", "<Data Name='x'/>" * FIELDS_MAX + "</EventData>"), "more than 512 values"),
        (SAMPLE.replace("</EventData>", "<a>" * DEPTH_MAX), "more than 16 levels"),
        (
            SAMPLE.replace("<Task>", "<Task {}>".format(" ".join(f"a{i}=''" for i in range(ATTRIBUTES_MAX)))),
            "attributes",
        ),
        (SAMPLE + " " * CHARACTERS_MAX, "longer than"),
    ],
)
def test_anything_else_is_refused_with_its_reason(xml: str, reason: str) -> None:
    with pytest.raises(EventXmlError, match=reason):
        parse_event(xml)


def test_a_reason_does_not_quote_the_event() -> None:
    with pytest.raises(EventXmlError) as refused:
        parse_event(SAMPLE.replace("alice", "&s3cret;"))
    assert "s3cret" not in str(refused.value)


def parsed(xml: str) -> bool:
    """Whether it is an event; nothing but a refusal may be raised."""
    try:
        parse_event(xml)
    except EventXmlError:
        return False
    return True


@given(st.text())
@example("<?xml version='1.0' encoding='utf-16'?><a/>")
@example("\ud800")
def test_any_text_is_an_event_or_a_refusal(text: str) -> None:
    assert not parsed(text)


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.data())
def test_a_changed_event_is_an_event_or_a_refusal(kind: tuple[str, int], data: st.DataObject) -> None:
    xml = event_xml(*kind)
    start = data.draw(st.integers(0, len(xml)))
    end = data.draw(st.integers(start, min(start + 40, len(xml))))
    parsed(xml[:start] + data.draw(st.text(max_size=20)) + xml[end:])


XML_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufffe\uffff"))


@given(st.dictionaries(XML_TEXT.filter(lambda name: "\n" not in name and "\t" not in name), XML_TEXT, max_size=20))
def test_all_values_survive(values: dict[str, str]) -> None:
    printable = str.maketrans({chr(code): "\ufffd" for code in range(32) if chr(code) not in "\t\n\r"})
    expected = {name.translate(printable): value.translate(printable) for name, value in values.items()}
    if len(expected) == len(values):
        assert parse_event(event_xml("Example", 7, values)).data == expected


@given(st.datetimes(), st.integers(0, 9_999_999))
def test_times_are_exact(when: object, fraction: int) -> None:
    text = f"{when:%Y-%m-%dT%H:%M:%S}".rjust(19, "0")
    assert parse_time(f"{text}.{fraction:07}Z") % 10_000_000 == fraction
