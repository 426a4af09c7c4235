"""Compiles the BPF programs: `python hatch_build.py`, and by itself whenever a wheel or an editable install is built.

Needs clang and libbpf's headers (Debian: `apt install clang libbpf-dev`). Without them the package is built without
eBPF, and says so.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a command, without the build system
    BuildHookInterface = object  # type: ignore[assignment,misc]

SOURCES = Path(__file__).parent / "src" / "zeek_agent" / "bpf"


class BpfError(Exception):
    """The programs cannot be compiled here, or not at all."""


class BpfBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled programs into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        try:
            compile_all()
        except BpfError as error:
            self.app.display_warning(f"built without eBPF, process and socket events come from other sources: {error}")


def compile_all(sources: Path = SOURCES) -> list[Path]:
    """Compile each `*.bpf.c` to a `*.bpf.o` beside it; those newer than all sources stay. Raises BpfError."""
    programs = sorted(sources.glob("*.bpf.c"))
    changed = max(path.stat().st_mtime for path in [*sources.glob("*.h"), *programs])
    return [_compile(program) for program in programs if _older(program.with_suffix(".o"), changed)]


def _older(path: Path, moment: float) -> bool:
    return not path.exists() or path.stat().st_mtime < moment


def _compile(program: Path) -> Path:
    clang = shutil.which("clang")
    if clang is None:
        raise BpfError("clang is not installed")
    target = program.with_suffix(".o")
    partial = target.with_suffix(".tmp")
    arguments = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", *_system_headers()]
    result = subprocess.run(
        [clang, *arguments, "-c", str(program), "-o", str(partial)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        partial.unlink(missing_ok=True)
        raise BpfError(f"clang refused {program.name}: {result.stderr.strip()}")
    strip = shutil.which("llvm-strip")
    if strip:
        subprocess.run([strip, "-g", str(partial)], check=True)
    partial.replace(target)
    return target


def _system_headers() -> list[str]:
    """The architecture's directory of <asm/types.h> on Debian, where clang does not look for this target."""
    directory = Path("/usr/include") / f"{platform.machine()}-linux-gnu"
    return ["-idirafter", str(directory)] if directory.is_dir() else []


def main() -> int:
    try:
        compiled = compile_all()
    except BpfError as error:
        sys.stderr.write(f"hatch_build: {error}\n")
        return 1
    for path in compiled:
        sys.stdout.write(f"{path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
