"""The systemd unit gives the agent what the code needs, and no more."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT
from unit import FILES_UNIT, UNIT, unit_settings

from zeek_agent.containment import agent_capabilities, kernel, lockdown, pool
from zeek_agent.recording.periodic import URGENT_NICENESS
from zeek_agent.recording.required_capabilities import REQUIRED
from zeek_agent.terminal import doctor
from zeek_agent.zeek import connection

SETTINGS = unit_settings()
CAPABILITIES = set(SETTINGS["CapabilityBoundingSet"])


def test_the_agent_has_all_capabilities_that_doctor_would_miss() -> None:
    assert {f"CAP_{capability.name}" for capability in doctor.WITHOUT_CAPABILITY} <= CAPABILITIES


def test_worker_processes_can_be_locked_down_and_killed() -> None:
    needed = kernel.capability_names(lockdown._SET_IDS | lockdown._SET_BOUNDING)
    assert {*needed, *lockdown._READS_OTHER_USERS, "CAP_KILL"} <= CAPABILITIES


def test_every_capability_exists_and_none_amounts_to_root() -> None:
    assert set(kernel.CAPABILITIES) >= CAPABILITIES
    too_much = {"SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "DAC_OVERRIDE", "SYS_BOOT", "MKNOD", "FOWNER", "SYS_CHROOT"}
    assert CAPABILITIES.isdisjoint(f"CAP_{name}" for name in too_much)
    assert len(CAPABILITIES) == len(SETTINGS["CapabilityBoundingSet"])


def test_the_agent_keeps_the_units_capabilities_when_it_is_started_by_hand() -> None:
    assert set(agent_capabilities.PURPOSES) == CAPABILITIES


def test_every_source_has_its_capabilities_and_none_is_there_without_a_need() -> None:
    of_sources = {f"CAP_{one.name}" for needed in REQUIRED.values() for one in needed}
    assert of_sources <= CAPABILITIES
    of_workers = {"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL", *lockdown._READS_OTHER_USERS}
    assert CAPABILITIES - of_sources - of_workers == {"CAP_CHOWN"}, "for control.group"


def test_the_system_calls_of_the_agent_and_of_the_lockdown_are_permitted() -> None:
    landlock = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    permitted = set(SETTINGS["SystemCallFilter"])
    assert {"@system-service", "bpf", "perf_event_open", "seccomp", *landlock} == permitted


def test_groups_of_system_calls_are_known_to_the_oldest_supported_systemd() -> None:
    """Debian 12 has systemd 252, which ignores unknown groups: their calls would then end the agent."""
    groups = {word for word in SETTINGS["SystemCallFilter"] if word.startswith("@")}
    assert groups <= {"@system-service"}


def test_connections_and_netlink_are_permitted() -> None:
    assert {"AF_UNIX", "AF_NETLINK", "AF_INET", "AF_INET6"} == set(SETTINGS["RestrictAddressFamilies"])


def test_the_watchdog_waits_longer_than_a_busy_host_takes() -> None:
    assert SETTINGS["Type"] == ["notify"]
    (seconds,) = map(int, SETTINGS["WatchdogSec"])
    assert 30 <= seconds <= 120
    assert SETTINGS["Restart"] == ["on-failure"], "includes the watchdog"


def test_readers_of_kernel_events_may_raise_their_priority() -> None:
    assert SETTINGS["LimitNICE"] == [str(URGENT_NICENESS)]


def test_an_invalid_configuration_does_not_restart_the_agent_again_and_again() -> None:
    assert SETTINGS["RestartPreventExitStatus"] == ["2"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(("unit", "first"), [(UNIT, "rates the unit"), (FILES_UNIT, "`zeek-agent-files@.service`, [")])
def test_systemd_rates_the_exposure_and_every_finding_is_explained(unit: Path, first: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ignoring" not in output.stderr, output.stderr
    (score,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", output.stdout)
    assert float(score) <= 4.2
    findings = re.findall(r"^✗ (\S+)", output.stdout, re.MULTILINE)
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.split("### What systemd-analyze reports", 1)[1].split("\n## ")[0]
    table = section.split(first, 1)[1].split("\n|", 1)[1].split("\n\n")[0]
    explained = {name.replace("\\|", "|") for name in re.findall(r"`([^`]+)`", table)}
    missing = [finding for finding in findings if not _is_explained(finding, explained)]
    assert missing == [], f"docs/security.md does not explain {missing}"


def _is_explained(finding: str, explained: set[str]) -> bool:
    return finding in explained or finding.rstrip("=") in explained


def test_the_agent_outlives_a_worker_that_is_killed_for_memory() -> None:
    assert SETTINGS["OOMPolicy"] == ["continue"]
    assert SETTINGS["MemoryMax"] == ["1G"]
    assert lockdown.OOM_SCORE_ADJ > 0


def test_the_agent_has_time_to_stop_and_an_unkillable_process_delays_nothing_for_long() -> None:
    (seconds,) = map(int, SETTINGS["TimeoutStopSec"])
    closing = connection.SHUTDOWN_TIMEOUT_SECONDS + connection.CLOSE_TIMEOUT_SECONDS + 2 * pool.SHUTDOWN_SECONDS
    assert closing < seconds <= 15
    assert SETTINGS["KillMode"] == ["mixed"]


def test_the_unit_has_no_setting_on_a_commented_line() -> None:
    for line in UNIT.read_text().splitlines():
        assert line.startswith(("#", "[")) or not line or "=" in line


def test_the_process_that_watches_files_has_what_it_needs() -> None:
    settings = unit_settings(FILES_UNIT)
    assert set(settings["CapabilityBoundingSet"]) == {
        *("CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
    }
    assert "RestrictSUIDSGID" not in settings, "it refuses openat2(2)"
    hiding = {"ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelModules", "ProtectKernelTunables"}
    assert settings.keys().isdisjoint(hiding), "files below these mounts could not be watched"
