"""osquery's table of cron jobs, compared with crontab(1)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from scratch_host import Rows, on_scratch_host, output, select, select_in_worker, select_with_errors

from zeek_agent.host.linux.crontabs import CronJob, cron_job

COLUMNS = ("event", "minute", "hour", "day_of_month", "month", "day_of_week", "command")


@pytest.mark.root
@pytest.mark.skipif(shutil.which("crontab") is None, reason="needs crontab(1)")
def test_a_job_that_a_user_installs_is_listed_as_crontab_lists_it(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, str]:
        output("useradd", "--create-home", "ada")
        jobs = "MAILTO=ada\n5 */2  1-7 jan,feb mon\tbackup --password=hunter2 %now\n@reboot /bin/true\n"
        output("crontab", "-u", "ada", "-", standard_input=jobs)
        sql = "SELECT * FROM crontab WHERE path LIKE '/var/spool/cron/%'"
        return select(sql), select_in_worker(sql), output("crontab", "-u", "ada", "-l")

    rows, in_worker, listed = on_scratch_host(scene, tmp_path)
    _, timed, event = listed.splitlines()
    assert rows == in_worker
    assert [tuple(row[name] for name in COLUMNS) for row in rows] == [
        ("", *timed.split()[:5], "backup --password=*** %now"),
        ("@reboot", "", "", "", "", "", event.split()[1]),
    ]
    assert {row["path"] for row in rows} == {"/var/spool/cron/crontabs/ada"}


@pytest.mark.root
def test_system_crontabs_name_the_user_and_strange_files_cost_no_others(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Any, str]:
        shutil.rmtree("/etc/cron.d")
        Path("/etc/cron.d").mkdir()
        Path("/etc/crontab").write_text("SHELL=/bin/sh\n# comment\n\n17 *\t* * *\troot  mysql -phunter2\nbroken line\n")
        Path("/etc/cron.d/backup").write_bytes(b"@daily ad\xe9 run \x1b[2J\r\n* * * * * only\n" + b"*" * 3_000_000)
        Path("/etc/cron.d/.hidden").write_text("* * * * * root hidden\n")
        os.mkfifo("/etc/cron.d/fifo")
        Path("/etc/cron.d/loop").symlink_to("loop")
        Path("/etc/cron.d/shadow").symlink_to("/etc/shadow")
        Path("/etc/cron.d/private").write_text("1 2 3 4 5 root private\n")
        Path("/etc/cron.d/private").chmod(0o600)
        rows, errors = select_with_errors("SELECT *, pid_with_namespace FROM crontab")
        return rows, errors, output("stat", "-c", "%a", "/etc/cron.d/private")

    rows, errors, _ = on_scratch_host(scene, tmp_path)
    assert [(row["event"] or row["minute"], row["command"], row["path"]) for row in rows] == [
        ("17", "root mysql -p***", "/etc/crontab"),
        ("@daily", "ad\uefe9 run \x1b[2J", "/etc/cron.d/backup"),
        ("*", "only", "/etc/cron.d/backup"),
        ("1", "root private", "/etc/cron.d/private"),
    ]
    assert {row["pid_with_namespace"] for row in rows} == {None}
    assert "a line is longer than" in errors[0]
    assert "denied by access.paths_deny" in errors[0]


@pytest.mark.parametrize(
    ("line", "job"),
    [
        (b"* * * * * a  b", CronJob(b"", (b"*",) * 5, b"a b")),
        (b" @hourly\tx=1 y", CronJob(b"@hourly", (b"",) * 5, b"x=1 y")),
        (b"* * * * *", None),
        (b"@reboot", None),
        (b"PATH = /a b c d e f g h", None),
        (b'"NAME"=a b c d e f g', None),
        (b"#* * * * * x", None),
        (b"   ", None),
    ],
)
def test_lines_are_jobs_or_nothing(line: bytes, job: CronJob | None) -> None:
    assert cron_job(line) == job
