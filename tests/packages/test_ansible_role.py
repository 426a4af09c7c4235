"""The Ansible role, run by Debian's own Ansible in a booted root with the package. Opt-in: `make test-packages`."""

from __future__ import annotations

import json
import re
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificates
from debian_root import DebianRoot
from places import ROOT
from waiting import until_sync

pytestmark = [
    pytest.mark.packages,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn (systemd-container)"),
]
PLAY = "- hosts: all\n  become: true\n  become_method: ansible.builtin.su\n  roles: [zeek_agent]\n"
CONFIGURATION = "etc/zeek-agent/zeek-agent.toml"


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[str]:
    """The URL of a collector outside, which the container reaches over the host's loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("zeek-agent"), "collector", "--listen", f"127.0.0.1:{port}"]
    command += ["--logs", tmp_path / "logs", "--state-dir", tmp_path / "collector"]
    with (tmp_path / "collector.output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


class Controller:
    """Runs the role in a root, on that root itself."""

    def __init__(self, root: DebianRoot, package: Path, **variables: Any) -> None:
        self.root = root
        self.variables: dict[str, Any] = {"zeek_agent_package": f"/root/{package.name}", **variables}
        shutil.copy(package, root / "root")
        shutil.copytree(ROOT / "packaging/ansible", root / "root/ansible")
        (root / "root/ansible/play.yml").write_text(PLAY)

    def run(self, *options: str, fails: bool = False, **changed: Any) -> dict[str, int]:
        """Apply the role with changed variables. Returns the counts of its summary."""
        (self.root / "root/variables.json").write_text(json.dumps({**self.variables, **changed}))
        command = "cd ansible && ANSIBLE_NOCOLOR=1 ansible-playbook -i localhost, -c local -e @/root/variables.json "
        self.output = self.root.run(f"{command} {' '.join(options)} play.yml", fails=fails)
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", self.output.splitlines()[-2])}

    def shown(self, name: str) -> str:
        return self.root.run(f"systemctl show zeek-agent --property={name} --value").strip()


def test_the_role_installs_configures_reloads_and_changes_nothing_again(
    root: DebianRoot, packages: dict[str, Path], collector: str
) -> None:
    root.boot()
    root.run("apt-get install -y --no-install-recommends ansible-core python3-apt")
    controller = Controller(root, packages["deb"], zeek_agent_destinations=[collector], zeek_agent_groups=["web"])

    assert controller.run("--check", "--diff")["failed"] == 0
    assert not (root / "usr/bin/zeek-agent").exists(), "check mode has installed it"

    first = controller.run("--diff")
    assert first["failed"] == 0
    assert first["changed"] >= 3
    assert controller.shown("ActiveState") == "active"
    assert root.run("systemctl is-enabled zeek-agent").strip() == "enabled"
    assert "embedded" not in root.run("journalctl --unit zeek-agent --no-pager"), "started before its configuration"
    assert root.query("SELECT state FROM zeek_agent_connections").split() == ["state", "connected"]

    assert controller.run("--check")["changed"] == 0
    process = controller.shown("MainPID")
    second = controller.run("--diff")
    assert (second["changed"], second["failed"]) == (0, 0)
    assert controller.shown("MainPID") == process

    # A setting that is reloaded: the same process goes on with it.
    reloaded = {"zeek_agent_settings": {"limits": {"time": 7.5}, "log": {"level": "debug"}, "access": {"mask": True}}}
    assert controller.run(**reloaded)["changed"] == 1
    assert controller.shown("MainPID") == process
    assert "7.5" in root.query("SELECT value FROM zeek_agent_config WHERE name = 'limits.time'")
    assert controller.run(**reloaded)["changed"] == 0

    # An invalid one: the file before stays, and the agent with it.
    before = (root / CONFIGURATION).read_bytes()
    assert controller.run(fails=True, zeek_agent_settings={"limits": {"time": -1}})["failed"] == 1
    assert "expected a number > 0" in controller.output
    assert (root / CONFIGURATION).read_bytes() == before
    assert controller.shown("MainPID") == process

    # One that needs a restart, and text that TOML has to escape.
    groups = ["web", 'ü "\\', "😀"]
    settings = {"sources": {"ignore_uids": [65000]}, "zeek": {"groups": groups}}
    assert controller.run("--check", zeek_agent_settings=settings)["changed"] == 1
    changed = controller.run(zeek_agent_settings=settings)["changed"]
    assert changed == 3, "the file, the reload that reports what needs a restart, and the restart"
    assert controller.shown("MainPID") != process
    assert "65000" in root.query("SELECT value FROM zeek_agent_config WHERE name = 'sources.ignore_uids'")
    assert tomllib.loads((root / CONFIGURATION).read_text())["zeek"]["groups"] == groups

    # The unit, and its way back.
    assert controller.run(zeek_agent_unit={"MemoryMax": "2G", "CPUWeight": 100})["failed"] == 0
    assert controller.shown("MemoryMax") == str(2 << 30)
    assert controller.run(zeek_agent_unit={"MemoryMax": "2G", "CPUWeight": 100})["changed"] == 0
    assert controller.run()["failed"] == 0
    assert controller.shown("MemoryMax") == str(1 << 30)

    # A destination that cannot be reached fails the host, so that a rollout ends there.
    lost = controller.run(fails=True, zeek_agent_destinations=["ws://127.0.0.1:1"], zeek_agent_verify_seconds=4)
    assert lost["failed"] == 1
    assert "refused the connection" in controller.output
    assert controller.run(fails=True, zeek_agent_package="http://repo.example.net/zeek-agent.deb")["failed"] == 1
    assert "a checksum for a package from an http URL" in controller.output


def test_the_role_upgrades_and_goes_back_only_if_allowed(
    root: DebianRoot, packages: dict[str, Path], collector: str
) -> None:
    """With a package of the same contents and an older version."""
    root.boot()
    root.run("apt-get install -y --no-install-recommends ansible-core python3-apt")
    older = root / "root/zeek-agent_2.99.0_all.deb"
    shutil.copy(packages["deb"], root / "root")
    root.run(f"mkdir old && dpkg-deb -R {packages['deb'].name} old")
    root.run("sed -i 's/^Version:.*/Version: 2.99.0-1/' old/DEBIAN/control")
    root.run(f"dpkg-deb -Znone -b old {older.name}")
    controller = Controller(root, packages["deb"], zeek_agent_destinations=[collector])
    version = "dpkg-query --show --showformat '${Version}' zeek-agent"
    assert controller.run(zeek_agent_package=f"/root/{older.name}")["failed"] == 0
    assert root.run(version).startswith("2.99.0-1")
    process = controller.shown("MainPID")
    assert controller.run()["failed"] == 0
    assert root.run(version).startswith("3."), "upgraded"
    assert controller.shown("MainPID") != process, "the package restarts the service"
    until_sync(lambda: "connected" in root.query("SELECT state FROM zeek_agent_connections"), 60, "not connected")
    controller.run(zeek_agent_package=f"/root/{older.name}", fails=True)
    assert root.run(version).startswith("3."), "not replaced by an older one"
    assert controller.run(zeek_agent_package=f"/root/{older.name}", zeek_agent_allow_downgrade=True)["failed"] == 0
    assert root.run(version).startswith("2.99.0-1")


def test_the_role_installs_certificates_and_restarts_the_agent_for_new_ones(
    root: DebianRoot, packages: dict[str, Path], collector: str
) -> None:
    root.boot()
    root.run("apt-get install -y --no-install-recommends ansible-core python3-apt")
    (root / "root/certificates").mkdir()
    made = make_certificates(root / "root/certificates")
    controller = Controller(
        root, packages["deb"], zeek_agent_destinations=[collector], zeek_agent_ca="/root/certificates/ca.pem",
        zeek_agent_certificate="/root/certificates/agent.pem", zeek_agent_key="/root/certificates/agent.key",
    )  # fmt: skip
    assert controller.run("--diff")["failed"] == 0
    assert Path(made.path("agent.key")).read_text() not in controller.output, "the key is in the log"
    configured = tomllib.loads((root / CONFIGURATION).read_text())["zeek"]["tls"]
    for name, source, mode in (
        ("ca_file", "ca.pem", 0o644), ("certificate", "agent.pem", 0o644), ("key", "agent.key", 0o600)
    ):  # fmt: skip
        installed = root / configured[name].removeprefix("/")
        assert installed.read_bytes() == (root / "root/certificates" / source).read_bytes()
        assert stat.S_IMODE(installed.stat().st_mode) == mode
    process = controller.shown("MainPID")
    made.make("agent", "subjectAltName=DNS:agent.example", "basicConstraints=critical,CA:FALSE")
    assert controller.run()["changed"] == 3, "certificate, key and restart"
    assert controller.shown("MainPID") != process
    controller.run(zeek_agent_certificate="", fails=True)
    assert "a certificate for a key" in controller.output
