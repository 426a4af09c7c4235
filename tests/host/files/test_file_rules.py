"""The rules on files: names that a denied file has, the agent's own files, and whose contents may be read."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import READS_ALL
from file_scenes import DEFAULT, KEY, PEM, allowing, hashes, lines, listed, read_anyhow, sha256, write
from mounting import (
    NOBODY,
    bind,
    in_empty_root,
    in_mount_namespace,
    overlay,
)

from zeek_agent import paths
from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import AccessSettings, LogSettings, TlsSettings, ZeekSettings
from zeek_agent.host.files.file_rules import FileRules, RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.reads import FileReads
from zeek_agent.host.linux.mounts import Mount

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")]


# The agent's own files


@pytest.fixture
def own(tmp: Path) -> AccessPolicy:
    """Rules that allow everything but what is the agent's own."""
    write(tmp / "var" / "state" / "events.db", "events\n")
    write(tmp / "var" / "state" / "scratch" / "deep", "events\n")
    write(tmp / "var" / "tls" / "agent.pem", "key\n")
    write(tmp / "var" / "agent.log", "log\n")
    write(tmp / "var" / "agent.log.1", "log\n")
    write(tmp / "var" / "other", "other\n")
    config = Config(
        state_dir=str(tmp / "var" / "state"),
        log=LogSettings(file=str(tmp / "var" / "agent.log")),
        zeek=ZeekSettings(tls=TlsSettings(key=str(tmp / "var" / "tls" / "agent.pem"))),
    )
    settings = AccessSettings(paths_deny=(), files_allow=("/**",), paths_allow=("/**",))
    return AccessPolicy(settings, paths.protected(config, paths.locate(config)))


def test_the_agents_own_files_are_denied_whatever_the_configuration_says(tmp: Path, own: AccessPolicy) -> None:
    for name in ("state/*", "state/scratch/*", "tls/*", "agent.log", "agent.log.1", "state/../state/events.db"):
        assert listed(tmp / "var" / name, own) != {}
        assert read_anyhow(tmp / "var" / name, access=own) == []
    assert lines(tmp / "var" / "*", own) == ["other"]


def test_the_agents_own_files_are_denied_under_other_names(tmp: Path, own: AccessPolicy) -> None:
    copy = write(tmp / "snapshots" / "1" / str(tmp).removeprefix("/") / "var" / "state" / "events.db", "old events\n")
    (tmp / "elsewhere").mkdir()
    (tmp / "file").touch()
    (tmp / "soft").symlink_to(tmp / "var" / "state" / "events.db")
    (tmp / "hard").hardlink_to(tmp / "var" / "state" / "events.db")
    (tmp / "log").hardlink_to(tmp / "var" / "agent.log")

    def scene() -> list[Any]:
        bind(tmp / "var" / "state", tmp / "elsewhere")
        bind(tmp / "var" / "state" / "events.db", tmp / "file")
        names = ["elsewhere/*", "elsewhere/scratch/*", "file", "soft", "hard", "log"]
        return read_anyhow(*(tmp / name for name in names), copy, access=own)

    assert in_mount_namespace(scene) == []


def test_a_rule_that_names_a_directory_by_a_link_denies_what_lies_there(tmp: Path) -> None:
    """As `/var/run/…` does, where /var/run is a link."""
    secret = write(tmp / "real" / "inside" / "secret", "secret\n")
    public = write(tmp / "real" / "inside" / "public", "public\n")
    other = write(tmp / "other", "other\n")
    (tmp / "link").symlink_to("real")
    (tmp / "again").symlink_to(tmp / "link")
    (tmp / "file").symlink_to(other)
    for denied in (f"{tmp}/link/inside/*", f"{tmp}/again/**", f"{tmp}/again/inside/secret"):
        access = allowing("/**", paths_deny=(denied, f"!{tmp}/link/inside/public", f"!{tmp}/again/inside/public"))
        assert read_anyhow(secret, f"{tmp}/link/inside/secret", f"{tmp}/*/inside/secret", access=access) == []
        assert lines(public, access) == ["public"]
    access = allowing("/**", paths_deny=(f"{tmp}/file",))
    assert read_anyhow(other, tmp / "file", access=access) == []
    assert lines(secret, access) == ["secret"]


def test_a_users_link_hides_nothing_behind_a_rule(tmp: Path) -> None:
    program = write(tmp / "programs" / "worm", "worm\n")
    (tmp / "users").symlink_to("programs")
    os.chown(tmp / "users", NOBODY, NOBODY, follow_symlinks=False)
    access = allowing("/**", paths_deny=(f"{tmp}/users/**",))
    assert hashes(program, access) == [sha256("worm\n")]
    assert read_anyhow(f"{tmp}/users/worm", access=access) == []


def test_a_denied_file_is_denied_by_any_spelling_of_its_path(tmp: Path) -> None:
    write(tmp / "a" / "secret", "secret\n")
    (tmp / "b" / "c").mkdir(parents=True)
    (tmp / "b" / "up").symlink_to("../a")
    (tmp / "b" / "same").symlink_to(".")
    access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=(f"{tmp}/a/secret",)))
    ways = ["a/secret", "a//secret", "./a/./secret", "b/../a/secret", "b/c/../../a/secret", "b/up/secret", "b/up/se*t"]
    ways += [
        "b/same/same/up/secret",
        "b/up/../a/secret",
        "[a]/secret",
        "*/secret",
        "*/*/secret",
        "a/secret/",
        "nowhere/../a/secret",
    ]
    for way in ways:
        assert read_anyhow(tmp / way, f"{tmp}/{way}", access=access) == []
    assert listed(tmp / "b" / "up" / "secret", access) != {}


# Names that a denied file has besides


def test_a_hard_link_to_a_denied_path_is_denied(tmp: Path) -> None:
    write(tmp / "vault", "secret\n")
    (tmp / "users").mkdir()
    (tmp / "users" / "hard").hardlink_to(tmp / "vault")
    write(tmp / "users" / "open", "open\n")
    (tmp / "users" / "double").hardlink_to(tmp / "users" / "open")
    access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=(str(tmp / "vault"),)))
    assert lines(f"{tmp}/users/*", access) == ["open", "open"]
    assert hashes(f"{tmp}/users/*", access) == [sha256("open\n")] * 2


def test_the_shadow_file_has_no_other_name(tmp: Path) -> None:
    def scene() -> list[Any]:
        write("/etc/shadow", "root:secret:\n", 0o644)
        Path("/etc/passwd-copy").hardlink_to("/etc/shadow")
        Path("/etc/link").symlink_to("shadow")
        Path("/mnt").mkdir()
        Path("/mnt2").touch()
        bind("/etc", "/mnt")
        bind("/etc/shadow", "/mnt2")
        everywhere = ("/etc/*", "/mnt/*", "/mnt2", "/etc/../etc/shadow", "/mnt/link", "/mnt/passwd-copy")
        return read_anyhow(*everywhere)

    assert in_empty_root(scene, tmp) == []


def test_a_bind_mount_shows_no_denied_file_after_that_has_been_replaced(tmp: Path) -> None:
    def scene() -> list[Any]:
        write("/etc/shadow", "root:old:\n")
        write("/srv/container", "")
        bind("/etc/shadow", "/srv/container")
        write("/etc/shadow+", "root:new:\n")
        Path("/etc/shadow+").rename("/etc/shadow")
        return read_anyhow("/srv/container", "/srv/*", "/etc/shadow")

    assert in_empty_root(scene, tmp) == []


@pytest.mark.parametrize("links", [1, 2])
def test_an_overlay_does_not_rename_what_is_denied(tmp: Path, links: int) -> None:
    write(tmp / "vault" / "inner" / "file", "secret\n")
    write(tmp / "vault" / "open", "open\n")
    for name in ("overlay", "second", "pub"):
        (tmp / name).mkdir()
    if links == 2:
        (tmp / "pub" / "file").hardlink_to(tmp / "vault" / "inner" / "file")

    def scene() -> list[str]:
        overlay(tmp / "overlay", tmp / "pub" if links == 2 else tmp / "vault")
        bind(tmp / "overlay", tmp / "second")
        rules = (f"{tmp}/vault/inner/file",)
        access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=rules))
        places = [f"{tmp}/{name}" for name in ("overlay", "second")]
        return read_anyhow(*(f"{place}/{way}" for place in places for way in ("*", "*/*", "inner/file")), access=access)

    expected = [] if links == 2 else ["open", sha256("open\n"), {"c0": "open"}] * 2
    assert in_mount_namespace(scene) == expected


@pytest.mark.parametrize(
    ("name", "denied"),
    [
        ("USER-DATA", True),
        ("LOGIN DATA", True),
        ("key4.db. .", True),
        ("networkmanager./System-Connections/a", True),
        ("ID_RSA.PUB", False),
        ("notes.", False),
    ],
)
def test_a_file_of_a_case_insensitive_file_system_is_denied_by_any_name_that_it_answers_to(
    tmp: Path, name: str, *, denied: bool
) -> None:
    gate = Gate(DEFAULT, FileReads())
    rules = FileRules(DEFAULT, FileReads())
    path = f"/media/stick/{name}"
    for kind, refused in (("vfat", denied), ("exfat", denied), ("ext4", False)):
        mount = Mount(1, "8:250", "/", "/media/stick", kind)
        if refused:
            with pytest.raises(RefusedError):
                rules.demand_allowed(gate, mount, path, path, f"/{name}")
        else:
            rules.demand_allowed(gate, mount, path, path, f"/{name}")


# Whose contents may be read


def test_private_configuration_on_the_list_is_read(tmp: Path) -> None:
    files = {
        "/etc/ssh/sshd_config": 0o600,
        "/etc/ssh/sshd_config.d/10-local.conf": 0o600,
        "/home/bob/.ssh/authorized_keys": 0o600,
        "/etc/crontab": 0o600,
        "/etc/cron.d/job": 0o600,
        "/var/spool/cron/crontabs/bob": 0o600,
        "/var/log/auth.log": 0o640,
    }

    def scene() -> dict[str, list[str]]:
        for file, mode in files.items():
            write(file, f"{file}\n", mode, owner=1000 if "bob" in file else 0)
        return {file: lines(file) for file in files}

    assert in_empty_root(scene, tmp) == {file: [file] for file in files}


def test_root_may_write_a_file_for_a_user_whose_directory_is_closed(tmp: Path) -> None:
    def scene() -> list[str]:
        write("/home/bob/.ssh/authorized_keys", f"{KEY}\n", 0o600, owner=1000)
        for directory in ("/home/bob", "/home/bob/.ssh"):
            Path(directory).chmod(0o700)
        os.chown("/home/bob/.ssh/authorized_keys", 0, 0)
        Path("/home/bob/.ssh/authorized_keys").chmod(0o644)
        return lines("/home/*/.ssh/authorized_keys")

    assert in_empty_root(scene, tmp) == [KEY]


def linked(secret: Path) -> None:
    """Bob gives a file of root's a listed name: fs.protected_hardlinks is off, or he may write it."""
    Path("/home/bob/.ssh/authorized_keys").unlink()
    Path("/home/bob/.ssh/authorized_keys").hardlink_to(secret)


def moved(secret: Path) -> None:
    """Bob moves a file of root's that lies in a directory of his."""
    secret.rename("/home/bob/.ssh/authorized_keys")


def directory_moved(secret: Path) -> None:
    """Bob moves a directory of root's that lies in one of his."""
    secret.parent.chmod(0o700)
    secret.rename(secret.with_name("authorized_keys"))
    shutil.rmtree("/home/bob/.ssh")
    secret.parent.rename("/home/bob/.ssh")


def linked_in_log(secret: Path) -> None:
    """Some program lets all users write in its directory of logs."""
    Path("/var/log/shared").mkdir()
    Path("/var/log/shared").chmod(0o1777)
    Path("/var/log/shared/log").hardlink_to(secret)


def moved_in_log(secret: Path) -> None:
    Path("/var/log/shared").mkdir()
    Path("/var/log/shared").chmod(0o1777)
    secret.parent.chmod(0o700)
    secret.parent.rename("/var/log/shared/directory")


def soft_linked(secret: Path) -> None:
    Path("/home/bob/.ssh/authorized_keys").unlink()
    Path("/home/bob/.ssh/authorized_keys").symlink_to(secret)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
@pytest.mark.parametrize("give", [linked, moved, directory_moved, linked_in_log, moved_in_log, soft_linked])
def test_another_users_file_is_not_read_under_a_listed_name(tmp: Path, give: Callable[[Path], None], mode: int) -> None:
    def scene() -> list[str]:
        Path("/var/log").mkdir(parents=True)
        write("/home/bob/.ssh/authorized_keys", f"{KEY}\n", owner=1000)
        secret = write("/home/bob/roots/secret", "secret\n", mode)
        for directory in ("/home/bob/roots", "/home/bob"):
            Path(directory).chmod(0o700)
        os.chown("/home/bob/roots", 0, 0)
        give(secret)
        return lines("/home/*/.ssh/authorized_keys") + lines("/var/log/*/*") + lines("/var/log/*/*/*")

    his = [] if give in (linked, moved, directory_moved, soft_linked) else [KEY]
    anybody_may_read_it = mode == 0o644 and give in (moved, linked_in_log)
    assert in_empty_root(scene, tmp) == his + (["secret"] if anybody_may_read_it else [])


def test_contents_on_a_list_are_those_that_every_user_may_read(tmp: Path) -> None:
    write(tmp / "etc" / "public", "public\n")
    rows = {
        "/etc/public": (0o644, True),
        "/etc/private": (0o640, False),
        "/etc/closed/public": (0o644, False),
        "/usr/lib/systemd/system/x.service": (0o644, True),
        "/usr/bin/program": (0o755, False),
        "/opt/public": (0o644, False),
        "/srv/www/index.html": (0o644, False),
        "/var/www/html/index.php": (0o644, False),
        "/var/tmp/public": (0o644, False),
        "/var/lib/dpkg/status": (0o644, True),
        "/home/bob/.config/systemd/user/x.service": (0o644, True),
        "/home/bob/notes": (0o644, False),
        "/root/notes": (0o644, False),
    }

    def scene() -> tuple[dict[str, bool], list[str], list[str]]:
        for file, (mode, _) in rows.items():
            write(file, f"{file}\n", mode)
        Path("/etc/closed").chmod(0o750)
        read = {file: lines(file) == [file] for file in rows}
        return (
            read,
            [file for file in rows if hashes(file) != [sha256(f"{file}\n")]],
            [f for f in rows if not listed(f)],
        )

    expected = {file: readable for file, (_, readable) in rows.items()}
    assert in_empty_root(scene, tmp) == (expected, [], [])


def test_the_configuration_can_allow_more_files_but_not_denied_ones(tmp: Path) -> None:
    def scene() -> tuple[list[str], list[str]]:
        write("/srv/app/log", "log\n", 0o600)
        write("/srv/app/.env", "TOKEN=secret\n")
        write("/srv/app/tls.key", "secret\n")
        return lines("/srv/app/log") + lines("/srv/app/*"), read_lines_of_all("/srv/app/*", allowing("/srv/**"))

    def read_lines_of_all(pattern: str, access: AccessPolicy) -> list[str]:
        hidden = pattern.replace("*", ".*")
        return lines(pattern, access) + lines(hidden, access) + hashes(hidden, access)

    assert in_empty_root(scene, tmp) == ([], ["log"])


def test_report_mode_reads_and_logs_files_that_would_be_refused_but_not_denied_ones(
    tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp / "unlisted", "unlisted\n")
    write(tmp / "secret.key", "secret\n")
    reads = FileReads()
    access = AccessPolicy(AccessSettings(mode="report"))
    assert lines(f"{tmp}/*", access, reads) == ["unlisted"]
    assert (reads.omissions().reported, reads.omissions().refused) == (1, 1)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"{tmp}/unlisted reported: contents are not on the list (access.files_allow extends it)"]


@pytest.mark.parametrize("offset", [0, 1, 5_000, 300_000])
def test_a_private_key_in_a_listed_file_is_masked_and_the_rest_returned(tmp: Path, offset: int) -> None:
    before = ["x" * 99] * (offset // 100) + ["y" * (offset % 100)]

    def scene() -> list[str]:
        write("/home/bob/.ssh/authorized_keys", "\n".join([*before, PEM + KEY]) + "\n", owner=1000)
        return lines("/home/*/.ssh/authorized_keys")

    assert in_empty_root(scene, tmp) == [*before, "***", "***", "***", KEY]


def test_a_private_key_that_a_container_logs_line_by_line_is_masked(tmp: Path) -> None:
    stamped = [f"2026-11-28T12:00:0{number}.5Z stdout F {text}" for number, text in enumerate(PEM.splitlines())]

    def scene() -> list[str]:
        write("/var/log/pods/app/0.log", "\n".join(stamped) + "\n")
        return lines("/var/log/pods/*/0.log")

    begin, body, _ = (line.rpartition(" F ")[0] for line in stamped)
    assert in_empty_root(scene, tmp) == [f"{begin} F ***", f"{body} F ***", "***"]


def test_a_file_that_only_the_configuration_admits_is_refused_if_a_key_begins_in_its_first_4_kb(tmp: Path) -> None:
    for name, offset in (("first", 0), ("early", 4_000), ("late", 5_000)):
        write(tmp / name, "x" * (offset - 1) + "\n" * (offset > 0) + PEM)
    reads = FileReads()
    found = lines(f"{tmp}/*", READS_ALL, reads)
    assert found == ["x" * 4_999, "***", "***", "***"]
    assert reads.omissions().refused == 2
    assert "begins with a private key" in reads.omissions().summary()
