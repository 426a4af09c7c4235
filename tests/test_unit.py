"""The systemd unit gives the agent what the code needs, and no more."""

from __future__ import annotations

import pytest
from unit import UNIT, unit_settings

from zeek_agent.containment import kernel, lockdown, pool
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


@pytest.mark.parametrize("group", ["@system-service", "@sandbox", "bpf", "perf_event_open"])
def test_the_system_calls_of_the_agent_and_of_the_lockdown_are_permitted(group: str) -> None:
    assert group in SETTINGS["SystemCallFilter"]


def test_namespaces_of_sockets_and_mounts_can_be_entered() -> None:
    assert SETTINGS["RestrictNamespaces"] == ["net", "mnt"]
    assert {"AF_UNIX", "AF_NETLINK", "AF_INET", "AF_INET6"} <= set(SETTINGS["RestrictAddressFamilies"])


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
