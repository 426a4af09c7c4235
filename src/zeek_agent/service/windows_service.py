"""Installs the agent as a Windows service, and runs it as one."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import zeek_agent
from zeek_agent import platforms
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.platforms.winapi import services
from zeek_agent.platforms.windows import PLATFORM
from zeek_agent.service.example import example_configuration

NAME: Final = "ZeekAgent"
SHOWN: Final = "Zeek Agent"
DESCRIPTION: Final = "Gives Zeek an SQL view of this host, and records its activity."
LOG_FILE: Final = "zeek-agent.log"


class WindowsService:
    """The service on this host. Methods yield lines about what they did."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.configuration = platforms.HERE.configuration_file(environment)

    @property
    def directory(self) -> Path:
        """Configuration, state, logs and the agent's own log; also the working directory."""
        return self.configuration.parent

    def install(self, *, start: bool) -> Iterator[str]:
        """Create the service and, if there is none, a configuration; start it. Raises ZeekAgentError."""
        _require_administrator("install")
        for path in _program_directories():
            _require_trusted(path)
        try:
            platforms.HERE.make_private_directory(self.directory)
            _require_own(self.directory)
            if not self.configuration.exists():
                self.configuration.write_text(example_configuration(), "utf-8")
                yield f"wrote {self.configuration}"
            services.install(NAME, SHOWN, DESCRIPTION, command_line())
            yield f"installed the service {NAME}"
            if start:
                services.stop(NAME)
                services.start(NAME)
                yield f"started {NAME}"
        except OSError as error:
            raise ZeekAgentError(f"cannot install the service: {error.strerror or error}") from None

    def uninstall(self, *, purge: bool) -> Iterator[str]:
        """Stop and remove the service; with `purge` also state, logs and configuration. Raises ZeekAgentError."""
        _require_administrator("uninstall")
        try:
            if services.state(NAME) is None:
                yield f"there is no service {NAME}"
            else:
                services.stop(NAME)
                services.delete(NAME)
                yield f"removed the service {NAME}"
            if purge and self.directory.exists():
                shutil.rmtree(self.directory)
                yield f"removed {self.directory}"
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise ZeekAgentError(f"cannot remove the service: {where}{error.strerror or error}") from None


def command_line() -> str:
    """What the service control manager executes."""
    return subprocess.list2cmdline([sys.executable, "-m", "zeek_agent", "service", "run"])


def run(work: Callable[[], int]) -> int:
    """Do the work as the service; its stop request is SIGTERM in the main thread. Raises UsageError elsewhere."""
    try:
        directory = WindowsService().directory
        platforms.HERE.make_private_directory(directory)
        _require_own(directory)
        os.chdir(directory)
        return services.StartedService(NAME).run(work, lambda: _thread.interrupt_main(signal.SIGTERM))
    except services.NotAServiceError:
        raise UsageError(
            "only the service control manager can run this: `zeek-agent service install` has it do so, and "
            "`zeek-agent run` runs the agent here"
        ) from None
    except OSError as error:
        raise ZeekAgentError(f"cannot run as a service: {error.strerror or error}") from None


def _program_directories() -> set[Path]:
    """Where the program, its interpreter, which may be another one's environment, and the libraries are."""
    files = (sys.executable, sys.base_prefix + "/python.exe", os.__file__, zeek_agent.__file__)
    return {Path(file).absolute().parent for file in files}


def _require_administrator(what: str) -> None:
    if not platforms.HERE.is_privileged():
        raise ZeekAgentError(f"only an administrator can {what} the service: use an elevated prompt")


def _require_own(directory: Path) -> None:
    """Every user may create directories in `%ProgramData%`, with files in it for the service. Raises ZeekAgentError."""
    if (reason := PLATFORM.program_exposure(directory)) is not None:
        raise ZeekAgentError(f"another user has made {directory}, or may change it: {reason}. Remove it")


def _require_trusted(directory: Path) -> None:
    """The system must not run, at every boot, what somebody else can change."""
    profile = os.environ.get("USERPROFILE")
    try:
        reason = PLATFORM.program_exposure(directory)
        if reason is None and profile and directory.resolve().is_relative_to(Path(profile).resolve()):
            reason = f"it is in the profile {profile}, whose programs can change it without elevation"
    except OSError as error:
        raise ZeekAgentError(f"cannot check who may change {directory}: {error.strerror or error}") from None
    if reason is not None:
        raise ZeekAgentError(
            f"the system must not run programs in {directory}, which others can change: {reason}. Install Python and "
            "the agent for all users"
        )
