"""Packages and fresh roots for the tests in this folder, by release."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_root import KEPT, DebianRoot, build, debian_root
from places import ROOT

BEFORE = "e62cafa373"
"""A commit without file events, and so without the units of the process that watches files."""


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def release(request: pytest.FixtureRequest) -> str:
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap")
    return str(request.param)


@pytest.fixture(scope="session")
def packages(release: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(release, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def package_before(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of an earlier commit, with that commit's own packaging and units."""
    source = tmp_path_factory.mktemp("before") / "source"
    for command in (
        ["clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(source)],
        ["-C", str(source), "checkout", "--quiet", BEFORE],
    ):
        subprocess.run(["git", *command], check=True, capture_output=True)
    (source / ".build").symlink_to(KEPT)
    return build(release, source.with_name("packages"), source=source)["deb"]


@pytest.fixture
def root(release: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DebianRoot]:
    transcript = KEPT / "transcripts" / f"{request.node.originalname}-{release}.txt"
    with debian_root(release, tmp_path, transcript) as made:
        yield made
