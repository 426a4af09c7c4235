"""Packages and fresh roots for the tests in this folder, by release."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_root import KEPT, DebianRoot, build, debian_root


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def release(request: pytest.FixtureRequest) -> str:
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap")
    return str(request.param)


@pytest.fixture(scope="session")
def packages(release: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(release, tmp_path_factory.mktemp("packages"))


@pytest.fixture
def root(release: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DebianRoot]:
    transcript = KEPT / "transcripts" / f"{request.node.originalname}-{release}.txt"
    with debian_root(release, tmp_path, transcript) as made:
        yield made
