"""What doctor says of a Mac, with programs and files of the test's own."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_program import fake_eslogger, fake_log

from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.system_log.unified_log import UnifiedLog
from zeek_agent.terminal.check import Check
from zeek_agent.terminal.macos_checks import Mac, checks

pytestmark = pytest.mark.documented_shape


@pytest.fixture
def mac(tmp_path: Path) -> Callable[..., dict[str, Check]]:
    """The checks of a Mac where all is well, except for what is passed, by name."""
    (tmp_path / "TCC.db").write_bytes(b"SQLite")

    def checked(**other: object) -> dict[str, Check]:
        log = UnifiedLog(SourceSettings(), command=[str(fake_log(tmp_path, []).path)], may_read=lambda: True)
        usual = {
            "version": lambda: "15.6.1",
            "is_root": lambda: True,
            "user": lambda: "uid 0",
            "machine_id": lambda: "0" * 32,
            "boot": lambda: "4f3a9c21-d07b-4000-8000-000000000000",
            "eslogger": [str(fake_eslogger(tmp_path, []).path)],
            "protected": tmp_path / "TCC.db",
            "program": "/opt/zeek-agent/bin/python3.12",
            "log": log,
        }
        return {check.name: check for check in checks(Mac(**usual | other))}  # type: ignore[arg-type]

    return checked


def test_a_mac_where_all_is_well(mac: Callable[..., dict[str, Check]]) -> None:
    found = mac()
    assert {name: check.verdict for name, check in found.items()} == dict.fromkeys(
        ["macOS", "privileges", "eslogger", "full disk access", "unified log", "machine id", "boot id"], "ok"
    )
    assert all(check.advice is None for check in found.values())


@pytest.mark.parametrize("version", ["12.7.6", "", "unknown"])
def test_an_old_or_unknown_system(mac: Callable[..., dict[str, Check]], version: str) -> None:
    check = mac(version=lambda: version)["macOS"]
    assert check.verdict == "warn"
    assert "macOS 13 and later" in (check.advice or "")


def test_without_root_it_says_what_is_missing(mac: Callable[..., dict[str, Check]]) -> None:
    found = mac(is_root=lambda: False, user=lambda: "uid 501")
    assert (found["privileges"].verdict, found["privileges"].found) == ("warn", "uid 501")
    assert "no process events" in (found["privileges"].advice or "")
    assert "full disk access" not in found, "only root can see whether macOS or the file's mode denies it"


def test_an_eslogger_that_is_missing_or_lacks_events(mac: Callable[..., dict[str, Check]], tmp_path: Path) -> None:
    absent = mac(eslogger=[str(tmp_path / "none")])["eslogger"]
    assert (absent.verdict, absent.found) == ("warn", f"{tmp_path / 'none'} does not exist")
    (tmp_path / "old").mkdir()
    old = mac(eslogger=[str(fake_eslogger(tmp_path / "old", [], events="exec fork").path)])["eslogger"]
    assert (old.verdict, old.found) == ("warn", "this eslogger does not report exit")


def test_full_disk_access_is_explained(mac: Callable[..., dict[str, Check]], tmp_path: Path) -> None:
    class Denied(type(tmp_path)):  # type: ignore[misc]
        def open(self, *_: object, **__: object) -> object:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    check = mac(protected=Denied(tmp_path / "TCC.db"))["full disk access"]
    assert (check.verdict, check.found) == ("warn", "this program, as it was started now, does not have it")
    assert "to /opt/zeek-agent/bin/python3.12 for the agent as a service" in (check.advice or "")
    assert "Privacy & Security > Full Disk Access" in (check.advice or "")


def test_a_protected_file_that_is_gone_proves_nothing(mac: Callable[..., dict[str, Check]], tmp_path: Path) -> None:
    check = mac(protected=tmp_path / "none")["full disk access"]
    assert (check.verdict, check.found.partition(":")[0]) == ("ok", "cannot be determined")


def test_a_unified_log_that_cannot_be_followed(mac: Callable[..., dict[str, Check]], tmp_path: Path) -> None:
    check = mac(log=UnifiedLog(SourceSettings(), command=[str(tmp_path / "none")]))["unified log"]
    assert (check.verdict, check.found) == ("warn", f"{tmp_path / 'none'} does not exist")


def test_ids_that_cannot_be_read(mac: Callable[..., dict[str, Check]]) -> None:
    def no_boot() -> str:
        raise OSError(errno.ENOENT, "cannot read kern.bootsessionuuid")

    found = mac(machine_id=lambda: None, boot=no_boot)
    assert found["machine id"].verdict == found["boot id"].verdict == "warn"
    assert "kern.bootsessionuuid" in found["boot id"].found
