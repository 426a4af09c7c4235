"""Lines of a program that runs as long as the agent: split anywhere, too long, killed, refusing to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fake_program import FakeProgram, Step, write, write_raw
from hypothesis import given
from hypothesis import strategies as st
from waiting import until_sync

from zeek_agent.recording import program_lines
from zeek_agent.recording.program_lines import LineBuffer, ProgramLines


class Follower:
    """Follows a program that runs these steps."""

    def __init__(self, directory: Path, steps: Sequence[Step], line_bytes_max: int = 1_000) -> None:
        self.program = FakeProgram(directory, "program", steps)
        self.lines: list[bytes] = []
        self.settled = 0
        self.reasons: list[str] = []
        self.following = ProgramLines(
            [str(self.program.path), "argument"],
            receive=self.lines.append,
            settle=self._settle,
            ended=self.reasons.append,
            line_bytes_max=line_bytes_max,
        )

    def _settle(self) -> None:
        self.settled = len(self.lines)

    def __enter__(self) -> Follower:
        self.following.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.following.stop()


@given(st.lists(st.binary(max_size=30)), st.integers(1, 40))
def test_pieces_of_any_size_are_the_same_lines(lines: list[bytes], size: int) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    output = b"".join(line + b"\n" for line in lines) + b"incomplete"
    buffer = LineBuffer(30)
    pieces = (output[at : at + size] for at in range(0, len(output), size))
    assert [line for piece in pieces for line in buffer.lines(piece)] == lines
    assert buffer.too_long == 0


@given(st.lists(st.integers(0, 30)), st.integers(1, 40))
def test_lines_that_are_too_long_are_counted_and_not_kept(lengths: list[int], size: int) -> None:
    output = b"".join(b"x" * length + b"\n" for length in lengths)
    buffer = LineBuffer(10)
    pieces = (output[at : at + size] for at in range(0, len(output), size))
    kept = [len(line) for piece in pieces for line in buffer.lines(piece)]
    assert kept == [length for length in lengths if length <= 10]
    assert buffer.too_long == len(lengths) - len(kept)


def test_a_line_without_an_end_takes_no_memory() -> None:
    buffer = LineBuffer(1_000)
    assert list(buffer.lines(b"x" * 900)) == []
    for _ in range(100):
        assert list(buffer.lines(b"x" * 900)) == []
    assert buffer._pieces == []
    assert list(buffer.lines(b"\nnext\n")) == [b"next"]


def test_the_program_has_a_session_of_its_own(tmp_path: Path) -> None:
    with Follower(tmp_path, [write(b"here")]) as follower:
        until_sync(lambda: follower.settled)
        ((pid, session, arguments),) = follower.program.runs()
    assert (pid, session, arguments) == (follower.following.pid, pid, ["argument"])
    assert session != os.getsid(0)
    assert follower.lines == [b"here"]
    assert follower.reasons == []


def test_the_output_before_its_end_is_read_at_the_stop(tmp_path: Path) -> None:
    follower = Follower(tmp_path, [write(*(b"%d" % number for number in range(50_000)))])
    with follower:
        until_sync(lambda: follower.lines)
    assert follower.lines == [b"%d" % number for number in range(len(follower.lines))]
    assert follower.settled == len(follower.lines)


def test_draining_reads_what_was_written(tmp_path: Path) -> None:
    with Follower(tmp_path, [write_raw(b"one\ntw"), {"wait_for": str(tmp_path / "go")}, write(b"o")]) as follower:
        until_sync(lambda: follower.lines == [b"one"])
        (tmp_path / "go").touch()

        def drained() -> bool:
            follower.following.drain()
            return follower.lines == [b"one", b"two"]

        until_sync(drained)
        assert follower.settled == 2
        assert follower.following.read_until is not None


def test_a_program_that_ends_is_reported_with_its_complaint(tmp_path: Path) -> None:
    with Follower(tmp_path, [write(b"a"), {"complain": "first\nnot\x00 permitted\n"}, {"exit": 77}]) as follower:
        until_sync(lambda: follower.reasons)
    assert follower.lines == [b"a"]
    assert follower.reasons == [f"{follower.program.path} ended with status 77 (first not\x00 permitted)"]


def test_a_long_complaint_is_cut(tmp_path: Path) -> None:
    with Follower(tmp_path, [{"complain": "x" * 300_000 + "end"}, {"exit": 1}]) as follower:
        until_sync(lambda: follower.reasons)
    (reason,) = follower.reasons
    assert reason.endswith("xend)")
    assert len(reason) < 1_200 + len(str(follower.program.path))


def test_a_killed_program_leaves_an_incomplete_line_out(tmp_path: Path) -> None:
    with Follower(tmp_path, [write(b"a"), write_raw(b'{"half'), {"kill": signal.SIGKILL}]) as follower:
        until_sync(lambda: follower.reasons)
    assert follower.lines == [b"a"]
    assert follower.reasons == [f"{follower.program.path} ended with status -9"]


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_lines, "_STOP_SECONDS", 0.2)
    with Follower(tmp_path, [{"ignore": signal.SIGTERM}, write(b"a")]) as follower:
        until_sync(lambda: follower.lines)
    assert follower.following._process.returncode == -signal.SIGKILL
    assert follower.reasons == []


def test_a_descendant_with_the_pipe_does_not_keep_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_lines, "_STOP_SECONDS", 0.2)
    with Follower(tmp_path, [{"orphan": 3}, write(b"a")]) as follower:
        until_sync(lambda: follower.lines)
    assert not follower.following._thread.is_alive()


def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    follower = Follower(tmp_path, [write(b"a")])
    with follower:
        follower.following.stop()
    assert follower.reasons == []


def test_an_error_of_a_receiver_ends_the_program(tmp_path: Path) -> None:
    program = FakeProgram(tmp_path, "program", [write(b"a")])
    reasons: list[str] = []

    def fail(_: bytes) -> None:
        raise KeyError("row")

    following = ProgramLines(
        [str(program.path)], receive=fail, settle=lambda: None, ended=reasons.append, line_bytes_max=10
    )
    following.start()
    until_sync(lambda: reasons)
    following.stop()
    assert reasons == ["KeyError: 'row'"]
    assert following._process.returncode == -signal.SIGKILL


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    following = ProgramLines(
        [str(tmp_path / "none")], receive=lambda _: None, settle=lambda: None, ended=lambda _: None, line_bytes_max=10
    )
    with pytest.raises(FileNotFoundError):
        following.start()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
