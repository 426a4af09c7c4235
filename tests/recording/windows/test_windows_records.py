"""Rows of the event tables from events of Windows, which these tests make up."""

from __future__ import annotations

import msgspec
import pytest
import windows_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_events import ALICE, BOOT, DEFAULTS, GUID, KINDS, event_xml
from windows_processes import DRIVES, Living, entity_id

from zeek_agent.community_id import community_id
from zeek_agent.host.windows.event_fields import FIELDS, SECURITY, SYSMON
from zeek_agent.host.windows.event_xml import EventXmlError, parse_event, parse_time
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.dns.dns_event import DnsEvent
from zeek_agent.recording.logins.login_event import LoginEvent
from zeek_agent.recording.processes.process_event import ProcessEvent
from zeek_agent.recording.sockets.socket_event import SocketEvent
from zeek_agent.recording.windows.dns_records import dns_row
from zeek_agent.recording.windows.event_mapping import EventFieldError, MappingContext
from zeek_agent.recording.windows.known_processes import KnownProcesses, LiveProcess
from zeek_agent.recording.windows.log_records import log_row
from zeek_agent.recording.windows.login_records import login_row
from zeek_agent.recording.windows.process_records import process_row
from zeek_agent.recording.windows.socket_records import socket_row

AT = parse_time("2026-03-04T05:06:07.1234567")
WHOAMI = LiveProcess(6700, AT - 1_000, r"C:\Windows\System32\whoami.exe")
CMD = LiveProcess(2500, AT - 90_000_000, r"C:\Windows\System32\cmd.exe")
SERVICES = LiveProcess(1264, AT - 10**12, r"C:\Windows\System32\svchost.exe")
GUID_ID = f"{BOOT}-6700-{GUID.strip('{}').replace('-', '')}"


def process(context: MappingContext, kind: tuple[str, int], changes: dict[str, str] | None = None) -> ProcessEvent:
    row = process_row(parse_event(event_xml(*kind, changes)), context)
    assert row is not None
    return row


def connection(context: MappingContext, kind: tuple[str, int], changes: dict[str, str] | None = None) -> SocketEvent:
    row = socket_row(parse_event(event_xml(*kind, changes)), context)
    assert row is not None
    return row


def lookup(changes: dict[str, str] | None = None) -> DnsEvent:
    row = dns_row(parse_event(event_xml(SYSMON, 22, changes)), windows_processes.context())
    assert row is not None
    return row


def login(event_id: int, changes: dict[str, str] | None = None) -> LoginEvent:
    row = login_row(parse_event(event_xml(SECURITY, event_id, changes)), windows_processes.context(SERVICES))
    assert row is not None
    return row


@pytest.mark.parametrize("kind", [(SECURITY, 4688), (SYSMON, 1)])
def test_a_start_names_the_process_its_parent_and_its_user(kind: tuple[str, int]) -> None:
    row = process(windows_processes.context(WHOAMI, CMD), kind)
    assert (row.state, row.pid, row.ppid, row.name) == ("started", 6700, 2500, "whoami.exe")
    assert (row.exe, row.parent_exe) == (WHOAMI.exe, CMD.exe)
    assert row.parent_name == "cmd.exe"
    assert row.entity_id == entity_id(6700, WHOAMI.created)
    assert row.parent_entity_id == entity_id(2500, CMD.created)
    assert row.cmdline == r"C:\Windows\System32\whoami.exe /priv /fo csv list"
    assert msgspec.json.decode(row.argv or "") == [WHOAMI.exe, "/priv", "/fo", "csv list"]
    assert (row.user, row.sid) == (r"EXAMPLE\alice", ALICE if kind[0] == SECURITY else None)
    assert row.session == 0x5D2F1A
    assert row.time == pytest.approx(1_772_600_767.12, abs=0.01)
    assert (row.uid, row.exit_code, row.duration) == (None, None, None)


def test_the_creator_is_the_user_unless_another_one_is_named() -> None:
    row = process(windows_processes.context(), (SECURITY, 4688), {"TargetUserName": "-", "TargetUserSid": "S-1-0-0"})
    assert (row.user, row.sid, row.session) == (r"EXAMPLE\PC7$", "S-1-5-18", 0x3E7)


def test_an_end_has_what_the_start_reported() -> None:
    context = windows_processes.context(WHOAMI, CMD)
    started = process(context, (SECURITY, 4688))
    ended = process_row(parse_event(event_xml(SECURITY, 4689, time="2026-03-04T05:06:09.1234567Z")), context)
    assert ended is not None
    assert (ended.state, ended.exit_code) == ("stopped", 0xC000013A)
    assert ended.duration == pytest.approx(2.0001)
    for column in ("entity_id", "parent_entity_id", "ppid", "exe", "cmdline", "argv", "parent_exe", "user", "session"):
        assert getattr(ended, column) == getattr(started, column)


def test_an_end_without_a_start_has_what_it_says_itself() -> None:
    row = process(windows_processes.context(), (SECURITY, 4689))
    assert (row.pid, row.exe, row.entity_id, row.duration) == (6700, WHOAMI.exe, None, None)


def test_a_process_that_ended_before_its_event_was_read_has_one_id() -> None:
    context = windows_processes.context()
    assert process(context, (SECURITY, 4688)).entity_id == entity_id(6700, AT)
    assert process(context, (SECURITY, 4689)).entity_id == entity_id(6700, AT)


def test_sysmons_guid_identifies_a_process_that_is_gone_also_after_a_restart() -> None:
    started = process(windows_processes.context(), (SYSMON, 1))
    ended = process(windows_processes.context(), (SYSMON, 5))
    assert started.entity_id == ended.entity_id == GUID_ID
    assert connection(windows_processes.context(), (SYSMON, 3)).entity_id == GUID_ID


def test_all_events_of_sysmon_about_a_process_have_the_id_of_its_start() -> None:
    living = Living(WHOAMI, CMD)
    context = MappingContext(KnownProcesses(living, entity_id), Masker(), DRIVES)
    started = process(context, (SYSMON, 1), {"Image": r"C:\tools\client.exe"})
    living.processes.clear()
    assert started.entity_id == entity_id(6700, WHOAMI.created)
    assert connection(context, (SYSMON, 3)).entity_id == started.entity_id
    assert connection(context, (SYSMON, 3)).parent_entity_id == started.parent_entity_id
    row = dns_row(parse_event(event_xml(SYSMON, 22)), context)
    assert row is not None
    assert row.entity_id == started.entity_id
    assert process(context, (SYSMON, 5)).entity_id == started.entity_id


def test_a_reused_process_id_is_another_process() -> None:
    successor = LiveProcess(6700, AT + 50_000_000, r"C:\x.exe")
    context = windows_processes.context(successor)
    assert process(context, (SECURITY, 4688)).entity_id == entity_id(6700, AT)
    assert connection(context, (SECURITY, 5156)).entity_id == entity_id(6700, AT)
    later = socket_row(parse_event(event_xml(SECURITY, 5156, time="2026-03-04T05:06:20Z")), context)
    assert later is not None
    process(context, (SECURITY, 4689))
    after_end = socket_row(parse_event(event_xml(SECURITY, 5156, time="2026-03-04T05:06:20Z")), context)
    assert after_end is not None
    assert after_end.entity_id == entity_id(6700, successor.created)


def test_secrets_in_command_lines_are_masked() -> None:
    changes = {"CommandLine": r'"C:\Program Files\CURL.EXE" -u "bob:hunter2" https://example.com'}
    row = process(windows_processes.context(), (SECURITY, 4688), changes)
    assert row.cmdline is not None
    assert "hunter2" not in row.cmdline
    assert "hunter2" not in (row.argv or "")


def test_what_windows_marks_as_absent_is_null() -> None:
    changes = dict.fromkeys(("CommandLine", "TargetUserName", "SubjectUserName", "ParentProcessName", "ProcessId"), "-")
    row = process(windows_processes.context(), (SECURITY, 4688), changes)
    assert (row.cmdline, row.argv, row.user, row.parent_exe, row.ppid) == (None,) * 5


@pytest.mark.parametrize("value", ["", "-", "0x", "0", "6700x"])
def test_a_process_without_an_id_is_refused(value: str) -> None:
    with pytest.raises(EventFieldError, match="NewProcessId is missing or invalid"):
        process(windows_processes.context(), (SECURITY, 4688), {"NewProcessId": value})


def test_a_permitted_connection_has_its_local_end_as_source_in_both_directions() -> None:
    listener = LiveProcess(6700, AT - 10**8, r"C:\tools\listener.exe")
    row = connection(windows_processes.context(listener), (SECURITY, 5156))
    assert (row.local_addr, row.local_port, row.remote_addr, row.remote_port) == (
        "198.51.100.7",
        8443,
        "192.0.2.44",
        50213,
    )
    assert (row.direction, row.protocol, row.family, row.state) == ("inbound", 6, "IPv4", "established")
    assert (row.pid, row.process, row.exe) == (6700, "listener.exe", r"C:\tools\listener.exe")
    assert row.entity_id == entity_id(6700, listener.created)
    assert row.community_id == community_id(6, "198.51.100.7", 8443, "192.0.2.44", 50213)
    outbound = connection(windows_processes.context(listener), (SECURITY, 5156), {"Direction": "%%14593"})
    assert (outbound.direction, outbound.local_port) == ("outbound", 8443)


def test_sysmons_source_is_the_end_that_began() -> None:
    row = connection(windows_processes.context(), (SYSMON, 3))
    assert (row.direction, row.local_port, row.remote_addr, row.remote_port) == ("outbound", 50213, "192.0.2.80", 443)
    row = connection(windows_processes.context(), (SYSMON, 3), {"Initiated": "false"})
    assert (row.direction, row.local_addr, row.local_port) == ("inbound", "192.0.2.80", 443)
    assert (row.remote_addr, row.remote_port) == ("198.51.100.7", 50213)


def test_addresses_of_different_families_have_no_community_id() -> None:
    row = connection(windows_processes.context(), (SECURITY, 5156), {"DestAddress": "::"})
    assert (row.remote_addr, row.community_id) == ("::", None)


def test_icmp_has_no_ports() -> None:
    changes = {"Protocol": "1", "SourcePort": "0", "DestPort": "0"}
    row = connection(windows_processes.context(), (SECURITY, 5156), changes)
    assert (row.protocol, row.local_port, row.remote_port, row.community_id) == (1, None, None, None)


def test_a_lookup_has_its_answers() -> None:
    row = lookup()
    assert (row.query, row.rcode, row.type, row.process) == ("www.example.com", "NOERROR", None, "client.exe")
    assert msgspec.json.decode(row.answers or "") == ["edge.example.net", "192.0.2.80", "2001:db8::80"]


@pytest.mark.parametrize(
    ("status", "code", "answers"),
    [
        ("9003", "NXDOMAIN", "[]"),
        ("9501", "NOERROR", "[]"),
        ("9002", "SERVFAIL", "[]"),
        ("1460", None, None),
        ("-", None, None),
    ],
)
def test_errors_of_the_resolver_are_response_codes_if_a_server_sent_them(
    status: str, code: str | None, answers: str | None
) -> None:
    row = lookup({"QueryStatus": status, "QueryResults": "-"})
    assert (row.rcode, row.answers) == (code, answers)


def test_a_login_has_its_user_and_where_it_came_from() -> None:
    row = login(4624)
    assert (row.action, row.outcome, row.user, row.target_user) == ("login", "success", r"EXAMPLE\alice", None)
    assert (row.remote_addr, row.remote_port, row.method) == ("192.0.2.44", 50211, "remote_interactive/Negotiate")
    assert (row.pid, row.process, row.entity_id) == (1264, "svchost.exe", entity_id(1264, SERVICES.created))
    assert (row.session, row.source, row.verified, row.cursor) == (0x5D2F1A, "security", True, "Security:1")


def test_a_login_and_its_processes_have_the_same_session() -> None:
    assert login(4624).session == process(windows_processes.context(), (SECURITY, 4688)).session == login(4634).session


@pytest.mark.parametrize(
    ("event_id", "kind", "action"),
    [
        (4624, "2", "login"),
        (4624, "3", "login"),
        (4624, "7", "login"),
        (4624, "5", "session_opened"),
        (4624, "4", "session_opened"),
        (4624, "0", "session_opened"),
        (4624, "77", "login"),
        (4634, "10", "logout"),
        (4634, "5", "session_closed"),
        (4625, "5", "failed"),
    ],
)
def test_actions_depend_on_the_type_of_logon(event_id: int, kind: str, action: str) -> None:
    assert login(event_id, {"LogonType": kind}).action == action


def test_new_credentials_for_the_network_are_su() -> None:
    changes = {
        "LogonType": "9",
        "SubjectUserName": "alice",
        "TargetOutboundUserName": "admin",
        "TargetOutboundDomainName": "OTHER",
    }
    row = login(4624, changes)
    assert (row.action, row.user, row.target_user) == ("su", r"EXAMPLE\alice", r"OTHER\admin")


@pytest.mark.parametrize(
    ("status", "substatus", "reason"),
    [
        ("0xc000006d", "0xc000006a", "wrong password"),
        ("0xc000006d", "0xc0000064", "unknown user"),
        ("0xc0000234", "0x0", "account locked out"),
        ("0xc0000999", "0x0", "0xc0000999"),
        ("-", "-", None),
    ],
)
def test_a_refusal_has_its_reason(status: str, substatus: str, reason: str | None) -> None:
    row = login(4625, {"Status": status, "SubStatus": substatus})
    assert (row.action, row.outcome, row.reason) == ("failed", "failure", reason)


def test_entries_of_a_log_have_the_message_of_their_publisher() -> None:
    event = parse_event(event_xml("Example", 7, {"a": "1"}, record=9, channel="System"))
    row = log_row(event, "The service started.", Masker())
    assert (row.process, row.message, row.eventid, row.level) == ("Example", "The service started.", "7", "5")
    assert (row.identifier, row.cursor, row.pid) == ("System", "System:9", 4)


@pytest.mark.parametrize(
    ("level", "severity"), [(1, "2"), (2, "3"), (3, "4"), (4, "6"), (5, "7"), (0, "6"), (200, "6")]
)
def test_levels_are_severities_of_syslog(level: int, severity: str) -> None:
    xml = (
        event_xml("Example", 7).replace("<Level>0", f"<Level>{level}").replace("0x8020000000000000", "0x80000000000000")
    )
    assert log_row(parse_event(xml), "m", Masker()).level == severity


def test_without_a_message_the_values_are_shown() -> None:
    xml = event_xml("Example", 7, {"Name": "x", "Empty": ""}).replace("</EventData>", "<Data>y</Data></EventData>")
    assert log_row(parse_event(xml), None, Masker()).message == "Name=x; y"


def test_command_lines_in_entries_are_masked() -> None:
    event = parse_event(event_xml(SECURITY, 4688, {"CommandLine": "curl -u bob:hunter2 https://example.com"}))
    message = log_row(event, "Process Command Line: curl -u bob:hunter2 https://example.com", Masker()).message
    assert message is not None
    assert "CommandLine=curl" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "line",
    [
        r'C:\Windows\System32\cmd.exe /c "curl -u bob:hunter2 https://example.com"',
        r"cmd /c curl -u bob:hunter2 https://example.com",
        r'powershell.exe -Command "mysql -phunter2"',
        r"C:\Windows\system32\NET.EXE user bob hunter2 /add",
        r"net use Z: \\server\share hunter2 /user:bob",
        r"PsExec64.exe \\server -u bob -p hunter2 cmd",
        r"schtasks /create /ru bob /rp hunter2 /tn x",
    ],
)
def test_secrets_of_programs_of_windows_are_masked(line: str) -> None:
    row = process(windows_processes.context(), (SYSMON, 1), {"CommandLine": line})
    assert row.cmdline is not None
    assert "hunter2" not in row.cmdline
    assert "***" in row.cmdline


@pytest.mark.parametrize(
    ("event_id", "values", "shown"),
    [
        (7045, {"ServiceName": "x", "ImagePath": "C:\\x.exe --password=hunter2"}, "ImagePath=C:\\x.exe --password=***"),
        (4697, {"ServiceFileName": "C:\\x.exe --token hunter2"}, "ServiceFileName=C:\\x.exe --token ***"),
        (
            4698,
            {
                "TaskContent": "<Task><Actions><Exec><Command>curl</Command> <Arguments>-u a:hunter2 &quot;b c&quot;"
                "</Arguments></Exec><Exec><Command>C:\\y.exe</Command></Exec></Actions></Task>"
            },
            "TaskContent=curl -u a:***",
        ),
        (4702, {"TaskContentNew": "<Exec><Command>x --password hunter2"}, "TaskContentNew="),
    ],
)
def test_commands_of_new_services_and_tasks_are_masked(event_id: int, values: dict[str, str], shown: str) -> None:
    event = parse_event(event_xml("Example", event_id, values))
    message = log_row(event, f"It was installed: {values}", Masker()).message
    assert message is not None
    assert shown in message
    assert "hunter2" not in message


VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["-", "", "0x0", "0xffffffffffffffff", "%%14592", "true", "tcp", "{}", "S-1-0-0", "::ffff:1.2.3.4"]
    ),
    st.integers(-(2**70), 2**70).map(str),
)


@settings(max_examples=400)
@given(st.sampled_from(KINDS), st.data())
def test_any_values_make_a_row_that_can_be_stored_or_a_refusal(kind: tuple[str, int], data: st.DataObject) -> None:
    names = st.sampled_from(sorted(DEFAULTS[kind]))
    changes = data.draw(st.dictionaries(names, VALUES, max_size=6))
    event = parse_event(event_xml(*kind, {name: value.replace("\r", "") for name, value in changes.items()}))
    row_of = {"processes_events": process_row, "sockets_events": socket_row, "dns_events": dns_row}.get(
        FIELDS[kind].table, login_row
    )
    try:
        row = row_of(event, windows_processes.context(WHOAMI))
    except EventFieldError:
        return
    assert row is not None
    for value in msgspec.structs.astuple(row):
        assert not isinstance(value, int) or -(2**63) <= value < 2**63
        assert not isinstance(value, str) or value.encode() is not None


@given(st.text(), st.text())
def test_any_entry_can_be_stored(value: str, message: str) -> None:
    try:
        event = parse_event(event_xml("Example", 7, {"value": value}))
    except EventXmlError:
        return
    row = log_row(event, message, Masker())
    assert row.message is not None
    assert len(row.message.encode()) <= 65_536
