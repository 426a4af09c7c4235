"""Tests of shared code that do not run on Windows or under Wine, by name, and why."""

from __future__ import annotations

FILES: dict[str, str] = {}

TESTS: dict[str, str] = {}
