"""Installs the agent as a daemon of launchd on macOS, from a wheel."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import zeek_agent
from zeek_agent import platforms
from zeek_agent.errors import ZeekAgentError
from zeek_agent.host.macos.eslogger_errors import FULL_DISK_ACCESS
from zeek_agent.platforms.darwin import BASE, PLATFORM
from zeek_agent.service.example import example_configuration
from zeek_agent.service.installation import installed_program
from zeek_agent.service.trusted_paths import distrusted

LABEL: Final = "org.zeek.zeek-agent"
TARGET: Final = f"system/{LABEL}"
LOGS: Final = Path("/Library/Logs/ZeekAgent")
LAUNCHCTL: Final = "/bin/launchctl"
_MARK: Final = "Written by `zeek-agent service install`, which replaces it."
_RESTART_SECONDS: Final = 10
_EXIT_SECONDS: Final = 20
"""Time to end on SIGTERM, then it is killed; the agent needs a few seconds."""
_OPEN_FILES: Final = 8_192
_LOG_KIBIBYTES: Final = 10_240
_LOG_FILES: Final = 5
_ATTEMPTS: Final = 20
_ATTEMPT_SECONDS: Final = 0.5
"""launchd refuses to load a daemon while the one before it is still ending."""

Run: TypeAlias = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True, slots=True)
class LaunchdService:
    """The daemon on a host whose file system is at `root`. Methods yield lines about what they did."""

    root: Path = Path("/")
    run: Run = _run
    why_distrusted: Callable[[Path], str | None] = distrusted
    pause: Callable[[float], None] = time.sleep

    @property
    def property_list(self) -> Path:
        return self._at(Path("/Library/LaunchDaemons") / f"{LABEL}.plist")

    @property
    def configuration(self) -> Path:
        return self._at(PLATFORM.system_configuration)

    @property
    def rotation(self) -> Path:
        """The entry of newsyslog(8), which rotates the agent's log."""
        return self._at(Path("/etc/newsyslog.d") / f"{LABEL}.conf")

    @property
    def logs(self) -> Path:
        return self._at(LOGS)

    def install(self, program: Path, *, start: bool) -> Iterator[str]:
        """Write the property list and, if there is none, a configuration; start the daemon. Raises ZeekAgentError."""
        _require_root("install", program)
        for path in (program, Path(sys.executable), Path(os.__file__), Path(zeek_agent.__file__)):
            self._require_trusted(path)
        for file in (self.property_list, self.rotation):
            if file.exists() and not _is_ours(file):
                raise ZeekAgentError(f"{file} was not written by `zeek-agent service install`: move it away")
        self.logs.mkdir(parents=True, exist_ok=True, mode=0o750)
        _write(self.property_list, property_list(program), 0o644)
        yield f"wrote {self.property_list}"
        _write(self.rotation, rotation().encode(), 0o644)
        yield f"wrote {self.rotation}"
        if not self.configuration.exists():
            _write(self.configuration, configuration().encode(), 0o644)
            yield f"wrote {self.configuration}"
        if start:
            self._stop()
            self._launchctl("enable", TARGET)
            self._load()
            yield f"started {LABEL}"
        yield (
            f"process events need Full Disk Access for {os.path.realpath(sys.executable)}: {FULL_DISK_ACCESS}; "
            "`zeek-agent doctor` shows whether they are recorded"
        )

    def uninstall(self, *, purge: bool) -> Iterator[str]:
        """Stop the daemon and remove the property list; with `purge` also state, logs and configuration.

        Raises ZeekAgentError.
        """
        _require_root("uninstall", Path("zeek-agent"))
        if self.property_list.exists():
            if not _is_ours(self.property_list):
                raise ZeekAgentError(
                    f"{self.property_list} was not written by `zeek-agent service install`: remove it yourself"
                )
            self._stop()
            for file in (self.property_list, self.rotation):
                if file.exists() and _is_ours(file):
                    file.unlink()
                    yield f"removed {file}"
        else:
            yield f"there is no {self.property_list}"
        if purge:
            for place in (self._at(BASE), self.logs):
                if place.exists():
                    shutil.rmtree(place)
                    yield f"removed {place}"

    def _at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def _require_trusted(self, path: Path) -> None:
        """Root must not run, at every boot, what somebody else can change."""
        reason = self.why_distrusted(path.absolute())
        if reason is not None:
            raise ZeekAgentError(
                f"root must not run {path}, which others can change: {reason}. Install for root, into a directory that "
                "belongs to root; docs/platforms.md shows how"
            )

    def _stop(self) -> None:
        if self.run([LAUNCHCTL, "print", TARGET]).returncode == 0:
            self._launchctl("bootout", TARGET)

    def _load(self) -> None:
        """Start it, as soon as launchd has ended the one before."""
        command = [LAUNCHCTL, "bootstrap", "system", str(self.property_list)]
        for _ in range(_ATTEMPTS):
            done = self.run(command)
            if done.returncode == 0:
                return
            self.pause(_ATTEMPT_SECONDS)
        raise ZeekAgentError(f"{' '.join(command)} failed: {_complaint(done)}")

    def _launchctl(self, *arguments: str) -> None:
        done = self.run([LAUNCHCTL, *arguments])
        if done.returncode:
            raise ZeekAgentError(f"launchctl {' '.join(arguments)} failed: {_complaint(done)}")


class InstalledDaemon:
    """The daemon that runs the program of this installation."""

    def install(self, *, start: bool) -> Iterator[str]:
        return LaunchdService().install(installed_program(), start=start)

    def uninstall(self, *, purge: bool) -> Iterator[str]:
        return LaunchdService().uninstall(purge=purge)


def property_list(program: Path) -> bytes:
    """The daemon's property list, launchd.plist(5), with this program."""
    content: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": [str(program), "run"],
        "RunAtLoad": True,
        # An agent that fails is started again; one that ended as it should is not.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _RESTART_SECONDS,
        "ExitTimeOut": _EXIT_SECONDS,
        "WorkingDirectory": str(LOGS),
        "StandardOutPath": "/dev/null",
        "StandardErrorPath": str(LOGS / "stderr.log"),
        "Umask": 0o077,
        "SoftResourceLimits": {"NumberOfFiles": _OPEN_FILES},
    }
    try:
        text = plistlib.dumps(content, sort_keys=False)
    except ValueError as error:
        raise ZeekAgentError(f"launchd cannot execute {str(program)!r} ({error}): install it elsewhere") from None
    return text.replace(b"<plist", f"<!-- {_MARK} -->\n<plist".encode(), 1)


def rotation() -> str:
    """The entry of newsyslog.conf(5) for the agent's log, which the agent opens again when it was moved."""
    return f"# {_MARK}\n{LOGS}/zeek-agent.log 600 {_LOG_FILES} {_LOG_KIBIBYTES} * JN\n"


def configuration() -> str:
    """The example configuration, with a file for the agent's log, because launchd does not rotate standard error."""
    text, changed = re.subn(
        r'(?m)^(\[log\]\n(?:#.*\n)*?)#file = ".*"$', rf'\g<1>file = "{LOGS}/zeek-agent.log"', example_configuration()
    )
    assert changed == 1
    return text


def _require_root(what: str, program: Path) -> None:
    if not platforms.HERE.is_privileged():
        raise ZeekAgentError(f"only root can {what} the service: sudo {program} service {what}")


def _is_ours(file: Path) -> bool:
    return _MARK.encode() in file.read_bytes()


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.write_bytes(content)
    partial.chmod(mode)
    partial.replace(path)


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    return f"status {done.returncode}, {done.stderr.strip() or 'without a message'}"
