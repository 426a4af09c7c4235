"""Every query on files of the stock packages, of our package and of the default pack returns its rows, whatever the
host's root directory lies on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from asking import Agent
from mounting import bind, change_root, in_mount_namespace, mount, pivot_root
from places import ROOT

from zeek_agent.access import AccessPolicy
from zeek_agent.collector import pack
from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")]

SCRIPTS: Final = ROOT / "zeek" / "scripts" / "table"
KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hPQyLqgM2u0kL8h1bX0o5mW9c1P0m6m1Jb2o5T3fY"
FILES: Final = {
    "etc/passwd": ("root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000:Bob:/home/bob:/bin/sh\n", 0o644, 0),
    "etc/shadow": ("root:secret:\n", 0o640, 0),
    "etc/ssh/sshd_config": ("# comment\nPermitRootLogin no\n", 0o600, 0),
    "etc/ssh/sshd_config.d/10-local.conf": ("PasswordAuthentication no\n", 0o600, 0),
    "home/bob/.ssh/authorized_keys": (f"{KEY} bob\n", 0o600, 1000),
    "home/zoe/.ssh/authorized_keys": (f"{KEY} zoe\n", 0o600, 1001),
    "root/.ssh/authorized_keys": (f"{KEY} root\n", 0o600, 0),
    "home/bob/.ssh/authorized_keys2": (f"{KEY} bob\n", 0o600, 1000),
    "root/.ssh/authorized_keys2": (f"{KEY} root\n", 0o600, 0),
    "var/lib/git/.ssh/authorized_keys": (f"{KEY} git\n", 0o600, 0),
    "root/.ssh/id_rsa": ("secret\n", 0o600, 0),
    "etc/cron.d/job": ("* * * * * root secret\n", 0o644, 0),
    "var/spool/cron/crontabs/bob": ("* * * * * secret\n", 0o600, 1000),
    "etc/systemd/system/a.service": ("[Unit]\n", 0o644, 0),
    "etc/systemd/system/a.service.d/b.conf": ("[Unit]\n", 0o644, 0),
    "usr/lib/systemd/system/a.service": ("[Unit]\n", 0o644, 0),
    "usr/local/lib/systemd/system/a.service": ("[Unit]\n", 0o644, 0),
    "run/systemd/system/a.service": ("[Unit]\n", 0o644, 0),
    "root/.config/systemd/user/a.service": ("[Unit]\n", 0o600, 0),
    "home/bob/.config/systemd/user/a.service": ("[Unit]\n", 0o600, 1000),
    "usr/bin/su": ("", 0o4755, 0),
    "usr/bin/ls": ("", 0o755, 0),
    "usr/lib/openssh/ssh-keysign": ("", 0o6755, 0),
    "home/bob/shell": ("", 0o2755, 1000),
    "tmp/.shell": ("", 0o4711, 0),
    "tmp/sticky": ("", 0o1777, 0),
}
LISTED: Final = {
    "/etc/*": {f"/{path}" for path in FILES if path.count("/") == 1 and path.startswith("etc/")}
    | {f"/etc/{name}" for name in ("cron.d", "empty", "link", "ssh", "systemd")},
    "/etc/*/*": {"/etc/cron.d/job", "/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d", "/etc/systemd/system"},
    "/etc/systemd/*/**/*": {f"/etc/systemd/system/a.service{end}" for end in ("", ".d", ".d/b.conf")},
    "/usr/lib/systemd/*/**/*": {"/usr/lib/systemd/system/a.service"},
    "/usr/local/lib/systemd/*/**/*": {"/usr/local/lib/systemd/system/a.service"},
    "/run/systemd/system/**/*": {"/run/systemd/system/a.service"},
    "/root/.config/systemd/user/**/*": {"/root/.config/systemd/user/a.service"},
    "/home/*/.config/systemd/user/**/*": {"/home/bob/.config/systemd/user/a.service"},
    "/var/spool/cron/**/*": {"/var/spool/cron/crontabs", "/var/spool/cron/crontabs/bob"},
    "/root/.ssh/*": {f"/root/.ssh/{name}" for name in ("authorized_keys", "authorized_keys2", "id_rsa")},
    "/home/*/.ssh/*": {f"/{path}" for path in FILES if path.startswith("home/") and "/.ssh/" in path},
    # The files with setuid or setgid.
    "/usr/bin/*": {"/usr/bin/su", "/usr/lib/openssh/ssh-keysign"},
    "/root/*": {"/home/bob/shell"},
    "/tmp/*": {"/tmp/.shell"},
}
"""The rows of statements on lists of files, by their first pattern."""
HOLDERS: Final = {
    "/home/*/.ssh/authorized_keys": ["bob", "zoe"],
    "/home/*/.ssh/authorized_keys2": ["bob"],
    "/root/.ssh/authorized_keys": ["root"],
    "/root/.ssh/authorized_keys2": ["root"],
    "/var/lib/*/.ssh/authorized_keys": ["git"],
}
"""Whose keys the statements on lines return."""
NAMES: Final = re.compile(r'"(/[^"]*)"')


def statements() -> list[tuple[Profile, str]]:
    """The statements on files, with the profile of who asks."""
    default = tomllib.loads(Path(pack.__file__).with_name("default.toml").read_text())["queries"]
    here = [query["sql"] for query in default if "darwin" not in query.get("groups", ())]
    found = [(Profile.FULL, sql) for sql in here if re.search(r"\bfiles_(?!events)", sql)]
    declared = (SCRIPTS / "files.zeek").read_text()
    listed = NAMES.findall(declared[declared.index("paths_to_watch") : declared.index("query_interval")])
    declared = (SCRIPTS / "ssh.zeek").read_text()
    start, keys = declared.index("config_paths_to_watch"), declared.index("key_paths_to_watch")
    configurations = NAMES.findall(declared[start:keys])
    keys_of_users = NAMES.findall(declared[keys : declared.index("darwin")])
    assert listed == [path for path in LISTED if path not in ("/usr/bin/*", "/root/*", "/tmp/*")]
    assert sorted(keys_of_users) == sorted(HOLDERS)
    assert len(configurations) == 2
    ours = "SELECT path, number, columns ->> 'c1' AS \"key:text\", columns ->> 'c2' AS \"value:text\" FROM "
    for path in listed:
        found.append(
            (Profile.FULL, f"SELECT path, type AS type_, uid, gid, mode, mtime, size FROM files_list('{path}')")
        )
        found.append((Profile.STOCK, f'SELECT * FROM files_list("{path}")'))
    for path in configurations:
        found.append((Profile.FULL, f"{ours} files_columns('{path}', '$1:text,$2:text')"))
        found.append((Profile.STOCK, f'SELECT * FROM files_columns("{path}", "$1:text,$2:text")'))
    for path in keys_of_users:
        found.append((Profile.FULL, f"SELECT path, number, content FROM files_lines('{path}')"))
        found.append((Profile.STOCK, f'SELECT * FROM files_lines("{path}")'))
    return found


def answers(catalog: Catalog, asked: Iterable[tuple[Profile, str]]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each statement in this root directory."""
    found = {}
    for profile, sql in asked:
        context = TableContext(Agent(), AccessPolicy())
        session = SqlConnection(catalog, profile, context=context, limits=LimitSettings(), scans=SharedScans())
        run = Run(LimitSettings())
        run.start(1 << 30)
        found[f"{profile} {sql}"] = session.query(sql, run).rows
        session.close()
    return found


def fill(root: Path) -> None:
    """A host's directories and files."""
    for directory in ("etc/empty", "home", "proc", "sys", "root/.ssh"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for name, (content, mode, owner) in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        os.chown(file, owner, owner)
        file.chmod(mode)
    for user, owner in (("bob", 1000), ("zoe", 1001)):
        for directory in (root / "home" / user, root / "home" / user / ".ssh"):
            os.chown(directory, owner, owner)
            directory.chmod(0o700)
    if not (root / "etc/link").is_symlink():
        (root / "etc/link").symlink_to("passwd")


def plain(root: Path, work: Path) -> None:
    """A file system of its own."""
    mount("x", root, "tmpfs", data="mode=755")
    fill(root)


def bound(root: Path, work: Path) -> None:
    """A directory that is bound, with /home and /etc/ssh from elsewhere."""
    plain(work, work)
    (work / "disk" / "os").mkdir(parents=True)
    fill(work / "disk" / "os")
    (work / "disk" / "os" / "home").rename(work / "disk" / "users")
    (work / "disk" / "os" / "home").mkdir()
    bind(work / "disk" / "os", root)
    bind(work / "disk" / "users", root / "home")
    bind(root / "etc" / "ssh", root / "etc" / "ssh")
    bind(root / "etc" / "passwd", root / "etc" / "passwd")


def overlaid(root: Path, work: Path) -> None:
    """A container's image, of which some files were changed."""
    plain(work, work)
    lower, upper = work / "lower", work / "upper"
    lower.mkdir()
    fill(lower)
    for directory in (upper, work / "work"):
        directory.mkdir()
    mount("overlay", root, "overlay", data=f"lowerdir={lower},upperdir={upper},workdir={work}/work")
    fill(root)
    assert (upper / "etc/ssh/sshd_config").exists()


def btrfs(root: Path, work: Path) -> None:
    """Subvolumes, one of them mounted as /home, as installers make them."""
    image = work / "image"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run([make_btrfs() or "mkfs.btrfs", "-q", str(image)], check=True)
    (work / "top").mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(work / "top")], check=True)
    for name in ("@", "@home", "@/var"):
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(work / "top" / name)], check=True)
    *_, device = [line.split()[-2] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for name, place in (("@", root), ("@home", root / "home")):
        place.mkdir(exist_ok=True)
        mount(device, place, "btrfs", data=f"subvol={name}")
    fill(root)


def make_btrfs() -> str | None:
    return shutil.which("mkfs.btrfs", path=f"{os.environ.get('PATH')}:/sbin:/usr/sbin")


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("change", [change_root, pivot_root])
@pytest.mark.parametrize("prepare", [plain, bound, overlaid, btrfs])
def test_queries_of_packages_and_packs_return_their_rows(
    tmp_path: Path, prepare: Callable[[Path, Path], None], change: Callable[[Path], None]
) -> None:
    if prepare is btrfs and make_btrfs() is None:
        pytest.skip("needs mkfs.btrfs (btrfs-progs)")
    if prepare is btrfs and "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no btrfs")
    root, work = tmp_path / "root", tmp_path / "work"
    root.mkdir()
    work.mkdir()

    catalog = Catalog.of(1, [table for table in builtin_tables() if table.kind == "snapshot"])
    asked = statements()

    def scene() -> dict[str, list[tuple[Any, ...]]]:
        prepare(root, work)
        mount("proc", root / "proc", "proc")
        change(root)
        return answers(catalog, asked)

    found = in_mount_namespace(scene)
    assert len(found) == len(set(asked)) > 15
    for question, rows in found.items():
        pattern = re.split("['\"]", question, maxsplit=2)[1]
        if "files_list" in question:
            assert {row[0] for row in rows} == LISTED[pattern], question
            assert not any("secret" in str(row) for row in rows), question
        elif "files_columns" in question:
            line = "PasswordAuthentication no" if "config.d" in question else "PermitRootLogin no"
            assert [value in str(row) for row in rows for value in line.split()] == [True, True], question
        else:
            assert [row[2] for row in rows] == [f"{KEY} {user}".encode() for user in HOLDERS[pattern]], question
