"""The process that watches files, as systemd's unit runs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mounting
import pytest
from places import ROOT
from waiting import until_sync
from watching import directories_of, status_of, watching

from zeek_agent.recording.files.file_watcher_link import FileWatchers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"),
]
SANDBOX = ROOT / "tests" / "support" / "unit_sandbox.py"
READ_ONLY_CAPABILITY = 1 << 2  # CAP_DAC_READ_SEARCH


class Unit(FileWatchers):
    """Starts the program in the sandbox of the unit, with the connection as standard input."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def why_not(self) -> str | None:
        return None

    def connect(self) -> socket.socket:
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, SANDBOX, "--files-unit", sys.executable, "-I", "-m", "zeek_agent.files_helper"]
            self.processes.append(subprocess.Popen(command, stdin=theirs, cwd="/"))
        return own


def test_the_unit_permits_what_the_process_needs_and_no_more(tmp_path: Path) -> None:
    place, mounted = tmp_path / "watched", tmp_path / "watched" / "mounted"
    mounted.mkdir(parents=True)

    def scene() -> None:
        mounting.mount("none", "/", flags=mounting.MS_REC | mounting.MS_SHARED)  # as process 1 does
        unit = Unit()
        with watching(place, watchers=unit) as recording:
            (place / "program").write_text("#!/bin/sh\n")
            (place / "program").chmod(0o755)
            assert recording.expect_file("attributes", place / "program")["sha256"]
            mounting.mount("test", mounted, "tmpfs")
            until_sync(lambda: directories_of(recording) == 3)
            (mounted / "file").touch()
            recording.expect_file("created", mounted / "file")
            mounting.unmount(mounted)
            until_sync(lambda: directories_of(recording) == 2)
            (process,) = unit.processes
            status = status_of(process.pid)
            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == READ_ONLY_CAPABILITY
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            assert int(status["Uid"].split()[0]) != 0
            assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull  # noqa: PTH115
        assert process.wait(10) == 0

    mounting.in_mount_namespace(scene)
