"""`zeek-agent service install` and `uninstall` on macOS, with a launchctl and a file system of the test's own."""

from __future__ import annotations

import plistlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from zeek_agent.config import declarations, loading
from zeek_agent.config.sections import LogSettings
from zeek_agent.errors import ZeekAgentError
from zeek_agent.platforms.darwin import PLATFORM as DARWIN
from zeek_agent.platforms.linux import PLATFORM as LINUX
from zeek_agent.service.installation import InstalledProgram
from zeek_agent.service.launchd import InstalledDaemon, LaunchdService, configuration, property_list
from zeek_agent.service.managers import of_this_system
from zeek_agent.service.trusted_paths import distrusted

pytestmark = [pytest.mark.root, pytest.mark.documented_shape]

PROGRAM = Path("/opt/zeek-agent/bin/zeek-agent")


class Launchctl:
    """launchctl(1), as far as the installation uses it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.is_loaded = False
        self.refusals = 0
        self.slept: list[float] = []

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        program, verb, *arguments = command
        assert program == "/bin/launchctl"
        self.calls.append([verb, *arguments])
        status, complaint = 0, ""
        if verb == "print":
            status = 0 if self.is_loaded else 113
        elif verb == "bootout":
            self.is_loaded = False
        elif verb == "bootstrap" and self.refusals:
            self.refusals -= 1
            status, complaint = 37, "Bootstrap failed: 37: Operation already in progress\n"
        elif verb == "bootstrap":
            self.is_loaded = True
        return subprocess.CompletedProcess(command, status, "", complaint)

    def verbs(self) -> list[str]:
        return [verb for verb, *_ in self.calls]


@pytest.fixture
def launchctl() -> Launchctl:
    return Launchctl()


@pytest.fixture
def host(tmp_path: Path, launchctl: Launchctl) -> LaunchdService:
    return LaunchdService(tmp_path, launchctl, lambda _: None, launchctl.slept.append)


def test_the_daemon_runs_this_program(host: LaunchdService, launchctl: Launchctl, tmp_path: Path) -> None:
    lines = list(host.install(PROGRAM, start=True))
    assert host.property_list == tmp_path / "Library/LaunchDaemons/org.zeek.zeek-agent.plist"
    content = plistlib.loads(host.property_list.read_bytes())
    assert content["ProgramArguments"] == ["/opt/zeek-agent/bin/zeek-agent", "run"]
    assert content["KeepAlive"] == {"SuccessfulExit": False}
    assert (content["RunAtLoad"], content["WorkingDirectory"]) == (True, "/Library/Logs/ZeekAgent")
    assert host.property_list.stat().st_mode & 0o777 == 0o644, "launchd refuses files that others can write"
    assert launchctl.calls == [
        ["print", "system/org.zeek.zeek-agent"],
        ["enable", "system/org.zeek.zeek-agent"],
        ["bootstrap", "system", str(host.property_list)],
    ]
    assert lines[:4] == [
        f"wrote {host.property_list}",
        f"wrote {host.rotation}",
        f"wrote {host.configuration}",
        "started org.zeek.zeek-agent",
    ]
    assert "Full Disk Access" in lines[4]
    assert host.logs.is_dir()


def test_the_configuration_is_the_example_with_a_log_file(host: LaunchdService) -> None:
    list(host.install(PROGRAM, start=False))
    loaded, _ = loading.load(host.configuration)
    assert loaded.log.file == "/Library/Logs/ZeekAgent/zeek-agent.log"
    assert loaded == declarations.Config(log=LogSettings(file=loaded.log.file))
    assert "/Library/Logs/ZeekAgent/zeek-agent.log 600 5 10240 * JN\n" in host.rotation.read_text()


def test_a_configuration_is_kept(host: LaunchdService) -> None:
    host.configuration.parent.mkdir(parents=True)
    host.configuration.write_text("[log]\n")
    assert f"wrote {host.configuration}" not in list(host.install(PROGRAM, start=False))
    assert host.configuration.read_text() == "[log]\n"


def test_an_installation_without_a_start_does_not_call_launchctl(host: LaunchdService, launchctl: Launchctl) -> None:
    list(host.install(PROGRAM, start=False))
    assert launchctl.calls == []


def test_an_upgrade_ends_the_daemon_first(host: LaunchdService, launchctl: Launchctl) -> None:
    list(host.install(PROGRAM, start=True))
    launchctl.calls.clear()
    launchctl.refusals = 3
    list(host.install(PROGRAM, start=True))
    assert launchctl.verbs() == ["print", "bootout", "enable", *["bootstrap"] * 4]
    assert launchctl.slept == [0.5] * 3


def test_a_launchd_that_does_not_load_it_is_an_error(host: LaunchdService, launchctl: Launchctl) -> None:
    launchctl.refusals = 1_000
    with pytest.raises(ZeekAgentError, match="failed: status 37, Bootstrap failed: 37"):
        list(host.install(PROGRAM, start=True))


def test_a_property_list_of_the_operator_is_not_replaced(host: LaunchdService, launchctl: Launchctl) -> None:
    host.property_list.parent.mkdir(parents=True)
    host.property_list.write_bytes(b"<plist/>")
    with pytest.raises(ZeekAgentError, match="was not written by"):
        list(host.install(PROGRAM, start=True))
    with pytest.raises(ZeekAgentError, match="remove it yourself"):
        list(host.uninstall(purge=True))
    assert host.property_list.read_bytes() == b"<plist/>"
    assert launchctl.calls == []


def test_uninstalling_keeps_data_unless_purged(host: LaunchdService, launchctl: Launchctl, tmp_path: Path) -> None:
    list(host.install(PROGRAM, start=True))
    state = tmp_path / "Library/Application Support/ZeekAgent/state"
    state.mkdir()
    assert list(host.uninstall(purge=False)) == [f"removed {host.property_list}", f"removed {host.rotation}"]
    assert not launchctl.is_loaded
    assert state.is_dir()
    assert host.configuration.exists()
    assert list(host.uninstall(purge=True)) == [
        f"there is no {host.property_list}",
        f"removed {state.parent}",
        f"removed {host.logs}",
    ]


def test_a_program_that_others_can_change_is_refused(tmp_path: Path, launchctl: Launchctl) -> None:
    host = LaunchdService(tmp_path, launchctl, lambda path: "it is Ada's" if path == PROGRAM else None)
    with pytest.raises(ZeekAgentError, match=f"root must not run {PROGRAM}, which others can change: it is Ada's"):
        list(host.install(PROGRAM, start=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["my agent", "50%", "a&b<c>", "it's", 'a"b', "a\\b", "ünï"])
def test_unusual_characters_in_the_path_are_kept(name: str) -> None:
    program = Path("/opt") / name / "zeek-agent"
    assert plistlib.loads(property_list(program))["ProgramArguments"][0] == str(program)


@pytest.mark.parametrize("name", ["a\x01b", "a\udcffb"])
def test_a_path_that_a_property_list_cannot_contain_is_refused(name: str) -> None:
    with pytest.raises(ZeekAgentError, match="launchd cannot execute"):
        property_list(Path("/opt") / name / "zeek-agent")


def test_the_example_configuration_changes_the_log_file_only() -> None:
    assert configuration().count("\nfile = ") == 1


def test_each_platform_has_its_service() -> None:
    assert isinstance(of_this_system(DARWIN), InstalledDaemon)
    assert isinstance(of_this_system(LINUX), InstalledProgram)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A file that only root controls, in a directory of root's."""
    for parent in tmp_path.parents:
        if parent.lstat().st_mode & 0o022 and not parent.lstat().st_mode & 0o1000:
            pytest.skip(f"{parent} is writable by others")
    place = tmp_path / "bin" / "program"
    place.parent.mkdir()
    place.touch(mode=0o755)
    return place


def test_what_root_alone_controls_is_trusted(tree: Path) -> None:
    assert distrusted(tree) is None
    link = tree.parent / "link"
    link.symlink_to("../bin/program")
    assert distrusted(link) is None


def test_a_directory_or_file_of_others_is_not_trusted(tree: Path) -> None:
    tree.parent.chmod(0o775)
    assert distrusted(tree) == f"{tree.parent} is writable by others (mode 0775)"
    tree.parent.chmod(0o755)
    tree.chmod(0o757)
    assert distrusted(tree) == f"{tree} is writable by others (mode 0757)"
    assert distrusted(tree, owner=7) == "/ belongs to uid 0"


def test_a_link_through_a_directory_of_others_is_not_trusted(tree: Path, tmp_path: Path) -> None:
    open_directory = tmp_path / "open"
    open_directory.mkdir()
    open_directory.chmod(0o777)
    (open_directory / "through").symlink_to(tree)
    (tree.parent / "link").symlink_to(open_directory / "through")
    assert distrusted(tree.parent / "link") == f"{open_directory} is writable by others (mode 0777)"


def test_links_in_a_circle_and_missing_files_are_not_trusted(tree: Path) -> None:
    (tree.parent / "a").symlink_to("b")
    (tree.parent / "b").symlink_to("a")
    assert "too many symbolic links" in (distrusted(tree.parent / "a") or "")
    assert "No such file" in (distrusted(tree.parent / "missing") or "")
