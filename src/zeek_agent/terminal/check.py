"""A verdict of `zeek-agent doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """A verdict: subject, finding, and advice unless it is ok."""

    name: str
    verdict: Verdict
    found: str
    advice: str | None = None


def kernel_setting(file: Path) -> str | None:
    """The value of a kernel setting; None if it does not exist or is not readable."""
    try:
        return file.read_text().strip()
    except OSError:
        return None
