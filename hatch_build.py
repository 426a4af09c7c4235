"""Compiles the BPF programs: `python hatch_build.py`, and by itself whenever a wheel or an editable install is built.

Needs clang and libbpf's headers (Debian: `apt install clang libbpf-dev`). Without them the package is built without
eBPF, and says so; with ZEEK_AGENT_BPF=require in the environment that is an error.

A wheel with programs is for this machine's architecture. They depend on no C library, so it is for every Linux that
Python packages support; a wheel without programs is for any platform.
"""

from __future__ import annotations

import os
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

WITHOUT_EBPF = """
**********************************************************************
zeek-agent is built WITHOUT eBPF: {error}.
Process and socket events then come from other sources, which miss
short-lived processes and connections. Install clang and libbpf-dev and
build again, or use a wheel that has the programs.
**********************************************************************"""
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
            if os.environ.get("ZEEK_AGENT_BPF") == "require":
                raise
            self.app.display_warning(WITHOUT_EBPF.format(error=error))
        else:
            build_data["tag"] = f"py3-none-{platform_tag()}"


def platform_tag() -> str:
    """The platform of a wheel with programs, as pip names it."""
    machine = platform.machine()
    return f"manylinux_2_17_{machine}" if platform.libc_ver()[0] == "glibc" else f"linux_{machine}"


def compile_all(sources: Path = SOURCES) -> list[Path]:
    """Compile each `*.bpf.c` to a `*.bpf.o` beside it; those newer than all sources stay. Raises BpfError."""
    programs = sorted(sources.glob("*.bpf.c"))
    changed = max(path.stat().st_mtime for path in [*sources.glob("*.h"), *programs, Path(__file__)])
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
    arguments.append("-fdebug-compilation-dir=.")  # the same bytes wherever they are built
    result = subprocess.run(
        [clang, *arguments, "-c", program.name, "-o", str(partial.absolute())],
        capture_output=True, text=True, check=False, cwd=program.parent,
    )  # fmt: skip
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
