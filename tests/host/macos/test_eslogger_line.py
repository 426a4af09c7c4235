"""Reading lines of eslogger: both shapes of audit tokens, odd values, hostile names, any bytes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from es_messages import Messages, Object, begin, line, process
from hypothesis import given, settings
from hypothesis import strategies as st

from zeek_agent.host.macos.audit_token import AuditToken, audit_token
from zeek_agent.host.macos.eslogger_line import FIELDS, Execution, Exit, Fork, Message, Unreadable, read_line
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.processes.es_processes import EsProcesses
from zeek_agent.text import from_bytes, to_bytes

pytestmark = pytest.mark.documented_shape

BOOT = "4f3a9c21-d07b-4000-8000-000000000000"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def scene(version: int = 10) -> list[Object]:
    """A shell forks a process, which executes a program as another user and exits; another one, of unknown origin."""
    messages = Messages(version)
    shell = process(400, "/bin/zsh", version=version)
    child = process(401, "/bin/zsh", version=version, parent=400)
    after = process(401, "/usr/bin/id", version=version, parent=400, euid=0, inode=99, pidversion=2_000)
    other = process(402, "/bin/sh", version=version, parent=1)
    return [
        messages.fork(shell, child, 0),
        messages.exec(child, after, ["id", "-u"], 1_000),
        messages.exit(after, 2_000, 256),
        messages.exec(other, process(402, "/bin/ls", version=version, parent=1), ["ls"], 3_000),
    ]


def read(message: Object) -> Message:
    found = read_line(line(message))
    assert isinstance(found, Message), found
    return found


def columns(messages: list[Object]) -> list[Object]:
    """The rows of the messages, as objects."""
    processes = EsProcesses(BOOT, Masker())
    rows = [row for message in messages for row in processes.rows(read(message))]
    return [{name: getattr(row, name) for name in row.__struct_fields__} for row in rows]


@pytest.mark.parametrize("version", [9, 10])
def test_a_message_is_read_with_tokens_of_either_shape(version: int) -> None:
    fork, execution, end = (read(message) for message in scene(version)[:3])
    assert isinstance(fork.event, Fork)
    assert isinstance(execution.event, Execution)
    assert isinstance(end.event, Exit)
    assert fork.actor is not None
    assert fork.actor.token.pid == 400
    assert fork.event.process.token == AuditToken(401, 501, 501, 20, 501, 20, 100_007, 1_401)
    assert fork.time == begin()
    assert fork.event.process.started == begin() + 401_000
    target = execution.event.process
    assert (target.exe, target.exe_device, target.exe_inode) == ("/usr/bin/id", 16_777_234, 99)
    assert (target.ppid, target.token.euid, target.token.pidversion) == (400, 0, 2_000)
    assert (execution.event.arguments, execution.event.cwd) == (("id", "-u"), "/Users/ada")
    assert (end.event.status, end.sequence) == (256, (2, 0, 15))
    assert (end.schema_version, end.version) == (1, version)


def places(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """All values of a message, by path, owner and key; of processes, whose own paths begin with `*`, both kinds."""
    for key in list(value):
        name = f"{path}.{key}".lstrip(".")
        is_process = name in {"process", "event.exec.target", "event.fork.child"}
        if is_process or not isinstance(value[key], dict):
            yield name, value, key
        if isinstance(value[key], dict):
            yield from places(value[key], "*" if is_process else name)


def entry_of(path: str) -> str | None:
    """The entry of the table for a path: its own one, or that of the object that it is in."""
    return next(
        (
            name
            for name in (
                path,
                f"{path.rpartition('.')[0]}.*",
                f"{'.'.join(path.split('.')[:2])}.*",
                f"{path.partition('.')[0]}.*",
            )
            if name in FIELDS
        ),
        None,
    )


PATHS = sorted({path for message in scene(version=9) for path, _, _ in places(message)})


def test_every_documented_field_has_an_entry_and_every_entry_a_field() -> None:
    assert {path: entry_of(path) for path in PATHS if entry_of(path) is None} == {}
    assert {entry_of(path) for path in PATHS} == set(FIELDS)


CHANGED = {"st_dev": 7, "st_ino": 8, "start_time": "2026-02-28T10:00:00.000001Z", "stat": 9}
WITHOUT = {"*.ppid": {"*.original_ppid"}, "*.parent_audit_token.pid": {"*.original_ppid", "*.ppid"}}


def changed(value: Any, name: str) -> Any:
    if name in CHANGED:
        return CHANGED[name]
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + 5
    if isinstance(value, list):
        return [changed(one, "") for one in value]
    return (
        {"changed": True} if isinstance(value, dict) else "2026-03-01T13:00:00.5Z" if name == "time" else f"{value} x"
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_field_determines_the_columns_that_the_table_names_and_no_others(path: str) -> None:
    messages = scene(version=9)
    for message in messages:
        for name, owner, key in places(message):
            if name in WITHOUT.get(path, ()):
                owner[key] = None
    before = columns(copy.deepcopy(messages))
    for message in messages:
        for name, owner, key in places(message):
            if name == path:
                owner[key] = changed(owner[key], key)
    meaning = FIELDS[entry_of(path) or ""]
    if meaning.startswith("process:"):
        assert any(isinstance(read_line(line(message)), Unreadable) for message in messages)
        return
    after = columns(messages)
    differing = {name for one, two in zip(before, after, strict=True) for name in one if one[name] != two[name]}
    kind = re.match(r"dropped:|checked:|counted:", meaning)
    assert differing == (set() if kind else set(meaning.partition(", if ")[0].split(", ")))


def test_an_environment_is_never_read() -> None:
    messages = scene()
    assert "never-stored" in json.dumps(messages)
    assert "never-stored" not in repr([read(message) for message in messages])


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/tmp/a\\nb", "/tmp/a\nb"),
        (b"/tmp/\\u001b[2J", "/tmp/\x1b[2J"),
        (b"/tmp/\xff\xfe", from_bytes(b"/tmp/\xff\xfe")),
        (b"/tmp/\xe2\x82", from_bytes(b"/tmp/\xe2\x82")),
        (b"/tmp/\\uef80", from_bytes("/tmp/\uef80".encode())),
        ("/tmp/\uef80".encode(), from_bytes("/tmp/\uef80".encode())),
        (b"/tmp/\\ud83d\\ude00", "/tmp/\U0001f600"),
        (b"/tmp/\\ud83d", "/tmp/\ufffd"),
        (b"/tmp/\\ude00\\ud83dx", "/tmp/\ufffd\ufffdx"),
        (b"/tmp/\\\\ud83d", "/tmp/\\ud83d"),
        (b"/tmp/a\\u0000b", "/tmp/a"),
        (b"\\u202egpj.exe", "\u202egpj.exe"),
    ],
)
def test_hostile_names_are_kept(raw: bytes, shown: str) -> None:
    message = scene()[1]
    message["event"]["exec"]["target"]["executable"]["path"] = "PLACE"
    message["event"]["exec"]["args"] = ["PLACE", ""]
    found = read_line(line(message).replace(b"PLACE", raw))
    assert isinstance(found, Message)
    assert isinstance(found.event, Execution)
    assert found.event.process.exe == shown
    assert found.event.arguments == (shown, "")


@given(st.binary(min_size=1, max_size=60).filter(lambda raw: not set(raw) & {0, *b'"\\'} and min(raw) >= 0x20))
def test_a_path_of_any_bytes_maps_back_to_them(raw: bytes) -> None:
    message = scene()[1]
    message["event"]["exec"]["target"]["executable"]["path"] = "PLACE"
    found = read_line(line(message).replace(b"PLACE", raw))
    assert isinstance(found, Message)
    assert to_bytes(found.event.process.exe or "") == raw


def test_a_megabyte_of_arguments_is_read() -> None:
    message = scene()[1]
    message["event"]["exec"]["args"] = ["\x01" * 1_000_000, "end"]
    found = read(message)
    assert isinstance(found.event, Execution)
    assert found.event.arguments == ("\x01" * 1_000_000, "end")


def test_a_truncated_path_is_marked() -> None:
    message = scene()[1]
    message["event"]["exec"]["target"]["executable"]["path_truncated"] = True
    assert read(message).event.process.exe == "/usr/bin/id …"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (list(range(8)), AuditToken(5, 0, 1, 2, 3, 4, 6, 7)),
        ([4_294_967_295, 0, 0, 0, 0, 9, 4_294_967_295, 1], AuditToken(9, None, 0, 0, 0, 0, None, 1)),
        ([-1, -2, 0, 0, 0, 9, -1, 1], AuditToken(9, None, 4_294_967_294, 0, 0, 0, None, 1)),
        ({"pid": 9, "euid": "0", "auid": True}, AuditToken(9, None, None, None, None, None, None, None)),
        (list(range(9)), None),
        (list(range(7)), None),
        ([0, 0, 0, 0, 0, "5", 0, 0], None),
        ([0, 0, 0, 0, 0, -5, 0, 0], None),
        ([0, 0, 0, 0, 0, True, 0, 0], None),
        ([0, 0, 0, 0, 0, 1 << 31, 0, 0], None),
        ({}, None),
        ("5", None),
        (None, None),
    ],
)
def test_audit_tokens(value: object, expected: AuditToken | None) -> None:
    assert audit_token(value) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda message: message.pop("time"), "no time"),
        (lambda message: message.update(time="2026-02-30T00:00:00Z"), "no time"),
        (lambda message: message.update(time="1969-12-31T00:00:00Z"), "no time"),
        (lambda message: message["process"].pop("audit_token"), "no process id"),
        (lambda message: message.update(process=[]), "no process id"),
        (lambda message: message.update(event={"signal": {}}), "no event"),
        (lambda message: message.update(event=None), "null"),
        (lambda message: message.update(event={"exit": 0}), "int"),
    ],
)
def test_a_message_without_an_event_keeps_its_numbers(change: Any, reason: str) -> None:
    message = scene()[2]
    change(message)
    found = read_line(line(message))
    assert isinstance(found, Unreadable)
    assert reason in found.reason
    assert found.sequence == (2, 0, 15)


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{", b'{"time":1e999}', b"[" * 100_000, b'{"x":' * 100_000, b"\xef\xbb\xbf{}"]
)
def test_a_line_that_is_not_an_object_is_unreadable(raw: bytes) -> None:
    assert isinstance(read_line(raw), Unreadable)


@pytest.mark.parametrize("version", [1, 8, 11, 99, None, "ten"])
def test_messages_of_unknown_versions_are_read_by_their_shape(version: object) -> None:
    message = scene()[0] | {"version": version, "schema_version": 2}
    assert isinstance(read(message).event, Fork)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_unreadable(raw: bytes) -> None:
    assert isinstance(read_line(raw), Message | Unreadable)


@given(JSON)
def test_any_json_is_an_event_or_unreadable(value: object) -> None:
    assert isinstance(read_line(json.dumps(value).encode()), Message | Unreadable)


def every_place(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from every_place(one)


@settings(max_examples=300)
@given(st.sampled_from([9, 10]), st.integers(0, 2), st.data())
def test_any_value_in_any_place_gives_rows_or_is_unreadable(version: int, which: int, data: st.DataObject) -> None:
    message = scene(version)[which]
    for _ in range(data.draw(st.integers(1, 3))):
        owner, key = data.draw(st.sampled_from(list(every_place(message))))
        if isinstance(owner, dict) and data.draw(st.booleans()):
            del owner[key]
        else:
            owner[key] = data.draw(JSON)
    found = read_line(json.dumps(message).encode())
    if isinstance(found, Message):
        for row in EsProcesses(BOOT, Masker()).rows(found):
            numbers = (row.pid, row.ppid, row.uid, row.gid, row.loginuid, row.session, row.exe_device, row.exe_inode)
            assert all(number is None or 0 <= number < 1 << 63 for number in numbers)
            assert 0 <= row.time < 1 << 53
    else:
        assert found.reason


@given(st.integers(0, 2), st.data())
def test_a_damaged_line_is_an_event_or_unreadable(which: int, data: st.DataObject) -> None:
    raw = bytearray(line(scene()[which]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(raw)))
    assert isinstance(read_line(bytes(raw[:end])), Message | Unreadable)
    assert isinstance(read_line(bytes(raw)), Message | Unreadable)
