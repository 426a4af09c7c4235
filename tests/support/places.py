"""Where things are in the checkout, for tests in any folder."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
"""Modules that tests share; on the path of tests, and of programs that they start."""
TESTS = SUPPORT.parent
ROOT = TESTS.parent
