"""Values in events of Windows."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.host.windows import event_values as values

DRIVES = {r"\device\harddiskvolume2": "C:", r"\device\harddiskvolume21": "D:"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0x1a2c", 6700),
        ("0X1A2C", 6700),
        ("6700", 6700),
        (" 6700 ", 6700),
        ("0", 0),
        ("-", None),
        ("", None),
        (None, None),
        ("0x", None),
        ("1e3", None),
        ("-1", None),
        ("٣", None),
        ("0xffffffffffffffff", None),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("9" * 5000, None),
    ],
)
def test_numbers_are_decimal_or_hexadecimal(text: str | None, number: int | None) -> None:
    assert values.number(text) == number


@pytest.mark.parametrize(("text", "pid"), [("0x4", 4), ("0x0", None), ("0x100000000", None), ("4294967295", 2**32 - 1)])
def test_process_ids_have_32_bits_and_are_not_0(text: str, pid: int | None) -> None:
    assert values.process_id(text) == pid


@pytest.mark.parametrize(("text", "port"), [("443", 443), ("0", None), ("65536", None), ("-", None)])
def test_ports_have_16_bits_and_are_not_0(text: str, port: int | None) -> None:
    assert values.port(text) == port


@pytest.mark.parametrize(
    ("text", "guid"),
    [
        ("{7C1F5C3A-0e2b-69a7-c500-00000000a200}", "7c1f5c3a-0e2b-69a7-c500-00000000a200"),
        ("7c1f5c3a-0e2b-69a7-c500-00000000a200", "7c1f5c3a-0e2b-69a7-c500-00000000a200"),
        ("{00000000-0000-0000-0000-000000000000}", None),
        ("{7c1f5c3a}", None),
        ("-", None),
        (None, None),
    ],
)
def test_guids_are_in_lower_case_without_braces(text: str | None, guid: str | None) -> None:
    assert values.guid(text) == guid


@pytest.mark.parametrize(
    ("text", "sid"),
    [
        ("S-1-5-18", "S-1-5-18"),
        ("S-1-5-21-1-2-3-1001", "S-1-5-21-1-2-3-1001"),
        ("S-1-0-0", None),
        ("S-1-5", None),
        ("alice", None),
        ("-", None),
        ("S-1-5-18; x", None),
        (None, None),
    ],
)
def test_sids_are_checked(text: str | None, sid: str | None) -> None:
    assert values.sid(text) == sid


@pytest.mark.parametrize(
    ("domain", "name", "account"),
    [("EXAMPLE", "alice", r"EXAMPLE\alice"), ("-", "alice", "alice"), ("EXAMPLE", "-", None), (None, None, None)],
)
def test_accounts_have_their_domain(domain: str | None, name: str | None, account: str | None) -> None:
    assert values.account(domain, name) == account


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("fe80::1%12", "fe80::1"),
        ("-", None),
        ("LOCAL", None),
        ("", None),
        ("192.0.2.256", None),
        (None, None),
    ],
)
def test_addresses_are_in_canonical_form(text: str | None, address: str | None) -> None:
    assert values.address(text) == address


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (r"\device\harddiskvolume2\tools\x.exe", r"C:\tools\x.exe"),
        (r"\Device\HarddiskVolume21\x.exe", r"D:\x.exe"),
        (r"\device\harddiskvolume9\x.exe", r"\device\harddiskvolume9\x.exe"),
        (r"\device\mup\server\share\x.exe", r"\device\mup\server\share\x.exe"),
        (r"C:\x.exe", r"C:\x.exe"),
        ("System", "System"),
        ("-", None),
        (None, None),
    ],
)
def test_devices_become_drive_letters(path: str | None, shown: str | None) -> None:
    assert values.drive_path(path, DRIVES) == shown


@pytest.mark.parametrize(
    ("path", "name"),
    [(r"C:\a b\x.exe", "x.exe"), ("C:/a/x.exe", "x.exe"), ("System", "System"), ("C:\\", None), (None, None)],
)
def test_the_name_is_the_last_component(path: str | None, name: str | None) -> None:
    assert values.base_name(path) == name


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (
            "type:  5 Edge.example.net.;::ffff:192.0.2.80;2001:db8::80;",
            ["edge.example.net", "192.0.2.80", "2001:db8::80"],
        ),
        ("192.0.2.1;", ["192.0.2.1"]),
        ("type:  16 some text;", ["some text"]),
        ("-", []),
        ("", []),
        (None, []),
    ],
)
def test_answers_lose_their_types(text: str | None, answers: list[str]) -> None:
    assert values.query_results(text) == answers


def test_at_most_100_answers_are_kept() -> None:
    assert len(values.query_results("192.0.2.1;" * 1_000)) == values.ANSWERS_MAX


@given(st.ip_addresses())
def test_every_address_is_read(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    read = values.address(str(address))
    assert read is not None
    assert ipaddress.ip_address(read) in {address, getattr(address, "ipv4_mapped", None)}


@given(st.one_of(st.none(), st.text()))
def test_no_text_is_an_error(text: str | None) -> None:
    for read in (
        values.number,
        values.process_id,
        values.port,
        values.guid,
        values.sid,
        values.address,
        values.utc_time,
    ):
        read(text)
    values.query_results(text)
    values.base_name(values.drive_path(text, DRIVES))
