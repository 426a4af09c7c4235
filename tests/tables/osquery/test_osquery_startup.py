"""osquery's table of startup items, compared with the files and with systemctl."""

from __future__ import annotations

import configparser
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scratch_host import Rows, on_scratch_host, output, select, select_in_worker, select_with_errors
from systemd_manager import AVAILABLE, SystemdManager, systemd_manager

from zeek_agent.tables.osquery import services

ITEMS = "SELECT * FROM startup_items WHERE type = 'Startup Item'"
HOME = Path("/home/ada")


@pytest.mark.root
def test_entries_and_scripts_of_users_and_of_the_system_are_listed(tmp_path: Path) -> None:
    entry = "# comment\nName=ignored\n[Desktop Entry]\nName = Backup\nName[de]=Sicherung\nExec={command}\n{more}"
    entry += "[Other]\nExec=x\n"

    def scene() -> tuple[Rows, Rows, list[str]]:
        output("useradd", "--uid", "7100", "--create-home", "--home-dir", str(HOME), "ada")
        shutil.rmtree("/etc/xdg/autostart", ignore_errors=True)
        for directory in ("/etc/xdg/autostart", HOME / ".config/autostart", HOME / ".config/autostart-scripts"):
            Path(directory).mkdir(parents=True)
        Path("/etc/xdg/autostart/all.desktop").write_text(entry.format(command="/usr/bin/all --a=b %U", more=""))
        for name, more in {
            "on": "Hidden=false\n",
            "off": "Hidden = TRUE\n",
            ".dim": "X-GNOME-Autostart-enabled=false\n",
        }.items():
            text = entry.format(command="mysql -phunter2", more=more)
            (HOME / f".config/autostart/{name}.desktop").write_text(text)
        (HOME / ".config/autostart-scripts/run").write_text("#!/bin/sh\n")
        (HOME / ".config/autostart-scripts/directory").mkdir()
        (HOME / ".config/autostart/secret.desktop").symlink_to("/etc/shadow")
        os.mkfifo(HOME / ".config/autostart/fifo.desktop")
        output("chown", "-R", "ada:", str(HOME))
        HOME.chmod(0o700)
        scripts = output("find", "-L", "/etc/init.d", "-mindepth", "1", "-type", "f").split()
        rows, errors = select_with_errors(ITEMS)
        assert "denied by access.paths_deny" in errors[0]
        (HOME / ".config/autostart/secret.desktop").unlink()
        return rows, select_in_worker(ITEMS), scripts

    rows, in_worker, scripts = on_scratch_host(scene, tmp_path)
    assert [row for row in rows if row["name"] or row["source"] != f"{HOME}/.config/autostart/"] == in_worker
    assert {(row["args"], row["type"]) for row in rows} == {("", "Startup Item")}
    by_source: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append((row["name"], row["path"], row["status"], row["username"]))
    assert by_source == {
        "/etc/init.d/": [(Path(path).name, path, "enabled", "") for path in sorted(scripts)],
        "/etc/xdg/autostart/": [("Backup", "/usr/bin/all --a=b %U", "enabled", "")],
        f"{HOME}/.config/autostart/": [
            ("Backup", "mysql -p***", "disabled", "ada"),
            ("Backup", "mysql -p***", "enabled", "ada"),
            ("", "", "enabled", "ada"),
            ("Backup", "mysql -p***", "disabled", "ada"),
        ],
        f"{HOME}/.config/autostart-scripts/": [
            ("run", f"{HOME}/.config/autostart-scripts/run", "enabled", "ada"),
        ],
    }


@pytest.mark.root
def test_entries_are_those_that_a_reader_of_ini_files_finds() -> None:
    rows = [row for row in select(ITEMS) if row["source"] == "/etc/xdg/autostart/"]
    expected = []
    for file in sorted(Path("/etc/xdg/autostart").glob("*")):
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(file)
        expected.append((parser["Desktop Entry"]["Name"], parser["Desktop Entry"]["Exec"]))
    assert [(row["name"], row["path"]) for row in rows] == expected


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdManager]:
    if not AVAILABLE:
        pytest.skip("needs root, systemd, dbus-daemon and unshare")
    units = {"other.service": "[Service]\nUser=nobody\nExecStart=/bin/sleep 100\n"}
    with systemd_manager(tmp_path_factory.mktemp("systemd") / "run", units) as started:
        yield started


def test_units_are_those_of_systemctl(manager: SystemdManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SYSTEM_BUS", manager.socket)
    manager.systemctl("start", "other.service")
    rows = {row["name"]: row for row in select("SELECT * FROM startup_items WHERE type = 'systemd unit'")}
    listed = manager.systemctl("list-units", "--all", "--full", "--plain", "--no-legend")
    assert set(rows) == {line.split()[0] for line in listed.splitlines()}
    names = {"path": "FragmentPath", "source": "SourcePath", "status": "ActiveState", "username": "User"}
    for unit in ("other.service", "dbus.service", "default.target"):
        shown = manager.systemctl("show", "--property", ",".join(names.values()), "--", unit)
        values = dict(line.split("=", 1) for line in shown.splitlines())
        assert {name: rows[unit][name] for name in names} == {name: values.get(key, "") for name, key in names.items()}
        assert (rows[unit]["args"], rows[unit]["type"]) == ("", "systemd unit")
    both = select("SELECT name, status FROM startup_items WHERE name IN ('other.service', 'cron')")
    assert {"name": "other.service", "status": rows["other.service"]["status"]} in both
    assert len({row["type"] for row in select("SELECT type FROM startup_items")} | {"Startup Item"}) == 2


def test_without_an_answer_of_systemd_the_other_items_remain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = select(ITEMS)
    monkeypatch.setattr(services, "SYSTEM_BUS", str(tmp_path / "none"))
    monkeypatch.setattr(services, "BOOTED", str(tmp_path))
    rows, errors = select_with_errors("SELECT * FROM startup_items")
    assert rows == expected
    assert "none does not answer: No such file" in errors[0]


def test_units_are_not_shown_where_their_table_is_denied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> Iterator[Any]:
        raise AssertionError("systemd is asked")

    monkeypatch.setattr(services.systemd_units, "_snapshot", refuse)
    rows, errors = select_with_errors("SELECT * FROM startup_items", tables_deny=("systemd_units",))
    assert rows == select(ITEMS)
    assert "systemd_units is denied" in errors[0]
