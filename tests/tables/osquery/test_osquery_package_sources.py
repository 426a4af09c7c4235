"""osquery's tables of repositories, compared with apt, and with a reader of INI files."""

from __future__ import annotations

import configparser
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scratch_host import Rows, on_scratch_host, output, select, select_in_worker, select_with_errors

from zeek_agent.host.packages import repositories

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get(8)")
RELEASE = """Origin: Example
Suite: stable
Codename: {codename}
Version: 7.1
Architectures: amd64 arm64
Components: main extra
Description: a: b
MD5Sum:
 d41d8cd98f00b204e9800998ecf8427e 0 main/binary-amd64/Packages
"""
INDEX_FIELDS = "$(SITE)|$(CODENAME)|$(VERSION)|$(ORIGIN)|$(RELEASE)|$(SOURCESENTRY)"


def make_repository(codename: str, place: Path = Path("/var/repository")) -> None:
    packages = place / f"dists/{codename}/main/binary-amd64/Packages"
    packages.parent.mkdir(parents=True)
    packages.write_bytes(b"")
    (place / f"dists/{codename}/Release").write_text(RELEASE.format(codename=codename))


@needs_apt
@pytest.mark.root
def test_a_new_repository_is_listed_as_apt_lists_it(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, str]:
        shutil.rmtree("/etc/apt/sources.list.d")
        Path("/etc/apt/sources.list.d").mkdir()
        for codename in ("one", "two", "three", "four"):
            make_repository(codename)
        Path("/etc/apt/sources.list").write_text(
            "# deb file:///var/repository none main\n"
            "deb [trusted=yes arch=amd64 ] file:///var/repository/ one main # comment\n"
        )
        Path("/etc/apt/sources.list.d/new.sources").write_text(
            "Types: deb\nURIs: file:///var/repository\nSuites: two\n three\nComponents: main\nTrusted: yes\n# comment\n"
            "\nTypes: deb\nEnabled: no\nURIs: file:///var/repository\nSuites: four\nComponents: main\n"
        )
        output("apt-get", "update", "-o", "APT::Sandbox::User=root")
        with Path("/etc/apt/sources.list").open("a") as sources:
            sources.write("deb-src file:///var/repository four main\ndeb file:///never-fetched five main\n")
        with Path("/etc/apt/sources.list.d/new.sources").open("a") as sources:
            sources.write("\n\nTypes: deb-src\nURIs: file:///var/repository\nSuites: four\nComponents: extra\n")
        rows = select("SELECT *, pid_with_namespace FROM apt_sources")
        return (
            rows,
            select_in_worker("SELECT *, pid_with_namespace FROM apt_sources"),
            output("apt-get", "indextargets", "--format", INDEX_FIELDS),
        )

    rows, in_worker, listed = on_scratch_host(scene, tmp_path)
    assert rows == in_worker
    by_apt = {tuple(line.replace("file:/", "file:///", 1).split("|")) for line in listed.splitlines()}
    found = {
        (row["base_uri"], row["release"], row["version"], row["maintainer"], row["name"].split()[1], row["source"])
        for row in rows
    }
    assert found == {(*fields[:-1], re.sub(r":\d+$", "", fields[-1])) for fields in by_apt if fields[1]}
    assert len(found) == len(rows) == 3
    assert rows[0] == {
        "name": "/var/repository one",
        "source": "/etc/apt/sources.list",
        "base_uri": "file:///var/repository",
        "release": "one",
        "version": "7.1",
        "maintainer": "Example",
        "components": "main extra",
        "architectures": "amd64 arm64",
        "pid_with_namespace": None,
    }


@needs_apt
@pytest.mark.parametrize(
    ("uri", "suite"),
    [
        ("http://host.example:8080/a_b/~c%20d/", "stable"),
        ("https://user:secret@host.example/debian", "stable/updates"),
        ("http://host.example/flat", "./"),
        ("http://host.example/flat//", "/"),
        ("http://host.example/flat+x", "sub/directory/"),
        ("http://host.example/a@b,c;d=e", "x"),
    ],
)
def test_names_of_release_files_are_those_of_apt(uri: str, suite: str, tmp_path: Path) -> None:
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb {uri} {suite} {'' if suite.endswith('/') else 'main'}\n")
    options = {"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null", "Dir::State::lists": tmp_path}
    arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    printed = output("apt-get", *arguments, "update", "--print-uris")
    (source,) = repositories.sources_in_list(sources.read_bytes().splitlines())
    assert (source.uri.decode(), source.suite.decode()) == (uri.rstrip("/"), suite)
    assert f" {source.release_files[0]} " in printed


@pytest.mark.root
def test_passwords_in_addresses_are_masked_and_private_files_not_read(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, Any]:
        shutil.rmtree("/etc/apt/sources.list.d")
        Path("/etc/apt/sources.list.d").mkdir()
        lists = Path("/var/lib/apt/lists")
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "host.example_debian_dists_x_InRelease").write_bytes(
            b"-----BEGIN PGP SIGNED MESSAGE-----\nVersion: \xff\n"
        )
        Path("/etc/apt/sources.list").write_text("deb https://user:hunter2@host.example/debian x main\n")
        Path("/etc/yum.repos.d").mkdir()
        Path("/etc/yum.repos.d/a.repo").write_text("[a]\nname=A\nbaseurl=https://user:hunter2@host.example/a\n")
        rows = select("SELECT name, base_uri, version, release FROM apt_sources")
        yum = select("SELECT name, baseurl FROM yum_sources")
        Path("/etc/apt/sources.list").chmod(0o600)
        return rows, yum, select_with_errors("SELECT * FROM apt_sources")

    rows, yum, (none, errors) = on_scratch_host(scene, tmp_path)
    assert rows == [
        {
            "name": "user:***@host.example/debian x",
            "base_uri": "https://user:***@host.example/debian",
            "version": "\uefff",
            "release": "",
        }
    ]
    assert yum == [{"name": "A", "baseurl": "https://user:***@host.example/a"}]
    assert none == []
    assert "not readable by every local user" in errors[0]


@pytest.mark.root
def test_repositories_of_yum_are_those_that_a_reader_of_ini_files_finds(tmp_path: Path) -> None:
    first = """# comment
[main]
reposdir = /etc/elsewhere/
keepcache=0
[in-main-file]
name=In main
enabled=1
"""
    second = """; comment
[base]
name = Base - $releasever
mirrorlist=http://mirror.example/?release=$releasever&arch=$basearch
metalink=https://mirror.example/metalink?repo=base
baseurl=http://one.example/base
  http://two.example/base
enabled = 1
gpgcheck=1
gpgkey=file:///etc/pki/rpm-gpg/KEY
other=x

[off]
enabled=0
"""

    def scene() -> tuple[Rows, Rows]:
        Path("/etc/yum.conf").write_text(first)
        Path("/etc/elsewhere").mkdir()
        Path("/etc/elsewhere/a.repo").write_text(second)
        Path("/etc/elsewhere/b.repo").write_bytes(b"no section=1\n[\xff]\nname\n=\n[]\n" + b"x" * 100_000)
        Path("/etc/elsewhere/c.txt").write_text("[ignored]\n")
        return select("SELECT *, pid_with_namespace FROM yum_sources"), select_in_worker("SELECT name FROM yum_sources")

    rows, in_worker = on_scratch_host(scene, tmp_path)
    expected: list[dict[str, str]] = []
    for file, text in (("/etc/yum.conf", first), ("/etc/elsewhere/a.repo", second)):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(text)
        for section in parser.sections():
            if section != "main":
                values = {name: parser[section].get(name, "").replace("\n", " ") for name in repositories.YUM_OPTIONS}
                expected.append({**values, "source": file})
    assert [
        {name: row[name] for name in expected[0]} for row in rows if row["source"] != "/etc/elsewhere/b.repo"
    ] == expected
    assert [row["name"] for row in rows if row["source"] == "/etc/elsewhere/b.repo"] == ["", ""]
    assert {row["pid_with_namespace"] for row in rows} == {None}
    assert in_worker == [{"name": row["name"]} for row in rows]


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_make_the_readers_fail(content: list[bytes]) -> None:
    prefixed: Iterable[bytes] = [b"deb http://x/ " + line for line in content]
    for sources in (repositories.sources_in_list(prefixed), repositories.sources_in_deb822(content)):
        for source in sources:
            assert all("/" not in name and "\0" not in name for name in source.release_files)
    assert all(b"\n" not in name for name in repositories.release_fields(line.replace(b"\n", b"") for line in content))
    assert len(list(repositories.yum_sections(content))) <= len(content)
