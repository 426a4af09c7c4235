"""Shared by all tests: what needs root or Zeek is skipped by name where they are not."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_root = pytest.mark.skip(reason="needs root")
    without_zeek = pytest.mark.skip(reason="needs zeek on PATH")
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(without_root)
        if item.get_closest_marker("zeek") and shutil.which("zeek") is None:
            item.add_marker(without_zeek)
