"""Starts modules of this very agent in a new interpreter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = str(Path(__file__).parent.parent.parent)
"""The directory that the package is in."""
_RUN: Final = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` does, isolated from the environment and the current directory.

    The code is that of this process, also when it was found by PYTHONPATH, which an isolated interpreter ignores.
    """
    return [sys.executable, "-I", "-c", _RUN, ROOT, module, *arguments]
