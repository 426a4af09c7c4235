"""What doctor says of backends that really cannot be used here, and of an agent that goes without them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from acting import NOBODY
from waiting import until_sync

from zeek_agent.bpf import probe
from zeek_agent.config.declarations import Config
from zeek_agent.terminal import doctor as doctor_module

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("works_by_ebpf")]
PROGRAM = [sys.executable, "-m", "zeek_agent"]
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
Checks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def works_by_ebpf() -> None:
    reason = probe.why_not(("processes", "tcp", "udp"))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def without(*capabilities: str) -> list[str]:
    """Root, less these and the one that stands for many."""
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in ("sys_admin", *capabilities))]


def with_mounts(*commands: str) -> list[str]:
    """In a mount namespace of its own, after these commands."""
    return ["unshare", "--mount", "sh", "-c", " && ".join([*commands, 'exec "$@"']), "sh"]


def doctor(state: Path, *flags: str, prefix: list[str]) -> Checks:
    command = [*prefix, *PROGRAM, "doctor", "--format", "json", "--state-dir", str(state), *flags]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    checks: Checks = json.loads(done.stdout)
    failed = {check["name"] for check in checks if check["verdict"] == "fail"}
    assert (done.returncode, done.stderr) == (1 if failed else 0, "")
    assert failed <= {"workers"}
    return checks


def told(checks: Checks, subject: str) -> tuple[str, str]:
    """The verdict on a source (`sockets by ebpf`), and what was found."""
    (check,) = [check for check in checks if check["found"].startswith(subject)]
    return check["verdict"], check["found"].removeprefix(subject).lstrip(":;, ")


def privileges(checks: Checks) -> dict[str, Any]:
    (check,) = [check for check in checks if check["name"] == "privileges"]
    return check


def test_an_ordinary_user_learns_what_to_grant_and_what_works_without() -> None:
    if subprocess.run([*AS_NOBODY, *PROGRAM, "--version"], cwd="/", capture_output=True, check=False).returncode:
        pytest.skip("the tests' Python is not for other users")
    checks = doctor(Path("/nonexistent/state"), prefix=AS_NOBODY)
    for check in checks:
        if check["name"] == "workers":
            assert "the agent does not run as root" in (check["advice"] or "") or "Permission denied" in check["found"]
    for kind in ("processes", "sockets"):
        refused = "not permitted without CAP_BPF and CAP_PERFMON: run as root, or grant them"
        assert told(checks, f"{kind} by ebpf") == ("warn", refused)
        assert "CAP_AUDIT_READ" in told(checks, f"{kind} by audit")[1]
        used = [
            check["found"]
            for check in checks
            if check["found"].startswith(f"{kind} by ") and "will be" in check["found"]
        ]
        assert len(used) == 1
        assert "missed" in used[0] or "are unknown" in used[0]
    assert told(checks, "translations by conntrack")[1] != "will be used"
    assert privileges(checks)["verdict"] == "warn"
    assert privileges(checks)["found"].startswith(f"uid {NOBODY}, without CAP_DAC_READ_SEARCH, ")
    assert privileges(checks)["advice"].startswith("run as root, or grant them; without them, ")


def test_root_with_fewer_capabilities_is_not_advised_to_become_root(state: Path) -> None:
    checks = doctor(state, prefix=without("bpf"))
    refused = "root lacks capabilities here; its unit or container must allow it"
    assert told(checks, "sockets by ebpf") == ("warn", f"not permitted without CAP_BPF: {refused}")
    missed = "connections that live for less than 50 ms, most UDP, ICMP and packet sockets are missed"
    assert told(checks, "sockets by inet_diag") == ("ok", f"will be used; {missed}")
    assert told(checks, "sockets by snapshots") == ("ok", "available as a fallback")
    assert privileges(checks)["found"] == "uid 0, without CAP_BPF"
    assert privileges(checks)["advice"].startswith("allow them in its unit (CapabilityBoundingSet) or container; ")


def test_only_a_better_source_is_worth_a_warning(state: Path) -> None:
    checks = doctor(state, prefix=["setpriv", "--bounding-set", "-audit_read,-audit_control"])
    assert told(checks, "processes by ebpf") == ("ok", "will be used")
    assert told(checks, "sockets by ebpf") == ("ok", "will be used")
    verdict, found = told(checks, "processes by audit")
    assert verdict == "ok"
    assert found.startswith("not available as a fallback: audit records cannot be read (Operation not permitted)")
    assert "CAP_AUDIT_READ and CAP_AUDIT_CONTROL" in found


def test_a_chosen_source_that_cannot_work_leaves_its_table_empty(state: Path) -> None:
    checks = doctor(state, "--set", "sources.processes=audit", prefix=without("audit_read", "audit_control"))
    verdict, found = told(checks, "processes by audit")
    assert (verdict, found.partition(":")[0]) == ("warn", "audit records cannot be read (Operation not permitted)")
    (check,) = [check for check in checks if check["found"] == "no source of processes works here"]
    assert (check["verdict"], check["advice"]) == ("warn", "the table processes_events will be empty")


def test_in_a_container_without_privileges_snapshots_remain(state: Path) -> None:
    container = ["unshare", "--net", "--pid", "--fork", "--mount-proc"]
    checks = doctor(state, prefix=[*container, *without("bpf", "audit_read")])
    refused = "the process connector is in the host's own network namespace only"
    assert told(checks, "processes by proc_connector") == ("warn", refused)
    verdict, found = told(checks, "processes by snapshots")
    assert (verdict, found) == ("ok", "will be used; processes that live for less than two intervals are missed")


def test_missing_kernel_features_are_named(state: Path) -> None:
    checks = doctor(state, prefix=with_mounts("mount -t tmpfs none /sys/kernel/btf"))
    assert told(checks, "processes by ebpf")[1].startswith(
        "the kernel has no type information (/sys/kernel/btf/vmlinux): "
    )
    hidden = [f"mount -t tmpfs none /sys/kernel/{name}" for name in ("tracing", "debug")]
    checks = doctor(state, prefix=[*with_mounts(*hidden), *without()])
    assert told(checks, "processes by ebpf") == ("ok", "will be used")
    verdict, found = told(checks, "sockets by ebpf")
    assert verdict == "warn"
    assert found.startswith(
        "tracefs is not mounted, or not accessible to this user: mount -t tracefs none /sys/kernel/tracing"
    )


@contextmanager
def agent(state: Path, prefix: list[str]) -> Iterator[None]:
    """One that runs, from when it answers."""
    flags = ["--state-dir", str(state), "--logs", str(state.parent / "logs")]
    with (state.parent / "log").open("w") as log:
        process = subprocess.Popen([*prefix, *PROGRAM, "run", *flags], stdout=log, stderr=log)
    try:
        until_sync(
            lambda: (state / "zeek-agent.sock").exists() or process.poll() is not None,
            30,
            (state.parent / "log").read_text,
        )
        assert process.poll() is None, (state.parent / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.long
def test_a_running_agent_reports_why_it_uses_no_better_source(state: Path) -> None:
    with agent(state, without("bpf")):
        checks = doctor(state, prefix=[])
    assert told(checks, "sockets by inet_diag, active")[0] == "warn"
    (check,) = [check for check in checks if check["found"].startswith("sockets by ")]
    assert check["found"].endswith(
        "connections that live for less than 50 ms, most UDP, ICMP and packet sockets are missed"
    )
    assert check["advice"].startswith("not by ebpf: not permitted without CAP_BPF: root lacks")


@pytest.mark.long
def test_a_running_agent_reports_the_shortcomings_of_its_source(state: Path) -> None:
    prefix = [*with_mounts("mount -t tracefs none /sys/kernel/tracing"), *without("net_admin")]
    with agent(state, prefix):
        checks = doctor(state, prefix=[])
    assert told(checks, "processes by ebpf") == ("ok", "active")
    verdict, found = told(checks, "sockets by ebpf, active")
    assert verdict == "warn"
    assert found.startswith("datagrams are not recorded: not permitted without CAP_NET_ADMIN: root lacks")


def test_hard_links_that_any_user_can_make_are_worth_a_warning(tmp_path: Path) -> None:
    setting = tmp_path / "sys/fs/protected_hardlinks"
    setting.parent.mkdir(parents=True)
    verdicts = {}
    for value in ("0", "1"):
        setting.write_text(f"{value}\n")
        (check,) = doctor_module._files(Config(), tmp_path)
        verdicts[value] = (check.name, check.verdict)
    assert verdicts == {"0": ("hard links", "warn"), "1": ("hard links", "ok")}


def test_disabled_rules_are_worth_a_warning(state: Path) -> None:
    checks = doctor(state, "--set=access.mode=report", '--set=access.filesystems_allow=["nfs4"]', prefix=[])
    warned = {check["name"]: check["found"] for check in checks if check["verdict"] == "warn"}
    assert "contents that are on no list are read" in warned["file contents"]
    assert "nfs4" in warned["file systems"]
