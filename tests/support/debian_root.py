"""Fresh roots of Debian's releases, made by debootstrap and changed in overlays; transcripts of what runs there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from places import ROOT
from waiting import until_sync

KEPT = ROOT / ".build"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(eq=False)
class DebianRoot:
    """A root that belongs to this test. What runs in it is written to the transcript."""

    path: Path
    release: str
    transcript: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    container: subprocess.Popen[bytes] | None = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def run(self, command: str, *, fails: bool = False) -> str:
        """The output of a shell command in the root, which must succeed, or fail."""
        begin = time.monotonic()
        done = subprocess.run(
            [*self._enter(), "/bin/sh", "-c", f"cd /root; {command}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=self._environment(),
        )  # fmt: skip
        self._note(
            f"{self.release}# {command}\n{done.stdout}[exit {done.returncode}, {time.monotonic() - begin:.1f} s]"
        )
        assert (done.returncode != 0) == fails, f"{command}: exit code {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def install(self, package: Path) -> None:
        """Install or upgrade to a package, with one command; a changed configuration is kept without a question."""
        shutil.copy(package, self.path / "root")
        self.run(f"apt-get install -y -o Dpkg::Options::=--force-confold ./{package.name}")

    def query(self, sql: str) -> str:
        """The rows of a statement, as CSV."""
        return self.run(f'zeek-agent query --format csv "{sql}"')

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command in the root, which ends with the test at the latest."""
        self._note(f"{self.release}# {command} &")
        output = (self.path / "root" / "output").open("ab")
        process = subprocess.Popen(
            ["chroot", self.path, *command.split()], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=self._environment(),
        )  # fmt: skip
        output.close()
        self.started.append(process)
        return process

    def boot(self) -> None:
        """Boot the root with its systemd as process 1, in a container that has all capabilities.

        Control groups are as far as the host lets them; the filter of the container permits what the unit needs.
        """
        for name in ("proc", "sys", "dev"):
            _run("umount", "--recursive", str(self.path / name))
        calls = "bpf perf_event_open seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self "
        calls += "fanotify_init fanotify_mark name_to_handle_at open_by_handle_at"
        command = ["systemd-nspawn", "--register=no", "--keep-unit", f"--directory={self.path}", "--boot"]
        command += ["--capability=all", f"--system-call-filter={calls}", "--console=pipe"]
        console = self.transcript.with_suffix(".console").open("wb")
        self.container = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        console.close()
        self.started.append(self.container)
        until_sync(lambda: self._system_state() in ("running", "degraded"), 180, "systemd has not booted")

    def _system_state(self) -> str:
        assert self.container is not None
        if self._init() is None:
            return ""
        return subprocess.run(
            [*self._enter(), "systemctl", "is-system-running"], capture_output=True, text=True, check=False
        ).stdout.strip()

    def _init(self) -> str | None:
        assert self.container is not None
        children = Path(f"/proc/{self.container.pid}/task/{self.container.pid}/children").read_text().split()
        return children[0] if children else None

    def _enter(self) -> list[str]:
        """The prefix of a command in the root."""
        if self.container is None:
            return ["chroot", str(self.path)]
        return ["nsenter", "--target", str(self._init()), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]

    def shut_down(self) -> None:
        """End the container in order: systemd-nspawn passes the signal on as a shutdown."""
        if self.container is not None and self.container.poll() is None:
            self.container.terminate()
            self.container.wait(120)

    def _note(self, text: str) -> None:
        with self.transcript.open("a") as file:
            file.write(f"{text}\n")

    def _environment(self) -> dict[str, str]:
        return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "TERM": "dumb"}


def build(release: str, output: Path, *options: str, source: Path = ROOT) -> dict[str, Path]:
    """The packages of a tree for a release, by kind."""
    command = [sys.executable, source / "packaging" / "packages.py", "--release", release, "--output", output, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.suffix[1:]: path for path in output.iterdir()}


@contextmanager
def debian_root(release: str, directory: Path, transcript: Path, *, copied: bool = False) -> Iterator[DebianRoot]:
    """A fresh root as debootstrap leaves it, with apt's lists; its changes are gone afterwards.

    It is an overlay, or a copy (400 MB), as fanotify reports no events of overlays.
    """
    root = DebianRoot(directory / "root", release, transcript)
    root.path.mkdir()
    transcript.parent.mkdir(parents=True, exist_ok=True)
    transcript.write_text("")
    _mount_copy(_base(release), root.path) if copied else _mount_overlay(_base(release), root.path)
    try:
        _run("mount", "-t", "proc", "proc", str(root / "proc"))
        _run("mount", "-t", "sysfs", "sysfs", str(root / "sys"))
        _run("mount", "--bind", "/dev", str(root / "dev"))
        root.run("apt-get update -qq")
        yield root
    finally:
        root.shut_down()
        for process in root.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        _run("umount", "--recursive", str(root.path))
        if copied:
            shutil.rmtree(root.path)


def _mount_overlay(base: Path, path: Path) -> None:
    upper, work = path.with_name("upper"), path.with_name("work")
    upper.mkdir()
    work.mkdir()
    options = f"lowerdir={base},upperdir={upper},workdir={work}"
    _run("mount", "-t", "overlay", "overlay", "-o", options, str(path))


def _mount_copy(base: Path, path: Path) -> None:
    _run("cp", "--archive", "--no-target-directory", str(base), str(path))
    _run("mount", "--bind", str(path), str(path))


def _base(release: str) -> Path:
    base = KEPT / "roots" / f"{release}.fresh"
    if not (base / ".ok").exists():
        shutil.rmtree(base, ignore_errors=True)
        (KEPT / "debs").mkdir(parents=True, exist_ok=True)
        _run("debootstrap", f"--cache-dir={KEPT / 'debs'}", release, str(base), MIRROR)
        (base / ".ok").touch()
    return base


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
