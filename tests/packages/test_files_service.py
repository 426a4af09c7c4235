"""The units of the process that watches files, under a real systemd. Opt-in: `make test-packages`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from debian_root import KEPT, DebianRoot, debian_root
from filled_store import EVENTS, fill_store
from waiting import until_sync

from zeek_agent.containment import kernel

pytestmark = [
    pytest.mark.packages,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn (systemd-container)"),
]
SOCKET = "zeek-agent-files.socket"
UNITS = ("zeek-agent.service", SOCKET, "zeek-agent-files@.service")
ADMIN = kernel.capability_mask(("CAP_SYS_ADMIN",))
READ = kernel.capability_mask(("CAP_DAC_READ_SEARCH",))


@pytest.fixture
def empty(release: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DebianRoot]:
    """A booted root on a file system that reports events."""
    transcript = KEPT / "transcripts" / f"{request.node.originalname}-{release}.txt"
    with debian_root(release, tmp_path, transcript, copied=True) as root:
        root.boot()
        yield root


@pytest.fixture
def booted(empty: DebianRoot, packages: dict[str, Path]) -> DebianRoot:
    """The same with the package installed and its service running."""
    empty.install(packages["deb"])
    return empty


def shown(root: DebianRoot, unit: str, name: str) -> str:
    return root.run(f"systemctl show {unit} --property={name} --value").strip()


def helpers(root: DebianRoot) -> dict[str, str]:
    """The processes that watch files by unit. Those of the past are not there, whatever became of them."""
    listed = root.run("systemctl list-units --all --plain --no-legend 'zeek-agent-files@*'").splitlines()
    return {unit: shown(root, unit, "MainPID") for unit in (line.split()[0] for line in listed)}


def the_helper(root: DebianRoot) -> tuple[str, str]:
    (one,) = until_sync(lambda: len(helpers(root)) == 1 and helpers(root), 60, lambda: str(helpers(root))).items()
    return one


def is_gone(root: DebianRoot, unit: str) -> bool:
    return unit not in helpers(root)


def capabilities(root: DebianRoot, pid: str, which: str) -> int:
    return int(root.run(f"grep {which}: /proc/{pid}/status").split()[1], 16)


def expect_row_of_touch(root: DebianRoot, name: str) -> None:
    """Create files in /etc until one has a row with the pid: all directories are marked then.

    The process has no name, as eBPF reports the pids of the host outside.
    """
    pids: list[str] = []

    def arrived() -> bool:
        pids.append(root.run(f"echo $$; exec touch /etc/{name}-{len(pids)}").strip())
        rows = root.query(f"SELECT action, pid FROM files_events WHERE path GLOB '/etc/{name}-*'")
        return any(f"created,{pid}" in rows.split() for pid in pids)

    until_sync(arrived, 90, lambda: root.query("SELECT * FROM zeek_agent_sources WHERE source = 'files'"))


def test_systemd_starts_the_process_on_demand_and_a_change_in_etc_arrives(booted: DebianRoot) -> None:
    assert shown(booted, SOCKET, "ActiveState") == "active"
    assert shown(booted, "zeek-agent", "ActiveState") == "active"
    main = shown(booted, "zeek-agent", "MainPID")
    for which in ("CapPrm", "CapEff", "CapBnd"):
        assert not capabilities(booted, main, which) & ADMIN, f"{which} of the agent"
    unit, helper = the_helper(booted)
    until_sync(lambda: capabilities(booted, helper, "CapPrm") == READ, 60, "the helper keeps more than it needs")
    assert booted.run(f"stat -c %U /proc/{helper}").strip() == "_zeek-agent"
    assert booted.run(f"grep Seccomp: /proc/{helper}/status").split()[1] == "2"
    until_sync(lambda: "files by fanotify" in shown(booted, "zeek-agent", "StatusText"), 60, "not in the status")

    expect_row_of_touch(booted, "arrives")
    log = booted / "var/log/zeek-agent/logs/zeek-agent-file-events.log"

    def logged() -> bool:
        booted.run("touch /etc/logged.conf")
        return log.exists() and "/etc/logged.conf" in log.read_text()

    until_sync(logged, 60, "no line in the log")

    booted.run(f"kill -KILL {helper}")
    until_sync(lambda: is_gone(booted, unit), 60, "the unit of the helper that was killed is left")
    the_helper(booted)
    until_sync(lambda: "files by fanotify" in shown(booted, "zeek-agent", "StatusText"), 60, "not recording again")
    expect_row_of_touch(booted, "replaced")
    assert shown(booted, "zeek-agent", "MainPID") == main


def test_a_restart_leaves_no_helper_behind_and_a_purge_nothing(booted: DebianRoot, packages: dict[str, Path]) -> None:
    unit, helper = the_helper(booted)
    for command in ("systemctl restart zeek-agent", f"apt-get install -y --reinstall ./{packages['deb'].name}"):
        booted.run(command)
        until_sync(partial(is_gone, booted, unit), 60, "the helper of the agent before is left")
        booted.run(f"test ! -e /proc/{helper}")
        unit, helper = the_helper(booted)
    assert booted.run("systemctl --failed --plain --no-legend").find("zeek") < 0
    until_sync(lambda: "files by fanotify" in shown(booted, "zeek-agent", "StatusText"), 60, "not recording again")
    expect_row_of_touch(booted, "after")

    booted.run("systemctl stop zeek-agent")
    until_sync(lambda: not helpers(booted), 60, "a helper is left without an agent")
    booted.run(f"systemctl stop {SOCKET}")
    booted.run("test ! -e /run/zeek-agent-files.socket")
    booted.run("systemctl start zeek-agent")
    the_helper(booted)

    booted.run(f"systemctl enable {SOCKET}")  # as doctor recommends where the agent does not run by its unit
    booted.run("apt-get purge -y zeek-agent")
    assert helpers(booted) == {}
    for one in UNITS:
        booted.run(f"systemctl cat {one}", fails=True)
    left = booted.run(
        "find / /run -xdev -path '*zeek*agent*' -not -path '/root/*' -not -path '/var/cache/*' -not -path '/proc/*'"
    )
    assert left == ""
    booted.run("getent passwd _zeek-agent", fails=True)


def test_an_upgrade_from_the_package_without_these_units_starts_them_and_loses_no_event(
    empty: DebianRoot, packages: dict[str, Path], package_before: Path
) -> None:
    empty.install(package_before)
    assert shown(empty, "zeek-agent", "ActiveState") == "active"
    empty.run(f"systemctl cat {SOCKET}", fails=True)
    recorded = "SELECT count(*) > 0 AS some FROM processes_events"
    until_sync(lambda: empty.query(recorded).split() == ["some", "1"], 60, "no event")
    empty.run("systemctl stop zeek-agent")
    fill_store(empty)
    empty.run("systemctl start zeek-agent")
    counting = "SELECT count(*), count(DISTINCT pid), min(pid), max(pid) FROM processes_events WHERE name = 'upgraded'"
    expected = f"{EVENTS},{EVENTS},0,{EVENTS - 1}"
    assert expected in empty.query(counting).split()
    identity = empty.query("SELECT id FROM zeek_agent")
    sequence = "SELECT max(seq) AS last FROM processes_events WHERE name = 'upgraded'"
    last = empty.query(sequence)
    process = shown(empty, "zeek-agent", "MainPID")

    empty.install(packages["deb"])
    assert shown(empty, "zeek-agent", "MainPID") != process
    assert shown(empty, "zeek-agent", "ActiveState") == "active"
    assert expected in empty.query(counting).split()
    assert (empty.query("SELECT id FROM zeek_agent"), empty.query(sequence)) == (identity, last)
    the_helper(empty)
    until_sync(lambda: "files by fanotify" in shown(empty, "zeek-agent", "StatusText"), 60, "not recording files")
    expect_row_of_touch(empty, "upgraded")
    assert "agent,stopped" in empty.query("SELECT source, cause FROM zeek_agent_gaps").splitlines()


def test_systemd_rates_the_exposure_of_each_service_low(booted: DebianRoot) -> None:
    for unit in (one for one in UNITS if one.endswith(".service")):
        command = f"systemd-analyze security --offline=true --no-pager /usr/lib/systemd/system/{unit}"
        (score,) = re.findall(r"Overall exposure level for \S+ ([\d.]+)", booted.run(command))
        assert float(score) <= 4.2, unit
