"""File events of an agent in a PID namespace of its own, such as a container's, where eBPF reports other pids."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT

pytestmark = pytest.mark.root
PROGRAM = """
import subprocess, sys
from pathlib import Path
from watching import watching

place = Path(sys.argv[1])
with watching(place) as recording:
    other = subprocess.Popen(["sleep", "600"])
    outside = recording.expect("processes_events", name="sleep", state="started")[0]["pid"]
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(outside - 1))
    touch = subprocess.Popen(["touch", place / "file"])
    touch.wait()
    other.kill()
    row = recording.expect_file("created", place / "file")
    print(touch.pid == outside, other.pid != outside, row["pid"] == outside, row["process"])
"""


def test_a_process_is_not_taken_for_another_one_that_has_its_pid_on_the_host(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PROGRAM, place],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
    )
    assert (done.stdout, done.stderr) == ("True True True None\n", "")
