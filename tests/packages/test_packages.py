"""Packages in fresh roots of Debian's releases: built, installed, upgraded, purged. Opt-in: `make test-packages`.

Needs root and Debian's mirror. Transcripts are in `.build/transcripts`.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from debian_root import DebianRoot, build
from filled_store import EVENTS, fill_store
from waiting import until_sync

pytestmark = [pytest.mark.packages, pytest.mark.root, pytest.mark.timeout(3600)]
PREVIOUS = "0be552a3cc"
"""A commit with an older layout of the event store."""


def agent_answers(root: DebianRoot) -> bool:
    return (
        subprocess.run(
            ["chroot", root.path, "/usr/bin/zeek-agent", "status"], capture_output=True, check=False
        ).returncode
        == 0
    )


def run_agent(root: DebianRoot) -> subprocess.Popen[bytes]:
    process = root.start("/usr/bin/zeek-agent run --logs /var/log/zeek-agent")
    until_sync(lambda: agent_answers(root), 120, (root / "root/output").read_text)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def logged(root: DebianRoot) -> str:
    """The log of processes, which may have been rotated at the full hour."""
    return "".join(path.read_text() for path in (root / "var/log/zeek-agent").glob("zeek-agent-process-events*.log"))


def test_the_same_tree_makes_the_same_packages(release: str, packages: dict[str, Path], tmp_path: Path) -> None:
    again = build(release, tmp_path)
    assert {kind: path.name for kind, path in again.items()} == {kind: path.name for kind, path in packages.items()}
    for kind, path in packages.items():
        assert again[kind].read_bytes() == path.read_bytes(), f"the {kind} differs"


def test_one_command_installs_and_an_event_arrives(root: DebianRoot, packages: dict[str, Path]) -> None:
    root.install(packages["deb"])
    assert root.run("command -v cc gcc clang make; true") == "", "no build tools"
    assert "enabled" in root.run("systemctl is-enabled zeek-agent.service")
    assert root.run("getent passwd _zeek-agent").startswith("_zeek-agent:")
    root.run("dpkg --verify zeek-agent")
    root.run("zeek-agent config check")
    assert not agent_answers(root), "the service does not start in a chroot"
    for path in ("share/man/man1/zeek-agent.1.gz", "share/bash-completion/completions/zeek-agent"):
        assert (root / f"usr/{path}").is_file()
    assert "ExecStart=/usr/bin/zeek-agent run" in (root / "usr/lib/systemd/system/zeek-agent.service").read_text()
    agent = run_agent(root)
    root.run("/bin/true the-event")
    until_sync(
        lambda: (
            "/bin/true the-event"
            in root.query("SELECT exe, cmdline FROM processes_events WHERE cmdline LIKE '%the-event'")
        ),
        60,
        "no event",
    )
    assert "ebpf" in root.query("SELECT source, backend FROM zeek_agent_sources WHERE active AND source = 'processes'")
    connected = "SELECT state FROM zeek_agent_connections"
    until_sync(lambda: "connected" in root.query(connected).split(), 60, "the collector is not connected")
    until_sync(lambda: "SELECT time, name, pid" in root.query("SELECT sql FROM zeek_agent_queries"), 60, "no queries")
    root.run("/bin/true a-logged-event")
    until_sync(lambda: "/bin/true a-logged-event" in logged(root), 60, "no log")
    root.query("SELECT class, uid, capabilities, missing FROM zeek_agent_workers WHERE uid IS NOT NULL")
    uid = root.run("id -u _zeek-agent").strip()
    workers = root.query("SELECT class, uid FROM zeek_agent_workers WHERE uid IS NOT NULL")
    assert f"snapshots,{uid}" in workers.split()
    stop(agent)
    assert root.run("dpkg --verify zeek-agent") == "", "the agent changes nothing of its package"


def test_an_upgrade_keeps_events_identity_and_configuration_and_purge_removes_all(
    release: str, root: DebianRoot, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = build(release, tmp_path_factory.mktemp("before"), "--commit", PREVIOUS, "--version", "2.99.0")
    root.install(before["deb"])
    configuration = root / "etc/zeek-agent/zeek-agent.toml"
    configuration.write_text("# ours\n[events]\nretention_age = 172800.0\n")
    agent = run_agent(root)
    root.run("/bin/true a-row")
    until_sync(lambda: "a-row" in root.query("SELECT cmdline FROM processes_events"), 60, "no event")
    stop(agent)
    fill_store(root)
    agent = run_agent(root)
    counting = "SELECT count(*), count(DISTINCT pid), min(pid), max(pid) FROM processes_events WHERE name = 'upgraded'"
    expected = f"{EVENTS},{EVENTS},0,{EVENTS - 1}"
    assert expected in root.query(counting)
    identity = root.query("SELECT id FROM zeek_agent")
    root.install(packages["deb"])
    assert agent.poll() is None, "the version before records until it is restarted"
    stop(agent)
    agent = run_agent(root)
    assert expected in root.query(counting)
    assert root.query("SELECT id FROM zeek_agent") == identity
    assert configuration.read_text().startswith("# ours\n")
    stop(agent)
    root.run("apt-get remove -y zeek-agent")
    assert (root / "var/lib/zeek-agent/events.db").exists()
    assert configuration.exists()
    root.run("apt-get purge -y zeek-agent")
    left = root.run(
        "find / -xdev -path '*zeek*agent*' -not -path '/root/*' -not -path '/proc/*' -not -path '/var/cache/*'"
    )
    assert left == ""
    root.run("getent passwd _zeek-agent", fails=True)


def test_the_rpm_is_installed_verified_and_erased(packages: dict[str, Path], tmp_path: Path) -> None:
    """In a directory, without the scripts: there is no distribution with RPM to make a root of."""
    if shutil.which("rpm") is None:
        pytest.skip("needs rpm")
    rpm = ["rpm", "--root", str(tmp_path), "--dbpath", "/var/lib/rpm"]

    def run(*arguments: str) -> str:
        done = subprocess.run([*rpm, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    run("--install", "--nodeps", "--noscripts", str(packages["rpm"]))
    assert run("--query", "zeek-agent").startswith("zeek-agent-3.")
    run("--verify", "--nodeps", "--noscripts", "zeek-agent")
    assert (tmp_path / "usr/bin/zeek-agent").is_symlink()
    configuration = tmp_path / "etc/zeek-agent/zeek-agent.toml"
    configuration.write_text("# ours\n")
    run("--upgrade", "--force", "--nodeps", "--noscripts", str(packages["rpm"]))
    assert configuration.read_text() == "# ours\n"
    run("--erase", "--nodeps", "--noscripts", "zeek-agent")
    assert not (tmp_path / "opt/zeek-agent").exists()
    assert configuration.with_suffix(".toml.rpmsave").exists()
