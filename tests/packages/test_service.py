"""The package's service under a real systemd, which is process 1 of a container. Opt-in: `make test-packages`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from debian_root import KEPT, DebianRoot
from places import ROOT
from waiting import until_sync

from zeek_agent.service.installation import FILES_UNITS, UNIT

pytestmark = [
    pytest.mark.packages,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn (systemd-container)"),
]


def shown(root: DebianRoot, name: str) -> str:
    return root.run(f"systemctl show zeek-agent --property={name} --value").strip()


def test_the_unit_runs_is_watched_and_restarted_by_an_upgrade(root: DebianRoot, packages: dict[str, Path]) -> None:
    root.boot()
    root.install(packages["deb"])
    assert shown(root, "ActiveState") == "active", root.run("journalctl --unit zeek-agent --no-pager")
    assert shown(root, "StatusText").startswith("recording processes by ebpf, ")
    assert "sockets by ebpf" in shown(root, "StatusText")
    root.run("systemctl status --no-pager --lines=0 zeek-agent")
    root.run("/bin/true the-event")
    sql = "SELECT cmdline FROM processes_events WHERE exe LIKE '%/true' AND cmdline LIKE '%the-event'"
    until_sync(lambda: "/bin/true the-event" in root.query(sql), 60, "no event")
    missing = root.query("SELECT class, missing FROM zeek_agent_workers WHERE uid IS NOT NULL AND missing <> '[]'")
    assert missing.strip() == "class,missing"
    assert "2" in root.run("grep Seccomp: /proc/$(systemctl show zeek-agent -p MainPID --value)/status")
    score = root.run("systemd-analyze security zeek-agent.service --no-pager | tail -n 1")
    assert float(score.split(":")[1].split()[0]) <= 4.2

    before = shown(root, "MainPID")
    root.run(f"apt-get install -y --reinstall ./{packages['deb'].name}")
    assert shown(root, "MainPID") != before
    assert shown(root, "ActiveState") == "active"
    assert shown(root, "NRestarts") == "0", "the restart was in order"
    until_sync(lambda: "/bin/true the-event" in root.query(sql), 60, "the event is lost")

    root.run("kill -STOP $(systemctl show zeek-agent --property=MainPID --value)")
    until_sync(lambda: shown(root, "NRestarts") == "1", 180, "the watchdog did not restart a hung agent")
    until_sync(lambda: shown(root, "ActiveState") == "active", 60, "not active again")
    assert "Watchdog timeout" in root.run("journalctl --unit zeek-agent --no-pager | grep Watchdog")
    assert "/bin/true the-event" in root.query(sql)

    (root / "etc/zeek-agent/zeek-agent.toml").write_text("[limits]\ntime = -1\n")
    root.run("systemctl restart zeek-agent", fails=True)
    assert shown(root, "ExecMainStatus") == "2"
    time.sleep(7)  # longer than RestartSec
    assert shown(root, "ActiveState") == "failed", "an invalid configuration is not tried again"

    root.run("apt-get purge -y zeek-agent")
    root.run("systemctl status zeek-agent", fails=True)
    left = root.run("find / /run -xdev -path '*zeek*agent*' -not -path '/root/*' -not -path '/var/cache/*'")
    assert left == ""


def test_a_wheel_installs_its_service(root: DebianRoot, release: str, tmp_path: Path) -> None:
    """In an environment of root's, as `pipx install --global` makes one."""
    if release == "trixie":
        pytest.skip("once is enough")
    (tmp_path / "wheel").mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "wheel")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    shutil.copy(wheel, root / "root")
    root.run("apt-get install -y python3-venv libbpf1 && python3 -m venv /opt/tools/zeek-agent")
    wheels = max((KEPT / "wheels").glob(f"{release}-*"), key=lambda path: path.stat().st_mtime)
    shutil.copytree(wheels, root / "root/wheels")
    root.run(f"/opt/tools/zeek-agent/bin/pip install --no-index --find-links /root/wheels ./{wheel.name}")
    root.boot()
    root.run("/opt/tools/zeek-agent/bin/zeek-agent service install")
    assert shown(root, "ActiveState") == "active", root.run("journalctl --unit zeek-agent --no-pager")
    assert shown(root, "StatusText").startswith("recording processes by ebpf, ")
    assert root.run("getent passwd _zeek-agent")
    watching = "pgrep -x zeek-files || true"  # as the process that watches files names itself
    (first,) = until_sync(lambda: root.run(watching).split(), 60, "no process watches files")
    assert "/opt/tools/zeek-agent/" in root.run(f"cat /proc/{first}/cmdline")
    root.run("systemctl reload zeek-agent")
    root.run("/opt/tools/zeek-agent/bin/zeek-agent service install")
    assert shown(root, "NRestarts") == "0"
    until_sync(lambda: root.run(watching).split() not in ([], [first]), 60, "not started again")
    assert len(root.run(watching).split()) == 1
    root.run("/opt/tools/zeek-agent/bin/zeek-agent service uninstall --purge")
    for unit in (UNIT, *FILES_UNITS):
        root.run(f"systemctl cat {unit}", fails=True)
    assert root.run(watching) == ""
    left = root.run("find / /run -xdev -path '*zeek*agent*' -not -path '/root/*' -not -path '/opt/tools/*'")
    assert left == ""
