"""What doctor finds out about worker processes: the protections that hold here, and the unit around the agent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lockdown import MACHINE
from running_agent import started
from unit import with_units_privileges
from waiting import until_sync

from zeek_agent.config.declarations import Config
from zeek_agent.containment import landlock
from zeek_agent.containment.accounts import worker_account
from zeek_agent.terminal import worker_checks
from zeek_agent.terminal.check import Check

CLASSES = ["events", "snapshots", "collector", "helper"]


def doctor(state: Path, prefix: list[str], name: str) -> list[dict[str, Any]]:
    command = [*prefix, sys.executable, "-m", "zeek_agent", "doctor", "--format", "json", "--state-dir", str(state)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return [check for check in json.loads(done.stdout) if check["name"] == name]


@pytest.mark.root
def test_a_process_of_each_class_shows_what_holds_here(tmp_path: Path) -> None:
    if MACHINE is None:
        pytest.skip("no list of system calls for this machine")
    uid, abi = worker_account().uid, landlock.version()
    checks = list(worker_checks.protections(Config()))
    assert [(check.name, check.verdict, check.advice) for check in checks] == [("workers", "ok", None)] * 4
    assert [check.found for check in checks] == [
        f"events: uid {uid}, no capabilities, seccomp, Landlock {abi}",
        f"snapshots: uid {uid}, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, seccomp, Landlock not used",
        f"collector: uid 0, no capabilities, seccomp, Landlock {abi}",
        f"helper: uid {uid}, no capabilities, seccomp, Landlock {abi}",
    ]


@pytest.mark.root
def test_capabilities_that_the_agent_lacks_are_why_protections_do_not_hold(tmp_path: Path) -> None:
    prefix = with_units_privileges("CAP_SETUID", "CAP_SETPCAP", "CAP_KILL")
    checks = doctor(tmp_path, prefix, "workers")
    assert [check["found"].partition(":")[0] for check in checks] == CLASSES
    for check in checks:
        assert check["verdict"] == "warn"
        assert "the agent lacks CAP_SETPCAP" in check["advice"]
        assert "so the worker runs as the agent's user, uid 0" in check["advice"]
    (privileges,) = doctor(tmp_path, prefix, "privileges")
    assert "CAP_SETUID" in privileges["found"]
    assert "worker processes of another user cannot be killed when they hang" in privileges["advice"]


def test_a_class_that_cannot_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    checks = list(worker_checks.protections(Config()))
    assert [check.verdict for check in checks] == ["fail"] * 4
    assert checks[0].found == "events: cannot be started: exit code 1"
    assert checks[0].advice == "its statements fail"


@pytest.mark.long
@pytest.mark.root
def test_a_running_agents_workers_are_named_if_they_lack_protections(tmp_path: Path) -> None:
    with started(tmp_path, prefix=with_units_privileges("CAP_SETUID")) as agent:
        until_sync((agent.state / "zeek-agent.sock").exists, 30)
        found = doctor(agent.state, [], "agent")
    (lacking,) = [check for check in found if "lack protections" in check["found"] and "snapshots" in check["found"]]
    assert lacking["verdict"] == "warn"
    assert "the agent lacks CAP_SETUID or CAP_SETGID" in lacking["advice"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0\n", "fs.fuse.max_request_timeout is 0: "),
        ("60\n", "fs.fuse.max_request_timeout is 60 s"),
        (None, "this kernel has no fs.fuse.max_request_timeout: "),
    ],
)
def test_the_kernels_bound_for_hung_mounts_is_shown(tmp_path: Path, value: str | None, found: str) -> None:
    directory = tmp_path / "sys/fs/fuse"
    directory.mkdir(parents=True)
    if value is not None:
        (directory / "max_request_timeout").write_text(value)
    (check,) = worker_checks.fuse_timeout(tmp_path)
    assert check.verdict == "ok"
    assert check.found.startswith(found)


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of the real one; its output is in the file that is returned."""
    programs, output = tmp_path / "bin", tmp_path / "output"
    programs.mkdir()
    program = programs / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$2" = zeek-agent.service ] && exec cat {output}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return output


def service(tmp_path: Path, cgroup: str) -> list[Check]:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(cgroup)
    return list(worker_checks.service(7, tmp_path))


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/system.slice/zeek-agent.service\n",
        "12:cpu:/user.slice\n1:name=systemd:/system.slice/zeek-agent.service\n0::/\n",
    ],
)
def test_a_unit_that_stops_the_agent_with_its_worker_is_worth_a_warning(
    tmp_path: Path, systemctl: Path, cgroup: str
) -> None:
    systemctl.write_text("OOMPolicy=stop\nMemoryMax=infinity\nDelegate=no\nTimeoutStopUSec=1min 30s\n")
    (check,) = service(tmp_path, cgroup)
    assert (check.name, check.verdict) == ("unit", "warn")
    settings = "OOMPolicy=stop, MemoryMax=infinity, Delegate=no, TimeoutStopUSec=1min 30s"
    assert check.found == f"zeek-agent.service: {settings}"
    assert check.advice is not None
    assert "set OOMPolicy=continue" in check.advice


def test_the_shipped_units_policy_is_in_order(tmp_path: Path, systemctl: Path) -> None:
    systemctl.write_text("OOMPolicy=continue\nMemoryMax=1073741824\nDelegate=no\nTimeoutStopUSec=10s\n")
    (check,) = service(tmp_path, "0::/system.slice/zeek-agent.service\n")
    assert (check.verdict, check.advice) == ("ok", None)


def test_an_agent_that_systemd_does_not_run_has_no_unit(tmp_path: Path, systemctl: Path) -> None:
    assert service(tmp_path, "0::/user.slice/user-0.slice/session-1.scope\n") == []
    assert list(worker_checks.service(8, tmp_path)) == []


def test_a_unit_whose_settings_cannot_be_read_is_named(tmp_path: Path, systemctl: Path) -> None:
    (check,) = service(tmp_path, "0::/system.slice/other.service\n")
    assert check.verdict == "warn"
    assert check.found.startswith("other.service: its settings are unknown: ")
