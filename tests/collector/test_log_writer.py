"""Logs as Zeek writes them: format, files, rotation, a disk that fails."""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from acting import NOBODY
from hypothesis import given
from hypothesis import strategies as st
from zeek_log import CAPTURED, Clock, parse_header, parse_log

from zeek_agent.collector import log_files
from zeek_agent.collector.log_files import LogDirectory
from zeek_agent.collector.log_formats import Field, JsonFormat, TsvFormat, local_time
from zeek_agent.errors import UsageError
from zeek_agent.text import from_bytes, to_bytes


def tsv(type_: str, value: Any) -> str:
    return TsvFormat("test", [Field("f", type_)]).line([value]).decode().removesuffix("\n")


def in_json(type_: str, value: Any) -> str:
    return JsonFormat([Field("f", type_)]).line([value]).decode().removesuffix("\n")


@pytest.mark.parametrize("captured", sorted(CAPTURED.glob("*.log")), ids=lambda path: path.stem)
def test_a_log_that_zeek_wrote_is_rebuilt_byte_for_byte(captured: Path) -> None:
    content = captured.read_bytes()
    header = parse_header(content)
    fields = [Field(*field) for field in zip(header["#fields"], header["#types"], strict=True)]
    layout = TsvFormat(captured.stem, fields)

    def moment(key: str) -> float:
        return time.mktime(time.strptime(header[key][0], "%Y-%m-%d-%H-%M-%S"))

    rebuilt = layout.header(moment("#open")) + b"".join(map(layout.line, parse_log(content)))
    assert rebuilt + layout.footer(moment("#close")) == content


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        ("string", None, "-"),
        ("string", "", "(empty)"),
        ("string", "-", "\\x2d"),
        ("string", "--", "--"),
        ("string", "(empty)", "\\x28empty)"),
        ("string", "a,b", "a,b"),
        ("string", "back\\slash", "back\\\\slash"),
        ("string", "tab\tä", "tab\\x09ä"),
        ("string", "line\nä", "line\\x0a\\xc3\\xa4"),
        ("string", "ä\\line\n", "ä\\\\line\\x0a"),
        ("string", "foo \n\t\0 bar", "foo \\x0a\\x09\\x00 bar"),
        ("string", "दुनिया 𠜎", "दुनिया 𠜎"),
        ("string", "\x7f\x85", "\\x7f\\xc2\\x85"),
        ("string", "\ue001", "\\xee\\x80\\x81"),
        ("string", "\ufffd", "\\xef\\xbf\\xbd"),
        ("string", "\u2028", "\u2028"),
        ("string", from_bytes(b"\xc3\xa9\xff"), "\\xc3\\xa9\\xff"),
        ("string", b"caf\xc3\xa9\xfe", "caf\\xc3\\xa9\\xfe"),
        ("string", "#not a comment", "\\x23not a comment"),
        ("enum", "Reporter::ERROR", "Reporter::ERROR"),
        ("count", 2**64 - 1, "18446744073709551615"),
        ("int", -(2**63), "-9223372036854775808"),
        ("bool", True, "T"),
        ("bool", False, "F"),
        ("time", 1795489155.597038, "1795489155.597038"),
        ("time", 1790052326, "1790052326.000000"),
        ("interval", 0.0, "0.000000"),
        ("interval", -1.5, "-1.500000"),
        ("double", 1.0, "1.0"),
        ("double", 0.1234, "0.1234"),
        ("double", 2153226000.123456789, "2153226000.123457"),
        ("double", -5e4, "-50000.0"),
        ("double", 3.14e15, "3140000000000000.0"),
        ("double", 1.23456789e-5, "0.000012"),
        ("double", -2.23e-308, "-0.0"),
        ("double", -0.0, "0.0"),
        ("double", math.inf, "inf"),
        ("double", -math.inf, "-inf"),
        ("double", math.nan, "nan"),
        ("addr", "192.0.2.2", "192.0.2.2"),
        ("addr", "FD00:0::2", "fd00::2"),
        ("addr", "::ffff:192.0.2.2", "192.0.2.2"),
        ("subnet", "192.0.2.7/24", "192.0.2.0/24"),
        ("port", 80, "80"),
        ("port", (53, "udp"), "53"),
        ("set[string]", (), "(empty)"),
        ("set[string]", ("a,b", "", "-", None, "ä\n"), "a\\x2cb,(empty),\\x2d,-,\\xc3\\xa4\\x0a"),
        ("vector[count]", [1, 2], "1,2"),
        ("set[addr]", ("fd00::2", "192.0.2.2"), "fd00::2,192.0.2.2"),
    ],
)
def test_values_are_written_as_zeek_writes_them(type_: str, value: Any, text: str) -> None:
    assert tsv(type_, value) == text


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        ("string", "\b\f\n\r\t\0\x15", r'{"f":"\b\f\n\r\t\\x00\\x15"}'),
        ("string", "ñ", '{"f":"ñ"}'),
        ("string", "𐌼 rocket 🚀!", '{"f":"𐌼 rocket 🚀!"}'),
        ("string", "rocket 🚀!\0", r'{"f":"rocket \\xf0\\x9f\\x9a\\x80!\\x00"}'),
        ("string", from_bytes(b"\xc3("), r'{"f":"\\xc3("}'),
        ("string", r'\x "quoted" a/b', r'{"f":"\\x \"quoted\" a/b"}'),
        ("string", "", '{"f":""}'),
        ("string", None, "{}"),
        ("time", 1795489155.597038, '{"f":1795489155.597038}'),
        ("time", 1790052326.0, '{"f":1790052326.0}'),
        ("double", 3.14e15, '{"f":3140000000000000.0}'),
        ("double", 1.5e17, '{"f":150000000000000000.0}'),
        ("double", 1.79e308, '{"f":1.79e308}'),
        ("double", 1e21, '{"f":1e21}'),
        ("double", 1.23456789e-5, '{"f":0.0000123456789}'),
        ("double", 1.5e-7, '{"f":1.5e-7}'),
        ("double", -2.23e-308, '{"f":-2.23e-308}'),
        ("double", -0.0, '{"f":-0.0}'),
        ("double", math.nan, '{"f":null}'),
        ("interval", 60.0, '{"f":60.0}'),
        ("bool", True, '{"f":true}'),
        ("port", (80, "tcp"), '{"f":80}'),
        ("addr", "fd00::2", '{"f":"fd00::2"}'),
        ("subnet", "192.0.2.0/24", '{"f":"192.0.2.0/24"}'),
        ("enum", "A::B", '{"f":"A::B"}'),
        ("set[string]", ("a", 'b"', None), r'{"f":["a","b\"",null]}'),
        ("vector[count]", (), '{"f":[]}'),
    ],
)
def test_json_is_written_as_zeek_writes_it(type_: str, value: Any, text: str) -> None:
    assert in_json(type_, value) == text


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("count", -1),
        ("count", 2**64),
        ("count", "1"),
        ("count", True),
        ("int", 2**63),
        ("int", 1.0),
        ("bool", 1),
        ("time", "now"),
        ("double", "1.0"),
        ("string", 5),
        ("addr", "192.0.2.2\tx"),
        ("addr", "::1%eth0"),
        ("addr", "127.1"),
        ("subnet", "192.0.2.0/33"),
        ("port", 65536),
        ("set[string]", "abc"),
        ("set[count]", (1, -1)),
    ],
)
@pytest.mark.parametrize("write", [tsv, in_json])
def test_a_value_that_does_not_fit_its_type_is_refused(write: Callable[..., str], type_: str, value: Any) -> None:
    with pytest.raises(ValueError, match="field f: not a"):
        write(type_, value)


host_text = st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
STRINGS = TsvFormat("test", [Field("a", "string"), Field("b", "set[string]"), Field("c", "string")])


@given(host_text, st.lists(host_text.filter(lambda raw: raw != b""), max_size=4), host_text)
def test_any_bytes_survive_a_log_and_a_record_is_one_line(first: bytes, members: list[bytes], last: bytes) -> None:
    values = [from_bytes(first), [from_bytes(member) for member in members], from_bytes(last)]
    line = STRINGS.line(values)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert not line.startswith(b"#")
    line.decode()
    [record] = parse_log(STRINGS.header(0.0) + line)
    assert to_bytes(record[0]) == first
    assert [to_bytes(member) for member in record[1]] == members
    assert to_bytes(record[2]) == last


@given(host_text)
def test_any_bytes_give_one_line_of_valid_json(raw: bytes) -> None:
    line = JsonFormat([Field("a", "string")]).line([from_bytes(raw)])
    assert line.count(b"\n") == 1
    assert isinstance(json.loads(line)["a"], str)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_numbers_are_read_back_as_the_same_number(number: float) -> None:
    assert json.loads(in_json("double", number))["f"] == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_tsv_numbers_are_right_to_six_decimals_and_have_no_exponent(number: float) -> None:
    text = tsv("double", number)
    assert "e" not in text
    assert math.isclose(float(text), number, rel_tol=1e-15, abs_tol=5e-7)


FIELDS = [Field("t", "time"), Field("name", "string")]


def logs(directory: Path, clock: Clock, **options: Any) -> LogDirectory:
    opened = LogDirectory(directory, clock=clock, **options)
    opened.add("test", FIELDS)
    opened.start()
    return opened


def names(directory: Path) -> list[str]:
    """The files in a directory but for its lock."""
    return sorted(path.name for path in directory.iterdir() if path.name != log_files.LOCK)


def test_a_log_grows_with_each_flush_and_ends_with_a_close_line(tmp_path: Path) -> None:
    clock = Clock()
    directory = logs(tmp_path, clock)
    log = directory.files["test"]
    directory.flush()
    assert names(tmp_path) == []
    log.write((1.0, "a"))
    assert names(tmp_path) == []
    directory.flush()
    assert parse_log((tmp_path / "test.log").read_bytes()) == [(1.0, "a")]
    log.write((2.0, "b"))
    clock.now += 5
    directory.close()
    content = (tmp_path / "test.log").read_bytes()
    assert parse_log(content) == [(1.0, "a"), (2.0, "b")]
    assert content.endswith(f"#close\t{local_time(clock.now)}\n".encode())
    assert log.rows == 2
    assert directory.errors == 0


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_logs_are_private_whatever_the_umask_rotated_ones_too(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        directory = logs(tmp_path, Clock(), rotate_bytes=1)
        directory.files["test"].write((1.0, "a"))
        directory.flush()
        tmp_path.chmod(0o2750)
        directory.files["test"].write((2.0, "b"))
        directory.flush()
        directory.close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.glob("*.log"))] == [0o600, 0o640]


def test_a_leftover_that_everybody_could_read_is_narrowed(tmp_path: Path) -> None:
    (tmp_path / "test.log").write_text("#open\t2026-01-02-03-04-05\n")
    (tmp_path / "test.log").chmod(0o664)
    logs(tmp_path, Clock()).close()
    (leftover,) = tmp_path.glob("*.log")
    assert leftover.name == "test.2026-01-02-03-04-05.log"
    assert stat.S_IMODE(leftover.stat().st_mode) == 0o640


@pytest.mark.root
def test_logs_are_not_written_through_a_link_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "logs").symlink_to("victim")
    os.chown(tmp_path / "logs", NOBODY, NOBODY, follow_symlinks=False)
    directory = logs(tmp_path / "logs", Clock())
    directory.files["test"].write((1.0, "a"))
    directory.flush()
    assert f"the symbolic link logs on the path belongs to uid {NOBODY}" in str(directory.last_error)
    assert names(tmp_path / "victim") == []
    directory.close()
    assert directory.files["test"].dropped == 1


def test_times_in_headers_and_names_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    try:
        directory = logs(tmp_path, Clock(0.0), rotate_bytes=1)
        directory.files["test"].write((0.0, "a"))
        directory.flush()
        directory.close()
        assert names(tmp_path) == ["test.1970-01-01-03-00-00.log"]
        header = parse_header((tmp_path / "test.1970-01-01-03-00-00.log").read_bytes())
        assert header["#open"] == header["#close"] == ["1970-01-01-03-00-00"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_logs_rotate_at_multiples_of_the_interval(tmp_path: Path) -> None:
    clock = Clock(7200.0 * 1000 + 7000)
    directory = logs(tmp_path, clock, rotate_interval_seconds=3600.0)
    log = directory.files["test"]
    opened = clock.now
    log.write((1.0, "before"))
    directory.flush()
    clock.now = 7200.0 * 1000 + 7199
    directory.flush()
    assert names(tmp_path) == ["test.log"]
    clock.now += 1
    directory.flush()
    rotated = f"test.{local_time(opened)}.log"
    assert names(tmp_path) == [rotated]
    log.write((2.0, "after"))
    directory.close()
    assert parse_log((tmp_path / rotated).read_bytes()) == [(1.0, "before")]
    assert parse_log((tmp_path / "test.log").read_bytes()) == [(2.0, "after")]


def test_a_clock_that_was_set_back_does_not_stop_rotation(tmp_path: Path) -> None:
    year = 365 * 86_400.0
    clock = Clock(3600.0 * 500_000 + 10)
    directory = logs(tmp_path, clock, rotate_interval_seconds=3600.0)
    log = directory.files["test"]
    first = local_time(clock.now)
    log.write((1.0, "before"))
    directory.flush()
    clock.now -= 20  # a correction of seconds, across an interval's end
    directory.flush()
    assert names(tmp_path) == ["test.log"]
    clock.now -= 10 * year
    directory.flush()
    assert names(tmp_path) == [f"test.{first}.log"]
    second = local_time(clock.now)
    log.write((2.0, "after"))
    directory.flush()
    clock.now += 3600
    directory.flush()
    assert names(tmp_path) == sorted((f"test.{first}.log", f"test.{second}.log"))
    directory.close()


def test_logs_rotate_by_size_also_when_the_name_is_taken(tmp_path: Path) -> None:
    clock = Clock()
    directory = logs(tmp_path, clock, rotate_bytes=400)
    for number in range(3):
        directory.files["test"].write((float(number), "x" * 400))
        directory.flush()
    assert names(tmp_path) == [f"test.{local_time(clock.now + later)}.log" for later in range(3)]
    for number, name in enumerate(names(tmp_path)):
        assert [row[0] for row in parse_log((tmp_path / name).read_bytes())] == [float(number)]
    directory.close()


def test_logs_of_an_earlier_run_are_renamed(tmp_path: Path) -> None:
    clock = Clock()
    first = logs(tmp_path, clock)
    first.files["test"].write((1.0, "earlier"))
    first.close()
    clock.now += 60
    second = logs(tmp_path, clock)
    aside = f"test.{local_time(clock.now - 60)}.log"
    assert names(tmp_path) == [aside]
    second.files["test"].write((2.0, "now"))
    second.close()
    assert parse_log((tmp_path / aside).read_bytes()) == [(1.0, "earlier")]
    assert parse_log((tmp_path / "test.log").read_bytes()) == [(2.0, "now")]


def test_a_file_without_a_header_is_renamed_by_the_time_of_its_last_write(tmp_path: Path) -> None:
    (tmp_path / "test.log").write_text('{"t":1.0}\n')
    os.utime(tmp_path / "test.log", (1_700_000_000, 1_700_000_000))
    logs(tmp_path, Clock()).close()
    assert names(tmp_path) == [f"test.{local_time(1_700_000_000)}.log"]


def test_a_link_in_place_of_a_log_is_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    directory = logs(tmp_path / "logs", Clock())
    (tmp_path / "logs" / "test.log").symlink_to(target)
    directory.files["test"].write((1.0, "a"))
    directory.close()
    assert target.read_text() == "precious"
    assert stat.S_ISREG((tmp_path / "logs" / "test.log").lstat().st_mode)


def test_a_log_that_was_taken_away_is_opened_again(tmp_path: Path) -> None:
    directory = logs(tmp_path, Clock())
    directory.files["test"].write((1.0, "a"))
    directory.flush()
    (tmp_path / "test.log").rename(tmp_path / "kept")
    directory.files["test"].write((2.0, "b"))
    directory.close()
    assert parse_log((tmp_path / "test.log").read_bytes()) == [(2.0, "b")]


def test_two_collectors_do_not_share_a_directory(tmp_path: Path) -> None:
    first = logs(tmp_path, Clock())
    with pytest.raises(UsageError, match=rf"another collector \(pid {os.getpid()}, since .*\) writes its logs to"):
        logs(tmp_path, Clock())
    first.close()
    logs(tmp_path, Clock()).close()


def test_a_directory_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "logs"
    place.write_text("in the way")
    directory = logs(place, Clock())
    directory.files["test"].write((1.0, "kept"))
    directory.flush()
    assert directory.failing
    assert directory.errors == 2
    assert directory.last_error is not None
    assert str(place) in directory.last_error
    place.unlink()
    directory.flush()
    assert not directory.failing
    assert parse_log((place / "test.log").read_bytes()) == [(1.0, "kept")]
    directory.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel writes what still fits and then refuses, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_whole_lines_and_loses_none(tmp_path: Path) -> None:
    directory = logs(tmp_path, Clock())
    log = directory.files["test"]
    log.write((1.0, "a"))
    directory.flush()
    before = (tmp_path / "test.log").read_bytes()
    with files_of_at_most(len(before) + 100):
        for number in range(20):
            log.write((float(number), "x" * 50))
        directory.flush()
        assert directory.failing
        assert directory.errors == 1
        assert (tmp_path / "test.log").read_bytes() == before
    directory.flush()
    assert not directory.failing
    assert len(parse_log((tmp_path / "test.log").read_bytes())) == 21
    assert log.dropped == 0
    directory.close()


def test_lines_that_wait_for_a_disk_are_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "PENDING_BYTES", 1000)
    place = tmp_path / "logs"
    place.write_text("in the way")
    directory = logs(place, Clock())
    log = directory.files["test"]
    for number in range(100):
        log.write((float(number), "x" * 80))
    assert log.pending_bytes <= 1000
    assert log.rows + log.dropped == 100
    place.unlink()
    directory.close()
    assert len(parse_log((place / "test.log").read_bytes())) == log.rows


def test_lines_that_never_reach_a_disk_are_counted_as_dropped(tmp_path: Path) -> None:
    place = tmp_path / "logs"
    place.write_text("in the way")
    directory = logs(place, Clock())
    directory.files["test"].write((1.0, "a"))
    directory.close()
    assert (directory.files["test"].rows, directory.files["test"].dropped) == (0, 1)


def test_json_logs_have_no_header_and_rotate_too(tmp_path: Path) -> None:
    clock = Clock()
    directory = logs(tmp_path, clock, kind="json", rotate_bytes=10)
    directory.files["test"].write((1.5, None))
    directory.flush()
    assert (tmp_path / f"test.{local_time(clock.now)}.log").read_bytes() == b'{"t":1.5}\n'
    directory.close()
