"""osquery's tables that are denied by default: shell histories, compared with bash, and rules of sudo, with visudo."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from scratch_host import Rows, on_scratch_host, output, select, select_in_worker, select_with_errors

from zeek_agent.access_defaults import PATHS_DENY
from zeek_agent.errors import AccessDeniedError
from zeek_agent.host.accounts.shell_histories import ShellCommand, shell_commands
from zeek_agent.host.accounts.sudoers import sudo_lines

UID = 7100
HOME = Path("/home/ada")
PERMITTED: dict[str, Any] = {"secrets_deny": ()}


@pytest.mark.parametrize("table", ["shell_history", "sudoers"])
def test_they_are_denied_by_default(table: str) -> None:
    with pytest.raises(AccessDeniedError, match=r"access\.secrets_deny"):
        select(f"SELECT * FROM {table}")


@pytest.mark.root
def test_commands_that_bash_has_saved_are_listed_with_their_times(tmp_path: Path) -> None:
    typed = ["echo one", "mysql -phunter2", "true  # two"]

    def scene() -> tuple[Rows, Rows, str]:
        output("useradd", "--uid", str(UID), "--create-home", "--home-dir", str(HOME), "ada")
        script = "HISTFILE=~/.bash_history HISTTIMEFORMAT='%s '; history -c; for line; do history -s \"$line\"; done; "
        as_ada = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", f"HOME={HOME}", "bash", "-c")
        listed = output(*as_ada, f"set -o history; {script} history; history -w; unset HISTFILE", "-", *typed)
        sql = "SELECT h.* FROM shell_history h JOIN osquery_users USING (uid) WHERE username = 'ada'"
        return select(sql, **PERMITTED), select(f"SELECT * FROM shell_history WHERE uid = {UID}", **PERMITTED), listed

    rows, by_uid, listed = on_scratch_host(scene, tmp_path)
    expected = [re.match(r"\s*\d+\s+(\d+) (.*)", line) for line in listed.splitlines()]
    assert [(str(row["time"]), row["command"].replace("***", "hunter2")) for row in rows] == [
        (found[1], found[2]) for found in expected if found is not None
    ]
    assert rows[1]["command"] == "mysql -p***"
    assert {(row["uid"], row["history_file"]) for row in rows} == {(UID, str(HOME / ".bash_history"))}
    assert rows == by_uid


@pytest.mark.root
def test_histories_of_other_shells_are_listed_but_nothing_that_they_link_to(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Any, Any]:
        output("useradd", "--uid", str(UID), "--create-home", "--home-dir", str(HOME), "ada")
        (HOME / ".zsh_history").write_bytes(b": 1700000000:5;ls \xe9\n: 1700000009:0;make\n")
        (HOME / ".sh_history").write_text("pwd\n\n")
        (HOME / ".bash_sessions").mkdir()
        (HOME / ".bash_sessions/one.history").write_text("id\n")
        (HOME / ".ash_history").symlink_to("/etc/shadow")
        (HOME / ".history").symlink_to("/root/.bash_history")
        Path("/root/.bash_history").write_text("root's\n")
        output("chown", "-R", f"{UID}:{UID}", str(HOME))
        sql = f"SELECT time, command, history_file FROM shell_history WHERE uid = {UID}"
        return (
            *select_with_errors(sql, **PERMITTED),
            select_with_errors(sql, **PERMITTED, paths_deny=(*PATHS_DENY, "/home/**")),
        )

    rows, errors, denied = on_scratch_host(scene, tmp_path)
    assert [(row["time"], row["command"], Path(row["history_file"]).name) for row in rows] == [
        (1_700_000_000, "ls \uefe9", ".zsh_history"),
        (1_700_000_009, "make", ".zsh_history"),
        (0, "root's", ".history"),
        (0, "pwd", ".sh_history"),
        (0, "", ".sh_history"),
        (0, "id", "one.history"),
    ]
    assert "denied by access.paths_deny" in errors[0]
    assert [row["history_file"] for row in denied[0]] == []
    assert "denied by access.paths_deny" in denied[1][0]


def test_times_belong_to_the_command_after_them() -> None:
    lines = [b"first", b"#1700000000", b"#second", b"#1700000005", b"#1700000009", b": 5:x;y", b"#12 not a time", b"#7"]
    assert list(shell_commands(lines)) == [
        ShellCommand(0, b"first"),
        ShellCommand(1_700_000_000, b"#second"),
        ShellCommand(1_700_000_005, b"#1700000009"),
        ShellCommand(0, b": 5:x;y"),
        ShellCommand(0, b"#12 not a time"),
    ]


@pytest.mark.root
@pytest.mark.skipif(shutil.which("visudo") is None, reason="needs visudo(8)")
def test_a_new_rule_of_sudo_is_listed_from_the_files_that_visudo_reads(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, str, str]:
        output("useradd", "ada")
        Path("/etc/sudoers.d/ada").write_text(
            "ada ALL=(root) \\\n\tNOPASSWD: /usr/bin/id, \\\n  /bin/true\n#7100 ALL=(ALL) ALL\n"
        )
        Path("/etc/sudoers.d/ignored.bak").write_text("ignored ALL=(ALL) ALL\n")
        Path("/etc/sudoers.d/ignored~").write_text("ignored ALL=(ALL) ALL\n")
        Path("/etc/sudoers.d/more").write_text("# a comment\n@include /etc/more-rules\n#include\n")
        Path("/etc/more-rules").write_text("%poets\tALL=(ALL)  ALL\n")
        for file in ("sudoers.d/ada", "sudoers.d/more", "more-rules"):
            Path("/etc", file).chmod(0o440)
        rows = select("SELECT * FROM sudoers", **PERMITTED)
        return rows, output("visudo", "-c"), output("sudo", "-l", "-U", "ada")

    rows, checked, effective = on_scratch_host(scene, tmp_path)
    by_file: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        by_file.setdefault(row["source"], []).append((row["header"], row["rule_details"]))
    assert sorted([*by_file, "/etc/sudoers.d/README"]) == sorted(
        line.partition(":")[0] for line in checked.splitlines()
    )
    assert by_file["/etc/sudoers.d/ada"] == [
        ("ada", "ALL=(root) NOPASSWD: /usr/bin/id, /bin/true"),
        ("#7100", "ALL=(ALL) ALL"),
    ]
    assert "(root) NOPASSWD: /usr/bin/id, /bin/true" in effective
    assert by_file["/etc/sudoers.d/more"] == [("@include", "/etc/more-rules")]
    assert by_file["/etc/more-rules"] == [("%poets", "ALL=(ALL)  ALL")]
    assert ("@includedir", "/etc/sudoers.d") in by_file["/etc/sudoers"]
    assert ("root", "ALL=(ALL:ALL) ALL") in by_file["/etc/sudoers"]


def test_files_that_include_themselves_or_do_not_exist_cost_no_others(tmp_path: Path) -> None:
    (tmp_path / "sudoers").write_bytes(
        b"@include sudoers\n@include gone\n@include dir\n@includedir gone\n@includedir dir\n\f\n"
        b"Defaults x, \\\n\\\n\n end\\"
    )
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/back").write_bytes(b"@include ../sudoers\nad\xe9\tALL\n")
    reports: list[str] = []
    lines = list(sudo_lines(reports.append, tmp_path / "sudoers"))
    assert [(line.file.name, line.header, line.details) for line in lines if b"include" not in line.header] == [
        *([("back", b"ad\xe9", b"ALL")]),
        ("sudoers", b"Defaults", b"x, end"),
    ]
    assert any("is included by itself" in report for report in reports)
    assert any("cannot be read" in report for report in reports)


@pytest.mark.root
def test_workers_read_the_same(tmp_path: Path) -> None:
    def scene() -> list[tuple[Rows, Rows]]:
        Path("/root/.bash_history").write_text("id\n")
        Path("/root/.bash_history").chmod(0o600)
        Path("/etc/sudoers").write_text("root ALL=(ALL:ALL) ALL\n")
        Path("/etc/sudoers").chmod(0o440)
        statements = [f"SELECT * FROM {table}" for table in ("sudoers", "shell_history WHERE uid = 0")]
        return [(select_in_worker(sql, "access.secrets_deny=[]"), select(sql, **PERMITTED)) for sql in statements]

    for in_worker, expected in on_scratch_host(scene, tmp_path):
        assert in_worker == expected
        assert expected
