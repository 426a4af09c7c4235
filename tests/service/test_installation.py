"""`zeek-agent service install` and `uninstall`, in a directory that stands for the host's file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zeek_agent.config import declarations, loading
from zeek_agent.errors import ZeekAgentError
from zeek_agent.recording.files import file_watcher_link
from zeek_agent.service import installation
from zeek_agent.service.installation import FILES_UNITS, GATEWAY_UNIT, Service

NOBODY = 65534
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemctl"),
]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    place = tmp_path / "bin" / "zeek-agent"
    place.parent.mkdir()
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    return place


@pytest.fixture
def host(tmp_path: Path) -> Service:
    (tmp_path / "host").mkdir()
    return Service(tmp_path / "host")


def test_the_unit_runs_this_program_and_is_valid(host: Service, program: Path) -> None:
    lines = list(host.install(program, start=True))
    assert lines[0] == f"wrote {host.unit}"
    text = host.unit.read_text()
    assert f'\nExecStart="{program}" run\n' in text
    assert f'\nExecReload="{program}" reload\n' in text
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", host.unit], capture_output=True, text=True, check=False
    )
    assert verified.stderr == ""
    loaded, _ = loading.load(host.configuration)
    assert loaded == declarations.Config()


@pytest.mark.parametrize("name", ["my agent", "50%", "%n", "a$HOME", "${x}", "a;b", "#a", "ünï"])
def test_unusual_characters_in_the_path_are_kept(name: str, host: Service, tmp_path: Path) -> None:
    program = tmp_path / name / "zeek-agent"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    list(host.install(program, start=False))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", host.unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("name", ["it's", 'a"b', "a\\b", "a\tb", "a\nExecStartPre=b"])
def test_a_path_that_systemd_does_not_execute_is_refused(name: str) -> None:
    with pytest.raises(ZeekAgentError, match="systemd does not execute"):
        installation.unit_text(Path("/opt") / name / "zeek-agent")


@pytest.mark.parametrize("name", [installation.UNIT, *FILES_UNITS])
def test_a_unit_of_the_operator_is_not_replaced(name: str, host: Service, program: Path) -> None:
    unit = host.unit.with_name(name)
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/opt/mine run\n")
    with pytest.raises(ZeekAgentError, match="was not written by"):
        list(host.install(program, start=False))
    assert list(unit.parent.iterdir()) == [unit], "another one was written"
    assert unit.read_text() == "[Service]\nExecStart=/opt/mine run\n"


def test_a_unit_of_the_operator_is_not_removed(host: Service, program: Path) -> None:
    list(host.install(program, start=False))
    unit = host.unit.with_name(FILES_UNITS[0])
    unit.write_text("[Socket]\n")
    list(host.uninstall(purge=True))
    assert list(unit.parent.iterdir()) == [unit]


def test_a_configuration_is_kept_and_a_second_run_replaces_the_unit(host: Service, program: Path) -> None:
    list(host.install(program, start=False))
    host.configuration.write_text("[limits]\n")
    host.unit.write_text(host.unit.read_text() + "# changed")
    list(host.install(program, start=False))
    assert host.configuration.read_text() == "[limits]\n"
    assert "# changed" not in host.unit.read_text()


def test_a_program_that_others_can_change_is_refused(host: Service, program: Path) -> None:
    os.chown(program, NOBODY, NOBODY)
    with pytest.raises(ZeekAgentError, match=r"root must not run .*: it belongs to uid 65534"):
        list(host.install(program, start=False))
    assert not host.unit.exists()
    os.chown(program, 0, 0)
    program.parent.chmod(0o777)
    with pytest.raises(ZeekAgentError, match="writable by others"):
        list(host.install(program, start=False))


def test_the_unit_of_a_package_is_not_replaced(host: Service, program: Path) -> None:
    packaged = host.root / "usr/lib/systemd/system/zeek-agent.service"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    with pytest.raises(ZeekAgentError, match="a package has installed the service"):
        list(host.install(program, start=False))


def test_uninstall_removes_the_unit_and_purge_the_rest(host: Service, program: Path) -> None:
    list(host.install(program, start=False))
    state = host.root / "var/lib/zeek-agent"
    state.mkdir(parents=True)
    (state / "events.db").touch()
    units = [host.unit, *(host.unit.with_name(name) for name in FILES_UNITS)]
    assert all(unit.exists() for unit in units)
    assert list(host.uninstall(purge=False)) == [f"removed {unit}" for unit in units]
    assert not any(unit.exists() for unit in units)
    assert (state / "events.db").exists()
    assert host.configuration.exists()
    assert next(host.uninstall(purge=True)) == f"there is no {host.unit}"
    list(host.uninstall(purge=True))
    assert not state.exists()
    assert not host.configuration.exists()


def test_the_units_of_the_process_that_watches_files_run_this_program(host: Service, program: Path) -> None:
    list(host.install(program, start=False))
    socket, service = (host.unit.with_name(name) for name in FILES_UNITS)
    assert f'ExecStart="{program}" files-helper' in service.read_text()
    assert f"ListenSequentialPacket={file_watcher_link.SOCKET}" in socket.read_text()
    assert socket.name in host.unit.read_text()
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", socket], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_unit_of_somebody_else_is_not_removed(host: Service) -> None:
    host.unit.parent.mkdir(parents=True)
    host.unit.write_text("[Service]\n")
    with pytest.raises(ZeekAgentError, match="was not written by"):
        list(host.uninstall(purge=False))
    assert host.unit.exists()


def test_an_ordinary_user_gets_the_command_with_sudo() -> None:
    command = [
        "setpriv",
        f"--reuid={NOBODY}",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    done = subprocess.run(
        [*command, sys.executable, "-m", "zeek_agent", "service", "install"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("zeek-agent: only root can install the service: sudo ")


@pytest.fixture
def gateway(host: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Its interpreter may be anywhere here."""
    monkeypatch.setattr(installation, "_HOMES", ())
    return Service(host.root, GATEWAY_UNIT)


def test_the_unit_of_a_gateway_runs_this_program_and_is_valid(gateway: Service, program: Path) -> None:
    lines = list(gateway.install(program, start=True))
    assert lines[:2] == [f"wrote {gateway.unit}", f"wrote {gateway.configuration}"]
    assert [unit.name for unit in gateway.unit.parent.iterdir()] == [GATEWAY_UNIT]
    text = gateway.unit.read_text()
    assert f'\nExecStart="{program}" gateway\n' in text
    assert "systemctl edit zeek-agent-gateway`" in text
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", gateway.unit], capture_output=True, text=True, check=False
    )
    assert verified.stderr == ""


def test_agent_and_gateway_are_installed_and_removed_independently(
    host: Service, gateway: Service, program: Path
) -> None:
    list(host.install(program, start=False))
    list(gateway.install(program, start=False))
    list(gateway.install(program, start=False))
    assert list(gateway.uninstall(purge=False)) == [f"removed {gateway.unit}"]
    assert host.unit.exists()
    list(gateway.install(program, start=False))
    list(host.uninstall(purge=False))
    assert [unit.name for unit in gateway.unit.parent.iterdir()] == [GATEWAY_UNIT]


def test_the_unit_of_a_gateway_that_an_operator_or_a_package_has_is_not_replaced(
    gateway: Service, program: Path
) -> None:
    gateway.unit.parent.mkdir(parents=True)
    gateway.unit.write_text("[Service]\n")
    with pytest.raises(ZeekAgentError, match="was not written by"):
        list(gateway.install(program, start=False))
    packaged = gateway.root / "usr/lib/systemd/system" / GATEWAY_UNIT
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    with pytest.raises(ZeekAgentError, match="a package has installed the service"):
        list(gateway.install(program, start=False))


def test_a_gateway_starts_once_its_settings_are_there(
    gateway: Service, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(Service, "_is_booted", lambda _: True)
    monkeypatch.setattr(installation, "_systemctl", lambda *arguments: done.append(arguments))
    lines = list(gateway.install(program, start=True))
    assert lines[-1].startswith(f"not started: set gateway.servers and gateway.cluster in {gateway.configuration}")
    assert done == [("daemon-reload",)]
    gateway.configuration.write_text('[gateway]\nservers = ["tls://hub:4222"]\ncluster = "zeek"\n')
    assert list(gateway.install(program, start=True))[-1] == f"started {GATEWAY_UNIT}"
    assert done[2:] == [("enable", GATEWAY_UNIT), ("restart", GATEWAY_UNIT)]


def test_a_program_in_a_home_directory_is_refused_for_a_gateway() -> None:
    with pytest.raises(ZeekAgentError, match="in a home directory"):
        installation._require_visible(Path("/root/.local/bin/zeek-agent"))
    installation._require_visible(Path("/opt/pipx/venvs/zeek-agent/bin/zeek-agent"))
