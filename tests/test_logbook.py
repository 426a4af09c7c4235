"""The agent's log: one safe line a record, and the last entries in memory."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from acting import NOBODY
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent import logbook
from zeek_agent.config.sections import LogSettings
from zeek_agent.errors import UsageError
from zeek_agent.text import escaped


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.log"


def test_a_record_is_one_line_without_control_characters(file: Path) -> None:
    logbook.set_up(LogSettings(file=str(file)))
    logging.getLogger("zeek_agent.x").warning("process %s", "a\nb\x1b[2J\udcff\uefc3 日本")
    (line,) = file.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning zeek_agent\.x: process .*", line)
    assert line.endswith(r"a\x0ab\x1b[2J\xff\xc3 日本")


def test_a_traceback_is_part_of_the_line(file: Path) -> None:
    logbook.set_up(LogSettings(file=str(file)))
    try:
        raise ValueError("reason")
    except ValueError:
        logging.getLogger("zeek_agent.x").exception("failed")
    (line,) = file.read_text().splitlines()
    assert "failed | Traceback" in line
    assert line.endswith("ValueError: reason")


LONG = {
    "ascii": "a" * 3_900_000,
    "just too long": "a" * 4_100,
    "control characters": "\x1b" * 3_000,
    "many control characters": "\n" * 3_900_000,
    "characters of four bytes": "\U0001f9ff" * 2_000,
    "raw bytes": "\uef80" * 4_000,
    "surrogates": "\udcff\ud800" * 4_000,
    "backslashes": "\\" * 4_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_lines_and_entries_are_truncated_at_4_kb_with_a_notice(file: Path, kind: str) -> None:
    ring = logbook.set_up(LogSettings(file=str(file)))
    logging.getLogger("zeek_agent.x").warning("begin %s end", LONG[kind])
    (line,) = file.read_bytes().splitlines(keepends=True)
    assert 3_900 < len(line) <= 4_096
    assert re.search(rb"x: begin .*\xe2\x80\xa6 \[[0-9,]+ bytes truncated\] \xe2\x80\xa6.* end\n$", line)
    ((_, _, _, message),) = ring.rows()
    assert len(message.encode()) <= 4_096
    assert ("bytes truncated" in message) == (kind not in ("control characters", "backslashes")), "those fit unescaped"


@given(st.text(), st.sampled_from([str, escaped]))
def test_truncated_bytes_are_counted_exactly(text: str, render: Callable[[str], str]) -> None:
    text = text.encode(errors="replace").decode()
    for most in (60, 100, len(render(text).encode()) or 60):
        shown = logbook.cut(text, most, render)
        assert len(shown.encode()) <= max(most, 60)
        if found := re.search(r"… \[([0-9,]+) bytes truncated\] …", shown):
            assert len(text.encode()) - int(found[1].replace(",", "")) == sum(
                len(text[part].encode()) for part in _kept(text, shown, found, render)
            )
        else:
            assert shown == render(text)


def _kept(text: str, shown: str, found: re.Match[str], render: Callable[[str], str]) -> list[slice]:
    """Which parts of the text are shown before and after the notice."""
    head = next(n for n in range(len(text) + 1) if render(text[:n]) == shown[: found.start()])
    tail = next(n for n in range(len(text) + 1) if render(text[len(text) - n :]) == shown[found.end() :])
    return [slice(0, head), slice(len(text) - tail, len(text))]


def test_long_tracebacks_are_truncated_in_the_middle(file: Path) -> None:
    ring = logbook.set_up(LogSettings(file=str(file)))

    def fail(depth: int) -> None:
        if depth == 0:
            raise ValueError("x" * 100_000 + " the reason")
        try:
            fail(depth - 1)
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(f"at {depth}") from error

    try:
        fail(50)
    except RuntimeError:
        logging.getLogger("zeek_agent.x").exception("failed")
    (line,) = file.read_bytes().splitlines()
    assert b"failed | Traceback" in line
    assert line.endswith(b"RuntimeError: at 50")
    assert len(line) < 4_096
    assert len(next(ring.rows())[3].encode()) <= 4_096


def test_messages_on_a_terminal_are_truncated_too(capsys: pytest.CaptureFixture[str]) -> None:
    logbook.to_terminal()
    logging.getLogger("zeek_agent.x").warning("%s", "\n" * 100_000)
    (line,) = capsys.readouterr().err.splitlines(keepends=True)
    assert len(line.encode()) <= 4_096


def test_the_last_entries_are_kept_as_rows(file: Path) -> None:
    ring = logbook.set_up(LogSettings(file=str(file), entries=2))
    log = logging.getLogger("zeek_agent.x")
    for number in range(3):
        log.info("entry %d\n", number)
    log.debug("not logged")
    rows = list(ring.rows())
    assert [row[1:] for row in rows] == [
        ("info", "zeek_agent.x", "entry 1\n"),
        ("info", "zeek_agent.x", "entry 2\n"),
    ]
    assert rows[0][0] <= rows[1][0]


def test_arguments_that_do_not_fit_are_logged_all_the_same(file: Path) -> None:
    ring = logbook.set_up(LogSettings(file=str(file)))
    logging.getLogger("zeek_agent.x").info("%d rows", "many")
    ((_, _, _, message),) = ring.rows()
    assert "'%d rows' with ('many',)" in message


def test_rows_can_be_stored_whatever_was_logged(file: Path) -> None:
    ring = logbook.set_up(LogSettings(file=str(file)))
    logging.getLogger("zeek_agent.x").info("\udcff \ud800")
    ((_, _, _, message),) = ring.rows()
    assert message.encode() == "\uefff ?".encode()


def test_a_file_that_was_moved_is_reopened(file: Path) -> None:
    logbook.set_up(LogSettings(file=str(file)))
    log = logging.getLogger("zeek_agent.x")
    log.info("one")
    file.rename(file.with_suffix(".1"))
    log.info("two")
    assert file.read_text().endswith("two\n")


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_file_is_private_whatever_the_umask_even_when_reopened(file: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        logbook.set_up(LogSettings(file=str(file)))
        file.rename(file.with_suffix(".1"))
        logging.getLogger("zeek_agent.x").info("two")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (file, file.with_suffix(".1"))] == [0o600, 0o600]


@pytest.mark.root
def test_a_link_that_another_user_puts_in_its_place_is_not_followed_and_no_line_is_lost(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    logbook.set_up(LogSettings(file=str(file)))
    log = logging.getLogger("zeek_agent.x")
    file.unlink()
    file.symlink_to(victim)
    os.chown(file, NOBODY, NOBODY, follow_symlinks=False)
    log.info("one")
    log.info("two")
    notice, one, two = capsys.readouterr().err.splitlines()
    assert notice == (
        f"zeek-agent: log.file: cannot write {file}: it may be another user's: the symbolic link agent.log on the path "
        f"belongs to uid {NOBODY}; logging here instead"
    )
    assert (one[-3:], two[-3:]) == ("one", "two")
    assert victim.read_text() == "mine"
    file.unlink()
    log.info("three")
    assert file.read_text().endswith("three\n")


def test_a_file_whose_directory_was_removed_does_not_stop_the_agent(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logbook.set_up(LogSettings(file=str(file)))
    file.unlink()
    file.parent.rename(file.parent.with_name("elsewhere"))
    logging.getLogger("zeek_agent.x").info("one")
    assert capsys.readouterr().err.splitlines()[1].endswith("zeek_agent.x: one")


def test_an_unwritable_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"log\.file: cannot write"):
        logbook.set_up(LogSettings(file=str(tmp_path / "absent" / "log")))


def test_with_a_live_view_only_warnings_are_printed_and_the_table_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    ring = logbook.set_up(LogSettings(), quiet=True)
    logging.getLogger("zeek_agent.test").info("in passing")
    logging.getLogger("zeek_agent.test").warning("look here")
    assert [message for *_, message in ring.rows()] == ["in passing", "look here"]
    printed = capsys.readouterr().err
    assert "look here" in printed
    assert "in passing" not in printed
