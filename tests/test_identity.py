"""Who the agent is, and that it is alone in its state directory."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from zeek_agent import identity
from zeek_agent.errors import ZeekAgentError
from zeek_agent.platforms.linux import machine_id

MACHINE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "identity.json"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine-id"
    path.write_text(MACHINE + "\n")
    return path


def test_the_agent_id_stays_and_the_instance_id_is_new(file: Path, machine: Path) -> None:
    first = identity.establish(file, machine_id=partial(machine_id, [machine]))
    second = identity.establish(file, machine_id=partial(machine_id, [machine]))
    assert first.agent == second.agent
    assert first.instance != second.instance
    assert re.fullmatch(r"H[0-9A-Za-z]{20,22}", first.agent)
    assert re.fullmatch(r"I[0-9A-Za-z]{20,22}", first.instance)


def test_a_cloned_image_gets_an_id_of_its_own(file: Path, machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = identity.establish(file, machine_id=partial(machine_id, [machine]))
    machine.write_text("f" * 32)
    clone = identity.establish(file, machine_id=partial(machine_id, [machine]))
    assert clone.agent != original.agent
    assert "another machine" in caplog.text
    assert identity.establish(file, machine_id=partial(machine_id, [machine])).agent == clone.agent


def test_the_machine_id_itself_is_not_kept(file: Path, machine: Path) -> None:
    identity.establish(file, machine_id=partial(machine_id, [machine]))
    assert MACHINE not in file.read_text()


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_without_a_machine_id_the_id_stays_with_the_directory(file: Path, machine: Path, content: str | None) -> None:
    machine.write_text(content) if content is not None else machine.unlink()
    first = identity.establish(file, machine_id=partial(machine_id, [machine]))
    assert identity.establish(file, machine_id=partial(machine_id, [machine])).agent == first.agent
    machine.write_text(MACHINE)
    assert identity.establish(file, machine_id=partial(machine_id, [machine])).agent == first.agent
    machine.write_text("f" * 32)
    assert identity.establish(file, machine_id=partial(machine_id, [machine])).agent != first.agent


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"id": "x"}', b'{"id": 5}', b"[]", b'{"id": "H-"}'])
def test_a_damaged_file_is_replaced_and_logged(
    file: Path, machine: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    made = identity.establish(file, machine_id=partial(machine_id, [machine]))
    assert str(file) in caplog.text
    assert identity.establish(file, machine_id=partial(machine_id, [machine])).agent == made.agent


def test_a_configured_id_is_used_unchanged(file: Path) -> None:
    assert identity.establish(file, "web-1").agent == "web-1"
    assert not file.exists()


def test_an_unwritable_directory_is_logged(tmp_path: Path, machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    made = identity.establish(blocker / "identity.json", machine_id=partial(machine_id, [machine]))
    assert made.agent.startswith("H")
    assert "valid for this run only" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), identity.only_one(blocker / "lock"):
        assert "continuing without" in caplog.text


def test_nothing_but_the_identity_is_left_in_the_directory(file: Path, machine: Path) -> None:
    identity.establish(file, machine_id=partial(machine_id, [machine]))
    assert [path.name for path in file.parent.iterdir()] == ["identity.json"]


def test_a_second_agent_gets_the_holder_of_the_directory(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = f"""
import sys
from functools import partial
from pathlib import Path
from zeek_agent.identity import only_one
with only_one(Path({str(lock)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        expected = pytest.raises(ZeekAgentError, match=rf"pid {process.pid}, since 20.* UTC")
        with expected as caught, identity.only_one(lock):
            pytest.fail("two hold the lock")
        assert str(tmp_path) in str(caught.value)
        process.stdin.close()
        process.wait()
    with identity.only_one(lock):
        assert int(lock.read_text().split()[0]) == os.getpid()
