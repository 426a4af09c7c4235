"""What goes into a package, without building one."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from zeek_agent.service import installation

sys.path.insert(0, str(ROOT / "packaging"))
try:
    import check_notice
    import packages as building
finally:
    sys.path.remove(str(ROOT / "packaging"))


def test_every_package_of_the_environment_is_locked_with_hashes() -> None:
    text = building.locked(building.run_time())
    assert {"apsw", "click", "websockets", "thriftpy2", "rich", "mdurl"} <= {*building.run_time()}
    for name in building.run_time():
        assert f"\n{name.lower()}==" in f"\n{text}".lower()
    assert text.count("--hash=sha256:") >= len(building.run_time())
    assert "pytest==" not in text


def test_files_of_the_host_are_where_distributions_expect_them() -> None:
    files = dict(building.files())
    assert b"Type=notify" in files["usr/lib/systemd/system/zeek-agent.service"].content
    units = {Path(name).name for name in files if name.startswith("usr/lib/systemd/system/")}
    assert units == {installation.UNIT, *installation.FILES_UNITS, "zeek-agent-gateway.service"}
    assert files["etc/zeek-agent/zeek-agent.toml"].configuration
    assert b"u _zeek-agent" in files["usr/lib/sysusers.d/zeek-agent.conf"].content
    assert gzip.decompress(files["usr/share/man/man1/zeek-agent.1.gz"].content).startswith(b".TH ZEEK")
    assert [name for name, entry in files.items() if entry.configuration] == ["etc/zeek-agent/zeek-agent.toml"]


def test_the_copyright_file_has_the_license_of_everything_in_the_package(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages/one-1.dist-info"
    site.mkdir(parents=True)
    (site / "LICENSE.txt").write_text("license of one")
    text = building.copyright_text(tmp_path)
    assert "one-1.dist-info: LICENSE.txt\n\nlicense of one" in text
    notice = check_notice.parse((ROOT / "NOTICE").read_text())
    for section in (check_notice.RUN_TIME, check_notice.EXTRAS, check_notice.REQUIRED, check_notice.COMPILED):
        for name in notice[section]:
            assert name.lower() in text.lower()
    own = {path.name for path in (ROOT / "packaging/licenses").iterdir()}
    for name in ("Abseil", "Ryu", "Wuffs", "pybind11", "yyjson", "YAJL", "ply"):
        assert any(name in title for title in own), f"no license text of {name}, which no wheel has"


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "packaging/scripts").iterdir()))
def test_scripts_are_valid(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / "packaging/scripts" / script)], check=True)


@pytest.mark.root
def test_the_account_and_the_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for program, kind in (("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
        arguments = ["--create"] if kind == "tmpfiles" else []
        file = ROOT / f"src/zeek_agent/service/zeek-agent.{kind}"
        subprocess.run([program, *arguments, f"--root={tmp_path}", str(file)], check=True)
    assert "_zeek-agent:x:" in (tmp_path / "etc/passwd").read_text()
    assert (tmp_path / "var/lib/zeek-agent").stat().st_mode & 0o777 == 0o700
